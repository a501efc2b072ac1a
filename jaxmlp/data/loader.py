"""Examples that need not fit into memory, a batch at a time."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxmlp import validate

PIECES = 256  # of contiguous rows, in a buffer

Batch = tuple[np.ndarray, np.ndarray]


class Batches:
    """Iterates over batches `(X, Y)` of NumPy arrays: every example once an epoch, the last batch the smaller.

    `X (m, ...)` and `Y (m, ...)` are arrays, or whatever has `shape` and `dtype` and gives its rows as `[i:j]`: a
    `numpy.memmap`, an HDF5 dataset. Rows are read in contiguous pieces and copied.

    Without a key they come in order. With one, each epoch has an order of its own, which depends on the key and the
    epoch's number alone: pieces of `buffer / 256` rows are taken in random order, and the rows of up to 256 of them are
    shuffled together. Memory is that of one or two buffers, whatever m is; where m is at most `buffer`, every order is
    as likely. An iteration takes the epoch `epoch`, which counts up from 0; `set_epoch` is for a run that resumes.

        batches = jm.data.Batches(np.load("X.npy", mmap_mode="r"), Y, 128, key=jax.random.key(0))
    """

    def __init__(self, X: Any, Y: Any, batch_size: int, key: PRNGKeyArray | None = None, buffer: int = 65536):
        self.X, self.Y = _rows(X, "X"), _rows(Y, "Y")
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
        """The next iteration is epoch `epoch`, 0 the first."""
        self.epoch = validate.whole(epoch, "epoch", least=0)

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        return math.ceil(self.X.shape[0] / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        if self.seed is None:
            return self._in_order()
        # The raw bits of a Philox generator, unlike NumPy's permutations, are the same in all its versions.
        return self._shuffled(np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=(epoch,))))

    def _in_order(self) -> Iterator[Batch]:
        for i in range(0, self.X.shape[0], self.batch_size):
            yield self._read([i], self.batch_size)

    def _shuffled(self, random: np.random.Philox) -> Iterator[Batch]:
        m, size, piece = self.X.shape[0], self.batch_size, math.ceil(self.buffer / PIECES)
        starts = piece * _permutation(random, math.ceil(m / piece))
        buffers = np.array_split(starts, math.ceil(len(starts) / PIECES))  # evenly: a short last one would mix little
        held = len(buffers) == 1 and all(type(rows) is np.ndarray and rows.dtype.isnative for rows in (self.X, self.Y))
        left = None
        for number, chosen in enumerate(buffers, start=1):
            # A buffer that takes all is the array itself, where this is in memory already.
            X, Y = (self.X, self.Y) if held else self._read(sorted(chosen.tolist()), piece, left)
            order = _permutation(random, len(X))
            end = len(X) if number == len(buffers) else len(X) // size * size
            for i in range(0, end, size):
                yield X[order[i : min(i + size, end)]], Y[order[i : min(i + size, end)]]
            left = X[order[end:]], Y[order[end:]]  # too few for a batch: they go with the next pieces
            del X, Y

    def _read(self, starts: list[int], n: int, before: Batch | None = None) -> Batch:
        """`n` rows from each start, after those of `before`, copied and in the machine's byte order."""
        made = []
        for rows, head in zip((self.X, self.Y), before or (None, None), strict=True):
            pieces = [np.asarray(rows[i : i + n]) for i in starts]
            made.append(np.concatenate(pieces if head is None else [head, *pieces]))
        return made[0], made[1]


def _permutation(random: np.random.Philox, n: int) -> np.ndarray:
    return np.argsort(random.random_raw(n), kind="stable")


def _rows(given: Any, name: str) -> Any:
    """`given`, if it can be read by rows; as an array where it is none, or is one of another library."""
    try:
        readable = isinstance(given.shape, tuple) and np.dtype(given.dtype) and not isinstance(given, jax.Array)
    except (AttributeError, TypeError):
        readable = False
    rows = given if readable else np.asarray(validate.array(given, name))
    if not rows.shape or rows.shape[0] == 0:
        raise ValueError(f"{name} has shape {rows.shape}, expected at least one example (m, ...)")
    if not (jnp.issubdtype(rows.dtype, jnp.number) or rows.dtype == bool):
        raise ValueError(f"{name} has dtype {rows.dtype}, expected numbers")
    return rows
