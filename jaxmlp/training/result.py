"""The results of `fit` and `sweep`, and the error of a run that diverged."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxmlp import validate
from jaxmlp.network import Params
from jaxmlp.tables import format_table, format_value
from jaxmlp.training.state import TrainState

History = dict[str, np.ndarray]

SHOWN = 20  # rows of a table when it is printed


@dataclass(frozen=True, repr=False)
class Result:
    """The result of `fit`. `history` has one array a column, one entry an epoch: see `fit`."""

    params: Params  # the best on the validation examples; without any, the last; averages where `average` is given
    last_params: Params
    history: History
    best_epoch: int | None  # 1 is the first; None without validation
    stopped_early: bool  # by patience
    state: TrainState

    def __repr__(self) -> str:
        """The last epoch's numbers, without the arrays, which would fill pages."""
        last = {name: column[-1] for name, column in self.history.items() if len(column)}
        shown = [f"{name}={value:.4g}" for name, value in last.items() if np.ndim(value) == 0]
        stopped = ", stopped early" if self.stopped_early else ""
        return f"Result({', '.join(shown)}, best_epoch={self.best_epoch}{stopped})"


class DivergedError(RuntimeError):
    """Training has no result: the cost is not finite or 1,000 times the first one, or no validation score is finite.

    `epoch` is the epoch in which it happened (1 is the first). `result` holds the history up to it and the last good
    weights.
    """

    def __init__(self, message: str, epoch: int, result: Result):
        super().__init__(f"{message}. error.result has the last good weights and the history")
        self.message = message
        self.epoch = epoch
        self.result = result

    def __reduce__(self):
        """What a copy is made of; a worker's error reaches its pool so."""
        return DivergedError, (self.message, self.epoch, self.result)


def raise_if_lost(state: TrainState, result: Result) -> None:
    """Raises DivergedError for a run that diverged, or whose validation scores were never finite."""
    history = result.history
    if bool(state.diverged):
        first = float(state.first_cost)
        hint = "a smaller learning rate may help" if np.isfinite(first) else "no cost of these inputs is finite"
        raise DivergedError(
            f"training diverged in epoch {int(state.epoch) + 1}: cost {history['cost'][-1]:g}, at the start {first:g}; "
            f"{hint}",
            int(state.epoch) + 1,
            result,
        )
    if result.best_epoch == 0 and int(state.epoch) > 0:
        raise DivergedError(
            f"validation has no finite score in any of {int(state.epoch)} epochs: its cost is "
            f"{history['validation_cost'][-1]:g}; expected examples that the network gives a finite cost",
            int(state.epoch),
            result,
        )


def make_result(state: TrainState, history: History) -> Result:
    """The result of a run that ends in `state`."""
    best = state.best
    return Result(
        params=state.evaluated if best is None or int(best.epoch) == 0 else best.params,
        last_params=state.params,
        history=history,
        best_epoch=None if best is None else int(best.epoch),
        stopped_early=bool(state.stopped & ~state.diverged) and (best is None or int(best.epoch) > 0),
        state=state,
    )


@dataclass(frozen=True, repr=False)
class SweepResult:
    """The result of `sweep`. For a list of networks `params`, `last_params` and `states` are lists, one entry a member.

    `history` has `epoch (n,)` and columns `(n, E)`, NaN after a member's end. `scores (E,)` is the best score on the
    validation examples (the cost, or minus the accuracy); without any, the last cost. Lower is better; the score of a
    member that diverged is infinite.
    """

    params: Any  # member axis in front: the best on the validation examples; without any, the last
    last_params: Any
    history: History
    best_epoch: np.ndarray | None  # (E,); 1 is the first; None without validation
    stopped_early: np.ndarray  # (E,) by patience
    diverged: np.ndarray  # (E,)
    scores: np.ndarray  # (E,)
    epochs: np.ndarray  # (E,) how many each has in the history
    settings: dict[str, np.ndarray]  # those in which members differ, each (E,) or (E, K)
    states: Any

    @property
    def best(self) -> int:
        """The member with the lowest score."""
        return int(np.argmin(self.scores))

    def member(self, i: int) -> Result:
        """Member i's result, as `fit` would return it; a member that diverged has its last good weights."""
        E = len(self.scores)
        i = validate.whole(i, "member", least=-E)
        if i >= E:
            raise ValueError(f"member is {i}, expected 0 to {E - 1}, or -1 to {-E} from the end")
        i = range(E)[i]
        of = lambda tree: tree[i] if isinstance(tree, list) else jax.tree.map(lambda array: array[i], tree)
        n = self.epochs[i]
        history = {name: column[:n] if column.ndim == 1 else column[:n, i] for name, column in self.history.items()}
        return Result(
            params=of(self.params),
            last_params=of(self.last_params),
            history={name: column for name, column in history.items() if not np.isnan(column).all()},
            best_epoch=None if self.best_epoch is None else int(self.best_epoch[i]),
            stopped_early=bool(self.stopped_early[i]),
            state=of(self.states),
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row for each member, the best score first: its own settings, its best (or last) epoch, its scores there."""
        at = np.maximum(self.epochs if self.best_epoch is None else self.best_epoch, 1) - 1
        columns = {name: column for name, column in self.history.items() if column.ndim == 2}
        rows = []
        for i in np.argsort(self.scores, kind="stable"):
            end = "diverged" if self.diverged[i] else f"stopped at {self.epochs[i]}" if self.stopped_early[i] else ""
            rows.append(
                {"member": int(i), **{name: values[i] for name, values in self.settings.items()},
                 "epoch": int(at[i] + 1), **{name: float(column[at[i], i]) for name, column in columns.items()},
                 "end": end}
            )  # fmt: skip
        return rows

    def table(self, most: int | None = None) -> str:
        """The first `most` of `rows` in columns."""
        return make_table(self.rows(), most)

    def __repr__(self) -> str:
        """One line; the table is `str(many)`."""
        best = {name: value for name, value in self.rows()[0].items() if np.ndim(value) == 0 and value != ""}
        shown = ", ".join(f"{name}={format_value(name, value)}" for name, value in best.items())
        ends = {"diverged": np.sum(self.diverged), "stopped early": np.sum(self.stopped_early)}
        told = "".join(f"; {count} {end}" for end, count in ends.items() if count)
        return f"SweepResult({len(self.scores):,} members{told}; best: {shown})"

    def __str__(self) -> str:
        return self.table(SHOWN)


def make_table(rows: list[dict[str, Any]], most: int | None) -> str:
    """The first `most` rows in columns, and a line that counts the others."""
    more = [f"and {len(rows) - most:,} more"] if most is not None and len(rows) > most else []
    return "\n".join(format_table(rows[:most]) + more)
