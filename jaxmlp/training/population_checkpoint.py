"""A sweep on disk: a folder for each program's members, so that a sweep that is killed goes on to the same bits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmlp import files, trees
from jaxmlp.training import checkpoint
from jaxmlp.training.checkpoint import LAST
from jaxmlp.training.population import Keeper, Population, select_data
from jaxmlp.training.sharding import put_like
from jaxmlp.training.state import Data, Run, TrainState


@dataclass(frozen=True)
class PopulationCheckpoints(Keeper):
    """A folder with a population: every member's state, the history, and who is in the program."""

    folder: Path
    every: int  # epochs between two states
    epochs: int  # of the whole sweep
    run: dict[str, Any]  # tells this sweep from another
    interrupted: Callable[[], bool]

    @contextmanager
    def open(self, population: Population) -> Iterator[None]:
        """Puts the population where the file left it, and keeps the folder for this sweep alone.

        Raises:
            ValueError: where another sweep wrote the file, or another run has the folder now.
        """
        with checkpoint.lock(self.folder):
            checkpoint.remove_parts(self.folder)
            if (self.folder / LAST).exists():
                self._restore(population)
            else:
                self.save(population)  # from here on it is this sweep's folder
            yield

    def _restore(self, population: Population) -> None:
        path, mesh = self.folder / LAST, population.plan.mesh
        about = files.read(path, "tree")[1].get("about")
        told = about if isinstance(about, dict) else {}
        done, inside, columns, run = (told.get(name) for name in ("done", "in the program", "columns", "run"))
        if (
            not isinstance(columns, dict)
            or not isinstance(run, dict)
            or type(done) is not int
            or type(inside) is not int
        ):
            raise ValueError(f"{path} holds no checkpoint of a sweep, expected another folder")
        checkpoint.check_run(self.run, run, path)
        if done > self.epochs:
            raise ValueError(f"{path} holds {done} epochs, expected at most the sweep's {self.epochs}")
        E = len(population.states.epoch)
        column = lambda dtype: np.zeros((done, E), np.dtype(dtype))
        like = _tree(population, {name: column(dtype) for name, dtype in columns.items()}, np.zeros(inside, int))
        tree, _ = trees.read_tree(path, like)
        population.states = put_like(mesh, population.states, tree["states"])
        population.shared = tree["shared"]
        population.history = [tree["history"]] if done else []
        population.index = tree["index"]

    def is_due(self, done: int) -> bool:
        """Whether a state is to be saved after so many epochs."""
        return done % self.every == 0 or done == self.epochs or self.interrupted()

    def save(self, population: Population) -> None:
        """Writes the file; raises KeyboardInterrupt if the sweep was interrupted."""
        done = population.done
        history = population.columns if done else {}
        index = np.arange(len(population.states.epoch)) if population.index is None else population.index
        columns = {name: str(column.dtype) for name, column in history.items()}
        about = {"run": self.run, "done": done, "in the program": len(index), "columns": columns}
        trees.write_tree(self.folder / LAST, _tree(population, history, index), about)
        if self.interrupted():
            raise KeyboardInterrupt(
                f"epoch {done} of {self.epochs} is saved in {self.folder}; the same call goes on from there"
            )


def _tree(population: Population, history: dict[str, np.ndarray], index: np.ndarray) -> dict[str, Any]:
    return {"states": population.states, "shared": population.shared, "history": history, "index": index}


def describe(population: Population, runs: Run) -> dict[str, Any]:
    """The JSON that tells a sweep from another: the first member's run, and checksums of what is each member's own."""
    states, data, axes = population.states, population.data, population.axes
    first = lambda tree: jax.tree.map(lambda array: array[0], tree)
    own = select_data(data, axes, 0)
    of_states = {f"members' {name} (checksum)": checkpoint.mark(getattr(states, name)) for name in TrainState._fields}
    own_data = [name for name in Data._fields if getattr(axes, name) is not None]  # the rest is told of the first
    of_data = {f"all members' {name} (checksum)": checkpoint.mark(getattr(data, name)) for name in own_data}
    return {
        "members": len(states.epoch),
        "batches are shared": checkpoint.mark(population.shared),
        **checkpoint.describe(population.plan, first(runs), first(states), own),
        **of_states,
        **of_data,
    }
