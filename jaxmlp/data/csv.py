"""A strict reader of CSV files: the caller declares each column, and a cell of another kind is an error."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jaxmlp import choices, paths
from jaxmlp.data import cells
from jaxmlp.data.records import read_records
from jaxmlp.data.table import Kind as Kind
from jaxmlp.data.table import Table as Table


def read_csv(
    path: str | os.PathLike[str],
    columns: Mapping[str, Kind],
    *,
    header: Literal["first"] | None = "first",
    delimiter: str = ",",
    decimal: str = ".",
    skipinitialspace: bool = False,
    comment: str | None = None,
    missing: str | float | Sequence[str | float] = (),
    edit: Mapping[str, Callable[[str], str]] | None = None,
) -> Table:
    """Reads columns of a CSV file.

    Nothing is guessed: a file of another form than these arguments tell is refused. Rows at its end whose cells are
    all empty, and blank lines there, are left out.

    Args:
        path: a text file in UTF-8, plain or packed by gzip.
        columns: for each column to read its kind: "number", "yes_no", the names of its categories, or "category",
            whose names are those in the file in the order of text. None, or no entry, leaves a column out.
        header: "first" where the first record names the columns. None where the file has no such line; `columns` then
            has an entry for every column, in the file's order.
        delimiter: the character between two cells, such as ";" or "\\t".
        decimal: the mark before a number's fraction, "." or ",".
        skipinitialspace: whether spaces after a delimiter are left out.
        comment: the start of the lines that are left out, if any.
        missing: the cells without a value, such as "?" or ("", "NA"). A number, such as -200, is one however it is
            written. In a column of numbers they become NaN, which `fill_missing` fills. In one of "category" a text is
            a category like others. By default a number that is missing is refused, and so is an empty category.
        edit: for some columns a function of the text of a cell that gives the text to read.
    Returns:
        A `Table`. Its `kinds` are the `columns` for a second file: categories that the first did not have are refused.
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
    if not isinstance(columns, Mapping) or not any(kind is not None for kind in columns.values()):
        raise ValueError(f"columns is {columns!r}, expected a mapping such as {{'price': 'number'}}")
    _check_form(header, delimiter, skipinitialspace, comment)
    readers = cells.make_readers(columns, decimal, missing, edit)
    records = read_records(paths.check(path), delimiter, skipinitialspace, comment)
    line, names = (1, list(columns)) if header is None else next(records, (1, []))
    if not names:
        raise ValueError(f"{path} has no header, expected a line with the names of the columns")
    places = [(name, _find_column(path, line, names, name, delimiter), reader.read) for name, reader in readers.items()]
    values: dict[str, list[float]] = {name: [] for name in readers}
    lines = []
    for line, record in records:
        if len(record) != len(names):
            as_in = "columns" if header is None else "the header"
            raise ValueError(
                f"{path}, line {line}: {len(record)} fields, expected {len(names)} as in {as_in}"
                + _hint_split(record, delimiter)
            )
        lines.append(line)
        for name, place, read in places:
            try:
                values[name].append(read(record[place]))
            except ValueError as error:
                hint = "; header='first' skips the names" if header is None and record[place] == name else ""
                raise ValueError(f"{path}, line {line}, column {name!r}: {error}{hint}") from error.__cause__
    if not lines:
        raise ValueError(f"{path} has no rows{' below its header' if header else ''}, expected at least one")
    made = {name: reader.finish(values[name]) for name, reader in readers.items()}
    categories = {name: reader.names for name, reader in readers.items() if reader.names is not None}
    return Table(made, categories, {**columns, **categories}, str(path), lines)


def _check_form(header: Any, delimiter: Any, skipinitialspace: Any, comment: Any) -> None:
    """Raises a ValueError for what the form of a file cannot be."""
    if header not in ("first", None):
        raise ValueError(f"header is {header!r}, expected 'first', or None for a file without one")
    if not isinstance(skipinitialspace, bool):
        raise ValueError(f"skipinitialspace is {skipinitialspace!r}, expected True or False")
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise ValueError(f"delimiter is {delimiter!r}, expected one character such as ';'")
    if delimiter == " " and skipinitialspace:
        raise ValueError("delimiter is ' ', which skipinitialspace leaves out, expected one of the two")
    if comment is not None and (not isinstance(comment, str) or not comment):
        raise ValueError(f"comment is {comment!r}, expected the start of a line such as '#', or None")


def _find_column(path: Any, line: int, header: list[str], name: str, delimiter: str) -> int:
    """The index of the column in the header."""
    if (count := header.count(name)) != 1:
        hint = "" if count else _hint_split(header, delimiter) or choices.suggest(name, header)
        if not count and not hint and any(map(cells.NUMBER.fullmatch, header)):
            hint = "; header=None is for a file without names"
        raise ValueError(f"{path}, line {line}: {count} columns are called {name!r}, expected one among {header}{hint}")
    return header.index(name)


def _hint_split(record: list[str], delimiter: str) -> str:
    """The end of an error: another usual delimiter that stands in a line of one cell, or nothing."""
    found = [mark for mark in ";\t|," if len(record) == 1 and mark in record[0] and mark != delimiter]
    return f"; delimiter={found[0]!r} splits this line" if found else ""
