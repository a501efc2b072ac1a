"""A gradient that is wrong is caught, and the report says which mistake it looks like."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import Problem

import jaxmlp as jm


@pytest.fixture(autouse=True)
def double(x64):
    pass


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


def scaled_by(factors):
    """The right gradient with each layer's arrays times a factor of its own."""
    scale = lambda grads: [jm.Layer(c * W, c * b) for c, (W, b) in zip(factors, grads, strict=True)]
    return lambda *arguments: tuple(scale(jm.value_and_grad(*arguments)[1]))


SMALL = Problem((2, 3, 1), ("tanh",), "sigmoid", "binary_cross_entropy", 1)
CHAIN = Problem((2, 1, 1), ("tanh",), "sigmoid", "binary_cross_entropy", 2)


def unrelated(*arguments):
    first, last = jm.value_and_grad(*arguments)[1]
    return first, jm.Layer(last.W + jnp.arange(1.0, 4.0)[None], last.b + 1)


DEEP = Problem((4, 6, 6, 6, 3), ("sigmoid",) * 3, "softmax", "cross_entropy", 8)


@pytest.mark.parametrize(
    ("problem", "backward", "named"),
    [
        (SMALL, scaled_by((1, 3)), ("a constant factor of 3, in W^2", "a constant factor of 3, in b^2")),
        (SMALL, scaled_by((1, -1)), ("sign: the opposite one, in W^2", "sign: the opposite one, in b^2")),
        (SMALL, scaled_by((3, 1)), ("a constant factor of 3, in W^1", "a constant factor of 3, in b^1")),
        (SMALL, scaled_by((2, 2)), ("a constant factor of 2, in every array",)),
        (CHAIN, scaled_by((1, 3)), ("a constant factor of 3, in W^2", "a constant factor of 3, in b^2")),
        (
            SMALL,
            unrelated,
            (
                "W^2 and b^2 alone: the layers below are right, so delta^2 is; its product with a^1 and its "
                "mean are not",
            ),
        ),
        (DEEP, scaled_by((2, 1, 1, 1)), ("a constant factor of 2, in W^1", "a constant factor of 2, in b^1")),
    ],
)
def test_small_layers_and_single_outputs_are_judged_array_by_array(problem, backward, named):
    params, X, Y, *_ = problem.make()
    report = jm.check_gradients(problem.net, params, X, Y, backward=backward, entries=3)
    assert report.looks_like == named, str(report)


def test_a_missing_derivative_in_a_layer_of_small_gradients_is_named():
    def backward(net, params, X, Y):
        hidden = [replace(net.hidden[0], df=jnp.ones_like), *net.hidden[1:]]
        return jm.value_and_grad(jm.MLP(net.sizes, hidden, net.output, net.loss), params, X, Y)[1]

    params, X, Y, *_ = DEEP.make()
    report = jm.check_gradients(DEEP.net, params, X, Y, backward=backward, entries=3)
    assert report.looks_like == ("a missing f': delta is not multiplied by f'(z) at layer 1",)


def test_a_hint_blames_no_array_that_is_marked_ok():
    """A linear output has the derivative 1, so that nothing can leave it out."""
    problem = Problem((3, 4, 1), ("tanh",), "identity", "squared_error", 5)
    absolute = jm.Loss("absolute", lambda a, y: jnp.abs(a - y).sum(), lambda a, y: jnp.sign(a - y))
    net = jm.MLP(problem.sizes, problem.hidden, loss=absolute)

    def backward(net, params, X, Y):
        squared = replace(net.hidden[0], df=lambda z: net.hidden[0].df(z) ** 2)
        return jm.value_and_grad(jm.MLP(net.sizes, [squared], net.output, net.loss), params, X, Y)[1]

    params, X, Y, *_ = problem.make()
    report = jm.check_gradients(net, params, X, Y, backward=backward)
    assert len(report.looks_like) == 1 and "all above layer 1 agree" in report.looks_like[0], str(report)
