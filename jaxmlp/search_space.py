"""The space of a search: names, each with a list of values or a distribution, and the settings drawn from them.

A distribution is its quantile function: u in [0, 1) -> a value. `scipy.stats.loguniform(1e-3, 1).ppf` is one.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxmlp import validate

Quantile = Callable[[float], Any]
Space = Mapping[str, Sequence[Any] | Quantile]


def uniform(low: float, high: float) -> Quantile:
    """The uniform distribution between `low` and `high`, as a function from u in [0, 1) to a number.

    Example:
        >>> jm.uniform(0.0, 0.5)(0.5)
        0.25
    """
    _check_ends(low, high)
    return lambda u: low + (high - low) * u


def log_uniform(low: float, high: float) -> Quantile:
    """The log-uniform distribution between `low` and `high`, `low (high / low)^u`: for rates and strengths.

    All orders of magnitude are equally likely.

    Example:
        >>> round(jm.log_uniform(1e-3, 1e-1)(0.5), 6)
        0.01
    """
    _check_ends(low, high, above=0)
    return lambda u: low * (high / low) ** u


def _check_ends(low: float, high: float, above: float = -math.inf) -> None:
    low, high = (validate.number(end, name, above=above) for name, end in (("low", low), ("high", high)))
    if low >= high:
        raise ValueError(f"low is {low:g} and high {high:g}, expected low below high")


def check(space: Any) -> dict[str, Any]:
    """Returns `space` with its sequences as lists."""
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"space is {space!r}, expected a dict such as {{'learning_rate': jm.log_uniform(1e-3, 1)}}")
    return {name: _check_values(name, values) for name, values in space.items()}


def _check_values(name: str, values: Any) -> Any:
    if callable(values):
        return values
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str) or len(values) == 0:
        raise ValueError(f"space[{name!r}] is {values!r}, expected a list of values, or a distribution")
    return list(values)


def list_grid(space: dict[str, Any]) -> list[dict[str, Any]]:
    """All combinations of the lists."""
    for name, values in space.items():
        if callable(values):
            raise ValueError(f"space[{name!r}] is a distribution, expected a list for a grid; give trials to draw some")
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def draw_settings(space: dict[str, Any], key: PRNGKeyArray, trials: int) -> list[dict[str, Any]]:
    """`trials` settings, each value drawn independently."""
    U = np.asarray(jax.random.uniform(key, (trials, len(space)))).tolist()
    pick = lambda values, u: values(u) if callable(values) else values[int(u * len(values))]
    return [{name: pick(space[name], u) for name, u in zip(space, row, strict=True)} for row in U]
