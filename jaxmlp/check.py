"""Checks the hand-written gradient by two other routes: autodiff and central differences.

No other module calls `jax.grad`. Source: notes 002, "Numerical Approximation of Gradients". The error of an array is
`||a - b|| / max(||a||, ||b||, floor)`; the notes' `||a - b|| / (||a|| + ||b||)` is never larger.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Num, Shaped

from jaxmlp import readouts, rules, validate
from jaxmlp._backward import backprop, output_delta, value_and_grad
from jaxmlp._backward import backward as recursion
from jaxmlp._forward import Masks, cost, forward, tail_loss
from jaxmlp.angles import layer_angles, norm_ratios
from jaxmlp.check_report import Comparison, Distance, Report
from jaxmlp.gradient_mistakes import name_mistakes
from jaxmlp.network import MLP, Layer, Params
from jaxmlp.rules import Rule
from jaxmlp.validate import Given, Preprocess

AUTODIFF_TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}  # bfloat16: of the products
DIFFERENCES_TOLERANCE = 1e-7
STEP = 1e-5  # truncation falls as step^2, rounding grows as 1/step; in float64 their sum is least near 1e-5

GradientFunction = Callable[[MLP, Params, Array, Array], Params]


def check_gradients(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Shaped[Given, "m ..."],
    *,
    weights: Float[Given, " m"] | None = None,
    masks: Masks | None = None,
    preprocess: Preprocess | None = None,
    backward: GradientFunction | None = None,
    rule: Rule = rules.backprop,
    rule_state: tuple[Any, ...] | None = None,
    step: float = STEP,
    entries: int = 50,
) -> Report:
    """Compares the gradient of the cost by hand with `jax.grad` and with central differences in float64.

    The central difference of an entry is `(J(theta + step) - J(theta - step)) / (2 step)`, with a tolerance of 1e-7.
    The tolerance of autodiff is 1e-12 in float64, 1e-5 in float32, and 2e-2 where `net.products` rounds the products;
    the differences then use exact products. The error signals `delta^l` are compared with `jax.grad(tail_loss)`.

    Args:
        net: the network.
        params: float32 or float64.
        X: the examples, `(m, n_0)`, or `(m, ...)` with `preprocess`.
        Y: the labels.
        weights: one for each example, `(m,)`.
        masks: dropout masks of `jm.dropout_masks`.
        preprocess: makes one example the network's input.
        backward: a gradient to check instead of jaxmlp's, a function of `(net, params, X, Y)`. It returns the gradient
            of the mean loss in the structure of `params`. It is called twice, the second time in float64, and should
            compute in the dtype of its arguments. Error signals are not compared then.
        rule: another rule than backpropagation. The report also gives its distance from the gradient, layer by layer;
            a distance is no failure.
        rule_state: the state of that rule.
        step: of the central differences.
        entries: at most this many entries of each array, drawn at random, get a central difference.
    Returns:
        A report with `passed`, `worst` and `rows`, which prints as a table. If a check fails, it also names mistakes
        that would give this gradient.
    Raises:
        ValueError: where an argument does not fit the network, or `backward` returns another number of arrays.
    Example:
        >>> small = jm.MLP((3, 4, 1), hidden="tanh")
        >>> report = jm.check_gradients(small, jm.init(small, key), X[:5, :3], X[:5, 3])
        >>> report.passed, len(report.rows)
        (True, 10)

    Source: notes 002, "Numerical Approximation of Gradients".
    """
    X, Y, weights, masks = validate.examples(net, params, X, Y, weights, masks, preprocess)
    rule_state = rules.check_state(net, rule, rule_state)
    dtype = str(params[0].W.dtype)
    if dtype not in ("float32", "float64"):
        raise ValueError(f"params have dtype {dtype}, expected float32 or float64")
    entries = validate.whole(entries, "entries")
    if not step > 0:
        raise ValueError(f"step is {step}, expected a positive number")
    if preprocess is not None:
        X = jax.vmap(preprocess)(X).astype(dtype)
    problem = (X, Y, weights, masks)
    tolerance = AUTODIFF_TOLERANCE[net.products or dtype]
    with jax.default_matmul_precision("highest"):
        grads = _compute_by_hand(net, params, *problem, backward)
        expected = _differentiate(net, params, *problem)
        rounding, delta_rounding = _bound_rounding(net, params, *problem)
        rows = _compare_gradients(grads, expected, rounding, tolerance)
        if backward is None:
            rows += _compare_deltas(net, params, *problem, delta_rounding, tolerance)
        mistakes = () if all(row.passed for row in rows) else name_mistakes(net, params, *problem, grads, expected)
        rows += _compare_differences(replace(net, products=None), params, *problem, backward, step, entries)
        distances = () if rule is rules.backprop else _measure_distances(net, params, *problem, rule, rule_state)
    return Report(tuple(rows), mistakes, rule.name, distances)


def _measure_distances(net, params, X, Y, weights, masks, rule, rule_state) -> tuple[Distance, ...]:
    """The rule's distance from the gradient at each layer."""
    options = {"weights": weights, "masks": masks}
    gradient = value_and_grad(net, params, X, Y, **options)[1]
    by_rule = value_and_grad(net, params, X, Y, rule=rule, rule_state=rule_state, **options)[1]
    apart = zip(layer_angles(by_rule, gradient), norm_ratios(by_rule, gradient), strict=True)
    return tuple(Distance(layer, float(a), float(r)) for layer, (a, r) in enumerate(apart, start=1))


