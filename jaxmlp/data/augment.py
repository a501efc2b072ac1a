"""Training pictures that were never taken: random shifts and elastic distortions, `augment(key, x)` of one example.

Each takes a picture as it is stored, `(h, w)` of uint8 or floats, and gives one of the same shape and dtype; zeros
move in from outside. They are pure, for `jit` and `vmap`; a factory gives the same object for the same options, so
that nothing compiles again. Two in turn, defined once:

    def augment(key, x):
        first, second = jax.random.split(key)
        return jm.data.elastic()(second, jm.data.shifts(2)(first, x))
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Num, PRNGKeyArray

from jaxmlp import validate

Augment = Callable[[PRNGKeyArray, Num[Array, "h w"]], Num[Array, "h w"]]

TRUNCATE = 4  # deviations at which the Gaussian is cut


def shifts(pixels: int = 2) -> Augment:
    """Shifts by whole pixels, at most `pixels` up or down and left or right, each as likely as the other."""
    return _shifts(validate.whole(pixels, "pixels"))


def elastic(alpha: float = 34.0, sigma: float = 4.0) -> Augment:
    """Elastic distortion: `x'[r, c] = x[r + alpha u_r[r, c], c + alpha u_c[r, c]]`, bilinear between pixels.

    `u_r` and `u_c` are fields of numbers uniform in [-1, 1], smoothed by a Gaussian of deviation `sigma` pixels whose
    weights sum to 1; away from the edges a displacement then deviates by about `alpha / (2 sqrt(3 pi) sigma)` pixels:
    1.4 by default, Simard's best values for MNIST. Source: Simard, Steinkraus and Platt 2003, section 2.
    """
    return _elastic(validate.number(alpha, "alpha", 0, at_most=1e6), validate.number(sigma, "sigma", 0, at_most=1e6))


@functools.cache
def _shifts(pixels: int) -> Augment:
    def augment(key, x):
        _check(x)
        at = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
        return lax.dynamic_slice(jnp.pad(x, pixels), at, x.shape)

    return augment


@functools.cache
def _elastic(alpha: float, sigma: float) -> Augment:
    def augment(key, x):
        _check(x)
        precise = x.dtype if x.dtype == jnp.float64 else jnp.float32  # places need more bits than bfloat16 has
        u = smoothed(uniform(key, (2, *x.shape)), sigma).astype(precise)
        moved = displaced(x.astype(precise), alpha * u)
        return (jnp.round(moved) if x.dtype == jnp.uint8 else moved).astype(x.dtype)

    return augment


def _check(x: Array) -> None:
    if x.ndim != 2:
        raise ValueError(f"x has shape {x.shape}, expected one picture (h, w); batches go through vmap")
    if x.dtype != jnp.uint8 and not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}, expected uint8 or a floating-point type")


def uniform(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Numbers uniform among 256 levels in [-1, 1], four from each word drawn: drawing is what costs here."""
    n = math.prod(shape)
    words = jax.random.bits(key, (math.ceil(n / 4),), jnp.uint32)
    levels = lax.bitcast_convert_type(words, jnp.uint8).ravel()[:n].reshape(shape)
    return (levels.astype(jnp.float32) - 127.5) / 127.5


def smoothed(u: Float[Array, "2 h w"], sigma: float) -> Float[Array, "2 h w"]:
    """`G_h u G_w^T` for each field, with zeros around it: a Gaussian filter is two small matrix products."""
    G_h, G_w = (jnp.asarray(gaussian(n, sigma), u.dtype) for n in u.shape[1:])
    return G_h @ u @ G_w.T


def gaussian(n: int, sigma: float) -> np.ndarray:
    """The matrix `(n, n)` of `exp(-(i - j)^2 / (2 sigma^2))`, cut at 4 deviations, over the sum of a whole row."""
    radius = int(TRUNCATE * sigma + 0.5)
    weights = lambda apart: np.where(abs(apart) <= radius, np.exp(-(apart**2) / (2 * sigma**2)), 0)
    i = np.arange(n)
    return weights(i[:, None] - i) / weights(np.arange(-radius, radius + 1)).sum()


def displaced(x: Float[Array, "h w"], d: Float[Array, "2 h w"]) -> Float[Array, "h w"]:
    """`x'[r, c] = x[r + d_0[r, c], c + d_1[r, c]]`, bilinear between the four pixels around, 0 outside."""
    h, w = x.shape
    grid = jnp.stack(jnp.meshgrid(jnp.arange(h), jnp.arange(w), indexing="ij")).astype(x.dtype)
    last = jnp.asarray([h, w], x.dtype).reshape(2, 1, 1)
    at = jnp.clip(grid + d + 1, 0, last + 1)  # in the picture with a frame of zeros
    low = jnp.minimum(jnp.floor(at), last)
    (r, c), (part_r, part_c) = low.astype(jnp.int32), at - low
    framed, corner = jnp.pad(x, 1).ravel(), r * (w + 2) + c
    pixel = lambda down, right: framed.at[corner + (down * (w + 2) + right)].get(mode="promise_in_bounds")
    upper = (1 - part_c) * pixel(0, 0) + part_c * pixel(0, 1)
    lower = (1 - part_c) * pixel(1, 0) + part_c * pixel(1, 1)
    return (1 - part_r) * upper + part_r * lower
