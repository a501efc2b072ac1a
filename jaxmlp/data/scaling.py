"""Numbers that a network can take."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def scale_pixels(x: UInt8[Array, "*shape"]) -> Float[Array, " i"]:
    """A picture of bytes as a flat float32 vector in [0, 1]: a `preprocess`, so that pictures stay bytes in memory."""
    return x.ravel().astype(jnp.float32) * jnp.float32(1 / 255)
