"""Shapes and notation (rows 1 and 3 of the notes' systems), and what `MLP` refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmlp as jm


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": (3,)}, r"sizes is \(3,\), expected at least the widths of the inputs and of the outputs"),
        ({"sizes": (3, 0, 2)}, r"sizes\[1\] is 0, expected at least 1"),
        ({"sizes": (3, 2.5)}, r"sizes\[1\] is 2.5, expected a whole number"),
        ({"sizes": "784-10"}, r"sizes is '784-10', expected a sequence of widths"),
        ({"sizes": (3, 4, 2), "hidden": "rellu"}, r"hidden is 'rellu', .*; did you mean 'relu'\?"),
        (
            {"sizes": (3, 4, 2), "hidden": ("relu", "tanh")},
            r"hidden has 2 activations, expected 1, one for each hidden layer",
        ),
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
