"""Several processes that train one network: what they must agree on, and checkpoints that all of them write, by orbax.

A process holds its share of the examples and of a divided layer; what is decided (whether a run goes on, is saved, has
diverged) lies on all of them alike. Sources: the documentation of `jax.distributed` and of orbax-checkpoint.
"""

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxmlp import trees
from jaxmlp.training.sharding import everywhere

STEPS = "steps"  # the folder of orbax, in that of the checkpoints


def several(mesh: Mesh | None) -> bool:
    """Whether the mesh has devices of other processes."""
    return mesh is not None and any(device.process_index != jax.process_index() for device in mesh.devices.flat)


def count(mesh: Mesh | None) -> int:
    """How many there are, 1 unless the mesh is over several."""
    return jax.process_count() if several(mesh) else 1


def of_all(mesh: Mesh | None, values: list[int]) -> list[int]:
    """Each process's numbers (of 32 bits), one after the other; all processes must call it alike."""
    if not several(mesh):
        return values
    return np.ravel(multihost_utils.process_allgather(np.asarray(values, np.uint32))).tolist()


@contextmanager
def refused_together(mesh: Mesh | None) -> Iterator[None]:
    """What one process refuses with a ValueError the others refuse with it, lest they wait for it."""
    error = None
    try:
        yield
    except ValueError as raised:
        error = raised
    refusing = sum(of_all(mesh, [error is not None]))
    if error is not None:
        raise error
    if refusing:
        raise ValueError("the call is refused on another process, where the error says why; expected one call on all")


def check_agreed(mesh: Mesh | None, **said: Any) -> None:
    """ValueError on every process that names the first of these, of JSON, that is not the same on all."""
    marks = of_all(mesh, [zlib.crc32(json.dumps(value).encode()) for value in said.values()])
    for number, (name, value) in enumerate(said.items()):
        if len(set(marks[number :: len(said)])) > 1:
            raise ValueError(f"{name} is not the same on all processes, here {value}; expected one call on all")


def local(mesh: Mesh | None, tree: Any) -> Any:
    """Arrays that are spread over processes, whole and as this process's own."""
    if not several(mesh):
        return tree
    whole = jax.jit(lambda tree: everywhere(mesh, tree))(tree)
    return jax.tree.map(lambda array: array.addressable_data(0), whole)


def written(folder: Path) -> int:
    """After how many epochs processes saved together last; -1: never."""
    if not (folder / STEPS).is_dir():
        return -1
    with _manager(folder) as manager:
        number = manager.latest_step()
        return -1 if number is None else number


def write(folder: Path, done: int, tree: Any, about: dict[str, Any]) -> None:
    """Writes the state after `done` epochs, each process what it holds, then removes what came before the last two."""
    with _manager(folder) as manager:
        args = _orbax().args
        arrays, told = args.StandardSave(_arrays(tree)), args.JsonSave(about)
        manager.save(done, args=args.Composite(state=arrays, about=told), force=True)


def read_about(folder: Path) -> tuple[dict[str, Any], Path]:
    """What was told at the last save, and where that is."""
    with _manager(folder) as manager:
        args = _orbax().args
        restored = manager.restore(manager.latest_step(), args=args.Composite(about=args.JsonRestore()))
    return restored.about, folder / STEPS


def read(folder: Path, like: Any) -> Any:
    """The state that was saved last, laid out as `like` is, on however many processes."""
    with _manager(folder) as manager:
        args = _orbax().args
        forms = {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for name, a in _arrays(like).items()}
        restored = manager.restore(manager.latest_step(), args=args.Composite(state=args.StandardRestore(forms)))
    leaves = zip(restored.state.values(), jax.tree.leaves(like), strict=True)
    keyed = lambda array, leaf: jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
    return jax.tree.unflatten(
        jax.tree.structure(like), [keyed(a, leaf) if trees.is_key(leaf) else a for a, leaf in leaves]
    )


def _arrays(tree: Any) -> dict[str, jax.Array]:
    """Leaves by their number and path; keys as the words they are made of."""
    leaves = trees.by_path(tree).items()
    data = lambda leaf: jax.random.key_data(leaf) if trees.is_key(leaf) else leaf
    return {f"{number:03d}{name}": data(leaf) for number, (name, leaf) in enumerate(leaves)}


def _manager(folder: Path):
    ocp = _orbax()
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    return ocp.CheckpointManager((folder / STEPS).absolute(), options=options)


def _orbax():
    try:
        import orbax.checkpoint
    except ImportError:
        raise ValueError(
            "checkpoints of several processes need orbax-checkpoint, expected the extra: pip install 'jaxmlp[hosts]'"
        ) from None
    return orbax.checkpoint
