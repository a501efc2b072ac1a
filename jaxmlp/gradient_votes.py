"""Where autodiff and the gradient by hand differ: which of the two is alone, by a third route, function by function.

All that is not linear in a network is its activations and its loss. So each of these is measured by itself, at each
pre-activation: its derivative by hand, by autodiff, and by differences of its values, in float64. The slopes that win
are carried down once more, which gives the gradient that the vote expects.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array

from jaxmlp import arrays
from jaxmlp._backward import output_delta
from jaxmlp._forward import Tape, tail_loss
from jaxmlp.activations import Activation
from jaxmlp.network import MLP, Layer, Params
from jaxmlp.programs import compiled
from jaxmlp.readouts import Trace

STEP = 1e-5  # of the differences; a kink has the same two slopes at STEP / FINER
FINER = 8
BESIDE = 1e-9  # how far beside a kink its two slopes are taken
EPS = 2.0**-52
SAMPLES = 8  # of rounding errors
NESTED = {"jit": "jaxpr", "custom_jvp_call": "call_jaxpr"}


class Slopes(NamedTuple):
    """The derivative of one function at each of its inputs `(m, n)`, by every route; JAX's arrays, then NumPy's."""

    z: Any
    by_hand: Any
    autodiff: Any
    noise: Any  # how far one rounding of each intermediate value moves autodiff's
    beside: Any  # autodiff's just below and just above z, (2, m, n)
    values: Any  # at z - STEP, z - STEP / FINER, z, z + STEP / FINER and z + STEP, (5, m, n)


class Vote(NamedTuple):
    """Gradients that are right, each by another choice of slopes; and what the vote found, in words."""

    gradients: tuple[Params, ...]  # the vote's, then those with the slope below, above, and midway at every kink
    deltas: list[np.ndarray]  # the error signals of the first
    autodiff_alone: tuple[str, ...]
    by_hand_alone: tuple[str, ...]


def vote(net: MLP, params: Params, trace: Trace, Y: Array, weights: Any, masks: Any) -> Vote:
    """Measures every activation and the loss, and carries the slopes that win down to the gradients.

    A slope by hand that autodiff contradicts wins in three cases: differences agree with it and not with autodiff;
    differences cannot tell the two apart, and autodiff's own rounding explains the gap; z is at a kink, and the slope
    lies between the slopes on its two sides. In all other cases autodiff's wins.

    Args:
        net, params, Y, weights, masks: the network and its batch.
        trace: of backpropagation on the batch.
    Example:
        >>> found = jm.gradient_votes.vote(net, params, jm.backprop(net, params, X, Y), Y, None, None)
        >>> found.autodiff_alone, found.by_hand_alone
        ((), ())
    """
    with jax.enable_x64(True):
        params, zs, Y = jax.tree.map(arrays.widen, (params, trace.pre_activations, Y))
        found = [_measure_activation(f, z) for f, z in zip(net.hidden, zs[:-1], strict=True)]
        measured = [Slopes(*map(np.asarray, s)) for s in (*found, _measure_loss(net, params, zs[-1], Y))]
    with np.errstate(all="ignore"):  # an infinite slope is judged as such
        verdicts = [_judge(slopes) for slopes in measured]
        sides = [[won for _, won, _ in verdicts], *([_take_beside(s, side) for s in measured] for side in (0, 1, None))]
        signals = [_carry_down(params, slopes, masks) for slopes in sides]
        gradients = [_multiply(deltas, trace.inputs, weights) for deltas in signals]
        names = [f"{f.name} at layer {l}" for l, f in enumerate(net.hidden, start=1)] + [f"the loss {net.loss.name}"]
        told = list(zip(names, measured, verdicts, strict=True))
        autodiff = tuple(_tell(name, s, outvoted) for name, s, (outvoted, _, _) in told if outvoted.any())
        by_hand = tuple(_tell(name, s, wrong) for name, s, (_, _, wrong) in told if wrong.any())
    return Vote(tuple(gradients), signals[0], autodiff, by_hand)


@compiled("f")
def _measure_activation(f: Activation, z: Array) -> Slopes:
    """The slopes of a hidden activation."""
    slope = lambda z, by, _: jax.vjp(f.f, z + by)[1](jnp.ones_like(z))[0]
    return _probe(z, f.df(z), lambda z, by, _: f.f(z + by), slope, None)


@compiled("net")
def _measure_loss(net: MLP, params: Params, z: Array, Y: Array) -> Slopes:
    """The slopes of the loss as a function of `z^K`."""
    loss, units = partial(tail_loss, net, params, net.depth), jnp.eye(net.sizes[-1])
    start = lambda z, y: output_delta(net, Tape((), (z,), net.output.f(z)), y)
    value = lambda z, by, Y: jax.vmap(lambda z, y: jax.vmap(lambda e: loss(z + by * e, y))(units))(z, Y)
    entry = lambda z, y, e: jnp.vdot(jax.grad(loss)(z, y), e)
    slope = lambda z, by, Y: jax.vmap(lambda z, y: jax.vmap(lambda e: entry(z + by * e, y, e))(units))(z, Y)
    return _probe(z, jax.vmap(start)(z, Y), value, slope, Y)


def _probe(z, by_hand, value: Callable[..., Array], slope: Callable[..., Array], Y) -> Slopes:
    """Measures one function; `value` and `slope` take each entry of z shifted by `by`, one at a time."""
    autodiff = slope(z, 0.0, Y)
    program = jax.make_jaxpr(slope)(z, 0.0, Y)
    rng = np.random.default_rng(0)
    moves = lambda k: jnp.abs(_evaluate(program, jax.tree.leaves((z, 0.0, Y)), rng, k)[0] - autodiff)
    noise = jnp.max(jax.vmap(moves)(jnp.arange(SAMPLES)), axis=0)
    by = BESIDE * jnp.maximum(1, jnp.abs(z))
    beside = jnp.stack([slope(z - by, 0.0, Y), slope(z + by, 0.0, Y)])
    values = jnp.stack([value(z, by, Y) for by in (-STEP, -STEP / FINER, 0.0, STEP / FINER, STEP)])
    return Slopes(z, by_hand, autodiff, noise, beside, values)


def _evaluate(program: ClosedJaxpr, arguments: Sequence[Any], rng: np.random.Generator, k: Array) -> list[Array]:
    """Runs a jaxpr with random errors of one rounding, sample k of them: how far the result moves is how it cancels."""
    known: dict[Any, Any] = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    known |= zip(program.jaxpr.invars, arguments, strict=True)
    read = lambda v: v.val if isinstance(v, Literal) else known[v]
    for equation in program.jaxpr.eqns:
        given = [read(v) for v in equation.invars]
        nested = equation.params.get(NESTED.get(equation.primitive.name, ""))
        if nested is not None:
            made = _evaluate(nested, given, rng, k)
        else:
            made = equation.primitive.bind(*given, **equation.params)
            made = [_round(v, rng, k) for v in (made if equation.primitive.multiple_results else [made])]
        known |= zip(equation.outvars, made, strict=True)
    return [read(v) for v in program.jaxpr.outvars]


def _round(value: Array, rng: np.random.Generator, k: Array) -> Array:
    """The value times `1 + EPS u`, u in [-1, 1]."""
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    return value * (1 + EPS * jnp.asarray(rng.uniform(-1, 1, (SAMPLES, *value.shape)), value.dtype)[k])


def _judge(s: Slopes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where autodiff is alone, the slopes that win, and where the slope by hand is alone."""
    far_below, below, here, above, far_above = s.values
    difference, unsure = (far_above - far_below) / (2 * STEP), 8 * EPS * (1 + np.abs(here)) / STEP
    agrees = lambda slope: np.abs(slope - difference) <= 1e-6 * np.abs(difference) + unsure
    left, right = (here - below) * (FINER / STEP), (above - here) * (FINER / STEP)
    kink = np.abs(right - left) > np.abs((far_above - here) - (here - far_below)) / (2 * STEP) + 100 * FINER * unsure
    room = 1e-6 * np.maximum(np.abs(left), np.abs(right)) + FINER * unsure
    between = (np.minimum(left, right) - room <= s.by_hand) & (s.by_hand <= np.maximum(left, right) + room)
    explained = ~agrees(s.autodiff) | (np.abs(s.by_hand - s.autodiff) <= 8 * s.noise)
    wins = (agrees(s.by_hand) & explained) | (kink & between)
    apart = ~(np.abs(s.by_hand - s.autodiff) <= 1e-12 * np.maximum(np.abs(s.by_hand), np.abs(s.autodiff)))
    return apart & wins, np.where(wins, s.by_hand, s.autodiff), ~wins & ~agrees(s.by_hand) & agrees(s.autodiff)


