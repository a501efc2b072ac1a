"""Dropout's masks, drawn for a batch at once: nothing in the forward or backward pass draws a random number."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import norms, validate
from jaxmlp._forward import Masks
from jaxmlp.doors import takes_network
from jaxmlp.network import MLP

Keep = float | Sequence[float] | Float[Array, "*K"]
LEVELS = 2**16  # keep is rounded to a multiple of 1 / LEVELS: 16 random bits an entry are half the price of 32


@takes_network
def dropout_masks(net: MLP, key: PRNGKeyArray, keep: Keep, m: int, dtype: Any = None) -> Masks:
    """Draws dropout's masks for a batch: `1/keep` with probability `keep`, else 0.

    The mean of an entry is 1, so prediction needs no masks. On a CPU the bits of a default key cost the least, on an
    accelerator those of `jax.random.key(0, impl="rbg")`.

    Args:
        keep: one probability for all, or K of them, the inputs' first: `(0.8, 0.5, 0.5)`; it may be traced.
        m: the number of examples.
        dtype: of the masks; JAX's default float unless given.
    Returns:
        A mask `(m, n_l)` for the inputs and one for each hidden layer.
    Raises:
        ValueError: where a probability is outside (0, 1].
    Example:
        >>> [mask.shape for mask in jm.dropout_masks(net, key, (0.8, 0.5), m=20)]
        [(20, 784), (20, 64)]

    Source: notes 002, "Dropout Regularization" (inverted dropout); Srivastava et al. 2014.
    """
    keep, m = _check_keep(net, keep), validate.whole(m, "m")
    dtype = validate.float_dtype(dtype)
    widths, keep = net.sizes[:-1], jnp.broadcast_to(keep, (net.depth,))
    bits = _random_bits(validate.key(key), m * sum(widths)).reshape(m, sum(widths))
    ends = np.cumsum((0, *widths))
    masks = []
    exact = jnp.float32 if norms.is_narrow(dtype) else dtype  # LEVELS is infinite in float16
    for l, p in enumerate(keep.astype(exact)):
        below = jnp.round(p * LEVELS).astype(jnp.uint32)
        kept = bits[:, ends[l] : ends[l + 1]].astype(jnp.uint32) < below
        masks.append(jnp.where(kept, (1 / p).astype(dtype), jnp.zeros((), dtype)))
    return tuple(masks)


def _random_bits(key: PRNGKeyArray, n: int) -> Array:
    """n random numbers of 16 bits, two from each of 32."""
    words = jax.random.bits(key, (-(-n // 2),), jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:n]


def _check_keep(net: MLP, keep: Any) -> Float[Array, "*K"]:
    values = validate.array(keep, "keep")
    if values.shape not in ((), (net.depth,)):
        raise ValueError(f"keep has shape {values.shape}, expected a number or {net.depth}: the inputs' first")
    if validate.concrete(values):
        known = np.asarray(values)
        if not ((known > 0) & (known <= 1)).all():
            raise ValueError(f"keep is {keep}, expected a finite number above 0 and at most 1")
    return values.astype(jnp.result_type(float))
