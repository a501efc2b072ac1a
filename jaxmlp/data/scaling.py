"""Scales inputs for a network: pixels to [0, 1], features to mean 0 and standard deviation 1."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from jaxmlp import validate
from jaxmlp.validate import Given


def scale_pixels(x: UInt8[Array, "*shape"]) -> Float[Array, " i"]:
    """`x / 255` as a flat float32 vector. Use it as `preprocess`: the pictures stay bytes in memory.

    Args:
        x: one picture of bytes, of any shape.
    Example:
        >>> scaled = jm.data.scale_pixels(np.array([[0, 51], [102, 255]], np.uint8))
        >>> scaled.shape, float(scaled[-1])
        ((4,), 1.0)
    """
    return x.ravel().astype(jnp.float32) * jnp.float32(1 / 255)


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
        X, mean, deviation = self._broadcast(X, "X")
        return (X - mean) / deviation

    def inverse(self, Z: Float[Given, "*shape"]) -> Float[Array, "*shape"]:
        """`mean + deviation Z`: scaled features in their original units."""
        Z, mean, deviation = self._broadcast(Z, "Z")
        return mean + deviation * Z

    def _broadcast(self, given, name: str) -> tuple[Array, Array, Array]:
        """`given` as an array, and mean and deviation in its shape."""
        array, shape = _to_floats(given, name), jnp.shape(self.mean)
        if array.shape[array.ndim - len(shape) :] != shape:
            raise ValueError(f"{name} has shape {array.shape}, expected features of shape {shape}, with or without m")
        return array, jnp.broadcast_to(self.mean, array.shape), jnp.broadcast_to(self.deviation, array.shape)


def standardize(X: Float[Given, "m *i"]) -> Standard:
    """Finds the scaling that gives each feature of the training examples mean 0 and standard deviation 1.

    `mean = sum_m x / m`, `deviation = sqrt(sum_m (x - mean)^2 / m)`, and `deviation = 1` for a constant feature.

    Args:
        X: the training examples `(m, ...)`, or targets `(m,)`, in floats.
    Returns:
        A `Standard`, a function that scales these and other examples.
    Raises:
        ValueError: where X has no examples, holds NaN or infinity, or is not of floats.
    Example:
        >>> scaling = jm.data.standardize(np.array([[1.0, 7.0], [3.0, 7.0]], np.float32))
        >>> scaling.mean.tolist(), scaling.deviation.tolist(), scaling(np.float32([5, 7])).tolist()
        ([2.0, 7.0], [1.0, 1.0], [3.0, 0.0])

    Source: notes 002, "Normalizing training sets".
    """
    X = _to_floats(X, "X")
    if X.ndim == 0 or X.shape[0] == 0:
        raise ValueError(f"X has shape {X.shape}, expected at least one example")
    validate.finite(X, "X")
    scaling = _standardize(X)
    validate.finite(scaling.deviation, "the deviation of X")
    return scaling


standardise = standardize


@jax.jit
def _standardize(X: Float[Array, "m *i"]) -> Standard:
    """Mean and deviation of each feature, exact for constant features."""
    first = X[:1]
    constant = jnp.all(jnp.broadcast_to(first, X.shape) == X, axis=0)  # the mean of equal numbers may be rounded
    mean = jnp.where(constant, X[0], X.mean(0))
    centered = X - jnp.broadcast_to(mean, X.shape)
    reach = jnp.where(constant, 1, jnp.abs(centered).max(0))  # no square over- or underflows
    deviation = reach * jnp.sqrt(jnp.mean((centered / jnp.broadcast_to(reach, X.shape)) ** 2, axis=0))
    return Standard(mean, jnp.where(constant, 1, deviation))


def _to_floats(given, name: str) -> Array:
    """`given` as an array, if it holds floats."""
    array = validate.array(given, name)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {array.dtype}, expected a floating-point type")
    return array
