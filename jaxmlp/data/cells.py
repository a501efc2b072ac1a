"""The cells of a CSV file: a reader for each kind of column, whose errors tell what came and what was expected."""

import re
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxmlp import validate
from jaxmlp.data.table import EXACT, Kind

# Decimal numbers only: float() also takes nan, 1_000 and non-ASCII digits.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
YES_NO = ("no", "yes")
MISSING = {"", "?", "-", ".", "na", "n/a", "#n/a", "<na>", "nan", "null", "none", "missing", "unknown"}
SHOWN = 20  # names of categories in an error


@dataclass
class Reader:
    """Reads the cells of one column, one after the other, and finishes them as an array."""

    read: Callable[[str], float]
    dtype: type
    codes: dict[str, int] | None = None  # the number of each category; it grows where they are found
    found: bool = False

    @property
    def names(self) -> tuple[str, ...] | None:
        """The categories; None for other columns."""
        if self.codes is None:
            return None
        return tuple(sorted(self.codes) if self.found else self.codes)

    def finish(self, values: list[float]) -> np.ndarray:
        """The column; found categories are numbered in the order of their names."""
        column = np.asarray(values, self.dtype)
        if not (self.found and self.codes):
            return column
        places = {name: place for place, name in enumerate(sorted(self.codes))}
        return np.asarray([places[name] for name in self.codes], self.dtype)[column]


def make_readers(columns: Mapping[str, Kind], decimal: Any, missing: Any, edit: Any) -> dict[str, Reader]:
    """A reader for each column that is not left out."""
    if decimal not in (".", ","):
        raise ValueError(f"decimal is {decimal!r}, expected '.' or ','")
    marks = _check_marks(missing)
    readers = {name: _make_reader(name, kind, decimal, marks) for name, kind in columns.items() if kind is not None}
    if edit is not None and not isinstance(edit, Mapping):
        raise ValueError(f"edit is {edit!r}, expected a mapping such as {{'price': str.strip}}")
    for name, change in (edit or {}).items():
        reader = validate.look_up(name, readers, Reader, "a column of edit")
        if not callable(change):
            raise ValueError(f"edit[{name!r}] is {change!r}, expected a function of a cell's text")
        reader.read = _edit(reader.read, change)
    return readers


def _check_marks(missing: Any) -> tuple[set[str], set[float]]:
    """The texts and the numbers that mark a missing value."""
    given = [missing] if isinstance(missing, str | int | float) else missing
    if not isinstance(given, Sequence) or not all(_is_mark(mark) for mark in given):
        raise ValueError(f"missing is {missing!r}, expected texts or finite numbers such as ('?', -200)")
    texts = {mark for mark in given if isinstance(mark, str)}
    return texts, {float(mark) for mark in given if not isinstance(mark, str)}


def _is_mark(mark: Any) -> bool:
    is_number = isinstance(mark, int | float) and not isinstance(mark, bool)
    return isinstance(mark, str) or (is_number and abs(mark) <= sys.float_info.max)


def _make_reader(name: str, kind: Any, decimal: str, marks: tuple[set[str], set[float]]) -> Reader:
    """A reader for the cells of the column `name`."""
    if kind == "number":
        return Reader(lambda cell: _read_number(cell, decimal, *marks), np.float64)
    if kind == "category":
        codes = {}
        return Reader(lambda cell: _find_word(cell, codes, marks[0]), np.int32, codes, found=True)
    words = YES_NO if kind == "yes_no" else kind
    if isinstance(words, str) or not isinstance(words, Sequence) or not all(isinstance(n, str) for n in words):
        raise ValueError(
            f"columns[{name!r}] is {kind!r}, expected 'number', 'yes_no' or the names of the categories, 'category' to "
            "find them in the file, or None to leave the column out"
        )
    if not words or len(set(words)) < len(words):
        raise ValueError(f"columns[{name!r}] is {kind!r}, expected at least one category, and each of them once")
    known = {word: index for index, word in enumerate(words)}
    read = lambda cell: _read_word(cell, known)
    return Reader(read, np.bool_) if kind == "yes_no" else Reader(read, np.int32, known)


def _read_number(cell: str, decimal: str, texts: set[str], numbers: set[float]) -> float:
    """The number in a cell; NaN where it is missing."""
    if cell in texts:
        return np.nan
    plain = cell if decimal == "." else cell.translate({ord(","): ".", ord("."): ","})
    if not (match := NUMBER.fullmatch(plain)) or not np.isfinite(value := float(plain)):
        such = "" if decimal == "." else ", with a decimal comma"
        raise ValueError(f"{reprlib.repr(cell)}, expected a finite number{such}{_hint(cell, decimal)}")
    vanishes = value == 0 and match[1].strip("0.")
    if vanishes or (abs(value) >= EXACT and plain.lstrip("+-").isdecimal() and int(value) != int(plain)):
        raise ValueError(f"{reprlib.repr(cell)}, which float64 cannot hold, expected a number that it can")
    return np.nan if value in numbers else value


def _hint(cell: str, decimal: str) -> str:
    """The end of an error: the argument for a cell that many files have, or nothing."""
    if cell.lower() in MISSING:
        return f"; missing={cell!r} makes it nan"
    if cell.startswith(" ") and NUMBER.fullmatch(cell.lstrip(" ")):
        return "; skipinitialspace=True leaves spaces out"
    comma = decimal == "." and re.fullmatch(r"[+-]?\d+,\d+", cell)
    return "; decimal=',' is for a comma before the fraction" if comma else ""


def _read_word(cell: str, codes: dict[str, int]) -> int:
    """The number of the word in a cell."""
    if cell not in codes:
        words = list(map(repr, codes))
        more = [f"or {len(words) - SHOWN} more"] if len(words) > SHOWN else []
        raise ValueError(f"{reprlib.repr(cell)}, expected one of {', '.join(words[:SHOWN] + more)}")
    return codes[cell]


def _find_word(cell: str, codes: dict[str, int], texts: set[str]) -> int:
    """The number of the word in a cell, a new one for a new word."""
    if not cell and cell not in texts:
        raise ValueError("'', expected a category; missing=('',) makes one of empty cells")
    return codes.setdefault(cell, len(codes))


def _edit(read: Callable[[str], float], change: Callable[[str], object]) -> Callable[[str], float]:
    """Reads what `change` makes of a cell."""

    def read_edited(cell: str) -> float:
        try:
            text = change(cell)
        except Exception as error:  # of another person's function
            raise ValueError(f"{reprlib.repr(cell)}, for which edit raised {error!r}") from error
        if not isinstance(text, str):
            raise ValueError(f"{reprlib.repr(cell)}, of which edit made {text!r}, expected a text")
        return read(text)

    return read_edited
