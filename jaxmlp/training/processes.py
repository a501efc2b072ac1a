"""Several processes that train one network: they agree on a call, or all refuse it.

Each process holds its share of the examples and of a divided layer. Decisions (a run goes on, is saved, has diverged)
are the same on all. Source: the documentation of `jax.distributed`.
"""

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxmlp.training.sharding import everywhere


def are_several(mesh: Mesh | None) -> bool:
    """Whether the mesh has devices of other processes."""
    return mesh is not None and any(device.process_index != jax.process_index() for device in mesh.devices.flat)


def count(mesh: Mesh | None) -> int:
    """The number of processes, 1 unless the mesh is over several."""
    return jax.process_count() if are_several(mesh) else 1


def allgather(mesh: Mesh | None, values: list[int]) -> list[int]:
    """The numbers (of 32 bits) of all processes, one process after the other; each must call with as many."""
    if not are_several(mesh):
        return values
    return np.ravel(multihost_utils.process_allgather(np.asarray(values, np.uint32))).tolist()


@contextmanager
def raise_on_all(mesh: Mesh | None) -> Iterator[None]:
    """A ValueError on one process is raised on all, so none waits."""
    error = None
    try:
        yield
    except ValueError as raised:
        error = raised
    refusing = sum(allgather(mesh, [error is not None]))
    if error is not None:
        raise error
    if refusing:
        raise ValueError("the call is refused on another process, where the error says why; expected one call on all")


def check_agreement(mesh: Mesh | None, **told: Any) -> None:
    """Raises a ValueError on every process, naming the first value that differs; values must be JSON."""
    marks = allgather(mesh, [zlib.crc32(json.dumps(value).encode()) for value in told.values()])
    for number, (name, value) in enumerate(told.items()):
        if len(set(marks[number :: len(told)])) > 1:
            raise ValueError(f"{name} is not the same on all processes, here {value}; expected one call on all")


def gather(mesh: Mesh | None, tree: Any) -> Any:
    """Arrays that lie over several processes, whole and on this process."""
    if not are_several(mesh):
        return tree
    whole = jax.jit(lambda tree: everywhere(mesh, tree))(tree)
    return jax.tree.map(lambda array: array.addressable_data(0), whole)
