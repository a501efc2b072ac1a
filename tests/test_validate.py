"""Bad input at the doors: which argument, what came, what was expected; also under a trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmlp as jm

NET = jm.MLP((3, 4, 2), output="softmax", loss="cross_entropy")
PARAMS = jm.init(NET, jax.random.key(0))
X, Y = np.ones((5, 3), np.float32), np.asarray([0, 1, 1, 0, 1])
TAPE = jm.forward(NET, PARAMS, X[0])[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.ones((5, 783), np.float32)}, r"X has 783 features, the network takes 3"),
        ({"X": np.ones(3, np.float32)}, r"X has shape \(3,\), expected \(examples, 3\)"),
        ({"X": np.ones((5, 3, 1), np.float32)}, r"X has shape \(5, 3, 1\), expected \(examples, 3\)"),
        ({"X": np.ones((5, 3), np.uint8)}, r"X has dtype uint8, expected float32; .*preprocess="),
        ({"X": np.ones((5, 3), np.float16)}, r"X has dtype float16, the parameters float32; convert one of them"),
        ({"X": np.where(np.eye(5, 3), np.inf, 0).astype("f")}, r"X holds inf at \(0, 0\)"),
        ({"X": [[1.0, 2.0], [3.0]]}, r"X is ragged, expected an array"),
        ({"X": [["a", "b", "c"]] * 5}, r"X has dtype <U1, expected an array of numbers"),
        ({"X": np.ones((0, 3), np.float32)}, r"X is empty \(shape \(0, 3\)\), expected at least one example"),
        ({"Y": np.asarray([0, 1, 2, 0, 1])}, r"Y holds the class 2, expected classes 0 to 1"),
        ({"Y": np.asarray([0, 1, -1, 0, 1])}, r"Y holds the class -1, expected classes 0 to 1"),
        ({"Y": np.zeros(5, np.float32)}, r"Y has dtype float32, expected integer classes, or rows"),
        ({"Y": np.zeros((5, 3), np.float32)}, r"Y has shape \(5, 3\), expected \(5, 2\) or \(5,\)"),
        ({"Y": np.zeros(4, int)}, r"Y has shape \(4,\), .* and 5 examples"),
        ({"Y": np.full((5, 2), 0.7, np.float32)}, r"Y: row 0 sums to 1.4, expected probabilities that sum to 1"),
        ({"Y": np.full((5, 2), [1.5, -0.5], np.float32)}, r"Y holds values from -0.5 to 1.5, expected 0 to 1"),
        ({"Y": np.full((5, 2), np.nan, np.float32)}, r"Y holds nan at \(0, 0\)"),
        ({"params": PARAMS[:1]}, r"params is 1 layers, expected a tuple of 2 layers \(W, b\)"),
        ({"params": tuple(tuple(layer) for layer in PARAMS)}, r"layer 1 is a tuple, expected a Layer\(W, b\)"),
        ({"Y": np.asarray([0, 1, 2**32 + 1, 0, 1])}, r"Y holds 0 to 4294967297, expected -2147483648 to 2147483647"),
        ({"preprocess": 255}, r"preprocess is 255, expected a function of one example"),
        ({"params": {"W": 1}}, r"params is a dict, expected a tuple"),
        ({"params": (PARAMS[0], PARAMS[0])}, r"params: layer 2 has W \(4, 3\) and b \(4,\), expected \(2, 4\) and"),
        ({"params": (PARAMS[0], 3)}, r"params: layer 2 is an? int, expected a Layer"),
        ({"params": jax.tree.map(lambda a: a.astype(int), PARAMS)}, r"params have dtype int32, expected one floating"),
        ({"params": (PARAMS[0], jax.tree.map(lambda a: a.astype(jnp.float16), PARAMS[1]))}, r"float16, float32"),
        ({"weights": np.ones(4)}, r"weights has shape \(4,\), expected one weight for each of the 5"),
        ({"weights": np.zeros(5)}, r"weights holds values from 0 to 0"),
        ({"weights": np.full(5, np.nan)}, r"weights holds nan"),
        ({"masks": (np.ones((5, 3)),)}, r"masks have shapes \[\(5, 3\)\], expected \[\(5, 3\), \(5, 4\)\]"),
        ({"preprocess": lambda x: x[:2]}, r"preprocess turns one example \(3,\) into \(2,\), expected \(3,\)"),
        ({"preprocess": lambda x: (x > 0).astype(int)}, r"preprocess turns X into int32, expected a floating-point"),
        ({"preprocess": lambda x: None}, r"preprocess turns one example \(3,\) into NoneType"),
    ],
)
def test_what_a_batch_door_refuses(change, message):
    arguments = {"params": PARAMS, "X": X, "Y": Y} | change
    for door in (jm.cost, jm.value_and_grad):
        with pytest.raises(ValueError, match=message):
            door(NET, **arguments)


def test_shapes_are_checked_under_a_trace_too():
    with pytest.raises(ValueError, match="X has 2 features, the network takes 3"):
        jax.jit(lambda X: jm.cost(NET, PARAMS, X, Y))(X[:, :2])
    with pytest.raises(ValueError, match=r"Y has shape \(3,\)"):
        jax.grad(lambda p: jm.cost(NET, p, X, Y[:3]))(PARAMS)


def test_binary_labels_outside_0_and_1_are_refused():
    net = jm.MLP((3, 1), output="sigmoid", loss="binary_cross_entropy")
    params = jm.init(net, jax.random.key(0))
    with pytest.raises(ValueError, match="Y holds values from 0 to 2, expected 0 to 1"):
        jm.cost(net, params, X, np.asarray([0, 1, 2, 0, 1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: jm.forward(NET, PARAMS, X),
            r"x has shape \(5, 3\), expected one example \(3,\); batches go to predict",
        ),
        (lambda: jm.forward(NET, PARAMS, X[0, :2]), r"x has 2 features, the network takes 3"),
        (lambda: jm.forward(NET, PARAMS, X[0], masks=(np.ones(3),)), r"masks have shapes \[\(3,\)\], expected"),
        (lambda: jm.backward(NET, PARAMS, TAPE, np.ones(3, "f")), r"delta_out has shape \(3,\), expected \(2,\)"),
        (lambda: jm.backward(NET, PARAMS[:1], TAPE, np.ones(2, "f")), r"params is 1 layers, expected a tuple of 2"),
        (lambda: jm.backward(NET, PARAMS, TAPE, np.ones(2, "f"), "sign"), r"rule is 'sign', expected a Rule such as"),
        (lambda: jm.predict(NET, PARAMS, X.astype(np.uint8)), r"X has dtype uint8, expected float32"),
        (lambda: jm.predict(PARAMS, NET, X), r"net is a tuple, expected an MLP"),
        (lambda: jm.value_and_grad(NET, PARAMS, X, Y, rule="sign"), r"rule is 'sign', expected a Rule such as"),
        (lambda: jm.check_gradients(NET, PARAMS, X, Y, step=0), r"step is 0, expected a positive number"),
        (lambda: jm.tail_loss(NET, PARAMS, 3, X[0], Y[0]), r"layer is 3, expected 1 to 2"),
        (lambda: jm.tail_loss(NET, PARAMS, 1, X[0], Y[0]), r"z has shape \(3,\), expected \(4,\) at layer 1"),
    ],
)
def test_what_the_other_doors_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_known_arrays_are_checked_inside_somebodys_trace():
    """Labels that are closed over are known, though what is computed from them under the trace is not."""
    grad = jax.jit(jax.grad(lambda p: jm.cost(NET, p, X, Y, weights=np.ones(5))))
    assert grad(PARAMS)[0].W.shape == (4, 3)
    with pytest.raises(ValueError, match="Y holds the class 7"):
        jax.jit(lambda p: jm.cost(NET, p, X, Y + 6))(PARAMS)
    with pytest.raises(ValueError, match="X holds nan"):
        jax.vmap(lambda s: jm.cost(NET, PARAMS, jnp.asarray(X * np.nan), Y) * s)(jnp.ones(3))
