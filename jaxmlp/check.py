"""The hand-written gradient against two independent routes: autodiff and central differences. Autodiff lives here only.

Source: notes 002, "Numerical Approximation of Gradients". The error of an array is
`||a - b|| / max(||a||, ||b||, floor)`; the notes divide by `||a|| + ||b||`, which gives at most the same number.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Num

from jaxmlp import readouts, rules, validate
from jaxmlp._backward import backprop, output_delta, value_and_grad
from jaxmlp._backward import backward as recursion
from jaxmlp._forward import Masks, batch, cost, forward, tail_loss
from jaxmlp.angles import angles, norm_ratios
from jaxmlp.gradient_mistakes import looks_like
from jaxmlp.network import MLP, Layer, Params
from jaxmlp.rules import Rule
from jaxmlp.validate import Given, Preprocess

AUTODIFF_TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}  # the last: of the products
DIFFERENCES_TOLERANCE = 1e-7
STEP = 1e-5  # truncation falls as step^2, rounding grows as 1/step: in float64 their sum is least near 1e-5


@dataclass(frozen=True)
class Row:
    """One array by one route. `entry` is where the two differ most, `got` and `expected` the numbers there."""

    layer: int
    array: str  # "W", "b", or "delta" (the error signals of the whole batch)
    route: str  # "autodiff" or "differences"
    error: float  # ||a - b|| / max(||a||, ||b||, floor)
    tolerance: float
    entry: tuple[int, ...]
    got: float
    expected: float
    straddling: tuple[tuple[int, ...], ...] = ()  # entries left out: a step crosses a kink of an activation

    @property
    def passed(self) -> bool:
        """Whether the error is at most the tolerance; NaN is not."""
        return self.error <= self.tolerance

    @property
    def name(self) -> str:
        """Such as `W^2`."""
        return f"{self.array}^{self.layer}"


class Distance(NamedTuple):
    """How far a rule is from the gradient at one layer, W and b together; no difference here is a failure."""

    layer: int
    angle: float  # between them, in degrees
    norm_ratio: float  # the rule's norm over the gradient's


@dataclass(frozen=True)
class Report:
    """What `check_gradients` found; printed, it is a table."""

    rows: tuple[Row, ...]
    looks_like: tuple[str, ...] = ()  # for a disagreement: what kind of mistake would give it
    rule: str = "backprop"
    distances: tuple[Distance, ...] = ()  # of another rule than backprop, by layer

    @property
    def passed(self) -> bool:
        """Whether every row passed."""
        return all(row.passed for row in self.rows)

    @property
    def worst(self) -> Row:
        """The row whose error is largest against its tolerance."""
        return max(self.rows, key=lambda row: np.inf if np.isnan(row.error) else row.error / row.tolerance)

    def __str__(self) -> str:
        lines = [f"{'array':<9}{'against':<13}{'error':>9}{'at most':>9}  {'':<6}{'worst entry':<13}{'by hand':>15}"
                 f"{'expected':>15}"]  # fmt: skip
        for row in self.rows:
            entry = ",".join(map(str, row.entry))
            lines.append(
                f"{row.name:<9}{row.route:<13}{row.error:>9.1e}{row.tolerance:>9.0e}  "
                f"{'ok' if row.passed else 'WRONG':<6}{f'[{entry}]':<13}{row.got:>15.7g}{row.expected:>15.7g}"
            )
        for row in self.rows:
            if row.straddling:
                some = ", ".join(str(list(entry)) for entry in row.straddling[:4])
                more = f" and {len(row.straddling) - 4} more" if len(row.straddling) > 4 else ""
                lines.append(f"left out of {row.name}: a step crosses a kink at {some}{more}")
        for layer, angle, ratio in self.distances:
            lines.append(
                f"rule {self.rule}, layer {layer}: {angle:.2f} degrees from the gradient, {ratio:.3g} times it"
            )
        lines += [f"looks like: {sentence}" for sentence in self.looks_like]
        lines.append("passed" if self.passed else f"FAILED, worst at {self.worst.name}{list(self.worst.entry)}")
        return "\n".join(lines)


GradientFunction = Callable[[MLP, Params, Array, Array], Params]


def check_gradients(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Num[Given, "m ..."],
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

    `(J(theta + step) - J(theta - step)) / (2 step)` is taken for at most `entries` entries of each array, drawn at
    random. Without `backward` the error signals are compared too, `delta^l` with `jax.grad(tail_loss)`. With it, that
    function of `(net, params, X, Y)` is judged instead of jaxmlp's: it returns the gradient of the mean loss,
    with the structure of `params`. It is called twice, the second time in float64, and should compute in the dtype it
    is given. With `rule`, the report says too how far that rule's gradient is from backpropagation's, by layer, and
    an intended difference is no failure. With `net.products` the first route is by rounded products too, compared to
    2e-2, and the differences are by exact ones. A report that failed says what the disagreement looks like.
    """
    X, Y, weights, masks = batch(net, params, X, Y, weights, masks, preprocess)
    rule_state = rules.checked_state(net, rule, rule_state)
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
        grads = _judged(net, params, *problem, backward)
        expected = _autodiff(net, params, *problem)
        rounding, delta_rounding = _rounding(net, params, *problem)
        rows = _gradient_rows(grads, expected, rounding, tolerance)
        if backward is None:
            rows += _delta_rows(net, params, *problem, delta_rounding, tolerance)
        wrong = () if all(row.passed for row in rows) else looks_like(net, params, *problem, grads, expected)
        rows += _difference_rows(replace(net, products=None), params, *problem, backward, step, entries)
        distances = () if rule is rules.backprop else _distances(net, params, *problem, rule, rule_state)
    return Report(tuple(rows), wrong, rule.name, distances)


