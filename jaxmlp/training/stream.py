"""Data larger than memory: any re-iterable of batches, read and copied while the device computes.

Batches of one shape are stacked into parts of an epoch. A part is one compiled scan, so a step costs as much as with
all data on the device. The call of a part returns before the part is done, and the next part is read meanwhile. At most
three parts are in memory.
"""

import itertools
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmlp import arrays, validate
from jaxmlp.doors import article
from jaxmlp.network import MLP
from jaxmlp.norms import wide
from jaxmlp.programs import compiled
from jaxmlp.training import processes, sharding
from jaxmlp.training._epoch import Metrics, descend_part, epoch_key, finish, needs_keys
from jaxmlp.training.examples import Reading
from jaxmlp.training.sampling import Batch
from jaxmlp.training.state import Data, Plan, TrainState

_compiled_part = compiled("plan", donate="state")(descend_part)
_compiled_finish = compiled("plan", donate="trained")(finish)

PART_BYTES = 2**23  # of a part of an epoch, unless a single batch is larger
PART_STEPS = 64
ALIGNED = 64  # bytes

Stream = Iterable[Any]


class Opened:
    """A stream whose first epoch is open: its first batch has been read, and is read again."""

    def __init__(self, data: Stream):
        self.data = data
        self.rest = open_epoch(data, 0)
        self.first = next(self.rest, None)

    def open(self, epoch: int) -> Iterator[Any]:
        """The batches of an epoch, 0 the first."""
        if epoch or self.first is None:
            return open_epoch(self.data, epoch)
        first, self.first = self.first, None
        return itertools.chain([first], self.rest)


def check(data: Any) -> Stream:
    """Returns `data` if it can be read once an epoch."""
    expected = "expected a tuple (X, Y), or a re-iterable of batches (X, Y)"
    if not isinstance(data, Iterable) and hasattr(data, "__getitem__"):
        raise ValueError(
            f"data is {article(type(data).__name__)}, which gives examples one by one; expected batches (X, Y), "
            "such as a loader: torch.utils.data.DataLoader(data, batch_size=64)"
        )
    if not isinstance(data, Iterable) or hasattr(data, "shape") or isinstance(data, str | bytes | dict):
        raise ValueError(f"data is {article(type(data).__name__)}, {expected}")
    if isinstance(data, list) and len(data) == 2 and all(hasattr(each, "shape") for each in data):
        raise ValueError(f"data is a list of two arrays, {expected}")
    if isinstance(data, Iterator):
        raise ValueError(
            f"data is {article(type(data).__name__)}, which can be read only once; expected an object whose iterator "
            "starts anew each epoch, such as a list or a loader"
        )
    return data


def open_epoch(data: Stream, epoch: int) -> Iterator[Any]:
    """The batches of one epoch, 0 the first; calls `set_epoch(epoch)` of the data or of its sampler where it exists."""
    for owner in (data, getattr(data, "sampler", None)):
        if hasattr(owner, "set_epoch"):
            owner.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    return iter(data)


def read_first(how: Reading, data: Stream, mesh: Mesh | None) -> tuple[Opened, Batch]:
    """The stream, open, and its first batch: its form and values are known before the first step."""
    opened = Opened(data)
    if opened.first is None:
        raise ValueError("data gives no batches, expected at least one (X, Y)")
    read = _read_batch(how, opened.first, 0, set())
    opened.first = tuple(np.array(a) for a in opened.first)  # copied: a loader may fill the same arrays again
    return opened, _fill_up(jax.tree.map(np.array, read), _devices(mesh), how.dtype)


def train_epoch(how: Reading, batches: Opened, plan: Plan, state: TrainState, data: Data) -> tuple[TrainState, Metrics]:
    """An epoch over a stream's batches, part by part."""
    trained, sums, done = jax.tree.map(jnp.copy, state), [], 0
    keys = epoch_key(state) if needs_keys(plan, state) else None
    for number, part in enumerate(read_parts(how, batches, int(state.epoch), plan.mesh)):
        n = part.X.shape[0]
        if keys is not None:
            part = part._replace(key=jax.random.split(jax.random.fold_in(keys, number), n))
        trained, more = _compiled_part(replace(plan, steps=n), trained, part, jnp.asarray(done, jnp.int32))
        done += n
        jax.block_until_ready(sums[-1:])  # bounds memory: at most two parts are under way
        sums.append(more)
    if not sums:
        raise ValueError(
            f"data gave no batches in epoch {int(state.epoch) + 1}; expected an object that starts anew each epoch"
        )
    whole = jax.tree.map(lambda *each: sum(each[1:], each[0]), *sums)
    return _compiled_finish(replace(plan, steps=1), state, trained, whole, data)


def read_parts(how: Reading, data: Opened, epoch: int, mesh: Mesh | None = None) -> Iterator[Batch]:
    """An epoch's batches, stacked by `n` of one shape: arrays `(n, b, ...)` on the device.

    On a mesh each batch lies along `data`, filled up with examples of weight 0 to a multiple of its devices. With
    several processes, each passes its own part of every batch.
    """
    for part in _read(how, data, epoch, mesh):
        if (part := _agree(mesh, part)) is None:
            return
        yield _put(mesh, part)


def _read(how: Reading, data: Opened, epoch: int, mesh: Mesh | None) -> Iterator[Batch | BaseException | None]:
    """The parts, then None; an error in their place, so that all processes learn of it before one raises it."""
    seen: set = set()
    batches = (_fill_up(_read_batch(how, given, number, seen), _devices(mesh), how.dtype)
               for number, given in enumerate(data.open(epoch)))  # fmt: skip
    try:
        yield from _stack_runs(batches)
        yield None
    except Exception as error:
        yield error


