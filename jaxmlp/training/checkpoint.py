"""A run on disk: its whole state, atomically, so that one killed at any moment goes on to the same bits."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmlp import files, trees
from jaxmlp.training import processes
from jaxmlp.training.sharding import placed_like
from jaxmlp.training.state import Data, Plan, TrainState

LAST, BEST = "last.safetensors", "best.safetensors"

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Checkpoints:
    """A folder with the state after the last `every`-th epoch, and that after the best one on validation.

    Of several processes only the last; either kind of run goes on from what the other saved.
    """

    folder: Path
    every: int
    run: dict[str, Any]  # what tells this run from another
    mesh: Mesh | None = None  # over several processes: these write together

    def restored(self, start: TrainState) -> tuple[TrainState, Columns] | None:
        """The state and the history as they were saved last, None if nothing was; ValueError if by another run."""
        path, by_hosts = self.folder / LAST, processes.written(self.folder)
        processes.check_agreed(self.mesh, **{f"what is in {self.folder}": [path.exists(), by_hosts]})
        for part in self.folder.glob(f".*.safetensors.*{files.PART}"):  # of a write that was killed
            part.unlink(missing_ok=True)
        if not path.exists() and by_hosts < 0:
            return None
        about: dict[str, Any] = files.read(path, "tree")[1]["about"] if path.exists() else {"done": -1}
        newest, where = (about, path) if about["done"] >= by_hosts else processes.read_about(self.folder)
        for name, value in self.run.items():
            if (saved := newest["run"].get(name)) != value:
                raise ValueError(
                    f"{where} is of another run, whose {name}: {saved}, now {value}; expected the same "
                    "arguments, or another folder"
                )
        if newest is not about:
            return processes.read(self.folder, start), newest["history"]
        return placed_like(self.mesh, start, trees.read_tree(path, start)[0]), about["history"]

    def save(self, state: TrainState, columns: Columns, done: int, last: bool) -> None:
        """Writes what is due after `done` epochs; `last`: of the run."""
        about = {"run": self.run, "done": done, "history": columns}
        due = last or done % self.every == 0
        if processes.several(self.mesh):
            if due:
                processes.write(self.folder, done, state, about)
            return
        if done and state.best is not None and int(state.best.epoch) == int(state.epoch) and not bool(state.diverged):
            trees.write_tree(self._made() / BEST, state, about)
        if due:
            trees.write_tree(self._made() / LAST, state, about)

    def _made(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder


def described(plan: Plan, state: TrainState, data: Data, streamed: bool) -> dict[str, Any]:
    """What must be the same for a run to go on; `state` and `data` are this process's own.

    Functions are known by what they do to the first examples.
    """
    numbers = lambda array: None if array is None else np.asarray(array).tolist()
    preprocessed = lambda x: None if plan.preprocess is None else plan.preprocess(x)
    augmented = lambda x: None if plan.augment is None else plan.augment(jax.random.key(0), x)
    first = lambda made: None if made is None else f"{processes.of_all(plan.mesh, [_crc(made)])[0]:08x}"
    whole = lambda array: str(((plan.batch_size, *array.shape[1:]), array.dtype))
    marks = {
        "network": repr(plan.net),
        "parameters at the start": _mark(state.params),
        "key": _mark(state.key),
        "batch size": None if streamed else plan.batch_size,
        "sampling": plan.sampling,
        "rule": plan.rule.name,
        "rule's state at the start": _mark(state.rule_state),
        "readout": plan.readout is not None,
        "hyper": {name: numbers(value) for name, value in state.hyper.items()},
        "optimizer's first updates (checksum)": _mark(_first_updates(plan, state)),
        "penalties": {p.kind.name: numbers(p.strength) for p in state.regularisation.penalties},
        "keep": numbers(state.regularisation.keep),
        "label_smoothing": numbers(state.regularisation.label_smoothing),
        "input_noise": numbers(state.regularisation.input_noise),
        "average": None if state.average is None else numbers(state.average.decay),
        "patience": numbers(state.patience),
        "best_by": plan.best_by,
        "monitor": plan.monitor,
        "first example preprocessed (checksum)": first(preprocessed(data.X[0])),
        "first example augmented (checksum)": first(augmented(data.X[0])),
        "shares": None if plan.shares == 1 else plan.shares,
        "X (checksum)": whole(data.X) if streamed else _marks(plan, data.X),
        "Y (checksum)": whole(data.Y) if streamed else _marks(plan, data.Y),
        "weights and class_weights (checksum)": _marks(plan, data.weights),
        "validation (checksum)": _mark((data.X_dev, data.Y_dev)),
    }
    return json.loads(json.dumps(marks))


def _first_updates(plan: Plan, state: TrainState) -> Any:
    """What the optimiser makes of three gradients of 1: two optimisers of one form are told apart by it."""
    optimizer, ones = plan.transformation(state.hyper), jax.tree.map(jnp.ones_like, state.params)
    value = jnp.ones((), state.params[0].W.dtype)
    known, made = state.opt_state, []
    for _ in range(3):
        updates, known = optimizer.update(
            ones, known, state.params, value=value, grad=ones, value_fn=lambda params: value
        )  # fmt: skip
        made.append(updates)
    return made, known


def _marks(plan: Plan, array: Any) -> str | None:
    """Of examples a checksum a share, those of all processes."""
    if array is None or plan.shares == 1:
        return _mark(array)
    shares = np.split(np.asarray(array), plan.shares // processes.count(plan.mesh))
    return " ".join(f"{crc:08x}" for crc in processes.of_all(plan.mesh, [_crc(share) for share in shares]))


def _mark(tree: Any) -> str | None:
    """A checksum of a pytree's arrays."""
    return f"{_crc(tree):08x}" if jax.tree.leaves(tree) else None


def _crc(tree: Any) -> int:
    crc = 0
    for leaf in map(jnp.asarray, jax.tree.leaves(tree)):
        leaf = jax.random.key_data(leaf) if trees.is_key(leaf) else leaf
        array = np.ascontiguousarray(np.asarray(leaf))
        crc = zlib.crc32(f"{array.dtype}{array.shape}".encode(), crc)
        crc = zlib.crc32(array.tobytes(), crc)
    return crc