def _distances(net, params, X, Y, weights, masks, rule, rule_state) -> tuple[Distance, ...]:
    options = {"weights": weights, "masks": masks}
    gradient = value_and_grad(net, params, X, Y, **options)[1]
    by_rule = value_and_grad(net, params, X, Y, rule=rule, rule_state=rule_state, **options)[1]
    apart = zip(angles(by_rule, gradient), norm_ratios(by_rule, gradient), strict=True)
    return tuple(Distance(layer, float(a), float(r)) for layer, (a, r) in enumerate(apart, start=1))


def _judged(net, params, X, Y, weights, masks, backward: GradientFunction | None) -> Params:
    """The gradient that is checked, in NumPy arrays; arrays of a wrong shape are kept, to be named in the report."""
    if backward is None:
        grads = value_and_grad(net, params, X, Y, weights=weights, masks=masks)[1]
    elif weights is not None or masks is not None:
        raise ValueError("backward is a function of (net, params, X, Y): expected no weights and no masks beside it")
    else:
        grads = backward(net, params, X, Y)
    flat: list[Any] = [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]
    if len(flat) != 2 * net.depth:
        also = "; without the cost beside them?" if len(flat) == 2 * net.depth + 1 else ""
        raise ValueError(f"backward returned {len(flat)} arrays, expected W and b for each of {net.depth} layers{also}")
    return tuple(Layer(*pair) for pair in zip(flat[::2], flat[1::2], strict=True))


@partial(jax.jit, static_argnames="net")
def _autodiff(net, params, X, Y, weights, masks) -> Params:
    return jax.grad(lambda p: cost(net, p, X, Y, weights=weights, masks=masks))(params)


@partial(jax.jit, static_argnames="net")
def _autodiff_deltas(net, params, pre_activations, Y, masks) -> list[Array]:
    """`jax.grad(tail_loss)` at each layer, for each example."""
    at = lambda layer: lambda z, y, mask: jax.grad(partial(tail_loss, net, params, layer))(z, y, mask)
    return [jax.vmap(at(layer))(z, Y, masks) for layer, z in enumerate(pre_activations, start=1)]


def error(got: np.ndarray, expected: np.ndarray, floor: float = 0.0) -> float:
    """`||a - b|| / max(||a||, ||b||, floor)`; equal zeros are equal, and arrays of different shape infinitely apart."""
    if got.shape != expected.shape:
        return np.inf
    apart = float(np.linalg.norm(got - expected))
    return apart and apart / max(float(np.linalg.norm(got)), float(np.linalg.norm(expected)), floor)


