"""Fills missing values with the mean of the training examples, and tells the network where they were."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxmlp import validate
from jaxmlp.data.scaling import to_floats
from jaxmlp.validate import Given


class Filling(NamedTuple):
    """Puts the mean of the training examples where a value is missing, and adds a column of 0 and 1 that tells where.

    Example:
        >>> X_train = np.array([[1, 5], [3, np.nan], [2, 7]], np.float32)
        >>> filling = jm.data.fill_missing(X_train)
        >>> filling(X_train).tolist()
        [[1.0, 5.0, 0.0], [3.0, 6.0, 1.0], [2.0, 7.0, 0.0]]
        >>> filling(np.array([8, np.nan], np.float32)).tolist()
        [8.0, 6.0, 1.0]
    """

    mean: Float[Array, " i"]
    features: Int[Array, " n"]  # those that may be missing; each has a column behind all features

    def __call__(self, X: Float[Given, "*m i"]) -> Float[Array, "*m o"]:
        """The features without gaps, then the added columns, for one example or a batch: `o = i + n`."""
        X = to_floats(X, "X")
        if X.ndim == 0 or X.shape[-1:] != self.mean.shape:
            raise ValueError(f"X has shape {X.shape}, expected features of shape {self.mean.shape}, with or without m")
        if not all(map(validate.concrete, (X, *self))):
            return _fill(jnp, X, *self)
        mean, features = map(np.asarray, self)
        _check_missing(np.isnan(X), features)
        return jnp.asarray(_fill(np, np.asarray(X), mean, features))  # NumPy compiles nothing


def _fill(xp: Any, X: Any, mean: Any, features: Any) -> Any:
    """The same by NumPy or JAX, as `xp` says."""
    missing = xp.isnan(X)
    filled = xp.where(missing, xp.broadcast_to(mean.astype(X.dtype), X.shape), X)
    return xp.concatenate([filled, missing[..., features].astype(X.dtype)], axis=-1)


def _check_missing(missing: np.ndarray, features: np.ndarray) -> None:
    """Raises a ValueError where another feature is missing."""
    wrong = missing & np.isin(np.arange(missing.shape[-1]), features, invert=True)
    if wrong.any():
        where = tuple(np.argwhere(wrong)[0].tolist())
        raise ValueError(
            f"X holds nan at {where}, expected a number, as all training examples have one there; "
            "fill_missing(..., features=) names features that may be missing"
        )


def fill_missing(X: Float[Given, "m i"], features: Sequence[int] | None = None) -> Filling:
    """Finds the mean of each feature over the training examples that have it.

    Args:
        X: the training examples `(m, i)` in floats, NaN where a value is missing.
        features: the indices of those that may be missing. By default those that are missing in an example of X.
    Returns:
        A `Filling`, a function that fills these and other examples.
    Raises:
        ValueError: where X has no examples, holds infinity, is not of floats, or no example has one of the features;
            where an index is not one of a feature. The `Filling` raises one for a value that may not be missing.
    Example:
        >>> X_train, X_test = np.float32([[1, 5], [3, np.nan]]), np.float32([[np.nan, 4]])
        >>> jm.data.fill_missing(X_train, features=(0, 1))(X_test).tolist()
        [[2.0, 4.0, 1.0, 0.0]]

    Source: scikit-learn's `SimpleImputer(add_indicator=True)`, which fills a feature that only later examples lack
    without a word.
    """
    X = to_floats(X, "X")
    if X.ndim != 2 or X.shape[0] == 0:
        raise ValueError(f"X has shape {X.shape}, expected (examples, features), and at least one example")
    values = np.asarray(X).astype(np.float64)  # sums of float32 are exact to 8 more digits
    missing = np.isnan(values)
    if (infinite := np.isinf(values)).any():
        where = tuple(np.argwhere(infinite)[0].tolist())
        raise ValueError(f"X holds {values[where]} at {where}, expected finite numbers, or nan where one is missing")
    count = (~missing).sum(axis=0)
    if not count.all():
        raise ValueError(f"X holds nan alone in feature {int(np.argmin(count))}, expected an example that has it")
    mean = np.where(missing, 0, values / count).sum(axis=0)
    may = np.flatnonzero(missing.any(axis=0)) if features is None else _check_features(features, len(mean))
    return Filling(jnp.asarray(mean, X.dtype), jnp.asarray(may, jnp.int32))


def _check_features(given: Sequence[int], n: int) -> np.ndarray:
    """The indices, if they are different ones of n features."""
    listed = isinstance(given, Iterable) and all(_is_index(i, n) for i in given)
    if not listed:
        raise ValueError(f"features is {given!r}, expected whole numbers from 0 to {n - 1}")
    if len(set(given)) < len(given):
        raise ValueError(f"features is {given!r}, expected each of them once")
    return np.asarray(given, np.int32)


def _is_index(given: Any, n: int) -> bool:
    """Whether this is an index of n features; an entry of a mask is none."""
    return isinstance(given, int | np.integer) and not isinstance(given, bool) and bool(0 <= given < n)
