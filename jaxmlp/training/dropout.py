"""Dropout's masks, drawn for a batch at once: nothing in the forward or backward pass draws a random number.

Source: notes 002, "Dropout Regularization" (inverted dropout); Srivastava et al. 2014.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import validate
from jaxmlp.forward import Masks
from jaxmlp.network import MLP

Keep = float | Sequence[float] | Float[Array, "*K"]
LEVELS = 2**16  # keep is rounded to a multiple of 1 / LEVELS: 16 random bits an entry are half the price of 32


def dropout_masks(net: MLP, key: PRNGKeyArray, keep: Keep, m: int, dtype: Any = None) -> Masks:
    """Masks `(m, n_l)` for the inputs and each hidden layer: `1/keep` with probability `keep`, else 0.

    `keep` is one probability for all, or K of them, the inputs' first: `(0.8, 0.5, 0.5)`; it may be traced. An entry's
    mean is 1, so that prediction needs no masks. Any key will do: on a CPU threefry's bits cost the least, on an
    accelerator those of `jax.random.key(0, impl="rbg")`. Raises ValueError for a probability outside (0, 1].
    """
    keep, m = checked(net, keep), validate.whole(m, "m")
    dtype = validate.float_dtype(dtype)
    widths, keep = net.sizes[:-1], jnp.broadcast_to(keep, (net.depth,))
    bits = _random_bits(validate.key(key), m * sum(widths)).reshape(m, sum(widths))
    ends = np.cumsum((0, *widths))
    masks = []
    for l, p in enumerate(keep.astype(dtype)):
        below = jnp.round(p * LEVELS).astype(jnp.uint32)
        kept = bits[:, ends[l] : ends[l + 1]].astype(jnp.uint32) < below
        masks.append(jnp.where(kept, 1 / p, jnp.zeros((), dtype)))
    return tuple(masks)


def _random_bits(key: PRNGKeyArray, n: int) -> Array:
    """n random numbers of 16 bits, two from each of 32."""
    words = jax.random.bits(key, (-(-n // 2),), jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:n]


def checked(net: MLP, keep: Any) -> Float[Array, "*K"]:
    """`keep`, if it is one probability or one for the inputs and each hidden layer."""
    values = validate.array(keep, "keep")
    if values.shape not in ((), (net.depth,)):
        raise ValueError(f"keep has shape {values.shape}, expected a number or {net.depth}: the inputs' first")
    if validate.concrete(values):
        known = np.asarray(values)
        if not ((known > 0) & (known <= 1)).all():
            raise ValueError(f"keep is {keep}, expected probabilities above 0 and at most 1")
    return values.astype(jnp.result_type(float))
