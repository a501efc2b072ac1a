"""A strict reader of CSV files: the caller declares each column, and a cell of another kind is an error."""

import csv
import itertools
import os
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from jaxmlp import paths, validate

Kind = Literal["number", "yes_no"] | Sequence[str]

# Decimal numbers only: float() also takes nan, 1_000 and non-ASCII digits.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
EXACT = 2.0**53  # float64 holds every whole number up to here, and none but whole ones above
YES_NO = ("no", "yes")


@dataclass(frozen=True)
class Table:
    """The columns of a CSV file by name, `(m,)` each."""

    columns: dict[str, np.ndarray]  # numbers as float64, yes and no as bool, categories as indices into their names
    categories: dict[str, tuple[str, ...]]  # for each column of categories its names

    def matrix(self, names: Sequence[str], dtype: type = np.float32) -> np.ndarray:
        """The columns `names` side by side `(m, n)`, in float32 or, on request, in float64.

        Yes is 1 and no is 0. A column of categories becomes one column of 0 and 1 for each of its names. Numbers are
        rounded to the dtype; a ValueError names one that is too large or too small for it, and a whole number that it
        cannot hold, such as an identifier above 16,777,216.
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
                value = column[np.argmax(off)]
                raise ValueError(
                    f"column {name!r} holds {value!s} in row {np.argmax(off)}, which {dtype} cannot hold; expected "
                    "dtype=numpy.float64"
                )
        return held.reshape(len(column), -1)


def read_csv(path: str | os.PathLike[str], columns: Mapping[str, Kind]) -> Table:
    """Reads columns of a CSV file that has a header.

    Args:
        path: a text file in UTF-8.
        columns: for each column to read its kind: "number", "yes_no", or the names of its categories. Other columns of
            the file are left out.
    Returns:
        A `Table`.
    Raises:
        ValueError: where a cell is not of its kind (an empty cell, NaN and infinity included), a row has another
            length, or a column is missing or there twice. The message names the file, the line and the column.
        FileNotFoundError: where there is no such file.
    Example:
        >>> with open("houses.csv", "w") as file:
        ...     written = file.write("price,driveway,side\\n42000,yes,north\\n38500,no,south\\n")
        >>> kinds = {"price": "number", "driveway": "yes_no", "side": ("north", "south")}
        >>> jm.data.read_csv("houses.csv", kinds).matrix(("driveway", "side")).tolist()
        [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if not isinstance(columns, Mapping) or not columns:
        raise ValueError(f"columns is {columns!r}, expected a mapping such as {{'price': 'number'}}")
    codes = {name: _number_words(name, kind) for name, kind in columns.items()}
    rows = _read_records(paths.check(path))
    _, header = next(rows, (1, []))
    places = {name: _find_column(path, header, name) for name in columns}
    values: dict[str, list[float]] = {name: [] for name in columns}
    for line, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{path}, line {line}: {len(row)} fields, expected {len(header)} as in the header")
        for name, place in places.items():
            values[name].append(_read_cell(row[place], codes[name], f"{path}, line {line}, column {name!r}"))
    if not all(values.values()):
        raise ValueError(f"{path} has no rows below its header, expected at least one")
    dtypes = {name: _choose_dtype(kind) for name, kind in columns.items()}
    categories = {name: tuple(kind) for name, kind in columns.items() if not isinstance(kind, str)}
    return Table({name: np.asarray(column, dtypes[name]) for name, column in values.items()}, categories)


def _read_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each record with the number of its first line."""
    lines = paths.read_lines(path)
    first = next(lines, "").removeprefix("\ufeff")  # a mark that some programs put before UTF-8
    reader, line = csv.reader(itertools.chain([first] if first else [], lines), strict=True), 1
    try:
        for row in reader:
            yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {line}: {error}") from None


def _number_words(name: str, kind: Kind) -> dict[str, int] | None:
    """The number of each word that a cell may hold; None for a column of numbers."""
    if kind == "number":
        return None
    names = YES_NO if kind == "yes_no" else kind
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
        raise ValueError(f"columns[{name!r}] is {kind!r}, expected 'number', 'yes_no' or the names of the categories")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"columns[{name!r}] is {kind!r}, expected at least one category, and each of them once")
    return {word: index for index, word in enumerate(names)}


def _find_column(path, header: list[str], name: str) -> int:
    """The index of the column in the header."""
    if (count := header.count(name)) != 1:
        raise ValueError(f"{path}, line 1: {count} columns are called {name!r}, expected one among {header}")
    return header.index(name)


def _read_cell(cell: str, codes: dict[str, int] | None, where: str) -> float:
    """The number in a cell; errors give its place as `where`."""
    if codes is not None:
        if cell not in codes:
            raise ValueError(f"{where}: {cell!r}, expected one of {', '.join(map(repr, codes))}")
        return codes[cell]
    if not (match := NUMBER.fullmatch(cell)) or not np.isfinite(value := float(cell)):
        raise ValueError(f"{where}: {reprlib.repr(cell)}, expected a finite number")
    vanishes = value == 0 and match[1].strip("0.")
    if vanishes or (abs(value) >= EXACT and cell.lstrip("+-").isdecimal() and int(value) != int(cell)):
        raise ValueError(f"{where}: {reprlib.repr(cell)}, which float64 cannot hold, expected a number that it can")
    return value


def _choose_dtype(kind: Kind) -> type:
    """The dtype of a column."""
    return {"number": np.float64, "yes_no": np.bool_}[kind] if isinstance(kind, str) else np.int32
