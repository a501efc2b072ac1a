"""How far the examples' gradients spread: their variance and the noise scale.

Both are taken around means, so that a mean far larger than the spread does not cancel. With the means `d`, `c` over the
examples and the deviations `D = delta - d`, `C = a - c`, an example's gradient is `g = delta a^T = d c^T + h` with
`h = d C^T + D a^T`. Only h varies, and its moments are products as those of g are. An example whose start has rows has
a gradient for each, and the moments are summed over them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmlp import norms
from jaxmlp.doors import takes_trace
from jaxmlp.network import Layer, Params
from jaxmlp.norms import widen
from jaxmlp.trace import Trace, check_weights, narrow, shares_of, split, with_constant


@takes_trace
def variance(trace: Trace, weights: Float[Array, " m"] | None = None) -> Params:
    """The variance of the examples' gradients, entry by entry: `E[(g - E[g])^2]`, divided by m, not m - 1.

    Args:
        weights: a weight of at least 0 for each example, `(m,)`; ones unless given.
    Example:
        >>> jm.variance(jm.backprop(net, params, X, Y))[0].W.shape
        (64, 784)
    """
    share = shares_of(trace, check_weights(trace, weights))[:, None]

    def layer(delta, a):
        delta, a = _center(delta, share), _center(a, share)
        d = delta.mean[:, None]
        weighted = share * delta.deviation
        squares = d**2 * jnp.sum(share * a.deviation**2, axis=0)[None]
        squares += 2 * d * (weighted.T @ (a.whole * a.deviation)) + (weighted * delta.deviation).T @ a.whole**2
        of_biases = jnp.sum(weighted * delta.deviation, axis=0) - delta.rest**2
        W = squares - (d * a.rest[None] + weighted.T @ a.whole) ** 2
        return Layer(jnp.maximum(W, 0), jnp.maximum(of_biases, 0))  # rounding may leave a negative

    layers = tuple(_each_row(layer, delta, a) for delta, a in zip(trace.deltas, _inputs(trace), strict=True))
    if trace.constants is not None:  # the bias is the weight of the last input
        layers = tuple(split(W) for W, _ in layers)
    return narrow(layers, trace.losses.dtype)


@takes_trace
def noise_scale(trace: Trace) -> Float[Array, ""]:
    """The batch size at which noise and gradient are equally large, `tr(Sigma) / ||G||^2`.

    Sigma is the covariance of the examples' gradients and G the true gradient. Both are estimated without bias from the
    batch. With V the mean of `||g - E[g]||^2` and N the squared norm of the mean gradient,
    `tr(Sigma) = m V / (m - 1)` and `||G||^2 = N - V / (m - 1)`, which noise can make negative.

    Raises:
        ValueError: for fewer than 2 examples.
    Example:
        >>> jm.noise_scale(jm.backprop(net, params, X, Y)).shape
        ()

    Source: McCandlish et al. 2018, "An empirical model of large-batch training".
    """
    m = trace.losses.shape[0]
    if isinstance(m, int) and m < 2:
        raise ValueError(f"trace holds {m} example, expected at least 2")
    share = shares_of(trace, None)[:, None]
    # One factor on every delta, and one on every (a, 1), cancel in the ratio; they keep its squares in range.
    deltas, inputs = _scale(trace.deltas), _scale(_inputs(trace), least=1.0)
    constant = inputs.factor if trace.constants is None else jnp.zeros_like(inputs.factor)

    def layer(delta, a):
        delta, a = _center(delta, share), _center(a, share)
        weighted = share * delta.deviation
        varying = delta.mean[:, None] * a.rest[None] + weighted.T @ a.whole  # the mean of h
        lengths = jnp.sum(a.whole**2, axis=1) + constant**2  # of (a, 1)
        overlap = (delta.deviation @ delta.mean) * jnp.sum(a.whole * a.deviation, axis=1)
        spread = jnp.sum(delta.mean**2) * jnp.sum(share * a.deviation**2) + 2 * (share[:, 0] @ overlap)
        spread += share[:, 0] @ (jnp.sum(delta.deviation**2, axis=1) * lengths)
        spread -= jnp.sum(varying**2) + constant**2 * jnp.sum(delta.rest**2)
        W, b = delta.mean[:, None] * a.mean[None] + varying, constant * (delta.mean + delta.rest)
        return jnp.maximum(spread, 0), jnp.sum(W**2) + jnp.sum(b**2)

    each = [_each_row(layer, delta, a) for delta, a in zip(deltas.arrays, inputs.arrays, strict=True)]
    V, N = (jnp.sum(jnp.stack(column)) for column in zip(*each, strict=True))
    return m * V / ((m - 1) * N - V)


class _Centered(NamedTuple):
    whole: Float[Array, "m n"]
    mean: Float[Array, " n"]
    deviation: Float[Array, "m n"]
    rest: Float[Array, " n"]  # the mean of the deviations: the rounding of `mean`


def _center(x: Float[Array, "m n"], share: Float[Array, "m 1"]) -> _Centered:
    x = widen(x)
    mean = jnp.sum(share * x, axis=0)
    return _Centered(x, mean, x - mean[None], jnp.sum(share * (x - mean[None]), axis=0))


class _Scaled(NamedTuple):
    arrays: tuple[Float[Array, "m _"], ...]
    factor: Float[Array, ""]


def _scale(arrays: tuple[Array, ...], least: float = 0.0) -> _Scaled:
    """The arrays times the power of two that makes the largest number, or `least`, about 1."""
    arrays = tuple(map(widen, arrays))
    largest = jnp.maximum(jnp.max(jnp.stack([jnp.max(jnp.abs(array)) for array in arrays])), least)
    factor = norms.power_of_two(-norms.exponent_of(largest), largest.dtype)
    return _Scaled(tuple(factor * array for array in arrays), factor)


def _inputs(trace: Trace) -> tuple[Float[Array, "m i"], ...]:
    """The inputs; of a mapped trace with the constants behind them."""
    if trace.constants is None:
        return trace.inputs
    return tuple(with_constant(trace, l) for l in range(len(trace.inputs)))


def _each_row(layer: Callable[[Array, Array], Any], delta: Float[Array, "m *c o"], a: Float[Array, "m i"]) -> Any:
    """`layer(delta, a)`, summed over the rows."""
    if delta.ndim == 2:
        return layer(delta, a)
    return jax.tree.map(lambda made: made.sum(0), jax.vmap(layer, (1, None))(delta, a))
