"""One self-contained page of the experiments' results, in the order of the notes' rows.

Pictures are data URIs and styles are inline. So a browser asks no host for anything, and the page's content policy
forbids it to.
"""

import base64
import html
import json
import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments._rows import ROWS, Row, docstrings, rows_by_command

LONG = 24  # letters: the page breaks a longer cell into lines
DPI_RATIO = 150 / 96  # dots per inch of the pictures over a browser's

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>jaxmlp: every row of the notes</title>
<style>
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fdfdfc; --faint: #6a6a6a; --line: #d8d8d4;
  --shade: #f3f3ef; --link: #0b5cad; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e3; --paper: #161718; --faint: #a0a09c; --line: #3a3b3d; --shade: #212325; --link: #7db7f0;
    --bad: #ff8a80; }
  img { filter: brightness(0.88); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 1rem 0 0.5rem; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 0.5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 0.25rem; }
a { color: var(--link); }
section { border-top: 1px solid var(--line); margin-top: 2.5rem; padding-top: 1.5rem; }
nav ol, nav ul { columns: 18rem; column-gap: 3.5rem; padding-left: 2.2rem; }
nav li { break-inside: avoid; padding: 0.1rem 0; }
.equation { font-family: "STIX Two Text", "Cambria Math", "DejaVu Serif", serif; padding-left: 1rem;
  border-left: 3px solid var(--line); margin: 0.75rem 0; }
.equation p { margin: 0.15rem 0; }
.equation sup, .equation sub { font-size: 0.7em; line-height: 0; }
.faint { color: var(--faint); font-size: 0.9rem; }
.bad { color: var(--bad); }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 0.9em; }
pre { font: 0.8rem/1.4 ui-monospace, "DejaVu Sans Mono", monospace; background: var(--shade); padding: 0.75rem;
  border-radius: 4px; overflow-x: auto; margin: 0.75rem 0; }
