"""A run on disk: its whole state, written atomically, so a run that is killed at any moment goes on to the same bits.

One process writes a safetensors file; several write together by orbax. Either kind of run goes on from the files of the
other.
"""

import json
import zlib
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmlp import files, sharded_trees, trees
from jaxmlp.training import processes, settings
from jaxmlp.training.sharding import put_like
from jaxmlp.training.state import Data, Plan, Run, TrainState

LAST, BEST = "last.safetensors", "best.safetensors"

Columns = dict[str, list[Any]]


# A state by the names that files have used since version 0.1.0, in the order of TrainState's fields.
Saved = namedtuple(
    "Saved",
    "params opt_state rule_state key epoch hyper regularisation first_cost patience stopped diverged best average",
)


@dataclass(frozen=True)
class Checkpoints:
    """A folder with the state after the last `every`-th epoch, and the state after the best one on validation.

    Several processes keep the last state only.
    """

    folder: Path
    every: int
    run: dict[str, Any]  # tells this run from another
    mesh: Mesh | None = None  # over several processes: these write together

    def restore(self, start: TrainState) -> tuple[TrainState, Columns] | None:
        """The newest state and its history; None if there is none; ValueError if another run wrote them."""
        path, by_orbax = self.folder / LAST, sharded_trees.newest(self.folder)
        processes.check_agreement(self.mesh, **{f"the content of {self.folder}": [path.exists(), by_orbax]})
        for part in self.folder.glob(f".*.safetensors.*{files.PART}"):  # of a write that was killed
            part.unlink(missing_ok=True)
        if not path.exists() and by_orbax < 0:
            return None
        about: dict[str, Any] = files.read(path, "tree")[1]["about"] if path.exists() else {"done": -1}
        newest, where = (about, path) if about["done"] >= by_orbax else sharded_trees.read_about(self.folder)
        for name, value in self.run.items():
            if (saved := newest["run"].get(name)) != value:
                raise ValueError(
                    f"{where} was written by another run ({name}: {saved}, here {value}); expected the same "
                    "arguments, or another folder"
                )
        like = Saved(*start)
        if newest is not about:
            return TrainState(*sharded_trees.read(self.folder, like)), newest["history"]
        return TrainState(*put_like(self.mesh, like, trees.read_tree(path, like)[0])), about["history"]

    def save(self, state: TrainState, columns: Columns, done: int, last: bool) -> None:
        """Writes the files that are due after `done` epochs; `last`: of the run."""
        about = {"run": self.run, "done": done, "history": columns}
        due = last or done % self.every == 0
        if processes.are_several(self.mesh):
            if due:
                sharded_trees.write(self.folder, done, Saved(*state), about)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if done and state.best is not None and int(state.best.epoch) == int(state.epoch) and not bool(state.diverged):
            trees.write_tree(self.folder / BEST, Saved(*state), about)
        if due:
            trees.write_tree(self.folder / LAST, Saved(*state), about)


def describe(plan: Plan, run: Run, state: TrainState, data: Data) -> dict[str, Any]:
    """The JSON that tells a run from another; `state` and `data` are this process's own.

    The table of settings says which settings it holds. Functions are known by their results on the first example.
    """
    first = lambda made: None if made is None else f"{processes.allgather(plan.mesh, [_crc(made)])[0]:08x}"
    marks = {
        **settings.tell(plan, run, saved=True),
        "network": repr(plan.net),
        "parameters at the start": mark(state.params),
        "key": mark(state.key),
        "rule's state at the start": mark(state.rule_state),
        "optimizer's first updates (checksum)": mark(_first_updates(plan, state)),
        "first example preprocessed (checksum)": first(plan.preprocess and plan.preprocess(data.X[0])),
        "first example augmented (checksum)": first(plan.augment and plan.augment(jax.random.key(0), data.X[0])),
        "X (checksum)": _mark_shares(plan, data.X),
        "Y (checksum)": _mark_shares(plan, data.Y),
        "weights and class_weights (checksum)": _mark_shares(plan, data.weights),
        "validation (checksum)": mark((data.X_dev, data.Y_dev)),
    }
    return json.loads(json.dumps(marks))


def describe_stream(plan: Plan, run: Run, state: TrainState, data: Data) -> dict[str, Any]:
    """The same for a stream: of its data only the form of the first batch is known."""
    form = lambda array: str(((plan.batch_size, *array.shape[1:]), array.dtype))
    known = {"batch size": None, "X (checksum)": form(data.X), "Y (checksum)": form(data.Y)}
    return describe(plan, run, state, data) | known


def mark(tree: Any) -> str | None:
    """A checksum of a pytree's arrays; None if it has none."""
    return f"{_crc(tree):08x}" if jax.tree.leaves(tree) else None


def _first_updates(plan: Plan, state: TrainState) -> Any:
    """The optimizer's updates for three gradients of 1: a fingerprint for optimizers with equal state shapes."""
    optimizer, ones = plan.transformation(state.hyper), jax.tree.map(jnp.ones_like, state.params)
    value = jnp.ones((), state.params[0].W.dtype)
    known, made = state.opt_state, []
    for _ in range(3):
        updates, known = optimizer.update(
            ones, known, state.params, value=value, grad=ones, value_fn=lambda params: value
        )  # fmt: skip
        made.append(updates)
    return made, known


def _mark_shares(plan: Plan, array: Any) -> str | None:
    """A checksum of the examples or, with shares, one for each share of all processes."""
    if array is None or plan.shares == 1:
        return mark(array)
    shares = np.split(np.asarray(array), plan.shares // processes.count(plan.mesh))
    return " ".join(f"{crc:08x}" for crc in processes.allgather(plan.mesh, [_crc(share) for share in shares]))


def _crc(tree: Any) -> int:
    crc = 0
    for leaf in map(jnp.asarray, jax.tree.leaves(tree)):
        leaf = jax.random.key_data(leaf) if trees.is_key(leaf) else leaf
        array = np.ascontiguousarray(np.asarray(leaf))
        crc = zlib.crc32(f"{array.dtype}{array.shape}".encode(), crc)
        crc = zlib.crc32(array.tobytes(), crc)
    return crc
