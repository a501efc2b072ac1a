"""Numbers that a network can take: pixels in [0, 1], features of mean 0 and deviation 1."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from jaxmlp import validate
from jaxmlp.validate import Given


def scale_pixels(x: UInt8[Array, "*shape"]) -> Float[Array, " i"]:
    """A picture of bytes as a flat float32 vector in [0, 1]: a `preprocess`, so that pictures stay bytes in memory."""
    return x.ravel().astype(jnp.float32) * jnp.float32(1 / 255)


class Standard(NamedTuple):
    """`z = (x - mean) / deviation` with the training examples' two, for all other examples too; `inverse` undoes it.

    scaling = standardise(X_train)
    Z_train, Z_test = scaling(X_train), scaling(X_test)
    """

    mean: Float[Array, "*i"]
    deviation: Float[Array, "*i"]  # 1 for a feature that is constant, which so becomes 0

    def __call__(self, X: Float[Given, "*shape"]) -> Float[Array, "*shape"]:
        """`(X - mean) / deviation`, of one example or of a batch."""
        X, mean, deviation = self._fitting(X, "X")
        return (X - mean) / deviation

    def inverse(self, Z: Float[Given, "*shape"]) -> Float[Array, "*shape"]:
        """`mean + deviation Z`: what was scaled, in its own units."""
        Z, mean, deviation = self._fitting(Z, "Z")
        return mean + deviation * Z

    def _fitting(self, given, name: str) -> tuple[Array, Array, Array]:
        """`given` as an array, with the mean and the deviation in its shape."""
        array, shape = _floats(given, name), jnp.shape(self.mean)
        if array.shape[array.ndim - len(shape) :] != shape:
            raise ValueError(f"{name} has shape {array.shape}, expected features of shape {shape}, with or without m")
        return array, jnp.broadcast_to(self.mean, array.shape), jnp.broadcast_to(self.deviation, array.shape)


def standardise(X: Float[Given, "m *i"]) -> Standard:
    """The scaling to mean 0 and deviation 1 of each feature of `X (m, ...)`, the training examples.

    `mean = sum_m x / m`, `deviation = sqrt(sum_m (x - mean)^2 / m)`, and 1 where a feature is constant. Targets
    `(m,)` may be scaled, too. Raises ValueError for no examples and for NaN or infinity. Source: notes 002,
    "Normalizing training sets".
    """
    X = _floats(X, "X")
    if X.ndim == 0 or X.shape[0] == 0:
        raise ValueError(f"X has shape {X.shape}, expected at least one example")
    validate.finite(X, "X")
    scaling = _standardise(X)
    validate.finite(scaling.deviation, "the deviation of X")
    return scaling


@jax.jit
def _standardise(X: Float[Array, "m *i"]) -> Standard:
    first = X[:1]
    constant = jnp.all(jnp.broadcast_to(first, X.shape) == X, axis=0)  # where rounding gives the mean an error, too
    mean = jnp.where(constant, X[0], X.mean(0))
    centred = X - jnp.broadcast_to(mean, X.shape)
    reach = jnp.where(constant, 1, jnp.abs(centred).max(0))  # so that no square over- or underflows
    deviation = reach * jnp.sqrt(jnp.mean((centred / jnp.broadcast_to(reach, X.shape)) ** 2, axis=0))
    return Standard(mean, jnp.where(constant, 1, deviation))


def _floats(given, name: str) -> Array:
    array = validate.array(given, name)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {array.dtype}, expected a floating-point type")
    return array
