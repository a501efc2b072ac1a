"""A table: columns by name, and features made of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from jaxmlp import validate
from jaxmlp.tables import align_html, count_more, format_value

Kind = Literal["number", "yes_no", "category"] | Sequence[str] | None
SHOWN = 10  # rows in a notebook
EXACT = 2.0**53  # float64 holds every whole number up to here, and none but whole ones above


@dataclass(frozen=True)
class Table:
    """The columns of a CSV file by name, `(m,)` each."""

    columns: dict[str, np.ndarray]  # numbers as float64, yes and no as bool, categories as indices into their names
    categories: dict[str, tuple[str, ...]]  # for each column of categories its names
    kinds: dict[str, Kind] = field(default_factory=dict)  # for `read_csv` of another file: categories by their names
    path: str = ""
    lines: Sequence[int] = field(default=(), repr=False)  # for each row its first line in the file

    def _repr_html_(self) -> str:
        """The first rows for a notebook, with the names of categories."""
        shown = []
        for name, column in self.columns.items():
            names, values = self.categories.get(name), column[:SHOWN]
            shown.append([format_value("", value) if names is None else names[value] for value in values])
        m = max(map(len, self.columns.values()), default=0)
        return align_html([list(self.columns), *zip(*shown, strict=True)], lines=count_more(m, SHOWN))

    def matrix(self, names: Sequence[str], dtype: type = np.float32) -> np.ndarray:
        """The columns `names` side by side `(m, n)`, in float32 or, on request, in float64.

        Yes is 1 and no is 0. A column of categories becomes one column of 0 and 1 for each of its names. A missing
        number is NaN. Numbers are rounded to the dtype; a ValueError names one that is too large or too small for it,
        and a whole number that it cannot hold, such as an identifier above 16,777,216.
        """
        if isinstance(names, str) or not names:
            raise ValueError(f"names is {names!r}, expected a sequence of columns such as {tuple(self.columns)[:2]}")
        if dtype not in (np.float32, np.float64):
            raise ValueError(f"dtype is {dtype!r}, expected numpy.float32 or numpy.float64")
        return np.concatenate([self._block(name, np.dtype(dtype)) for name in names], axis=1)

    def _block(self, name: str, dtype: np.dtype) -> np.ndarray:
        """One column as a matrix `(m, 1)`, or `(m, categories)`."""
        column = validate.look_up(name, self.columns, str, "a column")
        if name in self.categories:
            column = column[:, None] == np.arange(len(self.categories[name]))
        with np.errstate(over="ignore", under="ignore"):
            held = column.astype(dtype)
        if column.dtype == np.float64:
            # Rounding may cost a fraction the relative spacing, and a whole number nothing: it may be an identifier.
            exact = (column == np.floor(column)) & (np.abs(column) < EXACT)
            off = np.abs(held - column) > np.where(exact, 0, np.finfo(dtype).eps * np.abs(column))
            if off.any():
                row = int(np.argmax(off))
                where = f"{self.path}, line {self.lines[row]}: " if len(self.lines) else ""
                raise ValueError(
                    f"{where}column {name!r} holds {column[row]!s} in row {row}, which {dtype} cannot hold; expected "
                    "dtype=numpy.float64"
                )
        return held.reshape(len(column), -1)
