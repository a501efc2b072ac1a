"""The hand-written gradient against two independent routes: autodiff and central differences. Autodiff lives here only.

Source: notes 002, "Numerical Approximation of Gradients"; `DESIGN` of the errors: per array,
`||a - b|| / max(||a||, ||b||, floor)`. The notes divide by `||a|| + ||b||`, which gives at most the same number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jaxmlp import readouts, validate
from jaxmlp.backward import backprop, output_delta, value_and_grad
from jaxmlp.backward import backward as recursion
from jaxmlp.disagreement import looks_like
from jaxmlp.forward import Masks, batch, cost, forward, tail_loss
from jaxmlp.network import MLP, Layer, Params
from jaxmlp.rules import Rule
from jaxmlp.validate import Preprocess

AUTODIFF_TOLERANCE = {"float64": 1e-12, "float32": 1e-5}
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


@dataclass(frozen=True)
class Report:
    """What `check_gradients` found; printed, it is a table."""

    rows: tuple[Row, ...]
    looks_like: tuple[str, ...] = ()  # for a disagreement: what kind of mistake would give it

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
        lines += [f"looks like: {sentence}" for sentence in self.looks_like]
        lines.append("passed" if self.passed else f"FAILED, worst at {self.worst.name}{list(self.worst.entry)}")
        return "\n".join(lines)


GradientFunction = Callable[[MLP, Params, Array, Array], Params]


def check_gradients(
    net: MLP,
    params: Params,
    X: Num[Array, "m ..."],
    Y: Num[Array, "m ..."],
    *,
    weights: Float[Array, " m"] | None = None,
    masks: Masks | None = None,
    preprocess: Preprocess | None = None,
    backward: GradientFunction | None = None,
    step: float = STEP,
    entries: int = 100,
) -> Report:
    """Compares the gradient of the cost by hand with `jax.grad` and with central differences in float64.

    `(J(theta + step) - J(theta - step)) / (2 step)` is taken for at most `entries` entries of each array, drawn at
    random. Without `backward` the error signals are compared too, `delta^l` with `jax.grad(tail_loss)`. With it, that
    function of `(net, params, X, Y)` is judged instead of jaxmlp's: it returns the gradient of the mean loss,
    with the structure of `params`. A report that failed says what the disagreement looks like.
    """
    X, Y, weights, masks = batch(net, params, X, Y, weights, masks, preprocess)
    dtype = str(params[0].W.dtype)
    if dtype not in AUTODIFF_TOLERANCE:
        raise ValueError(f"params have dtype {dtype}, expected float32 or float64")
    entries = validate.whole(entries, "entries")
    if preprocess is not None:
        X = jax.vmap(preprocess)(X).astype(dtype)
    judged = _judged(backward, weights, masks)
    problem = (X, Y, weights, masks)
    with jax.default_matmul_precision("highest"):
        grads = _as_layers(net, judged(net, params, X, Y))
        expected = jax.grad(lambda p: cost(net, p, X, Y, weights=weights, masks=masks))(params)
        rounding, delta_rounding = _rounding(net, params, *problem)
        rows = _gradient_rows(grads, expected, rounding, AUTODIFF_TOLERANCE[dtype])
        if backward is None:
            rows += _delta_rows(net, params, *problem, delta_rounding, AUTODIFF_TOLERANCE[dtype])
        wrong = () if all(row.passed for row in rows) else looks_like(net, params, *problem, grads, expected)
        rows += _difference_rows(net, params, *problem, judged, step, entries)
    return Report(tuple(rows), wrong)


def _judged(backward: GradientFunction | None, weights, masks) -> GradientFunction:
    if backward is None:
        return lambda net, params, X, Y: value_and_grad(net, params, X, Y, weights=weights, masks=masks)[1]
    if weights is not None or masks is not None:
        raise ValueError("backward is a function of (net, params, X, Y): expected no weights and no masks beside it")
    return backward


def _as_layers(net: MLP, grads) -> Params:
    """A user's gradient with params' structure; arrays of another shape are kept, to be named in the report."""
    flat = [np.asarray(leaf) for leaf in jax.tree.leaves(grads)]
    if len(flat) != 2 * net.depth:
        raise ValueError(f"backward returned {len(flat)} arrays, expected W and b for each of {net.depth} layers")
    return tuple(Layer(*pair) for pair in zip(flat[::2], flat[1::2], strict=True))  # pyright: ignore[reportArgumentType]


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
        at = np.unravel_index(np.nanargmax(np.append(np.abs(got - expected), -1)[:-1]), got.shape)
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
    rows = []
    for layer in range(1, net.depth + 1):
        tail = jax.grad(partial(tail_loss, net, params, layer))
        expected = jax.vmap(lambda z, y, mask, tail=tail: tail(z, y, masks=mask))(
            trace.pre_activations[layer - 1], Y, masks
        )
        got = trace.deltas[layer - 1]
        rows.append(_row(layer, "delta", "autodiff", got, expected, rounding[layer - 1], tolerance))
    return rows


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
    unit = 8 * float(jnp.finfo(params[0].W.dtype).eps)
    size = lambda array: unit * float(jnp.linalg.norm(array))
    return jax.tree.map(size, readouts.mean_gradient(trace, weights)), [size(delta) for delta in trace.deltas]


def _difference_rows(net, params, X, Y, weights, masks, judged, step, entries) -> list[Row]:
    """Central differences in float64, whatever the parameters' dtype."""
    rng = np.random.default_rng(0)
    rows = []
    with jax.enable_x64(True):
        params, X, Y, weights, masks = jax.tree.map(_wide, (params, X, Y, weights, masks))
        grads = _as_layers(net, judged(net, params, X, Y))
        differences = jax.jit(partial(_differences, net), static_argnames=("which", "array"))
        roundoff = 8 * 2.0**-52 / step * (1 + float(cost(net, params, X, Y, weights=weights, masks=masks)))
        for which, (layer, grad) in enumerate(zip(params, grads, strict=True)):
            for array in ("W", "b"):
                theta, got = getattr(layer, array), np.asarray(getattr(grad, array))
                chosen = np.sort(rng.permutation(theta.size)[:entries])
                expected, crosses = differences(
                    params, X, Y, weights, masks, jnp.asarray(chosen), step, which=which, array=array
                )
                where = [tuple(map(int, np.unravel_index(i, theta.shape))) for i in chosen]
                straddling = tuple(w for w, cross in zip(where, crosses, strict=True) if cross)
                keep = ~np.asarray(crosses)
                where = [w for w, k in zip(where, keep, strict=True) if k]
                got = got.ravel()[chosen[keep]] if got.shape == theta.shape else got
                rounding = roundoff * np.sqrt(keep.sum())
                rows.append(_row(which + 1, array, "differences", got, np.asarray(expected)[keep], rounding,
                                 DIFFERENCES_TOLERANCE, where, straddling))  # fmt: skip
    return rows


