"""The result of a sweep: its populations side by side, in the order of their members."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp.training._epoch import COLUMNS
from jaxmlp.training.population import Population
from jaxmlp.training.result import History, SweepResult


def join(parts: list[tuple[np.ndarray, Population]], settings: dict[str, np.ndarray], stacked: bool) -> SweepResult:
    """The result of populations, in the order of the member numbers that stand beside each."""
    index = np.concatenate([numbers for numbers, _ in parts])
    order = np.unique(index, return_index=True)[1]  # drops the repeated members of a part, too
    concatenate = lambda arrays: np.concatenate([np.asarray(array) for array in arrays])[order]
    populations = [population for _, population in parts]
    states = [population.states for population in populations]
    each = lambda of: concatenate([of(state) for state in states])
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
        scores=concatenate([population.scores for population in populations]),
        epochs=each(lambda state: state.epoch) + diverged,
        settings=settings,
        states=together(states),
    )


def _together(trees: list[Any], index: np.ndarray, order: np.ndarray, stacked: bool) -> Any:
    """Joins trees along their member axis; where shapes differ, a list with one tree a member."""
    if not stacked:
        each = [jax.tree.map(lambda a, i=i: a[i], tree) for tree in trees for i in range(_members(tree))]
        return [each[i] for i in order]
    if len(trees) == 1 and len(order) == len(index):
        return trees[0]

    def one(*arrays):
        if isinstance(arrays[0], np.ndarray):
            return np.concatenate(arrays)[order]
        return jnp.concatenate(arrays)[order]

    return jax.tree.map(one, *trees)


def _members(tree: Any) -> int:
    return len(jax.tree.leaves(tree)[0])


def _history(parts: list[History], order: np.ndarray) -> History:
    """`epoch`, and the columns of all parts side by side: NaN below the shorter ones, and where a part has none."""
    n = max(len(columns["cost"]) for columns in parts)
    names = [name for name in COLUMNS if any(name in columns for columns in parts)]

    def pad(columns: History, name: str) -> np.ndarray:
        column = columns[name] if name in columns else np.full_like(columns["cost"], np.nan)
        return np.pad(column, ((0, n - len(column)), (0, 0)), constant_values=np.nan)

    if len(parts) == 1 and len(order) == len(parts[0]["cost"][0]):  # which may be large
        side_by_side = {name: parts[0][name] for name in names}
    else:
        side_by_side = {name: np.concatenate([pad(c, name) for c in parts], axis=1)[:, order] for name in names}
    return {"epoch": np.arange(1, n + 1), **side_by_side}
