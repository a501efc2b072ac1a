"""Clipped means of the examples' gradients, and DP-SGD's gradient: no example's gradient is formed.

The norm of an example's gradient follows from its pairs (`per_example_norms`), and a factor on `delta` scales the
gradient. So one backward pass and one product for each layer give the clipped mean. Sources: Goodfellow 2015; Li et al.
2022, "ghost clipping", there with two backward passes.

No example adds a gradient longer than `max_norm`, whatever its numbers: norms and sums are taken in at least float32,
and an example whose norm is not finite, or whose weight is NaN or below 0, adds nothing.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import norms, validate
from jaxmlp.doors import takes_trace
from jaxmlp.network import Params
from jaxmlp.readouts import per_example_norms
from jaxmlp.trace import Trace, check_weights, mean_of_products, narrow, sum_of_products, sum_rows


@takes_trace
def clipped_gradient(
    trace: Trace, max_norm: float | Float[Array, ""], weights: Float[Array, " m"] | None = None
) -> Params:
    """The mean of the examples' gradients, each scaled down to norm `max_norm` where it is longer.

    `sum_m w c g / sum_m w` with `c = min(1, max_norm / ||g||)`.

    Args:
        max_norm: above 0; may be traced.
        weights: a weight of at least 0 for each example, `(m,)`; ones unless given.
    Returns:
        The mean, in the structure of the parameters. A dtype narrower than float32 is rounded toward 0, so that no
        rounding makes it longer.
    Raises:
        ValueError: where `max_norm` or the weights do not fit.
    Example:
        >>> grads = jm.clipped_gradient(jm.backprop(net, params, X, Y), max_norm=1.0)
        >>> bool(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)) <= 1)
        True
    """
    weights = check_weights(trace, weights)
    weights = None if weights is None else jnp.where(weights > 0, weights, 0)  # values are unknown under jit
    deltas, inputs, constants = _clip(trace, max_norm)
    mean = mean_of_products(deltas, inputs, weights, constants)
    return jax.tree.map(lambda g: norms.round_down(g, trace.losses.dtype), mean)


@takes_trace
def private_gradient(
    trace: Trace,
    max_norm: float | Float[Array, ""],
    noise_multiplier: float | Float[Array, ""],
    key: PRNGKeyArray,
    expected_batch_size: float | None = None,
    weights: Float[Array, " m"] | None = None,
) -> Params:
    """DP-SGD's gradient, `(sum_m w c g + noise) / expected_batch_size` with `c = min(1, max_norm / ||g||)`.

    The noise of each weight and bias is `N(0, (noise_multiplier max_norm)^2)`, drawn and added in at least float32;
    only their sum is rounded to the parameters' dtype.

    Private is what is made of this gradient, such as the weights. The costs of a run, its key and its checkpoints are
    not; "Private training" in `jaxmlp/training/README.md` lists them. Each call needs a key of its own: equal noise
    cancels in a difference.

    Args:
        max_norm: above 0; may be traced.
        noise_multiplier: at least 0; may be traced.
        expected_batch_size: for Poisson sampling at rate q, q times the number of examples; m unless given, which
            counts the examples of weight 0 that fill up a batch.
        weights: 1 for examples, 0 for padding, `(m,)`; a weight above 1 counts as 1, one below 0 as 0.
    Returns:
        The noisy mean, in the structure of the parameters.
    Raises:
        ValueError: where an argument does not fit.
    Example:
        >>> trace = jm.backprop(net, params, X, Y)
        >>> jm.private_gradient(trace, 1.0, 1.1, key)[1].b.shape
        (10,)

    Source: Abadi et al. 2016, Algorithm 1.
    """
    expected = trace.losses.shape[0] if expected_batch_size is None else expected_batch_size
    _check_number(expected, "expected_batch_size")
    _check_number(noise_multiplier, "noise_multiplier", or_zero=True)
    weights = check_weights(trace, weights, relative=False)  # the size of each counts here, not their ratios
    if weights is not None:  # the noise covers an example of weight 1
        weights = jnp.where(weights > 0, jnp.minimum(weights, 1), 0)
    deltas, inputs, constants = _clip(trace, max_norm, weights)
    leaves, structure = jax.tree.flatten(sum_of_products(deltas, inputs, constants=constants))
    deviation = noise_multiplier * max_norm
    noisy = [
        leaf + deviation * jax.random.normal(leaf_key, leaf.shape, leaf.dtype)
        for leaf, leaf_key in zip(leaves, jax.random.split(key, len(leaves)), strict=True)
    ]
    return narrow(jax.tree.unflatten(structure, [g / expected for g in noisy]), trace.losses.dtype)


def _clip(
    trace: Trace, max_norm: float | Float[Array, ""], weights: Float[Array, " m"] | None = None
) -> tuple[tuple[Array, ...], tuple[Array, ...], tuple[Array, ...] | None]:
    """Pairs of gradients `w g min(1, max_norm / ||g||)` with their constants, in at least float32.

    The gradient of an example whose start has rows is the sum over them. An example whose norm is not finite gets pairs
    of 0: a factor of 0 would leave its NaN and infinities.
    """
    _check_number(max_norm, "max_norm")
    trace = trace._replace(deltas=tuple(map(sum_rows, trace.deltas)))
    length = per_example_norms(trace)
    longer = length > max_norm
    factor = jnp.where(longer, max_norm / jnp.where(longer, length, 1), 1)
    factor = (factor if weights is None else norms.widen(weights) * factor)[:, None]
    counted = jnp.isfinite(length)
    drop = lambda array: jnp.where(counted[:, None] if array.ndim == 2 else counted, array, 0)
    deltas = tuple(drop(factor * norms.widen(delta)) for delta in trace.deltas)
    constants = None if trace.constants is None else tuple(map(drop, trace.constants))
    return deltas, tuple(map(drop, trace.inputs)), constants


def _check_number(given: float | Array, argument: str, or_zero: bool = False) -> None:
    """Refuses a number, unless it is traced, that is NaN or not above 0; with `or_zero`, 0 is fine."""
    if not validate.concrete(given):
        return
    try:
        fine = bool(given > 0 or (or_zero and given == 0))
    except (TypeError, ValueError):  # a string, a key, several numbers
        fine = False
    if not fine:
        raise ValueError(f"{argument} is {given}, expected a number {'of at least' if or_zero else 'above'} 0")
