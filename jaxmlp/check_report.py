"""The report of a gradient check: a comparison for each array and route, and how it prints."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxmlp.tables import align_columns, align_html


@dataclass(frozen=True)
class Comparison:
    """One array by hand and by one other route."""

    layer: int  # 1 is the first
    array: str  # "W", "b", or "delta" (the error signals of the whole batch)
    route: str  # "autodiff" or "differences"
    error: float  # ||a - b|| / max(||a||, ||b||, floor)
    tolerance: float
    entry: tuple[int, ...]  # the entry that differs most
    got: float  # its number by hand
    expected: float  # its number by the other route
    straddling: tuple[tuple[int, ...], ...] = ()  # entries left out: a step crosses a kink
    alone: str = ""  # the route that the two others outvote: "autodiff" (it passes then), "by hand" or "differences"

    @property
    def passed(self) -> bool:
        """Whether the error is at most the tolerance. An error of NaN does not pass."""
        return self.error <= self.tolerance

    @property
    def name(self) -> str:
        """Array and layer, such as `W^2`."""
        return f"{self.array}^{self.layer}"


def error(got: np.ndarray, expected: np.ndarray, floor: float = 0.0) -> float:
    """`||a - b|| / max(||a||, ||b||, floor)`: 0 for two arrays of zeros, infinity for two shapes.

    Args:
        got, expected: the two arrays, `a` and `b`.
        floor: the smallest norm to divide by.
    Example:
        >>> round(jm.check_report.error(np.array([3.0, 4.0]), np.array([3.0, 5.0])), 4)
        0.1715
    """
    if got.shape != expected.shape:
        return np.inf
    apart = float(np.linalg.norm(got - expected))
    norms = float(np.linalg.norm(got)), float(np.linalg.norm(expected))
    return apart and apart / float(np.max([*norms, floor]))  # unlike Python's max, NumPy's keeps NaN


def compare(
    layer, array, got, expected, rounding, tolerance, route="autodiff", where=None, straddling=()
) -> Comparison:
    """Compares two arrays. `rounding` is the norm that rounding alone may give their difference."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    worst, at_got, at_expected = (), np.nan, np.nan
    if got.shape == expected.shape and got.size:
        at = np.unravel_index(np.argmax(np.abs(got - expected)), got.shape)  # the first NaN, if any
        worst, at_got, at_expected = tuple(map(int, at)), got[at], expected[at]
        worst = worst if where is None else where[worst[0]]
    apart = error(got, expected, floor=rounding / tolerance)
    return Comparison(layer, array, route, apart, tolerance, worst, float(at_got), float(at_expected), straddling)


class Distance(NamedTuple):
    """How far a rule's gradient is from backpropagation's at one layer, W and b together; never a failure."""

    layer: int  # 1 is the first
    angle: float  # between the two, in degrees
    norm_ratio: float  # the norm of the rule's gradient over the norm of backpropagation's


ROUTES = {  # that a report says are alone
    "autodiff": "autodiff is outvoted; it is",
    "by hand": "the gradient by hand is",
    "differences": "central differences are",
}


SIDES = "<<>><<>>"  # of a report's columns


@dataclass(frozen=True, repr=False)
class Report:
    """The result of `check_gradients`; it prints as a table with a line for each comparison."""

    rows: tuple[Comparison, ...]
    looks_like: tuple[str, ...] = ()  # where autodiff disagrees: mistakes that would give this gradient
    rule: str = "backprop"
    distances: tuple[Distance, ...] = ()  # one for each layer, if the rule is not backprop
    autodiff_alone: tuple[str, ...] = ()  # functions whose derivative autodiff gets wrong, or chooses otherwise

    @property
    def passed(self) -> bool:
        """Whether every comparison passed."""
        return all(row.passed for row in self.rows)

    @property
    def worst(self) -> Comparison:
        """The comparison with the largest error over tolerance."""
        return max(self.rows, key=lambda row: np.inf if np.isnan(row.error) else row.error / row.tolerance)

    def __repr__(self) -> str:
        """One line; the table is `str(report)`."""
        at = f"{self.worst.name}{list(self.worst.entry)}"
        error = f"{self.worst.error:.1e} against {self.worst.route}"
        return f"Report({'passed' if self.passed else 'FAILED'}, {len(self.rows)} rows, worst {error} at {at})"

    def __str__(self) -> str:
        table = align_columns(self._cells(), SIDES, widths=(9, 13, 9, 9, 8, 13, 15, 15), gap="")
        return "\n".join(table + self._lines())

    def _repr_html_(self) -> str:
        return align_html(self._cells(), SIDES, self._lines())

    def _cells(self) -> list[tuple[str, ...]]:
        cells = [("array", "against", "error", "at most", "", "worst entry", "by hand", "expected")]
        for row in self.rows:
            cells.append(
                (row.name, row.route, f"{row.error:.1e}", f"{row.tolerance:.0e}", "  ok" if row.passed else "  WRONG",
                 f"[{','.join(map(str, row.entry))}]", f"{row.got:.7g}", f"{row.expected:.7g}")
            )  # fmt: skip
        return cells

    def _lines(self) -> list[str]:
        """What is below the table."""
        lines = []
        for row in self.rows:
            if row.straddling:
                some = ", ".join(str(list(entry)) for entry in row.straddling[:4])
                more = f" and {len(row.straddling) - 4} more" if len(row.straddling) > 4 else ""
                lines.append(f"left out of {row.name}: a step crosses a kink at {some}{more}")
        for layer, angle, ratio in self.distances:
            lines.append(
                f"rule {self.rule}, layer {layer}: {angle:.2f} degrees from the gradient, {ratio:.3g} times it"
            )
        for route in ("autodiff", "by hand", "differences"):
            if names := dict.fromkeys(row.name for row in self.rows if row.alone == route):
                lines.append(f"{ROUTES[route]} alone in {', '.join(names)}")
        lines += [f"autodiff is alone: {sentence}" for sentence in self.autodiff_alone]
        lines += [f"looks like: {sentence}" for sentence in self.looks_like]
        lines.append("passed" if self.passed else f"FAILED, worst at {self.worst.name}{list(self.worst.entry)}")
        return lines