def _take_beside(s: Slopes, side: int | None) -> np.ndarray:
    """Autodiff's slopes; at a kink those below it (0), above it (1), or the mean of the two (None)."""
    low, high = s.beside
    kink = np.abs(high - low) > 1e-3 * np.maximum(np.abs(high), np.abs(low))
    return np.where(kink, (low + high) / 2 if side is None else s.beside[side], s.autodiff)


def _carry_down(params: Params, slopes: Sequence[np.ndarray], masks: Any) -> list[np.ndarray]:
    """The error signals of these slopes; the last slopes are the start."""
    deltas = [slopes[-1]]
    for l in range(len(params) - 1, 0, -1):
        error = deltas[0] @ np.asarray(params[l].W)
        deltas.insert(0, slopes[l - 1] * (error if masks is None else np.asarray(masks[l], np.float64) * error))
    return deltas


def _multiply(deltas: Sequence[np.ndarray], inputs: Sequence[Array], weights: Any) -> Params:
    """The mean gradient of these error signals."""
    w = np.ones(len(deltas[0])) if weights is None else np.asarray(weights, np.float64)
    scaled = [(w / w.sum())[:, None] * delta for delta in deltas]
    pairs = zip(scaled, inputs, strict=True)
    return tuple(Layer(delta.T @ np.asarray(a, np.float64), delta.sum(0)) for delta, a in pairs)  # pyright: ignore


def _tell(name: str, s: Slopes, entries: np.ndarray) -> str:
    """The entry at which the slopes by hand and by autodiff differ most, in words."""
    apart = np.abs(s.by_hand - s.autodiff) / np.maximum(np.abs(s.by_hand), np.abs(s.autodiff))
    at = np.unravel_index(np.argmax(np.where(entries, np.nan_to_num(apart, nan=np.inf), -1)), s.z.shape)
    slopes = (s.values[-1][at] - s.values[2][at]) / STEP, (s.values[2][at] - s.values[0][at]) / STEP
    return (f"{name}, z = {s.z[at]:.6g}: its derivative by hand is {s.by_hand[at]:.6g}, by autodiff "
            f"{s.autodiff[at]:.6g}, by differences above z {slopes[0]:.6g} and below {slopes[1]:.6g}")  # fmt: skip
