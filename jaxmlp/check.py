"""Checks the hand-written gradient by two other routes: autodiff and central differences.

Where they contradict each other, gradient_votes.py says which of the three is alone. No module but these two and
gradient_mistakes.py uses autodiff. Source: notes 002, "Numerical Approximation of Gradients". The error of an array is
`||a - b|| / max(||a||, ||b||, floor)`; the notes' `||a - b|| / (||a|| + ||b||)` is never larger.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, Shaped

from jaxmlp import arrays, rules, validate
from jaxmlp._backward import backprop, value_and_grad
from jaxmlp._forward import Masks, cost, tail_loss
from jaxmlp.angles import layer_angles, norm_ratios
from jaxmlp.check_report import Comparison, Distance, Report, compare
from jaxmlp.check_report import error as error
from jaxmlp.differences import central_difference as central_difference
from jaxmlp.differences import compare_differences
from jaxmlp.gradient_mistakes import name_mistakes
from jaxmlp.gradient_votes import Vote, vote
from jaxmlp.network import MLP, Layer, Params
from jaxmlp.programs import compiled
from jaxmlp.rounding import bound_rounding
from jaxmlp.rules import Rule
from jaxmlp.validate import Given, Preprocess

AUTODIFF_TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}  # bfloat16: of the products
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

    Where autodiff contradicts the gradient by hand, each activation and the loss are differentiated by all three
    routes, entry by entry, and two routes outvote the third. If autodiff is alone (it rounds, or takes another
    subgradient at a kink), the gradient by hand passes, and the report says where. Any slope between those on the two
    sides of a kink is right.

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
        A report with `passed`, `worst` and `rows`, which prints as a table. If a check fails, it also says which route
        is alone, and names mistakes that would give this gradient.
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
    params = jax.tree.map(jnp.asarray, params)  # NumPy's float64 is float32 to JAX
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
        rounding, delta_rounding = bound_rounding(net, params, *problem)
        compared = _pair_gradients(grads, expected, rounding)
        if backward is None:
            compared += _pair_deltas(net, params, X, Y, masks, delta_rounding)
        rows, voted, mistakes = [compare(*pair, tolerance=tolerance) for pair in compared], None, ()
        if not all(row.passed for row in rows):
            voted = vote(net, params, backprop(net, params, X, Y, masks=masks), Y, weights, masks)
            for k, pair in enumerate(compared):
                rows[k] = rows[k] if rows[k].passed else _overrule(*pair, tolerance=tolerance, voted=voted)
            expected = voted.gradients[0] if voted.autodiff_alone else expected
        wrong = {row.name: row.layer for row in rows if not row.passed and row.array != "delta"}
        if voted and wrong:
            mistakes = tuple(f"a wrong derivative: {sentence}" for sentence in voted.by_hand_alone if backward is None)
            mistakes = mistakes or name_mistakes(net, params, *problem, grads, expected, wrong)
        with jax.enable_x64(True):
            params64, *problem64 = jax.tree.map(arrays.widen, (params, *problem))
            exact = replace(net, products=None)
            grads64 = _compute_by_hand(exact, params64, *problem64, backward=backward)
            rows += compare_differences(exact, params64, problem64, grads64, step, entries, wrong)
        distances = () if rule is rules.backprop else _measure_distances(net, params, *problem, rule, rule_state)
    overruled = voted.autodiff_alone if voted and any(row.alone for row in rows) else ()
    return Report(_name_alone(rows, expected), mistakes, rule.name, distances, overruled)


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


@compiled("net")
def _differentiate(net, params, X, Y, weights, masks) -> Params:
    """The gradient by `jax.grad`."""
    return jax.grad(lambda p: cost(net, p, X, Y, weights=weights, masks=masks))(params)


@compiled("net")
def _differentiate_tails(net, params, pre_activations, Y, masks) -> list[Array]:
    """`jax.grad(tail_loss)` at each layer, for each example."""
    at = lambda layer: lambda z, y, mask: jax.grad(partial(tail_loss, net, params, layer))(z, y, mask)
    return [jax.vmap(at(layer))(z, Y, masks) for layer, z in enumerate(pre_activations, start=1)]


def _pair_gradients(grads, expected, rounding) -> list[Any]:
    """W and b of each layer by hand and by autodiff."""
    return [
        (layer, array, getattr(g, array), getattr(e, array), getattr(r, array))
        for layer, (g, e, r) in enumerate(zip(grads, expected, rounding, strict=True), start=1)
        for array in ("W", "b")
    ]


def _pair_deltas(net, params, X, Y, masks, rounding) -> list[Any]:
    """The error signals of each layer by hand and by autodiff."""
    trace = backprop(net, params, X, Y, masks=masks)
    expected = _differentiate_tails(net, params, trace.pre_activations, Y, masks)
    pairs = zip(trace.deltas, expected, rounding, strict=True)
    return [(layer, "delta", *pair) for layer, pair in enumerate(pairs, start=1)]


def _overrule(layer, array, got, expected, rounding, tolerance, voted: Vote) -> Comparison:
    """The comparison with what the vote expects; the one with autodiff if that fails, too."""
    others = [voted.deltas] if array == "delta" else [[getattr(l, array) for l in grads] for grads in voted.gradients]
    rows = [compare(layer, array, got, other[layer - 1], rounding, tolerance) for other in others]
    passed = next((row for row in rows if row.passed), None)
    return replace(passed, alone="autodiff") if passed else compare(layer, array, got, expected, rounding, tolerance)


def _name_alone(rows: list[Comparison], expected: Params) -> tuple[Comparison, ...]:
    """The rows that did not pass, each with the route that the two others contradict, if there is one."""
    passed = {(row.name, row.route): row.passed for row in rows}
    alone = {}
    for row in rows:
        if row.route == "differences" and not row.passed:
            by_autodiff = np.asarray(getattr(expected[row.layer - 1], row.array))[row.entry] if row.entry else np.nan
            if passed[row.name, "autodiff"]:
                alone[row.name] = "differences"
            elif np.isclose(row.expected, by_autodiff, rtol=1e-4, atol=1e-8):
                alone[row.name] = "by hand"
    return tuple(row if row.passed else replace(row, alone=alone.get(row.name, "")) for row in rows)
