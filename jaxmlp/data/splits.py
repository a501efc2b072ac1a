"""Training, dev and test examples: disjoint, reproducible from a key, on request with the classes' shares kept."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxmlp import validate


def split(
    key: PRNGKeyArray,
    m: int,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    *,
    stratify: np.ndarray | jax.Array | Sequence | None = None,
) -> tuple[np.ndarray, ...]:
    """Draws which of m examples are in which part: for each fraction an array of indices, disjoint, together all of m.

        train, dev, test = split(key, len(X))

    The sizes are `fractions * m`, rounded by largest remainder. `stratify (m,)` holds a class for each example, of
    whatever kind; each part then has each class's share, to within two examples for three parts. The same key gives
    the same parts. Raises ValueError for fractions that do not sum to 1 and for a part without examples. Source: notes
    002, "Training set, Dev Set, Test Set": 60/20/20, and 98/1/1 for large data.
    """
    m = validate.whole(m, "m")
    sizes = _sizes(m, _checked_fractions(fractions))
    order = np.asarray(jax.random.permutation(validate.key(key), m))
    if stratify is None:
        return tuple(np.split(order, np.cumsum(sizes)[:-1]))
    return _stratified(order, sizes, _checked_classes(stratify, m))


def _stratified(order: np.ndarray, sizes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Part by part, from what is left of each class the share that the part has of all that is left."""
    _, first = np.unique(classes[order], return_index=True)
    drawn = classes[order][np.sort(first)]  # the classes in drawn order, so that a tie favours none of them
    left = [order[classes[order] == c] for c in drawn]
    parts = []
    for size in sizes:
        counts = np.asarray([len(examples) for examples in left])
        taken = _largest_remainder(size * counts / counts.sum(), size)
        parts.append(np.concatenate([examples[:n] for examples, n in zip(left, taken, strict=True)]))
        left = [examples[n:] for examples, n in zip(left, taken, strict=True)]
    place = np.argsort(order)  # back in drawn order: no part is sorted by class
    return tuple(part[np.argsort(place[part])] for part in parts)


def _sizes(m: int, fractions: np.ndarray) -> np.ndarray:
    sizes = _largest_remainder(m * fractions, m)
    if not sizes.all():
        empty = float(fractions[np.argmin(sizes)])
        raise ValueError(f"m is {m}, of which a fraction of {empty:g} is none, expected at least one example in each")
    return sizes


def _largest_remainder(quotas: np.ndarray, total: int) -> np.ndarray:
    """The quotas rounded to whole numbers that sum to `total`: down, and the largest remainders, the first first, up.

    Source: Hamilton's method of apportionment.
    """
    counts = np.floor(np.round(quotas, 9)).astype(int)  # 0.29 * 100 is 28.999999999999996
    remainders = np.round(quotas - counts, 9)  # those of 3.6 and 0.6 are to tie
    up = np.argsort(-remainders, kind="stable")[: total - counts.sum()]
    counts[up] += 1
    return counts


def _checked_fractions(given: Sequence[float]) -> np.ndarray:
    validate.array(given, "fractions")  # refuses what is no array of numbers
    fractions = np.asarray(given, np.float64)
    if fractions.ndim != 1 or not (fractions > 0).all() or not abs(fractions.sum() - 1) <= 1e-6:
        raise ValueError(f"fractions is {given}, expected numbers above 0 that sum to 1, such as (0.6, 0.2, 0.2)")
    return fractions / fractions.sum()


def _checked_classes(given, m: int) -> np.ndarray:
    classes = np.asarray(given)
    if classes.shape != (m,):
        raise ValueError(f"stratify has shape {classes.shape}, expected one class for each of the {m} examples")
    if classes.dtype.kind not in "biuUS":
        raise ValueError(f"stratify has dtype {classes.dtype}, expected whole numbers, bools or strings")
    return classes
