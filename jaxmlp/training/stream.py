"""Data larger than memory: any re-iterable of batches, read and copied while the device computes.

Batches of one shape are put together into parts of an epoch, each one compiled scan, so that a step costs what it costs
when all data is on the device. A call of it returns before it is done, so the next part is read meanwhile; three parts
are in memory at most.
"""

import math
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmlp import validate
from jaxmlp.network import MLP
from jaxmlp.training import processes, sharding
from jaxmlp.training.sampling import Batch
from jaxmlp.validate import Preprocess

PART_BYTES = 2**23  # of a part of an epoch, unless a single batch is larger
PART_STEPS = 64
ALIGNED = 64  # bytes

Stream = Iterable[Any]


def checked(data: Any) -> Stream:
    """`data`, if it can be read once an epoch."""
    if not isinstance(data, Iterable) or isinstance(data, str | bytes | dict):
        raise ValueError(
            f"data is a {type(data).__name__}, expected a tuple (X, Y), or a re-iterable of batches (X, Y)"
        )
    if isinstance(data, Iterator):
        raise ValueError(
            f"data is a {type(data).__name__}, which can be read only once; expected an object whose iterator starts "
            "anew each epoch, such as a list or a loader"
        )
    return data


def at_epoch(data: Stream, epoch: int) -> Iterator[Any]:
    """The batches of one epoch, 0 the first; what has a `set_epoch`, or a sampler with one, is told which it is."""
    for told in (data, getattr(data, "sampler", None)):
        if hasattr(told, "set_epoch"):
            told.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
    return iter(data)


def first_batch(net: MLP, data: Stream, dtype: Any, preprocess: Preprocess | None, mesh: Mesh | None) -> Batch:
    """The first batch, for what must be known before the first step."""
    for given in at_epoch(data, 0):
        return _filled_up(_checked_batch(net, given, dtype, preprocess, 0, set()), _devices(mesh), dtype)
    raise ValueError("data gives no batches, expected at least one (X, Y)")


def parts(
    net: MLP, data: Stream, epoch: int, dtype: Any, preprocess: Preprocess | None, mesh: Mesh | None = None
) -> Iterator[Batch]:
    """An epoch's batches, stacked by `n` of one shape: arrays `(n, b, ...)` on the device.

    On a mesh each batch lies along `data`, filled up with examples of weight 0 to a multiple of its devices; of several
    processes each gives its part of every batch.
    """
    for part in _read(net, data, epoch, dtype, preprocess, mesh):
        if (part := _agreed(mesh, part)) is None:
            return
        yield _placed(mesh, part)


def _read(net, data, epoch, dtype, preprocess, mesh) -> Iterator[Batch | BaseException | None]:
    """The parts, then None; an error in their place, which is raised again where all processes know of it."""
    seen: set = set()
    checked = (_filled_up(_checked_batch(net, given, dtype, preprocess, number, seen), _devices(mesh), dtype)
               for number, given in enumerate(at_epoch(data, epoch)))  # fmt: skip
    try:
        yield from _stacked(checked)
        yield None
    except Exception as error:
        yield error


def _agreed(mesh: Mesh | None, part: Batch | BaseException | None) -> Batch | None:
    """A part that is of the same form on all processes; an error on one of them is one on all."""
    if not processes.several(mesh) and not isinstance(part, BaseException):
        return part
    if isinstance(part, BaseException) or part is None:
        form = repr(part)
    else:
        form = str([(a.shape, a.dtype) for a in jax.tree.leaves(part)] + [np.asarray(part.count).tolist()])
    marks = processes.of_all(mesh, [zlib.crc32(form.encode())])
    if isinstance(part, BaseException):
        raise part
    if len(set(marks)) > 1:
        raise ValueError(
            f"data gives other batches on other processes, here {form if part else 'no more'}; expected as many, of "
            "the same shapes, on all"
        )
    return part


