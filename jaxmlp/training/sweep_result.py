"""What a sweep gives back: arrays with a member axis, a table sorted by score, and each member's own result."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp import validate
from jaxmlp.training._fit import COLUMNS
from jaxmlp.training.population import Population
from jaxmlp.training.result import History, Result

SHOWN = 20  # rows of a table when it is printed


@dataclass(frozen=True)
class SweepResult:
    """What `sweep` returns. Of a list of networks `params`, `last_params` and `states` are lists with one a member.

    `history` has `epoch (n,)` and columns `(n, E)`, NaN after a member's end. `scores (E,)`: the best score on the
    validation examples (the cost, or minus the accuracy), or without any the last cost; lower is better, and that of a
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
    settings: dict[str, np.ndarray]  # what differs between the members, each (E,) or (E, K)
    states: Any

    @property
    def best(self) -> int:
        """The member with the lowest score."""
        return int(np.argmin(self.scores))

    def member(self, i: int) -> Result:
        """Member i's result, as `fit` would return it; of one that diverged, with its last good weights."""
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
        """A row for each member, the best score first: what differs, its best (or last) epoch and its scores there."""
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
        """`rows`, the first `most` of them, lined up."""
        rows = self.rows()
        lines = lined_up(rows[:most])
        return "\n".join(lines + ([f"and {len(rows) - most:,} more"] if most is not None and len(rows) > most else []))

    def __str__(self) -> str:
        return self.table(SHOWN)


def lined_up(rows: list[dict[str, Any]]) -> list[str]:
    """Rows under their names, columns lined up; those empty in all rows are left out."""
    names = [name for name in rows[0] if any(str(row[name]) for row in rows)]
    cells = [names] + [[_cell(name, row[name]) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]


def _cell(name: str, value: Any) -> str:
    if name.endswith("accuracy"):
        return f"{value:.2%}"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return " ".join(f"{v:.4g}" for v in value) if isinstance(value, np.ndarray) and value.ndim else str(value)


def gathered(parts: list[tuple[np.ndarray, Population]], settings: dict[str, np.ndarray], stacked: bool) -> SweepResult:
    """The result of populations, each with the numbers of its members, in the order of these."""
    index = np.concatenate([numbers for numbers, _ in parts])
    order = np.unique(index, return_index=True)[1]  # also drops what fills up a part
    joined = lambda arrays: np.concatenate([np.asarray(array) for array in arrays])[order]
    populations = [population for _, population in parts]
    states = [population.states for population in populations]
    each = lambda of: joined([of(state) for state in states])
    diverged = each(lambda state: state.diverged)
    best = None if states[0].best is None else each(lambda state: state.best.epoch)  # pyright: ignore
    together = lambda trees: _together(trees, index, order, stacked)
    return SweepResult(
        params=together([population.params for population in populations]),
        last_params=together([state.params for state in states]),
        history=_history([population.columns for population in populations], order),
        best_epoch=best,
        stopped_early=each(lambda state: state.stopped) & ~diverged,
        diverged=diverged,
        scores=joined([population.scores for population in populations]),
        epochs=each(lambda state: state.epoch) + diverged,
        settings=settings,
        states=together(states),
    )


def _together(trees: list[Any], index: np.ndarray, order: np.ndarray, stacked: bool) -> Any:
    """Trees with a member axis as one; where shapes differ, a list with one tree a member."""
    if not stacked:
        each = [jax.tree.map(lambda a, i=i: a[i], tree) for tree in trees for i in range(_members(tree))]
        return [each[i] for i in order]
    if len(trees) == 1 and len(order) == len(index):
        return trees[0]

    def join(*arrays):
        if isinstance(arrays[0], np.ndarray):
            return np.concatenate(arrays)[order]
        return jnp.concatenate(arrays)[order]

    return jax.tree.map(join, *trees)


def _members(tree: Any) -> int:
    return len(jax.tree.leaves(tree)[0])


def _history(parts: list[History], order: np.ndarray) -> History:
    """`epoch`, and the columns of all parts side by side, NaN below the shorter ones and where a part has none."""
    n = max(len(columns["cost"]) for columns in parts)
    names = [name for name in COLUMNS if any(name in columns for columns in parts)]

    def padded(columns: History, name: str) -> np.ndarray:
        column = columns[name] if name in columns else np.full_like(columns["cost"], np.nan)
        return np.pad(column, ((0, n - len(column)), (0, 0)), constant_values=np.nan)

    if len(parts) == 1 and len(order) == len(parts[0]["cost"][0]):  # which may be large
        side_by_side = {name: parts[0][name] for name in names}
    else:
        side_by_side = {name: np.concatenate([padded(c, name) for c in parts], axis=1)[:, order] for name in names}
    return {"epoch": np.arange(1, n + 1), **side_by_side}
