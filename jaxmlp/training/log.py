"""A run as JSON lines, one an epoch, which any tracker reads."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def json_lines(path: str | Path, unit: str, done: int | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields the function that appends a row.

    A run that goes on from its checkpoint (`done` is then a number) repeats what it had written after it: those lines
    at the end of the file go. All others stay, whoever wrote them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    kept = list(lines)
    while done is not None and kept and _of(kept[-1], unit) > done:
        kept.pop()
    if kept != lines:
        part = path.with_name(f".{path.name}.part")
        part.write_text("".join(line + "\n" for line in kept))
        part.replace(path)
    with path.open("a") as file:
        if file.tell() and not path.read_text().endswith("\n"):
            file.write("\n")  # after a line torn by a kill

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps({name: _plain(value) for name, value in row.items()}) + "\n")
            file.flush()

        yield write


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _of(line: str, unit: str) -> float:
    """A row's epoch: infinity for one torn by a kill, minus infinity for a line that no run wrote."""
    try:
        return json.loads(line)[unit]
    except (ValueError, KeyError, TypeError):
        return float("inf") if line.startswith(f'{{"{unit}"') else float("-inf")
