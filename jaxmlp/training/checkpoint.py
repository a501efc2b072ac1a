"""A run on disk: its whole state, written atomically, so a run that is killed at any moment goes on to the same bits.

One process writes a safetensors file; several write together by orbax. Either kind of run goes on from the files of the
other.
"""

import json
import os
import re
import zlib
from collections import namedtuple
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmlp import files, sharded_trees, trees
from jaxmlp.optimizers import Factory
from jaxmlp.training import probe, processes, settings
from jaxmlp.training.sharding import put_like
from jaxmlp.training.state import Data, Plan, Run, TrainState

MARK = re.compile("[0-9a-f]{8}( [0-9a-f]{8})*")
LAST, BEST = "last.safetensors", "best.safetensors"

Columns = dict[str, list[Any]]


# A state by the names that files have used since version 0.1.0.
Saved = namedtuple(
    "Saved",
    "params opt_state rule_state key epoch hyper regularisation first_cost patience stopped diverged best average",
)


NAMES = {"regularization": "regularisation"}
FOUND_ANEW = ("first_scale",)


class Restored(NamedTuple):
    """A checkpoint as a run goes on from it."""

    state: TrainState
    columns: Columns
    log_bytes: int | None  # the length of the log when the state was saved; None where that is not known


@dataclass(frozen=True)
class Checkpoints:
    """A folder with the state after the last `every`-th epoch, and the state after the best one on validation.

    Several processes keep the last state only.
    """

    folder: Path
    every: int
    run: dict[str, Any]  # tells this run from another
    mesh: Mesh | None = None  # over several processes: these write together
    log: Path | None = None  # the file that gets a line for each epoch, before its state is saved

    @contextmanager
    def open(self, start: TrainState) -> Iterator[Restored | None]:
        """What is restored, None if there is nothing; and the folder for this run alone.

        Raises:
            ValueError: where another run wrote the files, or another run has the folder now.
        """
        if (self.folder / "001" / LAST).exists():
            raise ValueError(f"checkpoints is {str(self.folder)!r}, which holds a sweep, expected another folder")
        seen, saved = self._mark(), self.restore(start)
        with ExitStack() as stack:
            with processes.raise_on_all(self.mesh):
                if jax.process_index() == 0 or not processes.are_several(self.mesh):
                    stack.enter_context(lock(self.folder))
            if self._mark() != seen:  # another run saved in between
                saved = self.restore(start)
            remove_parts(self.folder)
            yield saved

    def _mark(self) -> tuple[int, ...] | None:
        """Tells the file that is there from one that replaces it."""
        try:
            about = (self.folder / LAST).stat()
        except OSError:
            return None
        return about.st_ino, about.st_mtime_ns, about.st_size

    def restore(self, start: TrainState) -> Restored | None:
        """The newest state; None if there is none; ValueError if another run wrote it."""
        path, by_orbax = self.folder / LAST, sharded_trees.newest(self.folder)
        processes.check_agreement(self.mesh, **{f"the content of {self.folder}": [path.exists(), by_orbax]})
        if not path.exists() and by_orbax < 0:
            return None
        about = self._check(files.read(path, "tree")[1].get("about"), path) if path.exists() else {"done": -1}
        like = _save_form(start)
        if about["done"] < by_orbax:
            about, where = sharded_trees.read_about(self.folder)
            about, tree = self._check(about, where), sharded_trees.read(self.folder, like)
        else:
            tree, about = trees.read_tree(path, like)
            about = self._check(about, path)
            done, best = about["done"], 0 if tree.best is None else int(tree.best.epoch)
            if int(tree.epoch) != done - bool(tree.diverged) or not 0 <= best <= done:
                raise ValueError(
                    f"{path} holds epoch {int(tree.epoch)} and the best {best}, beside a history of {done}"
                )
            tree = put_like(self.mesh, like, tree)
        known = about.get("log")
        return Restored(_restore_state(start, tree), about["history"], known if type(known) is int else None)

    def _check(self, about: Any, where: Path) -> dict[str, Any]:
        """`about`, if it is that of this run's checkpoint."""
        run, done, history = (
            about.get(name) if isinstance(about, dict) else None for name in ("run", "done", "history")
        )
        if not isinstance(run, dict) or type(done) is not int or not _is_history(history, done):
            raise ValueError(f"{where} holds no checkpoint of a run, expected another folder")
        check_run(self.run, run, where)
        return about

    def _log_bytes(self) -> int | None:
        try:
            return None if self.log is None else self.log.stat().st_size
        except OSError:  # not written yet
            return 0

    def save(self, state: TrainState, columns: Columns, done: int, last: bool) -> None:
        """Writes the files that are due after `done` epochs; `last`: of the run."""
        about = {"run": self.run, "done": done, "history": columns, "log": self._log_bytes()}
        due = last or done % self.every == 0
        if processes.are_several(self.mesh):
            if due:
                sharded_trees.write(self.folder, done, _save_form(state), about)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if done and state.best is not None and int(state.best.epoch) == int(state.epoch) and not bool(state.diverged):
            trees.write_tree(self.folder / BEST, _save_form(state), about)
        if due:
            trees.write_tree(self.folder / LAST, _save_form(state), about)


