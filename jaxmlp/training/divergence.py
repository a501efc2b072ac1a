"""The error of a run that diverged."""

import numpy as np

from jaxmlp.training.result import Result
from jaxmlp.training.state import TrainState


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