def _row(layer, array, route, got, expected, rounding, tolerance, where=None, straddling=()) -> Row:
    """Compares two arrays. `rounding` is the size of what rounding alone may put between them."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    worst, at_got, at_expected = (), np.nan, np.nan
    if got.shape == expected.shape and got.size:
        at = np.unravel_index(np.argmax(np.abs(got - expected)), got.shape)  # the first NaN, if there is one
        worst, at_got, at_expected = tuple(map(int, at)), got[at], expected[at]
        worst = worst if where is None else where[worst[0]]
    apart = error(got, expected, floor=rounding / tolerance)
    return Row(layer, array, route, apart, tolerance, worst, float(at_got), float(at_expected), straddling)


def _gradient_rows(grads, expected, rounding, tolerance) -> list[Row]:
    return [
        _row(layer, array, "autodiff", getattr(g, array), getattr(e, array), getattr(r, array), tolerance)
        for layer, (g, e, r) in enumerate(zip(grads, expected, rounding, strict=True), start=1)
        for array in ("W", "b")
    ]


def _delta_rows(net, params, X, Y, weights, masks, rounding, tolerance) -> list[Row]:
    trace = backprop(net, params, X, Y, masks=masks)
    expected = _autodiff_deltas(net, params, trace.pre_activations, Y, masks)
    pairs = zip(trace.deltas, expected, rounding, strict=True)
    return [_row(l, "delta", "autodiff", got, want, r, tolerance) for l, (got, want, r) in enumerate(pairs, start=1)]


def _rounding(net, params, X, Y, weights, masks):
    """For each gradient and each delta, 8 roundings of the size it would have if nothing cancelled.

    The same recursion with |W|, |a| and, where `delta^K = y_hat - y` cancels, the start `|y_hat| + |y|`.
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


def _difference_rows(net, params, X, Y, weights, masks, backward, step, entries) -> list[Row]:
    """Central differences in float64, whatever the parameters' dtype, for entries drawn from each array."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        params, X, Y, weights, masks = jax.tree.map(_wide, (params, X, Y, weights, masks))
        grads = _judged(net, params, X, Y, weights, masks, backward)
        J = float(cost(net, params, X, Y, weights=weights, masks=masks))
        chosen = [np.sort(rng.permutation(leaf.size)[:entries]) for leaf in jax.tree.leaves(params)]
        starts = np.cumsum([0] + [leaf.size for leaf in jax.tree.leaves(params)])
        index = jnp.asarray(np.concatenate([start + c for start, c in zip(starts[:-1], chosen, strict=True)]))
        expected, crosses = (np.asarray(a) for a in _differences(net, params, X, Y, weights, masks, index, step))
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
        rows.append(_row(layer + 1, array, "differences", got, expected[part][keep], roundoff * np.sqrt(keep.sum()),
                         DIFFERENCES_TOLERANCE, [w for w, kept in zip(where, keep, strict=True) if kept],
                         straddling))  # fmt: skip
    return rows


def _wide(leaf):
    array = np.asarray(leaf)
    return jnp.asarray(array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array)


def central_difference(f: Callable[[Array], Array], theta: Array, step: float) -> Array:
    """`(f(theta + step) - f(theta - step)) / (2 step)`; its error falls as `step^2`, and rounding adds about 1/step."""
    return (f(theta + step) - f(theta - step)) / (2 * step)


@partial(jax.jit, static_argnames="net")
def _differences(net, params, X, Y, weights, masks, index, step):
    """For each entry of the parameters in a row its central difference, and whether the step crosses a kink."""
    flat, unravel = ravel_pytree(params)

    def sides(params):
        zs = jax.vmap(lambda x, masks: forward(net, params, x, masks)[1].pre_activations)(X, masks)
        return [z > kink for z, f in zip(zs, net.activations, strict=True) for kink in f.kinks]

    def difference(entry):
        shifted = lambda by: unravel(flat.at[entry].add(by))
        J = lambda by: cost(net, shifted(by), X, Y, weights=weights, masks=masks)
        both = zip(sides(shifted(step)), sides(shifted(-step)), strict=True)
        crosses = jnp.any(jnp.array([jnp.any(up != down) for up, down in both], bool))
        return central_difference(J, jnp.zeros(()), step), crosses

    return jax.lax.map(difference, index, batch_size=16)
