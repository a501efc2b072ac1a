"""A strict reader of CSV files: each column is declared, and a cell that is not what was declared is an error."""

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jaxmlp import validate

Kind = Literal["number", "yes_no"] | Sequence[str]

# What float() takes but a table does not hold, such as nan, 1_000 or digits of other scripts, is no number.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
YES_NO = ("no", "yes")


@dataclass(frozen=True)
class Table:
    """Columns of m rows by name: float64 numbers, bool for yes and no, and for categories the index of each name."""

    columns: dict[str, np.ndarray]
    categories: dict[str, tuple[str, ...]]  # the names of each column of categories, in the order of their index

    def matrix(self, names: Sequence[str]) -> np.ndarray:
        """The columns `names` side by side, `(m, n)` float32: yes is 1, a category is one column for each name."""
        if isinstance(names, str) or not names:
            raise ValueError(f"names is {names!r}, expected a sequence of columns such as {tuple(self.columns)[:2]}")
        return np.concatenate([self._block(name) for name in names], axis=1)

    def _block(self, name: str) -> np.ndarray:
        column = validate.named(name, self.columns, str, "a column")
        if name in self.categories:
            column = column[:, None] == np.arange(len(self.categories[name]))
        return column.reshape(len(column), -1).astype(np.float32)


def read_csv(path: str | os.PathLike[str], columns: Mapping[str, Kind]) -> Table:
    """Reads the `columns` of a CSV file with a header: each is "number", "yes_no", or the names of its categories.

        read_csv("houses.csv", {"price": "number", "driveway": "yes_no", "side": ("north", "south")})

    Columns of the file that are not named are left out. Raises ValueError that names the file, line and column for a
    cell that is not of its kind (an empty one, NaN and infinity included), a row of another length, a column that is
    missing or there twice; FileNotFoundError for a file that is not there.
    """
    if not isinstance(columns, Mapping) or not columns:
        raise ValueError(f"columns is {columns!r}, expected a mapping such as {{'price': 'number'}}")
    codes = {name: _codes(name, kind) for name, kind in columns.items()}
    rows = _rows(Path(path))
    _, header = next(rows, (1, []))
    places = {name: _place(path, header, name) for name in columns}
    values: dict[str, list[float]] = {name: [] for name in columns}
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{path}, line {line}: {len(row)} fields, expected {len(header)} as in the header")
        for name, place in places.items():
            values[name].append(_value(row[place], codes[name], f"{path}, line {line}, column {name!r}"))
    if not all(values.values()):
        raise ValueError(f"{path} has no rows below its header, expected at least one")
    dtypes = {name: _dtype(kind) for name, kind in columns.items()}
    categories = {name: tuple(kind) for name, kind in columns.items() if not isinstance(kind, str)}
    return Table({name: np.asarray(column, dtypes[name]) for name, column in values.items()}, categories)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line it starts on."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader, line = csv.reader(file, strict=True), 1
        try:
            for row in reader:
                yield line, row
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{path}, line {line}: {error}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a text file in UTF-8: {error}") from None


def _codes(name: str, kind: Kind) -> dict[str, int] | None:
    """The value of each word a cell may hold; None for numbers."""
    if kind == "number":
        return None
    names = YES_NO if kind == "yes_no" else kind
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
        raise ValueError(f"columns[{name!r}] is {kind!r}, expected 'number', 'yes_no' or the names of the categories")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"columns[{name!r}] is {kind!r}, expected at least one category, and each of them once")
    return {word: index for index, word in enumerate(names)}


def _place(path, header: list[str], name: str) -> int:
    if (count := header.count(name)) != 1:
        raise ValueError(f"{path}, line 1: {count} columns are called {name!r}, expected one among {header}")
    return header.index(name)


def _value(cell: str, codes: dict[str, int] | None, where: str) -> float:
    if codes is not None:
        if cell not in codes:
            raise ValueError(f"{where}: {cell!r}, expected one of {', '.join(map(repr, codes))}")
        return codes[cell]
    if not NUMBER.fullmatch(cell) or not np.isfinite(value := float(cell)):
        raise ValueError(f"{where}: {cell!r}, expected a finite number")
    return value


def _dtype(kind: Kind) -> type:
    return {"number": np.float64, "yes_no": np.bool_}[kind] if isinstance(kind, str) else np.int32