def _agree(mesh: Mesh | None, part: Batch | BaseException | None) -> Batch | None:
    """A part that has the same form on all processes; an error on one of them is raised on all."""
    if not processes.are_several(mesh) and not isinstance(part, BaseException):
        return part
    if isinstance(part, BaseException) or part is None:
        form = repr(part)
    else:
        form = str([(a.shape, a.dtype) for a in jax.tree.leaves(part)] + [np.asarray(part.count).tolist()])
    marks = processes.allgather(mesh, [zlib.crc32(form.encode())])
    if isinstance(part, BaseException):
        raise part
    if len(set(marks)) > 1:
        raise ValueError(
            f"data gives different batches on other processes, here {form if part else 'no more'}; expected as many, "
            "of the same shapes, on all"
        )
    return part


def _put(mesh: Mesh | None, part: Batch) -> Batch:
    """Puts a part on the device, or its examples along the mesh's `data`; `count` is then that of all processes."""
    if mesh is None:
        return jax.device_put(part)
    X, Y, weights = sharding.put(mesh, (part.X, part.Y, part.weights), None, sharding.DATA)
    count = None if part.count is None else sharding.put(mesh, part.count * processes.count(mesh))
    return Batch(X, Y, weights, count)


def _devices(mesh: Mesh | None) -> int:
    """The number of this process's devices that hold a batch."""
    return sharding.length(mesh, sharding.DATA) // processes.count(mesh)


def _fill_up(batch: Batch, multiple: int, dtype: Any) -> Batch:
    """Repeats the last example with weight 0 until `multiple` divides the number of examples."""
    b = len(batch.X)
    missing = -b % multiple
    if not missing:
        return batch
    again = lambda array: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), mode="edge")
    weights = np.ones(b, dtype) if batch.weights is None else batch.weights
    count = np.asarray(b, wide(dtype)) if batch.count is None else batch.count
    return Batch(again(batch.X), again(batch.Y), np.pad(weights, (0, missing)), count)  # pyright: ignore[reportArgumentType]


def _stack_runs(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Stacks runs of batches of one shape, up to the size of a part.

    A batch is copied before the next one is read: a loader may fill the same arrays again.
    """
    part, n, most = None, 0, 0
    for batch in batches:
        if part is not None and (n == most or not _fits(part, batch)):
            yield jax.tree.map(lambda rows, n=n: rows[:n], part)
            part = None
        if part is None:
            n, most = 0, max(1, min(PART_STEPS, PART_BYTES // sum(leaf.nbytes for leaf in jax.tree.leaves(batch))))
            part = jax.tree.map(lambda leaf, most=most: _allocate((most, *leaf.shape), leaf.dtype), batch)
        for rows, leaf in zip(jax.tree.leaves(part), jax.tree.leaves(batch), strict=True):
            rows[n] = leaf
        n += 1
    if part is not None:
        yield jax.tree.map(lambda rows: rows[:n], part)


def _fits(part: Batch, batch: Batch) -> bool:
    """Whether the batch has the shapes of those in the part."""
    form = lambda tree, skipped: [(leaf.shape[skipped:], leaf.dtype) for leaf in jax.tree.leaves(tree)]
    return form(part, 1) == form(batch, 0)


def _allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array, aligned as XLA's are, so that a CPU takes it without a copy."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + ALIGNED, np.uint8)
    first = -room.ctypes.data % ALIGNED
    return room[first : first + size].view(dtype).reshape(shape)


def _read_batch(how: Reading, given: Any, number: int, seen: set) -> Batch:
    """Checks a batch and makes it NumPy arrays; its weights count as given, an ordinary example having weight 1.

    `seen` keeps the forms of examples that were checked in full.
    """
    if not isinstance(given, tuple | list) or len(given) not in (2, 3):
        kind = f"{len(given)} things" if isinstance(given, tuple | list) else article(type(given).__name__)
        raise ValueError(f"data: batch {number} is {kind}, expected (X, Y) or (X, Y, weights); arrays go into a tuple")
    X, Y, *weights = (arrays.for_jax(array, f"data: {name} of batch {number}")
                      for name, array in zip(("X", "Y", "weights"), given, strict=False))  # fmt: skip
    Y = Y.astype(np.uint8) if Y.dtype == bool else Y
    form = X.shape[1:], X.dtype
    if form not in seen or not _is_plainly_fine(how.net, X, Y):
        validate.inputs(how.net, X, how.dtype, how.preprocess, name=f"data: X of batch {number}")
        validate.targets(how.net, Y, len(X), name=f"data: Y of batch {number}")
        seen.add(form)
    if not weights:
        return Batch(X, Y)  # pyright: ignore[reportArgumentType]
    if not how.weighted:
        raise ValueError(f"data: batch {number} has weights, expected none with a readout, which weighs for itself")
    name = f"data: weights of batch {number}"
    w = np.asarray(validate.example_weights(weights[0], len(X), how.dtype, name, relative=False))
    with np.errstate(over="ignore"):
        fine = np.isfinite(w.sum())
    if not fine:
        raise ValueError(f"{name} have a sum that {w.dtype} cannot hold, expected about 1 for most examples")
    return Batch(X, Y, w, np.asarray(len(X), wide(how.dtype)))  # pyright: ignore[reportArgumentType]


def _is_plainly_fine(net: MLP, X: np.ndarray, Y: np.ndarray) -> bool:
    """Checks most batches in NumPy: a device's answer to each check would take longer than a step."""
    inputs = len(X) > 0 and (X.dtype.kind != "f" or bool(np.isfinite(X).all()))
    classes = Y.dtype.kind in "iu" and Y.shape == X.shape[:1] and net.loss.targets == "distribution"
    return inputs and classes and int(Y.min()) >= 0 and int(Y.max()) < net.sizes[-1]
