"""What a run gives back, and the error of one that diverged."""

from dataclasses import dataclass

import numpy as np

from jaxmlp.network import Params
from jaxmlp.training.state import TrainState

History = dict[str, np.ndarray]


@dataclass(frozen=True, repr=False)
class Result:
    """What `fit` returns. `history` has one array a column, one entry an epoch: see `fit`."""

    params: Params  # the best on the validation examples; without any, the last; averages where `average` is given
    last_params: Params
    history: History
    best_epoch: int | None  # 1 is the first; None without validation
    stopped_early: bool  # by patience
    state: TrainState

    def __repr__(self) -> str:
        """The last epoch's numbers; arrays, which would fill pages, are left out."""
        last = {name: column[-1] for name, column in self.history.items() if len(column)}
        shown = [f"{name}={value:.4g}" for name, value in last.items() if np.ndim(value) == 0]
        stopped = ", stopped early" if self.stopped_early else ""
        return f"Result({', '.join(shown)}, best_epoch={self.best_epoch}{stopped})"


class DivergedError(RuntimeError):
    """Training diverged: the cost is not finite, or 1,000 times the first one.

    `epoch` is the one in which it happened (1 is the first); `result` holds the history up to it and the weights of
    the epoch before.
    """

    def __init__(self, epoch: int, cost: float, first_cost: float, result: Result):
        super().__init__(
            f"training diverged in epoch {epoch}: cost {cost:g}, at the start {first_cost:g}; "
            "a smaller learning rate may help. error.result has the last good weights and the history"
        )
        self.epoch = epoch
        self.result = result


def result_of(state: TrainState, history: History) -> Result:
    """The result of a run that ends in `state`."""
    best = state.best
    return Result(
        params=state.evaluated if best is None or int(best.epoch) == 0 else best.params,
        last_params=state.params,
        history=history,
        best_epoch=None if best is None else int(best.epoch),
        stopped_early=bool(state.stopped & ~state.diverged),
        state=state,
    )
