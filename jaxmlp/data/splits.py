"""Splits examples into training, dev and test parts: disjoint, reproducible from a key, stratified on request."""

import reprlib
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxmlp import arrays, validate


def split(
    key: PRNGKeyArray,
    m: int,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    *,
    stratify: np.ndarray | jax.Array | Sequence | None = None,
) -> tuple[np.ndarray, ...]:
    """Draws a random part of the examples for each fraction.

    The sizes are `fractions * m`, rounded by largest remainder.

    Args:
        key: the same key gives the same parts.
        m: the number of examples.
        fractions: numbers above 0 that sum to 1, one for each part.
        stratify: a class for each example, `(m,)`: whole numbers, bools or strings, in any array or a DataFrame's
            column. Each part then holds each class in its share of all examples, to within two examples for three
            parts.
    Returns:
        An array of indices for each part. The parts are disjoint and cover all m examples.
    Raises:
        ValueError: where the fractions do not sum to 1, a part has no example, or `stratify` is not one class for
            each example.
    Example:
        >>> train, dev, test = jm.data.split(key, 20)
        >>> len(train), len(dev), len(test), len({*train, *dev, *test})
        (12, 4, 4, 20)

    Source: notes 002, "Training set, Dev Set, Test Set": 60/20/20, and 98/1/1 for large data.
    """
    m = validate.whole(m, "m")
    sizes = _round_sizes(m, _check_fractions(fractions))
    order = np.asarray(jax.random.permutation(validate.key(key), m))
    if stratify is None:
        return tuple(np.split(order, np.cumsum(sizes)[:-1]))
    return _stratify(order, sizes, _check_classes(stratify, m))


def _stratify(order: np.ndarray, sizes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Fills part after part: each takes the same share of the remaining examples of every class."""
    _, first = np.unique(classes[order], return_index=True)
    drawn = classes[order][np.sort(first)]  # classes in drawn order, so that a tie favors none
    left = [order[classes[order] == c] for c in drawn]
    parts = []
    for size in sizes:
        counts = np.asarray([len(examples) for examples in left])
        taken = _apportion(size * counts / counts.sum(), size)
        parts.append(np.concatenate([examples[:n] for examples, n in zip(left, taken, strict=True)]))
        left = [examples[n:] for examples, n in zip(left, taken, strict=True)]
    place = np.argsort(order)  # parts in drawn order, not sorted by class
    return tuple(part[np.argsort(place[part])] for part in parts)


def _round_sizes(m: int, fractions: np.ndarray) -> np.ndarray:
    """The size of each part, at least 1."""
    sizes = _apportion(m * fractions, m)
    if not sizes.all():
        empty = float(fractions[np.argmin(sizes)])
        raise ValueError(f"m is {m}, too few for a fraction of {empty:g}, expected at least one example in each part")
    return sizes


def _apportion(quotas: np.ndarray, total: int) -> np.ndarray:
    """Rounds quotas to whole numbers that sum to `total`: the largest remainders up, all others down.

    Of equal remainders the first goes up. Source: Hamilton's method of apportionment.
    """
    counts = np.floor(np.round(quotas, 9)).astype(int)  # 0.29 * 100 is 28.999999999999996
    remainders = np.round(quotas - counts, 9)  # the remainders of 3.6 and 0.6 are equal
    up = np.argsort(-remainders, kind="stable")[: total - counts.sum()]
    counts[up] += 1
    return counts


def _check_fractions(given: Sequence[float]) -> np.ndarray:
    """The fractions in float64, summing to 1 exactly."""
    validate.array(given, "fractions")  # raises for anything but numbers
    fractions = np.asarray(given, np.float64)
    if fractions.ndim != 1 or not (fractions > 0).all() or not abs(fractions.sum() - 1) <= 1e-6:
        raise ValueError(f"fractions is {given}, expected numbers above 0 that sum to 1, such as (0.6, 0.2, 0.2)")
    return fractions / fractions.sum()


def _check_classes(given, m: int) -> np.ndarray:
    """The classes as an array `(m,)`: whole numbers, bools or strings, all of one kind and none missing."""
    # The entries of a list are looked at before NumPy makes them one kind.
    mixed = isinstance(given, list | tuple) and not any(isinstance(entry, list | tuple) for entry in given)
    classes = arrays.as_numpy(np.asarray(given, object) if mixed else given, "stratify")
    if classes.shape != (m,):
        raise ValueError(f"stratify has shape {classes.shape}, expected one class for each of the {m} examples")
    if classes.dtype.kind in "OT":  # Python's objects, such as those of a DataFrame, or strings that may be missing
        classes = _of_one_kind(classes.tolist())
    if classes.dtype.kind not in "biuUS":
        raise ValueError(f"stratify has dtype {classes.dtype}, expected whole numbers, bools or strings")
    return classes


def _of_one_kind(entries: list) -> np.ndarray:
    """Python's objects as an array of NumPy's dtype for the first one's kind."""
    kinds = ((bool, np.bool_), (int, np.integer), (str,), (bytes,))
    kind = next((kind for kind in kinds if isinstance(entries[0], kind)), kinds[-1])
    for place, entry in enumerate(entries):
        if not isinstance(entry, kind) or (kind == kinds[1] and isinstance(entry, bool)):
            beside = f" beside {reprlib.repr(entries[0])} at 0" if place else ""
            raise ValueError(
                f"stratify holds {reprlib.repr(entry)} at {place}{beside}, expected whole numbers, bools or strings, "
                "all of one kind and none missing"
            )
    return np.unique(np.asarray(entries), return_inverse=True)[1]
