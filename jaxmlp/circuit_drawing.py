"""Pictures of circuits, from left to right: one column for each step, no wire behind a gate, no label over another.

A wire that passes a column has a place of its own there, so a circuit is columns of places. Within a column, places
follow the mean position of their neighbors; of the orders met on the way, the one with the fewest crossings is taken
(Sugiyama et al. 1981). The heights are near the neighbors' heights, at least one place apart. Lengths are in inches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean as mean
from typing import TYPE_CHECKING

import numpy as np

from jaxmlp.circuit_gates import Row
from jaxmlp.plotting import BLUE, RED, make_picture
from jaxmlp.tables import format_array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FONT, CHARACTER, LINE, MARGIN, GAP, AGAIN, WIDTH = 9, 0.075, 0.15, 0.08, 0.32, 0.9, 13
TIMES = "\N{MULTIPLICATION SIGN}"
SYMBOLS = {"add": "{} + {}", "sub": "{} - {}", "mul": f"{{}} {TIMES} {{}}", "div": "{} / {}", "neg": "-{}",
           "square": "{} ^ 2", "integer_pow": "{} ^ {}", "pow": "{} ^ {}", "dot_general": "{} @ {}"}  # fmt: skip
COMMUTATIVE = {"add": "+", "mul": TIMES}

Place = tuple[int, str]  # a column, and a wire that begins there or passes
Links = list[tuple[Place, Place]]  # each from a column to the next


def draw_circuit(circuit_rows: Sequence[Row]) -> Figure:
    """Draws each gate as a box, each wire's name and value above it (blue), the output's gradient below it (red).

    A circuit wider than a page continues in a row below. The wires that lead there are named again at its start.

    Args:
        circuit_rows: the `rows` of a `Circuit`.
    Returns:
        The figure; its size follows the circuit.
    Example:
        >>> figure = jm.circuit(lambda x, y, z: (x + y) * z, -2, 5, -4).draw()
        >>> len(figure.axes[0].texts)  # two labels for each of 5 wires, and one in each of 2 boxes
        12
    """
    rows = {row.wire: row for row in circuit_rows}
    at = _assign_columns(rows)
    columns, links = _find_places(rows, at)
    columns = _order_columns(columns, links)
    spans, boxes, (width, height), y = _find_positions(rows, at, columns, links)
    made = make_picture((width, height))
    ax = made.add_axes((0, 0, 1, 1), xlim=(-MARGIN, width - MARGIN), ylim=(-height, 0))
    ax.axis("off")
    line = {"color": "0.4", "linewidth": 1, "solid_capstyle": "round"}
    text = {"ha": "center", "fontsize": FONT}
    for start, end in links:
        (_, right), (left, _), again = spans[start[0]], spans[end[0]], (start[0], start[1], "again")
        right, start = (left - GAP, again) if again in y else (right, start)
        ax.plot([right, left], [y[start], y[end]], **line)
    for k, name in (place[:2] for place in y if "again" in place[2:]):
        left, right = spans[k + 1][0] - AGAIN, spans[k][1]
        height = y[k, name, "again"]
        ax.plot([right, right + GAP], [y[k, name]] * 2, linestyle=":", **line)
        ax.plot([left, left + AGAIN - GAP], [height] * 2, linestyle=":", **line)
        ax.text(left, height + 0.04, name, color=BLUE, va="bottom", fontsize=FONT)
    for k, column in enumerate(columns):
        for name in column:
            (left, right), height = spans[k], y[k, name]
            row, out = rows[name], spans[k][0] + boxes[k]
            begins = at[name] == k and not row.gate  # an argument
            ax.plot([out if begins else left, right], [height, height], **line)
            if at[name] != k:
                continue
            above, below = _write_tags(row)
            ax.text((out + right) / 2, height + 0.04, above, color=BLUE, va="bottom", **text)
            ax.text((out + right) / 2, height - 0.05, below, color=RED, va="top", **text)
            if row.gate:
                ax.text((left + out) / 2, height, _label_gate(row, rows), va="center", **text,
                        bbox={"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "0.2"})  # fmt: skip
    return made


def _find_positions(rows, at, columns, links):
    """The left and right end and the box width of each column, the size of the picture, and the height of each place.

    A place that continues in the row below has a second height there, under the key `(column, wire, "again")`.
    """
    longest = lambda tags: max(len(line) for tag in tags for line in tag.split("\n"))
    box = lambda name: CHARACTER * len(_label_gate(rows[name], rows)) + 3 * MARGIN if rows[name].gate else 0.0
    own = [[name for name in column if at[name] == k] for k, column in enumerate(columns)]
    boxes = [max(map(box, names), default=0.0) for names in own]
    tags = [CHARACTER * max((longest(_write_tags(rows[n])) for n in names), default=0) + 2 * MARGIN for names in own]
    starts, page = [0.0], [0]  # the left end and the row of each column
    for k in range(1, len(columns)):
        start = starts[-1] + boxes[k - 1] + tags[k - 1] + GAP
        fits = start + boxes[k] + tags[k] <= WIDTH
        starts.append(start if fits else AGAIN)
        page.append(page[-1] + (not fits))
    spans = [(start, start + b + t) for start, b, t in zip(starts, boxes, tags, strict=True)]

    lines = max(sum(len(tag.split("\n")) for tag in _write_tags(row)) for row in rows.values())
    apart = LINE * (lines + 1.5)
    relative = {place: apart * y for place, y in _find_heights(columns, links).items()}
    y, top = {}, 0.0
    for number in range(page[-1] + 1):
        here = {place: h for place, h in relative.items() if page[place[0]] == number}
        here |= {(*a, "again"): relative[a] for a, b in links if page[a[0]] < page[b[0]] == number}
        top -= apart / 2 + MARGIN
        y |= {place: h - max(here.values()) + top for place, h in here.items()}
        top -= max(here.values()) - min(here.values()) + apart / 2 + MARGIN
    width = max(right for _, right in spans) + 2 * MARGIN + (GAP if page[-1] else 0)
    return spans, boxes, (width, -top), y


def _write_tags(row: Row) -> tuple[str, str]:
    """The texts above and below a wire."""
    value, upstream = _write_matrix(row.value), "" if row.upstream is None else _write_matrix(row.upstream)
    return f"{row.wire} =\n{value}" if "\n" in value else f"{row.wire} = {value}", upstream


def _write_matrix(value: np.ndarray | np.generic) -> str:
    """A small matrix with one line for each row; other values in one line."""
    rows = list(value) if value.ndim == 2 and value.size <= 4 else [value]
    return "\n".join(format_array(row, digits=3) for row in rows)


def _label_gate(row: Row, rows: Mapping[str, Row]) -> str:
    """The text in a gate's box; it names the inputs where one is a constant or their order matters."""
    only_wires = all(name in rows for name in row.inputs)
    if only_wires and row.gate in COMMUTATIVE:
        return COMMUTATIVE[row.gate]
    if row.gate in SYMBOLS:
        return SYMBOLS[row.gate].format(*row.inputs)
    return row.gate if only_wires else f"{row.gate}({', '.join(row.inputs)})"


