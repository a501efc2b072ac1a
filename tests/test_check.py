"""The checker passes what is right, and catches and names what is broken."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import SMOOTH, TABLE, Problem, random_problems

import jaxmlp as jm
from jaxmlp.check import central_difference


@pytest.fixture(autouse=True)
def double(x64):
    pass


@hypothesis.given(random_problems())
def test_random_networks_pass_by_all_three_routes(problem):
    """Widths 1 to 6, depths 1 to 6, batches of 1 to 5, both dtypes; kinks are left out by name."""
    params, X, Y, _, weights, masks = problem.make()
    report = jm.check_gradients(problem.net, params, X, Y, weights=weights, masks=masks, entries=6)
    assert report.passed, f"{problem}\n{report}"
    assert len(report.rows) == 5 * problem.net.depth


AS_USERS = """
import jax
jax.config.update("jax_enable_x64", True)
import jaxmlp as jm
net = jm.MLP((5, 33, 70, 3), hidden=("relu", "tanh"), output="softmax", loss="cross_entropy")
keys = jax.random.split(jax.random.key(0), 3)
params, X = jm.init(net, keys[0]), jax.random.normal(keys[1], (20, 5))
report = jm.check_gradients(net, params, X, jax.random.randint(keys[2], (20,), 0, 3), entries=6)
assert report.passed, str(report)
"""


def test_a_network_passes_as_users_compile_it():
    """In a process of its own, with XLA as it comes: in this one most optimisations and the newer emitters are off."""
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", AS_USERS], env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@hypothesis.settings(max_examples=5)
@hypothesis.given(random_problems(dtypes=("float64",), hidden=SMOOTH))
def test_smooth_networks_meet_the_notes_formula(problem):
    params, X, Y, _, weights, masks = problem.make()
    report = jm.check_gradients(problem.net, params, X, Y, weights=weights, masks=masks, entries=6)
    for row in report.rows:
        assert row.error <= (1e-7 if row.route == "differences" else 1e-12)
        assert not row.straddling or problem.output == "relu"


def test_a_trained_network_whose_deltas_all_but_vanish_passes():
    """Where y_hat has nearly reached y, `y_hat - y` and log space differ by roundings of y, which is no mistake."""
    net = jm.MLP((2, 3, 1), hidden="tanh", output="sigmoid", loss="binary_cross_entropy")
    params = jax.tree.map(lambda a: 8 * a, jm.init(net, jax.random.key(0), biases="small_normal"))
    X = jnp.asarray([[1.0, 2.0], [-1.0, 0.5]])
    Y = (jm.predict(net, params, X) > 0.5).astype(float)
    assert float(jm.cost(net, params, X, Y)) < 1e-2
    assert jm.check_gradients(net, params, X, Y).passed


def test_the_report_is_a_table_that_names_the_worst():
    params, X, Y, *_ = TABLE[2].make()
    report = jm.check_gradients(TABLE[2].net, params, X, Y)
    lines = str(report).splitlines()
    assert lines[0].split() == ["array", "against", "error", "at", "most", "worst", "entry", "by", "hand", "expected"]
    assert lines[-1] == "passed"
    assert [line.split()[0] for line in lines[1:-1]] == [
        "W^1", "b^1", "W^2", "b^2", "delta^1", "delta^2", "W^1", "b^1", "W^2", "b^2",
    ]  # fmt: skip
    assert len({len(line.rstrip()) for line in lines[1:-1]}) == 1  # the columns line up
    assert report.worst in report.rows


SQUARE = Problem((4, 4, 4, 3), ("tanh", "sigmoid"), "softmax", "cross_entropy", 7, integer_classes=True)


def by_hand(net, params, X, Y, *, missing=(), stale=None, start=1.0, divide=True):
    """A batch's gradient as users write it, with the classic mistakes as options."""
    A, Z = [X], []
    for (W, b), f in zip(params, net.activations, strict=True):
        Z.append(A[-1] @ W.T + b[None])
        A.append(jax.vmap(f.f)(Z[-1]))
    m = X.shape[0] if divide else 1
    delta = start * (A[-1] - jax.nn.one_hot(Y, A[-1].shape[1]))
    grads = []
    for l in reversed(range(len(params))):
        grads.insert(0, jm.Layer(delta.T @ A[l] / m, delta.sum(0) / m))
        if l:
            W = params[l].W if stale is None else stale(l, params, grads[0])
            slope = 1.0 if l in missing else net.hidden[l - 1].df(Z[l - 1])
            delta = slope * (delta @ W)
    return tuple(grads)


