"""Shapes and notation (MATH rows 1 and 3), initial weights, and what `MLP` refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmlp as jm
from jaxmlp import initializers


def test_shapes_of_the_notes_networks():
    assert jm.MLP((4, 3, 1)).shapes == ((3, 4), (1, 3))
    assert jm.MLP((4, 3, 3)).shapes == ((3, 4), (3, 3))
    assert jm.MLP((5, 7, 7, 2)).shapes[1] == (7, 7)


def test_a_weights_indices_name_the_units_it_joins():
    """`w_48^[5]` joins unit 8 of layer 4 to unit 4 of layer 5, counted from 1."""
    net = jm.MLP((2, 3, 3, 3, 9, 5), hidden="identity")
    params = jm.init(net, jax.random.key(0))
    z4 = jnp.arange(9.0)
    before = params[4].W @ z4
    W = params[4].W.at[4 - 1, 8 - 1].add(1.0)
    assert (W @ z4 - before).tolist() == pytest.approx([0, 0, 0, 7, 0], abs=1e-5)  # only unit 4, by unit 8's value


def test_an_mlp_is_a_static_description():
    net = jm.MLP((3, 4, 5, 2), hidden=("relu", "tanh"), output="softmax", loss="cross_entropy")
    same = jm.MLP([3, 4, 5, 2], hidden=["relu", "tanh"], output="softmax", loss="cross_entropy")
    assert net == same and hash(net) == hash(same)
    assert net != jm.MLP((3, 4, 5, 2), hidden=("tanh", "relu"), output="softmax", loss="cross_entropy")
    assert repr(net) == "MLP(3-4-5-2, hidden=relu, tanh, output=softmax, loss=cross_entropy)"
    assert [f.name for f in net.activations] == ["relu", "tanh", "softmax"]
    with pytest.raises(AttributeError):
        net.sizes = (1, 2)


def test_defaults():
    net = jm.MLP((3, 4, 2))
    assert ([f.name for f in net.activations], net.loss.name) == (["relu", "identity"], "squared_error")


@pytest.mark.parametrize("name", initializers.VARIANCES)
def test_initial_weights_have_the_named_variance(name, key):
    params = jm.init(jm.MLP((400, 300, 10)), key, weights=name)
    W = np.asarray(params[0].W)
    expected = {"zeros": 0, "small_normal": 1e-4, "lecun": 1 / 400, "xavier": 2 / 700, "he": 2 / 400}[name]
    assert W.var() == pytest.approx(expected, rel=0.02)
    assert abs(W.mean()) <= 4 * expected**0.5 / W.size**0.5
    assert not any(layer.b.any() for layer in params)


def test_the_same_key_draws_the_same_weights_and_layers_differ(key):
    net = jm.MLP((4, 4, 4))
    first, second = jm.init(net, key), jm.init(net, key)
    assert all(bool((a == b).all()) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))
    assert not np.allclose(first[0].W, first[1].W)


def test_jax_initializers_are_called_with_in_and_out(key):
    seen = []

    def recorded(key, shape, dtype):
        seen.append(shape)
        return jax.nn.initializers.orthogonal()(key, shape, dtype)

    params = jm.init(jm.MLP((5, 3, 2)), key, weights=recorded, biases="small_normal")
    assert seen == [(5, 3), (3, 2)]
    np.testing.assert_allclose(params[0].W @ params[0].W.T, np.eye(3), atol=1e-6)
    assert params[0].b.any()


def test_dtype_is_jaxs_default_unless_given(key):
    net = jm.MLP((2, 2))
    assert jm.init(net, key)[0].W.dtype == jnp.float32
    with jax.enable_x64(True):
        assert jm.init(net, key)[0].W.dtype == jnp.float64
        assert jm.init(net, key, dtype=jnp.float32)[0].W.dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": (3,)}, r"sizes is \(3,\), expected at least the widths of the inputs and of the outputs"),
        ({"sizes": (3, 0, 2)}, r"sizes\[1\] is 0, expected at least 1"),
        ({"sizes": (3, 2.5)}, r"sizes\[1\] is 2.5, expected a whole number"),
        ({"sizes": "784-10"}, r"sizes is '784-10', expected a sequence of widths"),
        ({"sizes": (3, 4, 2), "hidden": "rellu"}, r"hidden is 'rellu', .*; did you mean 'relu'\?"),
        ({"sizes": (3, 4, 2), "hidden": ("relu", "tanh")}, r"hidden has 2 activations, the network has 1 hidden"),
        ({"sizes": (3, 4, 2), "hidden": "softmax"}, r"hidden is 'softmax', which couples a layer's units"),
        ({"sizes": (3, 4, 2), "hidden": 3}, r"hidden is 3, expected a name or an Activation"),
        ({"sizes": (3, 4, 2), "hidden": "Relu"}, r"hidden is 'Relu', .*; did you mean 'relu'\?"),
        ({"sizes": (3, 1), "output": "softmax", "loss": "cross_entropy"}, r"output is 'softmax' with a single unit"),
        ({"sizes": (3, 2), "output": "softmin"}, r"output is 'softmin', .*did you mean 'softmax'\?"),
        ({"sizes": (3, 2), "loss": "crossentropy"}, r"loss is 'crossentropy', .*did you mean 'cross_entropy'\?"),
        (
            {"sizes": (3, 2), "loss": jm.Loss("l", lambda a, y: (a - y) ** 2, lambda a, y: a - y)},
            r"loss 'l': f turns \(2,\), \(2,\) into \(2,\), expected \(\)",
        ),
        (
            {"sizes": (3, 4, 2), "hidden": jm.Activation("np", np.tanh, np.cos)},
            r"'np': f fails on \(4,\)",
        ),
        (
            {"sizes": (3, 4, 2), "hidden": jm.Activation("s", jnp.sum, jnp.cos)},
            r"f turns \(4,\) into \(\), expected \(4,\)",
        ),
        ({"sizes": (3, 2), "loss": len}, r"loss is <built-in function len>, expected a name or a Loss"),
    ],
)
def test_what_an_mlp_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        jm.MLP(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"key": 0}, r"key is 0, expected one key such as jax.random.key\(0\)"),
        ({"weights": "hee"}, r"weights is 'hee', .*did you mean 'he'\?"),
        ({"biases": "ones"}, r"biases is 'ones', expected one of 'zeros'"),
        ({"dtype": "int32"}, r"dtype is int32, expected a floating-point type"),
        ({"dtype": "float64"}, r"dtype is float64, which JAX has switched off"),
        ({"weights": 0.1}, r"weights is 0.1, expected a name or a function"),
        ({"weights": jax.nn.initializers.orthogonal}, r"the initializer gave a function; was it to be called first\?"),
        ({"dtype": "foo"}, r"dtype is 'foo', expected a floating-point type"),
        ({"weights": lambda key, shape, dtype: jnp.zeros(3)}, r"weights: the initializer gave shape \(3,\)"),
    ],
)
def test_what_init_refuses(arguments, message, key):
    with pytest.raises(ValueError, match=message):
        jm.init(jm.MLP((3, 2)), **({"key": key} | arguments))