pre.command { font-size: 0.9rem; white-space: pre-wrap; }
.scroll { overflow-x: auto; margin: 0.75rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
figure { margin: 1.25rem 0 0.75rem; }
figcaption { font-size: 0.85rem; font-weight: 600; }
figure .scroll { margin: 0.25rem 0; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; color: var(--faint); font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.long { white-space: normal; min-width: 9rem; }
img { display: block; height: auto; background: white; border-radius: 4px; max-width: max(100%, 36rem); }
</style>
</head>
<body>
"""


@dataclass(frozen=True)
class Run:
    """One run of an experiment: its command, its folder, its time and its error."""

    command: tuple[str, ...]  # after `python3 -m experiments`
    folder: Path
    seconds: float
    error: str  # empty if it succeeded


def write(path: Path, runs: Sequence[Run], command: str, started: datetime, seconds: float) -> Path:
    """Writes the page of these runs; a failure leaves the old page in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(page(runs, command, started, seconds), encoding="utf-8")
    partial.replace(path)
    return path


def page(runs: Sequence[Run], command: str, started: datetime, seconds: float) -> str:
    """The page: the rows with the experiments that show them, then the experiments beyond the notes."""
    first_lines = {name: text.split("\n")[0] for name, text in docstrings().items()}
    rows_of = {run: _rows_of(run.command) for run in runs}
    beyond = sorted((run for run in runs if not rows_of[run]), key=lambda run: run.command)
    sections = [_row_section(row, [run for run in runs if row.number in rows_of[run]], rows_of) for row in ROWS]
    sections += [_section(_anchor(run), first_lines[run.command[0]], _results(run)) for run in beyond]
    entries = (f'<li><a href="#row-{row.number}">{html.escape(row.system)}</a></li>' for row in ROWS)
    others = (f'<li><a href="#{_anchor(run)}">{html.escape(first_lines[run.command[0]])}</a></li>' for run in beyond)
    failed = [" ".join(run.command) for run in runs if run.error]
    return "\n".join([
        HEAD, "<h1>jaxmlp: every row of the notes, run</h1>",
        f'<p class="faint">Made by <code>python3 -m experiments {html.escape(command)}</code> on '
        f"{started:%Y-%m-%d at %H:%M} in {seconds / 60:.1f} minutes: {_machine()}. The stated expectations hold for "
        "default settings; <code>--quick</code> does less. Experiments ran side by side, which lengthens times.</p>",
        "<p>The notes are five handwritten lecture notes on neural networks, numbered 000 to 004. They describe 31 "
        "systems, which this page calls rows. The notes themselves are not part of the repository.</p>",
        *[f'<p class="bad">Failed: {html.escape("; ".join(failed))}.</p>'] * bool(failed),
        f'<nav id="contents"><ol>{"".join(entries)}</ol>',
        *[f"<p>Beyond the notes:</p><ul>{''.join(others)}</ul>"] * bool(beyond), "</nav>",
        *sections, "</body>\n</html>\n",
    ])  # fmt: skip


def equation(text: str) -> str:
    """A line of an equation as HTML: `^{}` raises, `_{}` lowers."""
    text = re.sub(r"\^\{([^}]*)\}", r"<sup>\1</sup>", html.escape(text))
    return "<p>" + re.sub(r"_\{([^}]*)\}", r"<sub>\1</sub>", text) + "</p>"


def _machine() -> str:
    cores = f"{os.cpu_count()} cores" if os.cpu_count() != 1 else "one core"
    return f"{platform.system()}, {platform.machine()}, {cores}, jax {metadata.version('jax')}"


def _rows_of(command: tuple[str, ...]) -> tuple[int, ...]:
    """The rows that the command shows; --quick changes none of them."""
    return rows_by_command().get(tuple(part for part in command if part != "--quick"), ())


def _anchor(run: Run) -> str:
    return f"experiment-{run.command[0]}"


def _section(anchor: str, title: str, parts: Iterable[str]) -> str:
    up = '<p class="faint"><a href="#contents">contents</a></p>'
    return "\n".join([f'<section id="{anchor}">', f"<h2>{html.escape(title)}</h2>", *parts, up, "</section>"])


def _row_section(row: Row, runs: list[Run], rows_of: dict[Run, tuple[int, ...]]) -> str:
    list_code = lambda references: ", ".join(f"<code>{html.escape(ref)}</code>" for ref in references)
    parts = [f'<div class="equation">{"".join(map(equation, row.equations))}</div>',
             f'<p class="faint">Code: {list_code(row.code)}<br>Tests: {list_code(row.tests)}</p>']  # fmt: skip
    if not row.experiments:
        parts.append("<p>No experiment shows this row; its tests do.</p>")
    for run in sorted(runs, key=lambda run: run.command):
        first = min(rows_of[run])
        if first == row.number:
            parts += _results(run)
        else:
            name = html.escape(" ".join(run.command))
            parts.append(f'<p>Shown by <code>{name}</code>, <a href="#row-{first}">under row {first}</a>.</p>')
    return _section(f"row-{row.number}", f"{row.number}. {row.system}", parts)


def _results(run: Run) -> list[str]:
    """The run's command, the experiment's docstring, and its texts, tables and pictures in order."""
    about = docstrings()[run.command[0]].split("\n\n", 1)[-1]
    code = lambda paragraph: re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(paragraph))
    paragraphs = [f"<p>{code(paragraph)}</p>" for paragraph in about.split("\n\n")]
    parts = [f'<pre class="command">python3 -m experiments {html.escape(" ".join(run.command))}</pre>', *paragraphs]
    if run.error:
        parts.append(f'<p class="bad">It failed.</p><pre class="bad">{html.escape(run.error)}</pre>')
    texts: list[str] = []
    for item in [*_items(run.folder), {}]:
        if "text" in item:
            texts.append(item["text"])
            continue
        if text := "\n".join(texts).strip("\n"):
            parts.append(f"<pre>{html.escape(text)}</pre>")
        texts = []
        if "rows" in item:
            parts.append(_table(item["title"], item["head"], item["rows"]))
        elif "picture" in item:
            parts.append(_picture(run.folder / item["picture"], run.command[0]))
    return [*parts, f'<p class="faint">{run.seconds:.0f} seconds</p>']


def _items(folder: Path) -> list[dict[str, Any]]:
    file = folder / "shown.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _table(title: str, head: list[str], rows: list[list[str]]) -> str:
    cell = lambda text: f"<td{' class=long' * (len(text) > LONG)}>{html.escape(text)}</td>"
    lines = "\n".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    names = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    table = f"<table><thead><tr>{names}</tr></thead><tbody>\n{lines}\n</tbody></table>"
    return f'<figure><figcaption>{html.escape(title)}</figcaption><div class="scroll">{table}</div></figure>'


def _picture(file: Path, experiment: str) -> str:
    """A PNG as a data URI, at its intended size."""
    raw = file.read_bytes()
    width, height = (round(int.from_bytes(raw[at : at + 4], "big") / DPI_RATIO) for at in (16, 20))
    data, alt = base64.b64encode(raw).decode(), html.escape(f"{experiment}: {file.stem.replace('_', ' ')}")
    image = f'<img src="data:image/png;base64,{data}" alt="{alt}" width="{width}" height="{height}">'
    return f'<div class="scroll">{image}</div>'