def _compute_by_hand(net, params, X, Y, weights, masks, backward: GradientFunction | None) -> Params:
    """The gradient to check, in NumPy arrays. An array of a wrong shape is kept: the report names it."""
    if backward is None:
        grads = value_and_grad(net, params, X, Y, weights=weights, masks=masks)[1]
    elif weights is not None or masks is not None:
        raise ValueError("backward is a function of (net, params, X, Y), expected no weights and no masks with it")
    else:
        grads = backward(net, params, X, Y)
    flat: list[Any] = [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]
    if len(flat) != 2 * net.depth:
        also = ", without the cost" if len(flat) == 2 * net.depth + 1 else ""
        raise ValueError(f"backward returned {len(flat)} arrays, expected W and b for each of {net.depth} layers{also}")
    return tuple(Layer(*pair) for pair in zip(flat[::2], flat[1::2], strict=True))


@partial(jax.jit, static_argnames="net")
def _differentiate(net, params, X, Y, weights, masks) -> Params:
    """The gradient by `jax.grad`."""
    return jax.grad(lambda p: cost(net, p, X, Y, weights=weights, masks=masks))(params)


@partial(jax.jit, static_argnames="net")
def _differentiate_tails(net, params, pre_activations, Y, masks) -> list[Array]:
    """`jax.grad(tail_loss)` at each layer, for each example."""
    at = lambda layer: lambda z, y, mask: jax.grad(partial(tail_loss, net, params, layer))(z, y, mask)
    return [jax.vmap(at(layer))(z, Y, masks) for layer, z in enumerate(pre_activations, start=1)]


def error(got: np.ndarray, expected: np.ndarray, floor: float = 0.0) -> float:
    """`||a - b|| / max(||a||, ||b||, floor)`: 0 for two arrays of zeros, infinity for two shapes.

    Args:
        got, expected: the two arrays, `a` and `b`.
        floor: the smallest norm to divide by.
    Example:
        >>> round(jm.check.error(np.array([3.0, 4.0]), np.array([3.0, 5.0])), 4)
        0.1715
    """
    if got.shape != expected.shape:
        return np.inf
    apart = float(np.linalg.norm(got - expected))
    return apart and apart / max(float(np.linalg.norm(got)), float(np.linalg.norm(expected)), floor)


