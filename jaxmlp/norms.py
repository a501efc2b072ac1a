"""Norms whose squares neither over- nor underflow, and the dtypes that norms and sums are taken in.

Readouts, clipping, rules and `max_norm` share `sum_squares`. It divides by a power of two before it squares, so a
norm has the same bits as without the division wherever the plain squares are fine.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

FAR = 10_000  # below every exponent of a float


class Squares(NamedTuple):
    """The sum of squares `value * 4**exponent`; its root is `value**0.5 * 2**exponent`."""

    value: Float[Array, "*n"]
    exponent: Int[Array, "*n"]


def is_narrow(dtype: jnp.dtype) -> bool:
    """Whether it is a floating-point dtype narrower than float32."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32


def wide(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of sums, counts and averages of such numbers: float32 for narrower ones."""
    return jnp.dtype(jnp.float32) if is_narrow(dtype) else jnp.dtype(dtype)


def widen(x: Num[Array, "*n"]) -> Num[Array, "*n"]:
    """`x` in float32 if it is narrower: the dtype that sums, counts and norms of it are taken in."""
    return x.astype(wide(x.dtype)) if is_narrow(x.dtype) else x


def sum_squares(x: Float[Array, "*n"], axis: int = -1, constant: bool = False) -> Squares:
    """The sum of squares along an axis; with `constant`, that of x and one more entry of 1."""
    x = widen(x)
    exponent = exponent_of(jnp.max(jnp.abs(x), axis=axis, initial=0))
    exponent = jnp.maximum(exponent, 0) if constant else exponent
    value = jnp.sum((x * jnp.expand_dims(power_of_two(-exponent, x.dtype), axis)) ** 2, axis=axis)
    return Squares(value + power_of_two(-2 * exponent, x.dtype) if constant else value, exponent)


def total(squares: Squares, axis: int = -1) -> Squares:
    """The sum of sums of squares along an axis."""
    value, exponent = squares
    exponent = jnp.where(value == 0, -FAR, exponent)
    largest = jnp.max(exponent, axis=axis)
    parts = value * power_of_two(2 * (exponent - jnp.expand_dims(largest, axis)), value.dtype)
    return Squares(jnp.sum(parts, axis=axis), largest)


def root(squares: Squares) -> Float[Array, "*n"]:
    """The norm; infinite where it is beyond the dtype's largest number."""
    value, exponent = squares
    half = exponent // 2  # the whole power may be outside the dtype's range where the norm is not
    return jnp.sqrt(value) * power_of_two(half, value.dtype) * power_of_two(exponent - half, value.dtype)


def norm(x: Float[Array, "*n"], axis: int = -1) -> Float[Array, "*m"]:
    """The Euclidean norm along an axis, in at least float32."""
    return root(sum_squares(x, axis))


@partial(jax.jit, static_argnames="dtype", inline=True)  # one program where it is called by itself; all is exact
def power_of_two(exponent: Int[Array, "*n"], dtype: jnp.dtype) -> Float[Array, "*n"]:
    """`2**exponent` exactly, as far as the dtype holds it without its subnormal numbers."""
    about = jnp.finfo(dtype)
    within = jnp.clip(exponent, about.minexp, about.maxexp - 1) + (about.maxexp - 1)
    whole = jnp.dtype(f"int{about.bits}")
    return jax.lax.bitcast_convert_type(within.astype(whole) << about.nmant, dtype)


def round_down(x: Float[Array, "*n"], dtype: jnp.dtype) -> Float[Array, "*n"]:
    """`x` in `dtype`, rounded toward 0 where that is narrower: no norm grows."""
    if jnp.finfo(dtype).bits >= jnp.finfo(x.dtype).bits:
        return x.astype(dtype)
    near = x.astype(dtype)
    bits = jax.lax.bitcast_convert_type(near, jnp.dtype(f"uint{jnp.finfo(dtype).bits}"))
    larger = jnp.abs(near.astype(x.dtype)) > jnp.abs(x)
    return jax.lax.bitcast_convert_type(bits - larger.astype(bits.dtype), dtype)  # the next number toward 0


@partial(jax.jit, inline=True)
def exponent_of(x: Float[Array, "*n"]) -> Int[Array, "*n"]:
    """The whole e with `2**e <= x < 2**(e + 1)` for `x >= 0`, within the normal numbers whose inverse is one, too."""
    about = jnp.finfo(x.dtype)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"int{about.bits}"))
    return jnp.clip((bits >> about.nmant) - (about.maxexp - 1), about.minexp, -about.minexp).astype(jnp.int32)
