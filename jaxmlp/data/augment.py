"""More training pictures from the ones at hand: random shifts and elastic distortions, as `augment(key, x)`.

Each takes one stored picture, `(h, w)` of uint8 or floats, and returns a picture of the same shape and dtype. Zeros
move in from outside. The functions are pure, for `jit` and `vmap`. The same options give the same function object, so
a second `fit` does not compile again. Two in turn, defined once:

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

TRUNCATE = 4  # the Gaussian is cut at this many deviations


def shifts(pixels: int = 2) -> Augment:
    """Random shifts by whole pixels: `x'[r, c] = x[r + a, c + b]`, with a and b uniform in -pixels .. pixels.

    Args:
        pixels: the largest shift, at least 1.
    Returns:
        A function `augment(key, x)` of one picture.
    Example:
        >>> picture = np.arange(12, dtype=np.uint8).reshape(3, 4)
        >>> moved = jm.data.shifts(1)(key, picture)
        >>> moved.shape, str(moved.dtype), jm.data.shifts(1) is jm.data.shifts(1)
        ((3, 4), 'uint8', True)
    """
    return _shifts(validate.whole(pixels, "pixels"))


def elastic(alpha: float = 34.0, sigma: float = 4.0) -> Augment:
    """Random elastic distortions: `x'[r, c] = x[r + alpha u_r[r, c], c + alpha u_c[r, c]]`, bilinear between pixels.

    `u_r` and `u_c` are fields of uniform numbers in [-1, 1], smoothed by a Gaussian whose weights sum to 1. Away from
    the edges a displacement has a standard deviation of about `alpha / (2 sqrt(3 pi) sigma)` pixels, 1.4 by default.

    Args:
        alpha: the size of the distortion, in pixels, above 0. The default is Simard's best for MNIST.
        sigma: the standard deviation of the Gaussian, in pixels, above 0. The default is Simard's best for MNIST.
    Returns:
        A function `augment(key, x)` of one picture.
    Example:
        >>> picture = np.full((28, 28), 200, np.uint8)
        >>> moved = jm.data.elastic()(key, picture)
        >>> moved.shape, str(moved.dtype), int(moved[14, 14])
        ((28, 28), 'uint8', 200)

    Source: Simard, Steinkraus and Platt 2003, section 2.
    """
    check = lambda given, name: validate.number(given, name, above=0, at_most=1e6)
    return _elastic(check(alpha, "alpha"), check(sigma, "sigma"))


@functools.lru_cache(maxsize=64)
def _shifts(pixels: int) -> Augment:
    def augment(key, x):
        _check(x)
        at = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
        return lax.dynamic_slice(jnp.pad(x, pixels), at, x.shape)

    return augment


@functools.lru_cache(maxsize=64)
def _elastic(alpha: float, sigma: float) -> Augment:
    def augment(key, x):
        _check(x)
        precise = x.dtype if x.dtype == jnp.float64 else jnp.float32  # bfloat16 is too coarse for places
        u = smooth(draw_uniform(key, (2, *x.shape)), sigma).astype(precise)
        moved = displace(x.astype(precise), alpha * u)
        return (jnp.round(moved) if x.dtype == jnp.uint8 else moved).astype(x.dtype)

    return augment


def _check(x: Array) -> None:
    """Raises if x is not one picture of bytes or floats."""
    if x.ndim != 2:
        raise ValueError(f"x has shape {x.shape}, expected one picture (h, w); use vmap for a batch")
    if x.dtype != jnp.uint8 and not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has dtype {x.dtype}, expected uint8 or a floating-point type")


def draw_uniform(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Uniform numbers among 256 levels in [-1, 1]. Each random word gives four of them, since drawing is the cost."""
    n = math.prod(shape)
    words = jax.random.bits(key, (math.ceil(n / 4),), jnp.uint32)
    levels = lax.bitcast_convert_type(words, jnp.uint8).ravel()[:n].reshape(shape)
    return (levels.astype(jnp.float32) - 127.5) / 127.5


def smooth(u: Float[Array, "2 h w"], sigma: float) -> Float[Array, "2 h w"]:
    """A Gaussian filter of each field with zeros around it, as two small matrix products `G_h u G_w^T`."""
    G_h, G_w = (jnp.asarray(gaussian(n, sigma), u.dtype) for n in u.shape[1:])
    return G_h @ u @ G_w.T


def gaussian(n: int, sigma: float) -> np.ndarray:
    """The matrix `(n, n)` of `exp(-(i - j)^2 / (2 sigma^2))`, cut at 4 deviations, divided by the sum of a full row."""
    radius = int(TRUNCATE * sigma + 0.5)
    weights = lambda apart: np.where(abs(apart) <= radius, np.exp(-(apart**2) / (2 * sigma**2)), 0)
    i = np.arange(n)
    return weights(i[:, None] - i) / weights(np.arange(-radius, radius + 1)).sum()


def displace(x: Float[Array, "h w"], d: Float[Array, "2 h w"]) -> Float[Array, "h w"]:
    """`x'[r, c] = x[r + d_0[r, c], c + d_1[r, c]]`, bilinear between the four nearest pixels, 0 outside."""
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