def broken(**how):
    return lambda net, params, X, Y: by_hand(net, params, X, Y, **how)


def transposed(net, params, X, Y):
    grads = by_hand(net, params, X, Y)
    return (grads[0], grads[1]._replace(W=grads[1].W.T), grads[2])


def scaled_layer(net, params, X, Y):
    grads = by_hand(net, params, X, Y)
    return (grads[0], jax.tree.map(lambda g: 3 * g, grads[1]), grads[2])


def wrong_input(net, params, X, Y):
    trace = jm.backprop(net, params, X, Y)
    trace = trace._replace(inputs=(trace.inputs[0], trace.pre_activations[0], trace.inputs[2]))
    return jm.mean_gradient(trace)


def updated_before_use(l, params, grad):
    return params[l].W - 0.5 * grad.W


def another_layers_weights(l, params, grad):
    return params[1].W[:4, :4] if l == 1 else params[1].W[:3, :4]


def test_a_users_own_right_gradient_passes():
    params, X, Y, *_ = SQUARE.make()
    report = jm.check_gradients(SQUARE.net, params, X, Y, backward=broken())
    assert report.passed, str(report)
    assert not any(row.array == "delta" for row in report.rows)


@pytest.mark.parametrize(
    ("backward", "named", "worst_arrays"),
    [
        (broken(divide=False), r"constant factor of 7, the number of examples: the mean's 1/m is missing", "Wb123"),
        (broken(start=1 / 7), r"1/m is taken twice", "Wb123"),
        (broken(start=2.0), r"constant factor of 2, in every array", "Wb123"),
        (broken(start=-1.0), r"sign: the opposite one, in every array", "Wb123"),
        (broken(start=-2.0), r"sign: the opposite one, and a constant factor of 2", "Wb123"),
        (scaled_layer, r"constant factor of 3, in W\^2; .*in b\^2", "Wb2"),
        (transposed, r"transpose: W\^2 is the transpose", "W2"),
        (broken(missing=(1,)), r"missing f': delta is not multiplied by f'\(z\) at layer 1$", "Wb1"),
        (broken(missing=(2,)), r"missing f': delta is not multiplied by f'\(z\) at layer 2$", "Wb12"),
        (broken(missing=(1, 2)), r"missing f': .* at layer 1, 2$", "Wb12"),
        (broken(stale=updated_before_use), r"stale layer: delta\^2 came down through a W\^3 .*rate 0.5\)", "Wb12"),
        (broken(stale=another_layers_weights), r"stale layer: all above layer 2 agree", "Wb12"),
        (wrong_input, r"stale layer: b\^2 is right, so delta\^2 is; W\^2 is not", "W2"),
    ],
)  # fmt: skip
def test_each_classic_mistake_is_caught_and_named(backward, named, worst_arrays):
    params, X, Y, *_ = SQUARE.make()
    report = jm.check_gradients(SQUARE.net, params, X, Y, backward=backward)
    assert not report.passed
    assert re.search(named, "; ".join(report.looks_like)), str(report)
    assert report.worst.array in worst_arrays and str(report.worst.layer) in worst_arrays
    wrong = {row.name for row in report.rows if not row.passed}
    for row in report.rows:  # a wrong array is wrong by both routes
        assert (row.name in wrong) == (not row.passed)
    assert "WRONG" in str(report) and "looks like: " in str(report) and "FAILED, worst at " in str(report)


