"""Tables of plain text: rows of cells in columns that line up, and the form of a number in a cell."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np


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
    names = [name for name in rows[0] if any(str(row[name]) for row in rows)]
    return align_columns([names] + [[format_value(name, row[name]) for name in names] for row in rows])


def make_table(rows: Sequence[Mapping[str, Any]], most: int | None) -> str:
    """The first `most` rows in columns, and a line that counts the others.

    Example:
        >>> print(jm.tables.make_table([{"member": 0}, {"member": 1}], most=1))
        member
             0
        and 1 more
    """
    more = [f"and {len(rows) - most:,} more"] if most is not None and len(rows) > most else []
    return "\n".join(format_table(rows[:most]) + more)


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
