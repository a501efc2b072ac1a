"""A run on disk: its whole state, atomically, so that one killed at any moment goes on to the same bits."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmlp import files, trees
from jaxmlp.training.state import Data, Plan, TrainState

LAST, BEST = "last.safetensors", "best.safetensors"

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Checkpoints:
    """A folder with the state after the last `every`-th epoch, and that after the best one on validation."""

    folder: Path
    every: int
    run: dict[str, Any]  # what tells this run from another

    def restored(self, start: TrainState) -> tuple[TrainState, Columns] | None:
        """The state and the history as they were saved last, None if nothing was; ValueError if by another run."""
        path = self.folder / LAST
        for part in self.folder.glob(f".*.safetensors.*{files.PART}"):  # of a write that was killed
            part.unlink()
        if not path.exists():
            return None
        state, about = trees.read_tree(path, start)
        for name, value in self.run.items():
            if about["run"].get(name) != value:
                raise ValueError(
                    f"{path} is of another run: its {name} is {about['run'].get(name)}, this one's {value}; expected "
                    "the same arguments, or another folder"
                )
        return state, about["history"]

    def save(self, state: TrainState, columns: Columns, done: int, last: bool) -> None:
        """Writes what is due after `done` epochs; `last`: of the run."""
        about = {"run": self.run, "history": columns}
        if state.best is not None and int(state.best.epoch) == int(state.epoch) and not bool(state.diverged):
            trees.write_tree(self._made() / BEST, state, about)
        if last or done % self.every == 0:
            trees.write_tree(self._made() / LAST, state, about)

    def _made(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder


def described(plan: Plan, state: TrainState, data: Data, streamed: bool) -> dict[str, Any]:
    """What must be the same for a run to go on: all that is known of it but the code of the user's functions."""
    marks = {
        "network": repr(plan.net),
        "batch size": None if streamed else plan.batch_size,
        "sampling": plan.sampling,
        "rule": plan.rule.name,
        "best_by": plan.best_by,
        "key": _mark(state.key),
        "initial parameters": _mark(state.params),
        "hyper": _mark(state.hyper),
        "regularisation": _mark(state.regularisation),
        "average": None if state.average is None else float(state.average.decay),
        "patience": int(state.patience),
        "data": None if streamed else _mark(data),
    }
    return json.loads(json.dumps(marks))


def _mark(tree: Any) -> str:
    """A checksum of a pytree's arrays."""
    crc = 0
    for leaf in jax.tree.leaves(tree):
        leaf = jax.random.key_data(leaf) if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        array = np.ascontiguousarray(np.asarray(leaf))
        crc = zlib.crc32(f"{array.dtype}{array.shape}".encode(), crc)
        crc = zlib.crc32(array.tobytes(), crc)
    return f"{crc:08x}"