def check_run(here: dict[str, Any], saved: dict[str, Any], where: Path) -> None:
    """Refuses the file of a run that differs in what both know: by its settings, or else by what has another checksum.

    A setting changes checksums, too, such as that of the optimizer's updates.
    """
    # An older version may not have kept all.
    other = {name: (saved[name], value) for name, value in here.items() if name in saved and saved[name] != value}
    told = [f"{name}: {old}, here {new}" for name, (old, new) in other.items() if not (_is_mark(old) and _is_mark(new))]
    given = lambda mark: "some" if mark else "none"
    marks = [f"{name}: {given(old)}, here {given(new)}" if given(old) != given(new) else name
             for name, (old, new) in other.items()]  # fmt: skip
    if other:
        raise ValueError(
            f"{where} was written by another run ({'; '.join(told or marks)}); expected the same arguments, or another "
            "folder"
        )


def _is_mark(value: Any) -> bool:
    """Whether a value is a checksum, whose digits tell a reader nothing, or None in its place."""
    return value is None or (isinstance(value, str) and MARK.fullmatch(value) is not None)


def _save_form(state: TrainState) -> Saved:
    """The state as files hold it; what every start of the run finds anew is not in them."""
    values = state._asdict()
    return Saved(**{NAMES.get(name, name): values[name] for name in state._fields if name not in FOUND_ANEW})


def _restore_state(start: TrainState, saved: Saved) -> TrainState:
    values = saved._asdict()
    return start._replace(**{name: values[NAMES.get(name, name)] for name in start._fields if name not in FOUND_ANEW})


def _is_history(given: Any, done: int) -> bool:
    """Whether `given` is a column of `done` entries for each name, each a number or numbers of the layers."""
    number = lambda entry: isinstance(entry, int | float)
    fine = lambda entry: number(entry) or (isinstance(entry, list) and all(map(number, entry)))
    return isinstance(given, dict) and all(
        isinstance(column, list) and len(column) == done and all(map(fine, column)) for column in given.values()
    )


def remove_parts(folder: Path) -> None:
    """Removes what a write that was killed has left."""
    for part in folder.glob(f".*.safetensors.*{files.PART}"):
        part.unlink(missing_ok=True)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds the folder for this run until it ends, however it ends. Only POSIX systems lock folders, NFS does not."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.name != "posix":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"checkpoints is {str(folder)!r}, which another run is writing now; expected another folder, or to "
                "wait until that run has ended"
            ) from None
        except OSError:  # this file system has no such locks
            pass
        yield
    finally:
        os.close(descriptor)


def describe(plan: Plan, run: Run, state: TrainState, data: Data) -> dict[str, Any]:
    """The JSON that tells a run from another; `state` and `data` are this process's own.

    The table of settings says which settings it holds. Functions are known by their results on some examples, or on
    fixed numbers.
    """
    some = data.X[:: max(1, len(data.X) // probe.EXAMPLES)][: probe.EXAMPLES]
    keys = jax.random.split(jax.random.key(0), len(some))
    first = lambda made: None if made is None else f"{processes.allgather(plan.mesh, [_crc(made)])[0]:08x}"
    marks = {
        **settings.tell(plan, run, saved=True),
        "network": repr(plan.net),
        "parameters at the start": mark(state.params),
        "key": mark(state.key),
        "rule's state at the start": mark(state.rule_state),
        "optimizer's first updates (checksum)": mark(probe.find_first_updates(plan, state)),
        "optimizer's later updates (checksum)": mark(probe.find_later_updates(plan, state)),
        **{
            f"optimizer's {name}": value if isinstance(value, int) else repr(value)  # NaN equals no NaN
            for name, value in probe.find_numbers(plan, state).items()
        },
        "hyperparameters compiled in": dict(plan.optimizer.whole) if isinstance(plan.optimizer, Factory) else {},
        "hidden activations": [f.name for f in plan.net.hidden],
        "own functions (checksum)": mark(probe.run_own(plan)),
        "readout of fixed numbers (checksum)": mark(probe.read_fixed(plan, state, data)),
        "examples preprocessed (checksum)": first(plan.preprocess and jax.vmap(plan.preprocess)(some)),
        "examples augmented (checksum)": first(plan.augment and jax.vmap(plan.augment)(keys, some)),
        "X (checksum)": _mark_shares(plan, data.X),
        "Y (checksum)": _mark_shares(plan, data.Y),
        "weights and class_weights (checksum)": _mark_shares(plan, data.weights),
        "validation (checksum)": mark((data.X_dev, data.Y_dev, data.weights_dev)),
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