def test_a_missing_output_derivative_is_named():
    problem = Problem((3, 4, 2), ("tanh",), "sigmoid", "squared_error", 6)

    def backward(net, params, X, Y):
        linear = replace(net.output, df=jnp.ones_like)
        return jm.value_and_grad(jm.MLP(net.sizes, net.hidden, linear, net.loss), params, X, Y)[1]

    params, X, Y, *_ = problem.make()
    report = jm.check_gradients(problem.net, params, X, Y, backward=backward)
    assert "missing f': delta^2 is dL/dy_hat" in str(report)


def test_a_wrong_start_is_named():
    problem = Problem((3, 4, 2), ("tanh",), "sigmoid", "squared_error", 6)
    other = jm.Loss("cubic", lambda a, y: jnp.sum((a - y) ** 3), lambda a, y: 3 * (a - y) ** 2)

    def backward(net, params, X, Y):
        return jm.value_and_grad(jm.MLP(net.sizes, net.hidden, net.output, other), params, X, Y)[1]

    params, X, Y, *_ = problem.make()
    assert "the start: delta^2 is not" in str(jm.check_gradients(problem.net, params, X, Y, backward=backward))


def test_a_non_finite_gradient_does_not_pass():
    params, X, Y, *_ = SQUARE.make()
    report = jm.check_gradients(SQUARE.net, params, X, Y, backward=broken(start=np.nan))
    assert not report.passed


def test_entries_that_straddle_a_kink_are_named_not_hidden():
    net = jm.MLP((2, 2, 1), hidden="relu")
    params = (jm.Layer(jnp.eye(2), jnp.zeros(2)), jm.Layer(jnp.ones((1, 2)), jnp.zeros(1)))
    X, Y = jnp.asarray([[1e-6, 1.0]]), jnp.asarray([[0.0]])  # z = 1e-6: a step of 1e-5 crosses 0
    report = jm.check_gradients(net, params, X, Y)
    assert report.passed
    straddling = {row.name: row.straddling for row in report.rows if row.straddling}
    assert straddling == {"W^1": ((0, 1),), "b^1": ((0,),)}  # W[0, 0] moves z by 1e-11 only
    assert "left out of b^1: a step crosses a kink at [0]" in str(report)


def test_float32_parameters_are_held_to_float32_and_differences_taken_in_float64():
    problem = replace(TABLE[2], dtype="float32")
    with jax.enable_x64(False):
        params, X, Y, *_ = problem.make()
        report = jm.check_gradients(problem.net, params, X, Y)
    assert report.passed
    assert {row.tolerance for row in report.rows} == {1e-5, 1e-7}


def test_the_worked_example_of_the_notes():
    """theta^3 at 1 with eps = 0.01: 3.0001, error 1e-4."""
    approximation = float(central_difference(lambda t: t**3, jnp.asarray(1.0), 0.01))
    assert approximation == pytest.approx(3.0001, abs=1e-12)
    assert approximation - 3 == pytest.approx(1e-4, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backward": lambda *_: jnp.zeros(3)}, "backward returned 1 arrays, expected W and b for each of 2 layers"),
        ({"entries": 0}, "entries is 0, expected at least 1"),
        ({"backward": by_hand, "weights": jnp.ones(5)}, "expected no weights and no masks"),
    ],
)
def test_what_the_checker_refuses(arguments, message):
    params, X, Y, *_ = TABLE[2].make()
    with pytest.raises(ValueError, match=message):
        jm.check_gradients(TABLE[2].net, params, X, Y, **arguments)
    with pytest.raises(ValueError, match="params have dtype float16, expected float32 or float64"):
        half = jax.tree.map(lambda a: a.astype(jnp.float16), (params, X))
        jm.check_gradients(TABLE[2].net, *half, Y)
