"""Clipped means of the examples' gradients, and DP-SGD's gradient: no example's gradient is formed.

The norm of an example's gradient follows from its pairs (`per_example_norms`), and a factor on `delta` scales the
gradient. So one backward pass and one product for each layer give the clipped mean. Sources: Goodfellow 2015; Li et al.
2022, "ghost clipping", there with two backward passes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import validate
from jaxmlp.doors import takes_trace
from jaxmlp.network import Params
from jaxmlp.readouts import Trace, check_weights, mean_of_products, per_example_norms, sum_of_products


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
        The mean, in the structure of the parameters.
    Raises:
        ValueError: where `max_norm` or the weights do not fit.
    Example:
        >>> grads = jm.clipped_gradient(jm.backprop(net, params, X, Y), max_norm=1.0)
        >>> bool(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)) <= 1)
        True
    """
    scale = _clip_factors(trace, max_norm)
    deltas = tuple(scale * delta for delta in trace.deltas)
    return mean_of_products(deltas, trace.inputs, check_weights(trace, weights))


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

    The noise of each weight and bias is `N(0, (noise_multiplier max_norm)^2)`.

    Private is what is made of this gradient, such as the weights. The costs of a run, its key and its checkpoints are
    not; "Private training" in `jaxmlp/training/README.md` lists them. Each call needs a key of its own: equal noise
    cancels in a difference.

    Args:
        max_norm: above 0; may be traced.
        noise_multiplier: at least 0; may be traced.
        expected_batch_size: for Poisson sampling at rate q, q times the number of examples; m unless given.
        weights: 1 for examples, 0 for padding, `(m,)`; a weight above 1 counts as 1.
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
    scale, weights = _clip_factors(trace, max_norm), check_weights(trace, weights)
    if weights is not None:  # the noise covers an example of weight 1
        scale = jnp.minimum(weights, 1)[:, None] * scale
    total = sum_of_products(tuple(scale * delta for delta in trace.deltas), trace.inputs)
    leaves, structure = jax.tree.flatten(total)
    deviation = noise_multiplier * max_norm
    noisy = [
        leaf + deviation * jax.random.normal(leaf_key, leaf.shape, leaf.dtype)
        for leaf, leaf_key in zip(leaves, jax.random.split(key, len(leaves)), strict=True)
    ]
    return jax.tree.map(lambda g: g / expected, jax.tree.unflatten(structure, noisy))


def _clip_factors(trace: Trace, max_norm: float | Float[Array, ""]) -> Float[Array, "m 1"]:
    """`min(1, max_norm / ||g||)`, and 1 for a gradient of 0."""
    _check_number(max_norm, "max_norm")
    norms = per_example_norms(trace)
    longer = norms > max_norm
    return jnp.where(longer, max_norm / jnp.where(longer, norms, 1), 1)[:, None]


def _check_number(given: float | Array, argument: str, or_zero: bool = False) -> None:
    """Refuses a number, unless it is traced, that is NaN or not above 0; with `or_zero`, 0 is fine."""
    if validate.concrete(given) and not (given > 0 or (or_zero and given == 0)):
        raise ValueError(f"{argument} is {given}, expected a number {'of at least' if or_zero else 'above'} 0")
