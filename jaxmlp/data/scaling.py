"""Scales inputs for a network: pixels to [0, 1], features to mean 0 and standard deviation 1."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from jaxmlp import validate
from jaxmlp.validate import Given

SMALLEST = 2**16  # times the least normal number: a deviation below this loses digits, as XLA takes smaller ones as 0


def scale_pixels(x: UInt8[Array, "*shape"]) -> Float[Array, " i"]:
    """`x / 255` as a flat float32 vector. Use it as `preprocess`: the pictures stay bytes in memory.

    Args:
        x: one picture of bytes, of any shape.
    Example:
        >>> scaled = jm.data.scale_pixels(np.array([[0, 51], [102, 255]], np.uint8))
        >>> scaled.shape, float(scaled[-1])
        ((4,), 1.0)
    """
    return validate.array(x, "x").ravel().astype(jnp.float32) * jnp.float32(1 / 255)


class Standard(NamedTuple):
    """The scaling `z = (x - mean) / deviation`, with mean and deviation of the training examples.

    Example:
        >>> X_train, X_test = X[:15], X[15:]
        >>> scaling = jm.data.standardize(X_train)
        >>> Z_train, Z_test = scaling(X_train), scaling(X_test)
        >>> bool(jnp.allclose(scaling.inverse(Z_test), X_test, atol=1e-6))
        True
    """

    mean: Float[Array, "*i"]
    deviation: Float[Array, "*i"]  # 1 for a constant feature, so that it becomes 0

    def __call__(self, X: Float[Given, "*shape"]) -> Float[Array, "*shape"]:
        """`(X - mean) / deviation`, for one example or a batch."""
        given = to_floats(X, "X")
        X, mean, deviation, power = self._broadcast(given, "X")
        return _check_range(((X if power is None else X * power) - mean) / deviation, given, "X")

    def inverse(self, Z: Float[Given, "*shape"]) -> Float[Array, "*shape"]:
        """`mean + deviation Z`: scaled features in their original units."""
        given = to_floats(Z, "Z")
        Z, mean, deviation, power = self._broadcast(given, "Z")
        X = mean + deviation * Z
        return _check_range(X if power is None else X / power, given, "Z")

    def _broadcast(self, array: Array, name: str) -> tuple[Array, Array, Array, Array | None]:
        """`array`, and mean and deviation in its shape, times a power of two if a sum might overflow without it."""
        mean, deviation = map(_widen, self)
        if array.shape[array.ndim - mean.ndim :] != mean.shape:
            raise ValueError(f"{name} has shape {array.shape}, expected features of shape {mean.shape}, "
                             "with or without m")  # fmt: skip
        large, power = jnp.maximum(jnp.abs(mean), deviation) > _large(mean.dtype), None
        if not validate.concrete(large) or large.any():
            power = jnp.where(large, 0.25, 1).astype(mean.dtype)
            mean, deviation, power = mean * power, deviation * power, jnp.broadcast_to(power, array.shape)
        return _widen(array), jnp.broadcast_to(mean, array.shape), jnp.broadcast_to(deviation, array.shape), power


def _check_range(made: Array, given: Array, name: str) -> Array:
    """What was made of `given`, in its dtype if that is a half; ValueError where this cannot hold a number."""
    made = made.astype(given.dtype) if _is_half(given.dtype) else made
    if validate.concrete(made) and not jnp.isfinite(made).all():
        lost = np.argwhere(np.asarray(~jnp.isfinite(made) & jnp.isfinite(given)))
        if lost.size:
            where = tuple(lost[0].tolist())
            raise ValueError(
                f"{name} holds {np.asarray(given)[where]} at {where}, whose result {made.dtype} cannot hold"
            )
    return made


def standardize(X: Float[Given, "m *i"]) -> Standard:
    """Finds the scaling that gives each feature of the training examples mean 0 and standard deviation 1.

    `mean = sum_m x / m`, `deviation = sqrt(sum_m (x - mean)^2 / m)`, and `deviation = 1` for a constant feature.

    Args:
        X: the training examples `(m, ...)`, or targets `(m,)`, in floats.
    Returns:
        A `Standard`, a function that scales these and other examples.
    Raises:
        ValueError: where X has no examples, holds NaN or infinity, is not of floats, or has a deviation at the lower
            end of its dtype's range, below 1e-33 for float32.
    Example:
        >>> scaling = jm.data.standardize(np.array([[1.0, 7.0], [3.0, 7.0]], np.float32))
        >>> scaling.mean.tolist(), scaling.deviation.tolist(), scaling(np.float32([5, 7])).tolist()
        ([2.0, 7.0], [1.0, 1.0], [3.0, 0.0])

    Source: notes 002, "Normalizing training sets".
    """
    X = to_floats(X, "X")
    if X.ndim == 0 or X.shape[0] == 0:
        raise ValueError(f"X has shape {X.shape}, expected at least one example")
    validate.finite(X, "X")
    X = _widen(X)
    if not validate.concrete(X):
        return _standardize(X)
    return _standardize_known(X)


standardise = standardize


def _standardize_known(X: Float[Array, "m *i"]) -> Standard:
    """The same of known numbers: NumPy moves tiny ones into the middle of the range, where XLA would take them as 0."""
    values = np.asarray(X)
    reach = np.maximum(values.max(axis=0), -values.min(axis=0))
    tiny = (reach > 0) & (reach < 1 / _large(X.dtype))
    if tiny.any():
        power = np.where(tiny, np.frexp(reach)[1], 0)
        mean, deviation = map(np.asarray, _standardize(jnp.asarray(np.ldexp(values, -power))))
        # A constant feature's deviation stays 1.
        deviation = np.where((values == values[0]).all(axis=0), 1, np.ldexp(deviation, power))
        scaling = Standard(jnp.asarray(np.ldexp(mean, power)), jnp.asarray(deviation))
    else:
        scaling = _standardize(X)
    least = SMALLEST * float(jnp.finfo(X.dtype).tiny)
    if (known := np.asarray(scaling.deviation)).size and (low := known.min()) < least:
        where = tuple(int(i) for i in np.unravel_index(np.argmin(known), known.shape))
        raise ValueError(
            f"the deviation of X is {low} at {where}, expected at least {least:.2g}: below, {X.dtype} loses digits, so "
            "multiply the feature by a number first"
        )
    return scaling


@jax.jit
def _standardize(X: Float[Array, "m *i"]) -> Standard:
    """Mean and deviation of each feature, exact for constant features."""
    large = jnp.abs(X).max(0) > _large(X.dtype)
    power = jnp.where(large, jnp.asarray(_large(X.dtype), X.dtype), 1)  # of two: no sum overflows, no bit changes
    X = X / jnp.broadcast_to(power, X.shape)
    first = X[:1]
    constant = jnp.all(jnp.broadcast_to(first, X.shape) == X, axis=0)  # the mean of equal numbers may be rounded
    mean = jnp.where(constant, X[0], X.mean(0))
    centered = X - jnp.broadcast_to(mean, X.shape)
    reach = jnp.where(constant, 1, jnp.abs(centered).max(0))  # no square over- or underflows
    deviation = reach * jnp.sqrt(jnp.mean((centered / jnp.broadcast_to(reach, X.shape)) ** 2, axis=0))
    return Standard(mean * power, jnp.where(constant, 1, deviation * power))


def _large(dtype: Any) -> float:
    """A power of two halfway to the end of the dtype's range."""
    return float(2.0 ** (jnp.finfo(dtype).maxexp // 2))


def _is_half(dtype: Any) -> bool:
    return jnp.finfo(dtype).bits < 32


def _widen(array: Any) -> Array:
    """Half precision as float32: it is too coarse for means and sums."""
    array = jnp.asarray(array)
    return array.astype(jnp.float32) if _is_half(array.dtype) else array


def to_floats(given, name: str) -> Array:
    """`given` as an array, if it holds floats."""
    array = validate.array(given, name)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {array.dtype}, expected a floating-point type")
    return array
