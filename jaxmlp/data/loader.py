"""Loads batches of examples that need not fit into memory."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxmlp import arrays, validate

PIECES = 256  # the number of pieces of contiguous rows in a buffer

Batch = tuple[np.ndarray, np.ndarray]


class Batches:
    """Iterates over batches `(X, Y)` of NumPy arrays: every example once an epoch, the last batch may be smaller.

    Without a key the examples come in order. With a key each epoch has its own order, which depends on the key and the
    number of the epoch alone: pieces of `buffer / 256` rows are taken in random order, and the rows of up to 256 pieces
    are shuffled together. If m is at most `buffer`, all orders are equally likely. Rows are read in contiguous pieces
    and copied; memory holds one or two buffers, for any m. Each iteration is one epoch.

    Args:
        X: the examples `(m, ...)`: an array, or an object with `shape`, `dtype` and rows `[i:j]`, such as a
            `numpy.memmap` or an HDF5 dataset.
        Y: the labels `(m, ...)`, likewise.
        batch_size: examples in a batch, at most m.
        key: the source of the orders; None for examples in order.
        buffer: the number of rows to shuffle together.
    Raises:
        ValueError: where X and Y differ in length, are empty or not numbers, or `batch_size` is above m.
    Example:
        >>> np.save("X.npy", X)
        >>> batches = jm.data.Batches(np.load("X.npy", mmap_mode="r"), Y, 8, key=jax.random.key(0))
        >>> [x.shape for x, y in batches], batches.epoch
        ([(8, 784), (8, 784), (4, 784)], 1)
    """

    def __init__(self, X: Any, Y: Any, batch_size: int, key: PRNGKeyArray | None = None, buffer: int = 65536):
        self.X, self.Y = _check_rows(X, "X"), _check_rows(Y, "Y")
        m = self.X.shape[0]
        if self.Y.shape[0] != m:
            raise ValueError(f"X has {m} examples, Y has {self.Y.shape[0]}, expected one label for each example")
        self.batch_size = validate.whole(batch_size, "batch_size")
        if self.batch_size > m:
            raise ValueError(f"batch_size is {batch_size}, but there are {m} examples; expected at most {m}")
        self.buffer = validate.whole(buffer, "buffer")
        self.seed = None if key is None else np.asarray(jax.random.key_data(validate.key(key))).tolist()
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Makes `epoch` the next iteration's epoch, 0 the first: for a run that resumes."""
        self.epoch = validate.whole(epoch, "epoch", least=0)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return math.ceil(self.X.shape[0] / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        if self.seed is None:
            return self._iterate_in_order()
        # NumPy keeps the raw bits of a Philox generator in all versions, but not its permutations.
        return self._iterate_shuffled(np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=(epoch,))))

    def _iterate_in_order(self) -> Iterator[Batch]:
        for i in range(0, self.X.shape[0], self.batch_size):
            yield self._read([i], self.batch_size)

    def _iterate_shuffled(self, random: np.random.Philox) -> Iterator[Batch]:
        m, size, piece = self.X.shape[0], self.batch_size, math.ceil(self.buffer / PIECES)
        starts = piece * _permute(random, math.ceil(m / piece))
        buffers = np.array_split(starts, math.ceil(len(starts) / PIECES))  # equal: a short one would mix little
        held = len(buffers) == 1 and all(type(rows) is np.ndarray and rows.dtype.isnative for rows in (self.X, self.Y))
        left = None
        for number, chosen in enumerate(buffers, start=1):
            # If one buffer holds all rows and they are in memory, the arrays themselves are the buffer.
            X, Y = (self.X, self.Y) if held else self._read(sorted(chosen.tolist()), piece, left)
            order = _permute(random, len(X))
            end = len(X) if number == len(buffers) else len(X) // size * size
            for i in range(0, end, size):
                yield X[order[i : min(i + size, end)]], Y[order[i : min(i + size, end)]]
            left = X[order[end:]], Y[order[end:]]  # too few for a batch: they join the next pieces
            del X, Y

    def _read(self, starts: list[int], n: int, before: Batch | None = None) -> Batch:
        """The rows of `before`, then `n` rows from each start, copied and in the machine's byte order."""
        made = []
        for name, rows, head in zip("XY", (self.X, self.Y), before or (None, None), strict=True):
            pieces = [arrays.as_numpy(rows[i : i + n], name) for i in starts]
            made.append(np.concatenate(pieces if head is None else [head, *pieces]))
        return made[0], made[1]


def _permute(random: np.random.Philox, n: int) -> np.ndarray:
    """A random order of 0 .. n - 1."""
    return np.argsort(random.random_raw(n), kind="stable")


def _check_rows(given: Any, name: str) -> Any:
    """`given` itself if it has a shape, a dtype and rows; a list or a JAX array becomes a NumPy array."""
    try:
        readable = isinstance(given.shape, tuple) and np.dtype(given.dtype) and not isinstance(given, jax.Array)
    except (AttributeError, TypeError):
        readable = False
    if readable and isinstance(given, np.ndarray):
        given = arrays.as_numpy(given, name)  # refuses masked entries; a memmap stays on disk
    rows = given if readable else np.asarray(validate.array(given, name))
    if not rows.shape or rows.shape[0] == 0:
        raise ValueError(f"{name} has shape {rows.shape}, expected at least one example (m, ...)")
    if not arrays.is_real(rows.dtype):
        raise ValueError(f"{name} has dtype {rows.dtype}, expected numbers")
    return rows
