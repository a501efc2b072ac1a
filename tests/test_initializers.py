"""Initial weights: their variances, JAX's own initializers, and what `init` refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmlp as jm
from jaxmlp import initializers


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
        ({"key": 0}, r"key is 0, expected one key such as jax.random.key\(0\)"),
        ({"weights": "hee"}, r"weights is 'hee', .*did you mean 'he'\?"),
        ({"biases": "ones"}, r"biases is 'ones', expected one of 'zeros'"),
        ({"dtype": "int32"}, r"dtype is int32, expected a floating-point type"),
        ({"dtype": "float64"}, r"dtype is float64, which JAX has switched off"),
        ({"weights": 0.1}, r"weights is 0.1, expected a name or a function"),
        (
            {"weights": jax.nn.initializers.orthogonal},
            r"the initializer gave a function, expected an array; call it first",
        ),
        ({"dtype": "foo"}, r"dtype is 'foo', expected a floating-point type"),
        ({"weights": lambda key, shape, dtype: jnp.zeros(3)}, r"weights: the initializer gave shape \(3,\)"),
        ({"weights": lambda key, shape, dtype: jnp.zeros(shape, jnp.float16)}, r"gave float16, expected float32"),
        (
            {"biases": lambda key, shape: jnp.zeros(shape)},
            r"biases: the initializer fails on a key, \(1, 2\) and float32",
        ),
    ],
)
def test_what_init_refuses(arguments, message, key):
    with pytest.raises(ValueError, match=message):
        jm.init(jm.MLP((3, 2)), **({"key": key} | arguments))
