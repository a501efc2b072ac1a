"""One page of all that the experiments show, in the order of the notes: a file that asks no other host for anything."""

import ast
import base64
import platform
from collections.abc import Mapping
from datetime import date
from html import escape
from pathlib import Path
from typing import Any

import jax

from experiments._rows import ROWS, Row
from experiments.output import Item

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --quiet: #595959; --line: #d5d5d5; --back: #ffffff; --box: #f5f5f2;
        --link: #00558a; }
@media (prefers-color-scheme: dark) { :root { --text: #ececec; --quiet: #b0b0b0; --line: #444444; --back: #161616;
        --box: #222222; --link: #7cc4f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--text);
       background: var(--back); overflow-wrap: break-word; }
a { color: var(--link); }
h1 { margin-bottom: 0; } h2 { margin: 3rem 0 0.3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
h3 { margin: 1.5rem 0 0.3rem; }
.quiet { color: var(--quiet); font-size: 0.9rem; margin: 0.2rem 0; }
.equation { background: var(--box); padding: 0.6rem 0.9rem; border-left: 4px solid var(--link); margin: 0.6rem 0;
            font-family: ui-serif, Georgia, serif; font-size: 1.1rem; }
pre { background: var(--box); padding: 0.6rem 0.9rem; overflow-x: auto; font-size: 0.82rem; line-height: 1.4; }
.scroll { overflow-x: auto; margin: 0.5rem 0 1rem; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; margin: 0.4rem 0; display: block; }
ol.contents { columns: 18rem; column-gap: 3rem; padding-left: 1.5rem; font-size: 0.92rem; }
.failed { color: #c03000; }
"""


def html(shown: Mapping[tuple[str, str], Any], seconds: float) -> str:
    """The page; `shown` maps an experiment and its arguments to what it showed."""
    of_rows = {row.experiment for row in ROWS}
    beyond = [job for job in shown if job not in of_rows]
    seen: set[tuple[str, str]] = set()
    sections = "".join(_row(row, shown, seen) for row in ROWS)
    more = "".join(_experiment(job, shown[job], 2) for job in beyond)
    contents = "".join(f'<li><a href="#row-{row.number}">{escape(row.system)}</a></li>' for row in ROWS)
    others = ", ".join(f'<a href="#{_anchor(job)}">{escape(job[0])}</a>' for job in beyond)
    made = f"{date.today()}, {platform.machine()}, {jax.devices()[0].device_kind}, jax {jax.__version__}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>jaxmlp: the notes' systems</title><link rel="icon" href="data:,"><style>{STYLE}</style></head><body>
<h1>jaxmlp</h1>
<p class="quiet">The systems of the notes in their order, each with its equation, what its experiment shows, and the
command that made it. {escape(made)}; {len(shown)} runs in {seconds / 60:.1f} minutes.</p>
<ol class="contents">{contents}</ol>
<p>Beyond the notes: {others or "nothing ran"}.</p>
{sections}{more}
</body></html>
"""


def _row(row: Row, shown: Mapping[tuple[str, str], Any], seen: set) -> str:
    """One system: its equation, where it is coded and tested, and its experiment, unless a row above shows it."""
    job = row.experiment
    code = f"code: jaxmlp/{row.code[0]} {row.code[1]}; test: tests/{row.test[0]} {row.test[1]}"
    head = f"""<h2 id="row-{row.number}">{row.number}. {escape(row.system)}</h2>
<p class="quiet">note {escape(row.note)}; {escape(code)}</p><div class="equation">{escape(row.equation)}</div>"""
    if job not in shown:
        return head + f'<p class="quiet">its experiment, {escape(" ".join(job).strip())}, did not run</p>'
    if job in seen:
        return head + f'<p>shown by <a href="#{_anchor(job)}">{escape(" ".join(job).strip())}</a> above</p>'
    seen.add(job)
    return head + _experiment(job, shown[job], 3)


def _anchor(job: tuple[str, str]) -> str:
    return "-".join(["experiment", job[0], *job[1].replace("--", "").split()])


def _experiment(job: tuple[str, str], shown: Any, level: int) -> str:
    """What one run showed, under its name and command."""
    about = ast.get_docstring(ast.parse((Path(__file__).parent / f"{job[0]}.py").read_text())) or ""
    first, _, rest = about.partition("\n")
    made = f'<h{level} id="{_anchor(job)}">{escape(" ".join(job).strip())}</h{level}><p>{escape(first)}</p>'
    made += f'<p class="quiet">{escape(rest.strip())}</p><pre>{escape(shown.command)}</pre>'
    if shown.error:
        return made + f'<p class="failed">It failed.</p><pre>{escape(shown.error)}</pre>'
    return made + "".join(_item(item) for item in _merged(shown.items))


def _merged(items: list[Item]) -> list[Item]:
    """Lines of text that follow each other as one."""
    merged: list[Item] = []
    for item in items:
        if merged and item.kind == merged[-1].kind == "text":
            merged[-1] = Item("text", "", f"{merged[-1].value}\n{item.value}")
        else:
            merged.append(item)
    return merged


def _item(item: Item) -> str:
    if item.kind == "table":
        head = "".join(f"<th>{escape(str(name))}</th>" for name in item.value[0])
        rows = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row.values()) + "</tr>"
                       for row in item.value)  # fmt: skip
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        return f'<p class="quiet">{escape(item.name)}</p><div class="scroll">{table}</div>'
    if item.kind == "picture":
        data = base64.b64encode(item.value).decode()
        return f'<img alt="{escape(item.name.replace("_", " "))}" src="data:image/png;base64,{data}">'
    return f"<pre>{escape(item.value.strip())}</pre>" if item.value.strip() else ""
