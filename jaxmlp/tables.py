"""Tables as text and, for a notebook, as HTML: rows of cells in columns that line up, and the form of a number."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import jax.numpy as jnp
import numpy as np

NO_MATH = "tex2jax_ignore mathjax_ignore"  # a $ in a name is no formula


def format_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line of column names, then a line for each row, all columns on the right.

    A column without any text in its cells is left out.

    Args:
        rows: at least one row; each maps the same names to its values.
    Returns:
        The lines of the table, `1 + len(rows)` of them.
    Example:
        >>> rows = [{"member": 0, "cost": 0.25, "end": ""}, {"member": 12, "cost": 1 / 3, "end": ""}]
        >>> print("\\n".join(jm.tables.format_table(rows)))
        member    cost
             0    0.25
            12  0.3333
    """
    return align_columns(list_cells(rows))


def list_cells(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The names of the columns, then the cells of each row; without columns that have no text.

    Args:
        rows: at least one row; each maps the same names to its values.
    Example:
        >>> jm.tables.list_cells([{"member": 0, "cost": 1 / 3, "end": ""}])
        [['member', 'cost'], ['0', '0.3333']]
    """
    names = [name for name in rows[0] if any(str(row[name]) for row in rows)]
    return [names] + [[format_value(name, row[name]) for name in names] for row in rows]


def make_table(rows: Sequence[Mapping[str, Any]], most: int | None) -> str:
    """The first `most` rows in columns, and a line that counts the others.

    Example:
        >>> print(jm.tables.make_table([{"member": 0}, {"member": 1}], most=1))
        member
             0
        and 1 more
    """
    return "\n".join(format_table(rows[:most]) + count_more(len(rows), most))


def make_html(rows: Sequence[Mapping[str, Any]], most: int | None) -> str:
    """The same table for a notebook.

    Example:
        >>> jm.tables.make_html([{"member": 0}, {"member": 1}], most=1).count("<tr>")
        2
    """
    return align_html(list_cells(rows[:most]), lines=count_more(len(rows), most))


def count_more(rows: int, most: int | None) -> list[str]:
    """The line below the first `most` of so many rows; none where these are all.

    Example:
        >>> jm.tables.count_more(2_000, 20), jm.tables.count_more(2, 20)
        (['and 1,980 more'], [])
    """
    return [f"and {rows - most:,} more"] if most is not None and rows > most else []


def list_epochs(history: Mapping[str, np.ndarray], best: int | None, most: int = 5) -> list[dict[str, Any]]:
    """A row for each of the last `most` epochs of a history, and for the best one. Columns by layer are left out.

    Example:
        >>> [int(row["epoch"]) for row in jm.tables.list_epochs({"epoch": np.arange(1, 9)}, best=2)]
        [2, 4, 5, 6, 7, 8]
    """
    columns = {name: column for name, column in history.items() if np.ndim(column) == 1}
    n = len(next(iter(columns.values()), ()))
    row = lambda i: {**{name: column[i] for name, column in columns.items()}, "": "best" if i + 1 == best else ""}
    return [row(i) for i in range(n) if i >= n - most or i + 1 == best]


def align_columns(
    cells: Sequence[Sequence[str]], sides: str = "", widths: Sequence[int] = (), gap: str = "  "
) -> list[str]:
    """A line for each row of `cells`, with every cell padded to the width of its column.

    Args:
        cells: rows of equal length.
        sides: one character for each column, "<" for cells on the left and ">" for cells on the right (the default).
        widths: one for each column; by default the length of the longest cell.
        gap: the text between two columns.
    Example:
        >>> jm.tables.align_columns([["W", "1.5"], ["bias", "10"]], sides="<>")
        ['W     1.5', 'bias   10']
    """
    widths = widths or [max(map(len, column)) for column in zip(*cells, strict=True)]
    forms = list(zip(sides or ">" * len(widths), widths, strict=True))
    return [gap.join(f"{cell:{side}{n}}" for cell, (side, n) in zip(row, forms, strict=True)) for row in cells]


def align_html(cells: Sequence[Sequence[str]], sides: str = "", lines: Sequence[str] = ()) -> str:
    """The same for a notebook: HTML, and lines of text below the table. The first row has the names of the columns.

    Args:
        cells, sides: those of `align_columns`.
        lines: below the table.
    Example:
        >>> jm.tables.align_html([["<cost"], ["1"]], lines=["and 1 more"])
        '<table ...><tr><th ...>&lt;cost</th></tr><tr><td ...>1</td></tr></table><div ...>and 1 more</div>'
    """
    forms = ["left" if side == "<" else "right" for side in sides or ">" * len(cells[0])]
    parts = [f'<table class="{NO_MATH}">']
    for kind, row in zip(["th"] + ["td"] * (len(cells) - 1), cells, strict=True):
        each = zip(row, forms, strict=True)
        parts += ["<tr>", *(f'<{kind} style="text-align: {at}">{escape(cell)}</{kind}>' for cell, at in each), "</tr>"]
    below = [f'<div class="{NO_MATH}">{escape(line)}</div>' for line in lines]
    return "".join([*parts, "</table>", *below])


def format_value(name: str, value: Any) -> str:
    """A cell of the column `name`: an accuracy in percent, other floats to 4 digits, a vector's entries side by side.

    Example:
        >>> jm.tables.format_value("accuracy", 0.9731), jm.tables.format_value("cost", 1 / 3)
        ('97.31%', '0.3333')
    """
    if name.endswith("accuracy"):
        return f"{value:.2%}"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return " ".join(f"{v:.4g}" for v in value) if isinstance(value, np.ndarray) and value.ndim else str(value)


def format_array(array: np.ndarray | np.generic | None, digits: int = 4) -> str:
    """A number, an array of at most 4 entries in brackets, or the shape of a larger one; `-` for None.

    Example:
        >>> jm.tables.format_array(np.array([1, 2.5])), jm.tables.format_array(np.zeros((3, 2)))
        ('[1 2.5]', '3x2 array')
    """
    if array is None:
        return "-"
    if array.size > 4:
        return "x".join(map(str, array.shape)) + " array"
    if array.ndim:
        return "[" + " ".join(format_array(part, digits) for part in np.asarray(array)) + "]"
    is_real = jnp.issubdtype(array.dtype, jnp.floating)
    return f"{float(array) + 0:.{digits}g}" if is_real else str(array)  # + 0 makes -0 0