def _wide(leaf):
    array = np.asarray(leaf)
    return jnp.asarray(array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array)


def central_difference(f: Callable[[Array], Array], theta: Array, step: float) -> Array:
    """`(f(theta + step) - f(theta - step)) / (2 step)`; its error falls as `step^2`, and rounding adds about 1/step."""
    return (f(theta + step) - f(theta - step)) / (2 * step)


def _differences(net, params, X, Y, weights, masks, chosen, step, which, array):
    """For each chosen entry its central difference, and whether the step crosses a kink in any unit."""

    def shifted(entry, by):
        theta = getattr(params[which], array)
        theta = theta.ravel().at[entry].add(by).reshape(theta.shape)
        return (*params[:which], params[which]._replace(**{array: theta}), *params[which + 1 :])

    def sides(params):
        zs = jax.vmap(lambda x, masks: forward(net, params, x, masks)[1].pre_activations)(X, masks)
        return [z > kink for z, f in zip(zs, net.activations, strict=True) for kink in f.kinks]

    def difference(entry):
        J = lambda by: cost(net, shifted(entry, by), X, Y, weights=weights, masks=masks)
        both = zip(sides(shifted(entry, step)), sides(shifted(entry, -step)), strict=True)
        crosses = jnp.any(jnp.array([jnp.any(a != b) for a, b in both], bool))
        return central_difference(J, jnp.zeros(()), step), crosses

    return jax.lax.map(difference, chosen, batch_size=16)
