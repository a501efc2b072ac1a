"""Members that have stopped leave the program: the others go on in a smaller population.

A population of each size is a program of its own, so the sizes are few: E, E / sqrt(2), E / 2, .. . Where members stop
evenly between a tenth of the epochs and the last, the programs take 1.14 times the steps that are needed; sizes that
halve would take 1.27 times.
"""

import math

import numpy as np

SAVED = 2e10  # operations that a smaller population must save: to compile its program takes about as long


def next_size(members: int, operations: int | float, epochs: int, devices: int = 1) -> int:
    """The largest smaller size that pays in the epochs that are left; 0 if none does.

    Args:
        members: the number of them in the program.
        operations: of one member's epoch.
        devices: the number that divides a size.
    """
    fewer = members - math.ceil(SAVED / (operations * epochs))
    return next((size for size in _sizes(members, devices) if size <= fewer), 0)


def choose_members(stopped: np.ndarray, devices: int = 1) -> np.ndarray:
    """Those that go on, in order, filled up by some that have stopped to the least size that holds them."""
    running = len(stopped) - int(stopped.sum())
    size = min(size for size in (len(stopped), *_sizes(len(stopped), devices)) if size >= running)
    order = np.argsort(stopped, kind="stable")  # the running ones first
    return np.sort(order[:size])


def _sizes(members: int, devices: int) -> list[int]:
    """The sizes below `members`, the largest first."""
    halvings = range(1, 2 * members.bit_length() + 1)
    sizes = {devices * math.ceil(members / (devices * 2 ** (k / 2))) for k in halvings}
    return sorted((size for size in sizes if size < members), reverse=True)
