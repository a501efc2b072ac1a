"""Any pytree of arrays that lie over several processes, on disk: all of them write and read together, by orbax.

Source: the documentation of orbax-checkpoint.
"""

from pathlib import Path
from typing import Any

import jax

from jaxmlp import trees

STEPS = "steps"  # orbax's folder, inside the given one


def newest(folder: Path) -> int:
    """The number of the newest tree in the folder; -1: there is none."""
    if not (folder / STEPS).is_dir():
        return -1
    with _manager(folder) as manager:
        number = manager.latest_step()
        return -1 if number is None else number


def write(folder: Path, number: int, tree: Any, about: dict[str, Any]) -> None:
    """Writes a tree by its number, each process its part, and keeps the two newest."""
    with _manager(folder) as manager:
        args = _orbax().args
        composite = args.Composite(state=args.StandardSave(_arrays(tree)), about=args.JsonSave(about))
        manager.save(number, args=composite, force=True)


def read_about(folder: Path) -> tuple[dict[str, Any], Path]:
    """The `about` of the newest tree, and where it is."""
    with _manager(folder) as manager:
        args = _orbax().args
        restored = manager.restore(manager.latest_step(), args=args.Composite(about=args.JsonRestore()))
    return restored.about, folder / STEPS


def read(folder: Path, like: Any) -> Any:
    """The newest tree, with arrays that lie as those of `like`, on any number of processes."""
    with _manager(folder) as manager:
        args = _orbax().args
        forms = {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for name, a in _arrays(like).items()}
        restored = manager.restore(manager.latest_step(), args=args.Composite(state=args.StandardRestore(forms)))
    leaves = zip(restored.state.values(), jax.tree.leaves(like), strict=True)
    wrap = lambda array, leaf: jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
    return jax.tree.unflatten(
        jax.tree.structure(like), [wrap(a, leaf) if trees.is_key(leaf) else a for a, leaf in leaves]
    )


def _arrays(tree: Any) -> dict[str, jax.Array]:
    """Leaves by their number and path; of a key its words."""
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