def _compare(layer, array, route, got, expected, rounding, tolerance, where=None, straddling=()) -> Comparison:
    """Compares two arrays. `rounding` is the norm that rounding alone may give their difference."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    worst, at_got, at_expected = (), np.nan, np.nan
    if got.shape == expected.shape and got.size:
        at = np.unravel_index(np.argmax(np.abs(got - expected)), got.shape)  # the first NaN, if any
        worst, at_got, at_expected = tuple(map(int, at)), got[at], expected[at]
        worst = worst if where is None else where[worst[0]]
    apart = error(got, expected, floor=rounding / tolerance)
    return Comparison(layer, array, route, apart, tolerance, worst, float(at_got), float(at_expected), straddling)


def _compare_gradients(grads, expected, rounding, tolerance) -> list[Comparison]:
    """Compares W and b of each layer with autodiff."""
    return [
        _compare(layer, array, "autodiff", getattr(g, array), getattr(e, array), getattr(r, array), tolerance)
        for layer, (g, e, r) in enumerate(zip(grads, expected, rounding, strict=True), start=1)
        for array in ("W", "b")
    ]


def _compare_deltas(net, params, X, Y, weights, masks, rounding, tolerance) -> list[Comparison]:
    """Compares the error signals of each layer with autodiff."""
    trace = backprop(net, params, X, Y, masks=masks)
    expected = _differentiate_tails(net, params, trace.pre_activations, Y, masks)
    pairs = zip(trace.deltas, expected, rounding, strict=True)
    return [_compare(l, "delta", "autodiff", a, b, r, tolerance) for l, (a, b, r) in enumerate(pairs, start=1)]


def _bound_rounding(net, params, X, Y, weights, masks):
    """For each gradient and each delta, 8 roundings of the norm it would have if no terms canceled.

    The recursion runs with `|W|` and `|a|`. Its start is `|y_hat| + |y|` where `delta^K = y_hat - y` cancels.
    """
    magnitude = Rule("magnitude", carry=lambda down: jnp.abs(down.W).T @ down.delta)

    def example(x, y, masks):
        y_hat, tape = forward(net, params, x, masks)
        delta = jnp.abs(output_delta(net, tape, y))
        if net.output == net.loss.canonical:
            delta = jnp.abs(y_hat) + jnp.abs(net.loss.target(y, y_hat))
        deltas = recursion(net, params, tape, delta, magnitude)
        return readouts.Trace(tape.inputs, tape.pre_activations, deltas, y_hat, jnp.zeros(()))

    trace = jax.tree.map(jnp.abs, jax.jit(jax.vmap(example))(X, Y, masks))
    unit = 8 * float(jnp.finfo(net.products or params[0].W.dtype).eps)
    size = lambda array: unit * float(jnp.linalg.norm(array))
    return jax.tree.map(size, readouts.mean_gradient(trace, weights)), [size(delta) for delta in trace.deltas]


def _compare_differences(net, params, X, Y, weights, masks, backward, step, entries) -> list[Comparison]:
    """Compares entries drawn from each array with central differences, both in float64."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        params, X, Y, weights, masks = jax.tree.map(_widen, (params, X, Y, weights, masks))
        grads = _compute_by_hand(net, params, X, Y, weights, masks, backward)
        J = float(cost(net, params, X, Y, weights=weights, masks=masks))
        chosen = [np.sort(rng.permutation(leaf.size)[:entries]) for leaf in jax.tree.leaves(params)]
        starts = np.cumsum([0] + [leaf.size for leaf in jax.tree.leaves(params)])
        index = jnp.asarray(np.concatenate([start + c for start, c in zip(starts[:-1], chosen, strict=True)]))
        expected, crosses = (np.asarray(a) for a in _take_differences(net, params, X, Y, weights, masks, index, step))
    rows, done = [], 0
    roundoff = 8 * 2.0**-52 / step * (1 + abs(J))
    names = [(layer, array) for layer in range(net.depth) for array in ("W", "b")]
    for (layer, array), drawn in zip(names, chosen, strict=True):
        got, shape = getattr(grads[layer], array), getattr(params[layer], array).shape
        part = slice(done, done := done + len(drawn))
        keep = ~crosses[part]
        where = [tuple(map(int, np.unravel_index(i, shape))) for i in drawn]
        straddling = tuple(w for w, kept in zip(where, keep, strict=True) if not kept)
        got = got.ravel()[drawn[keep]] if got.shape == shape else got
        rows.append(_compare(layer + 1, array, "differences", got, expected[part][keep], roundoff * np.sqrt(keep.sum()),
                         DIFFERENCES_TOLERANCE, [w for w, kept in zip(where, keep, strict=True) if kept],
                         straddling))  # fmt: skip
    return rows


def _widen(leaf):
    """A leaf with its floats in float64."""
    array = np.asarray(leaf)
    return jnp.asarray(array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array)


def central_difference(f: Callable[[Array], Array], theta: Array, step: float | Array) -> Array:
    """`(f(theta + step) - f(theta - step)) / (2 step)`.

    Its error falls as `step^2`; rounding adds an error that grows as `1 / step`.

    Example:
        >>> float(jm.check.central_difference(lambda t: t**2, jnp.asarray(3.0), 0.5))
        6.0
    """
    return (f(theta + step) - f(theta - step)) / (2 * step)


@partial(jax.jit, static_argnames="net")
def _take_differences(net, params, X, Y, weights, masks, index, step):
    """The central difference of each entry `index` of the flat parameters, and whether its step crosses a kink."""
    flat, unravel = ravel_pytree(params)

    def find_sides(params):
        zs = jax.vmap(lambda x, masks: forward(net, params, x, masks)[1].pre_activations)(X, masks)
        return [z > kink for z, f in zip(zs, net.activations, strict=True) for kink in f.kinks]

    def take_difference(entry):
        shifted = lambda by: unravel(flat.at[entry].add(by))
        J = lambda by: cost(net, shifted(by), X, Y, weights=weights, masks=masks)
        both = zip(find_sides(shifted(step)), find_sides(shifted(-step)), strict=True)
        crosses = jnp.any(jnp.array([jnp.any(up != down) for up, down in both], bool))
        return central_difference(J, jnp.zeros(()), step), crosses

    return jax.lax.map(take_difference, index, batch_size=16)
