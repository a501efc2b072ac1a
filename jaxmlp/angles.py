"""The angle between two gradients, layer by layer: how far a rule's gradient points from backpropagation's."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmlp import norms
from jaxmlp.doors import check_trace, takes_trace
from jaxmlp.network import Layer, Params
from jaxmlp.trace import Trace, check_weights, mean_of_products


@takes_trace
def alignment(trace: Trace, reference: Trace, weights: Float[Array, " m"] | None = None) -> Float[Array, " layers"]:
    """The angle at each layer between the mean gradients `(W, b)` of two traces of one batch.

    Args:
        weights: a weight of at least 0 for each example, `(m,)`; ones unless given.
    Returns:
        `(K,)` degrees, 0 to 180: 0 between two zeros, NaN between a zero and any other gradient.
    Example:
        >>> trace = jm.backprop(net, params, X, Y)
        >>> by_sign = jm.backprop(net, params, X, Y, rule=jm.rules.sign_symmetric())
        >>> angles = jm.alignment(by_sign, trace)
        >>> bool(0 < angles[0] < 90), bool(angles[1] < 0.1)
        (True, True)

    Source: Lillicrap et al. 2016, figure 2, there between error signals.
    """
    check_trace(reference)
    mean = lambda t: mean_of_products(t.deltas, t.inputs, check_weights(t, weights), t.constants)
    return layer_angles(mean(trace), mean(reference))


@jax.jit
def layer_angles(gradient: Params, reference: Params) -> Float[Array, " layers"]:
    """The angle between two gradients at each layer, in degrees."""
    return jnp.stack([angle(_flat(g), _flat(r)) for g, r in zip(gradient, reference, strict=True)])


@jax.jit
def norm_ratios(gradient: Params, reference: Params) -> Float[Array, " layers"]:
    """`||g|| / ||r||` at each layer."""
    norm = lambda layer: norms.norm(_flat(layer))
    return jnp.stack([norm(g) / norm(r) for g, r in zip(gradient, reference, strict=True)])


def angle(u: Float[Array, " n"], v: Float[Array, " n"]) -> Float[Array, ""]:
    """`2 atan2(||u/|u| - v/|v|||, ||u/|u| + v/|v|||)` in degrees: exact near 0, where an arccos loses half its digits.

    The angle is in at least float32.

    Source: Kahan 2006, "How futile are mindless assessments of roundoff", section 12.
    """
    both_zero = jnp.all(u == 0) & jnp.all(v == 0)
    u, v = _unit(norms.widen(u)), _unit(norms.widen(v))
    apart = 2 * jnp.arctan2(jnp.linalg.norm(u - v), jnp.linalg.norm(u + v))
    return jnp.where(both_zero, 0, jnp.degrees(apart))


def _unit(u: Float[Array, " n"]) -> Float[Array, " n"]:
    """`u / ||u||`, without under- or overflow of the squares; NaN for 0."""
    u = u / jnp.max(jnp.abs(u))
    return u / jnp.linalg.norm(u)


def _flat(layer: Layer) -> Float[Array, " n"]:
    return jnp.concatenate([layer.W.ravel(), layer.b])