def _assign_columns(rows: Mapping[str, Row]) -> dict[str, int]:
    """A gate stands one column after its last input, an argument one before its first gate."""
    at: dict[str, int] = {}
    for name, row in rows.items():
        at[name] = 1 + max((at[x] for x in row.inputs if x in rows), default=-1)
    for name, row in rows.items():
        if not row.gate:
            at[name] = min((at[gate] - 1 for gate, r in rows.items() if name in r.inputs), default=0)
    return at


def _find_places(rows: Mapping[str, Row], at: Mapping[str, int]) -> tuple[list[list[str]], Links]:
    """The wires of each column, passing wires too, and the links between neighboring columns."""
    columns: list[list[str]] = [[] for _ in range(1 + max(at.values()))]
    links: Links = []
    for name in rows:
        takers = [gate for gate, row in rows.items() if name in row.inputs]
        last = max((at[gate] - 1 for gate in takers), default=at[name])
        for k in range(at[name], last + 1):
            columns[k].append(name)
        links += [((k, name), (k + 1, name)) for k in range(at[name], last)]
        links += [((at[gate] - 1, name), (at[gate], gate)) for gate in takers]
    return columns, links


def _find_neighbors(links: Links) -> dict[tuple[Place, int], list[Place]]:
    """The neighbors of each place to its left (-1) and right (1)."""
    found: dict[tuple[Place, int], list[Place]] = {}
    for a, b in links:
        found.setdefault((a, 1), []).append(b)
        found.setdefault((b, -1), []).append(a)
    return found


def _order_columns(columns: list[list[str]], links: Links) -> list[list[str]]:
    """Sweeps right and left; sorts each column by the mean position of its neighbors in the column before."""
    beside = _find_neighbors(links)
    position = {(k, name): float(i) for k, column in enumerate(columns) for i, name in enumerate(column)}
    best, fewest = columns, _count_crossings(position, links)
    for sweep in range(12):
        side = -1 if sweep % 2 else 1
        for k in range(len(columns))[::-side]:
            wanted = {n: mean([position[p] for p in beside.get(((k, n), side), [(k, n)])]) for n in columns[k]}
            columns = [*columns[:k], sorted(columns[k], key=wanted.__getitem__), *columns[k + 1 :]]
            position |= {(k, name): float(i) for i, name in enumerate(columns[k])}
        if (crossings := _count_crossings(position, links)) < fewest:
            best, fewest = columns, crossings
    return [column[::-1] for column in best]  # heights grow upwards; the first is on top


def _count_crossings(position: Mapping[Place, float], links: Links) -> int:
    """How many pairs of links cross."""
    pairs = [(a, b) for a, b in combinations(links, 2) if a[0][0] == b[0][0]]
    return sum((position[a] - position[c]) * (position[b] - position[d]) < 0 for (a, b), (c, d) in pairs)


def _find_heights(columns: list[list[str]], links: Links) -> dict[Place, float]:
    """Each gate near its inputs, each argument near its gates, in the column's order and at least 1 apart."""
    beside = _find_neighbors(links)
    height = {(k, n): i - (len(column) - 1) / 2 for k, column in enumerate(columns) for i, n in enumerate(column)}
    near = {place: beside.get((place, -1)) or beside.get((place, 1)) or [place] for place in height}
    for _ in range(100):
        for k, column in enumerate(columns):
            wanted = [mean([height[p] for p in near[k, name]]) - i for i, name in enumerate(column)]
            height |= {(k, n): y + i for i, (n, y) in enumerate(zip(column, _fit_increasing(wanted), strict=True))}
    return height


def _fit_increasing(wanted: Sequence[float]) -> list[float]:
    """The nondecreasing sequence nearest by squares: falling neighbors are pooled (Barlow et al. 1972)."""
    pools: list[list[float]] = []
    for value in wanted:
        pools.append([float(value)])
        while len(pools) > 1 and mean(pools[-2]) > mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    return [mean(pool) for pool in pools for _ in pool]