def _placed(mesh: Mesh | None, part: Batch) -> Batch:
    """A part on the device, or its examples along the mesh's `data`; `count` is that of all processes."""
    if mesh is None:
        return jax.device_put(part)
    X, Y, weights = sharding.placed(mesh, (part.X, part.Y, part.weights), None, sharding.DATA)
    count = None if part.count is None else sharding.placed(mesh, part.count * processes.count(mesh))
    return Batch(X, Y, weights, count)


def _devices(mesh: Mesh | None) -> int:
    """How many of this process's devices a batch lies on."""
    return sharding.length(mesh, sharding.DATA) // processes.count(mesh)


def _filled_up(batch: Batch, multiple: int, dtype: Any) -> Batch:
    """The batch with its last example again, of weight 0, until `multiple` divides their number."""
    b = len(batch.X)
    missing = -b % multiple
    if not missing:
        return batch
    again = lambda array: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1), mode="edge")
    weights = np.ones(b, dtype) if batch.weights is None else batch.weights
    count = np.asarray(b, dtype) if batch.count is None else batch.count
    return Batch(again(batch.X), again(batch.Y), np.pad(weights, (0, missing)), count)  # pyright: ignore[reportArgumentType]


def _stacked(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Runs of batches of one shape, as many as make up a part."""
    held: list[Batch] = []
    shapes = lambda batch: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch)]
    for batch in batches:
        bytes_each = sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
        if held and (shapes(held[0]) != shapes(batch) or len(held) >= min(PART_STEPS, PART_BYTES // bytes_each)):
            yield _stack(held)
            held = []
        held.append(batch)
    if held:
        yield _stack(held)


def _stack(batches: list[Batch]) -> Batch:
    return jax.tree.map(
        lambda *each: np.stack(each, out=_aligned((len(each), *each[0].shape), each[0].dtype)), *batches
    )


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that begins where XLA's do: as nothing writes to it later, a CPU takes it without another copy."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + ALIGNED, np.uint8)
    first = -room.ctypes.data % ALIGNED
    return room[first : first + size].view(dtype).reshape(shape)


def _checked_batch(net: MLP, given: Any, dtype: Any, preprocess: Preprocess | None, number: int, seen: set) -> Batch:
    """One batch in NumPy arrays; any weights count as they are, those of an ordinary example being 1.

    `seen` keeps the form of each example that has been checked in full.
    """
    if not isinstance(given, tuple | list) or len(given) not in (2, 3):
        kind = f"{len(given)} things" if isinstance(given, tuple | list) else f"a {type(given).__name__}"
        raise ValueError(f"data: batch {number} is {kind}, expected (X, Y) or (X, Y, weights); arrays go into a tuple")
    X, Y, *weights = (np.asarray(array) for array in given)
    Y = Y.astype(np.uint8) if Y.dtype == bool else Y
    form = X.shape[1:], X.dtype
    if form not in seen or not _plainly_fine(net, X, Y):
        validate.inputs(net, X, dtype, preprocess, name=f"data: X of batch {number}")
        validate.targets(net, Y, len(X), name=f"data: Y of batch {number}")
        seen.add(form)
    if not weights:
        return Batch(X, Y)  # pyright: ignore[reportArgumentType]
    w = validate.example_weights(weights[0], len(X), dtype, name=f"data: weights of batch {number}")
    return Batch(X, Y, np.asarray(w), np.asarray(len(X), dtype))  # pyright: ignore[reportArgumentType]


def _plainly_fine(net: MLP, X: np.ndarray, Y: np.ndarray) -> bool:
    """The checks of most batches, in NumPy: a device's answer to each would take longer than a step."""
    inputs = len(X) > 0 and (X.dtype.kind != "f" or bool(np.isfinite(X).all()))
    classes = Y.dtype.kind in "iu" and Y.shape == X.shape[:1] and net.loss.targets == "distribution"
    return inputs and classes and int(Y.min()) >= 0 and int(Y.max()) < net.sizes[-1]
