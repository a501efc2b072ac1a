"""Successive halving: how many settings survive each rung, and how long they train in it.

Source: Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization".
"""

import math

from jaxmlp import validate


def choose_rungs(n: int, epochs: int | None, budget: int | None) -> list[tuple[int, int]]:
    """For each rung, the number of settings that survive it, and the epochs that each trains in it."""
    if (epochs is None) == (budget is None):
        raise ValueError(f"epochs is {epochs} and budget is {budget}, expected one of them")
    if budget is None:
        return [(1, validate.whole(epochs, "epochs"))]
    count = max(1, math.ceil(math.log2(n)))
    if validate.whole(budget, "budget") < n * count:
        raise ValueError(f"budget is {budget} epochs, expected at least {n * count}: {n} settings in {count} rungs")
    left = [n]
    while len(left) < count:
        left.append(left[-1] // 2)
    return [(max(1, size // 2), budget // (size * count)) for size in left]
