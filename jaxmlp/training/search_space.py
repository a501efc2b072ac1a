"""What a search looks through: names, each with a list of values or a distribution, and the settings drawn from them.

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
    """Numbers between `low` and `high`, each as likely."""
    _check_ends(low, high)
    return lambda u: low + (high - low) * u


def log_uniform(low: float, high: float) -> Quantile:
    """Positive numbers between `low` and `high`, each order of magnitude as likely: for rates and strengths."""
    _check_ends(low, high, above=0)
    return lambda u: low * (high / low) ** u


def _check_ends(low: float, high: float, above: float = -math.inf) -> None:
    low, high = validate.number(low, "low", above=above), validate.number(high, "high", above=above)
    if low >= high:
        raise ValueError(f"low is {low:g} and high {high:g}, expected low below high")


def checked(space: Any) -> dict[str, Any]:
    """`space`, its lists as lists."""
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"space is {space!r}, expected a dict such as {{'learning_rate': jm.log_uniform(1e-3, 1)}}")
    return {name: _one(name, values) for name, values in space.items()}


def _one(name: str, values: Any) -> Any:
    if callable(values):
        return values
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str) or len(values) == 0:
        raise ValueError(f"space[{name!r}] is {values!r}, expected a list of values, or a distribution")
    return list(values)


def grid(space: dict[str, Any]) -> list[dict[str, Any]]:
    """All combinations."""
    for name, values in space.items():
        if callable(values):
            raise ValueError(f"space[{name!r}] is a distribution, expected a list for a grid; give trials to draw some")
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]


def drawn(space: dict[str, Any], key: PRNGKeyArray, trials: int) -> list[dict[str, Any]]:
    """`trials` settings, each value drawn on its own."""
    U = np.asarray(jax.random.uniform(key, (trials, len(space)))).tolist()
    pick = lambda values, u: values(u) if callable(values) else values[int(u * len(values))]
    return [{name: pick(space[name], u) for name, u in zip(space, row, strict=True)} for row in U]
