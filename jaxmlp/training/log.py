"""A run as JSON lines, one an epoch, which any tracker reads."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def json_lines(path: str | Path, unit: str, done: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields the function that appends a row. Lines after `done` are of a killed run that repeats them: they go."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [line for line in _lines(path) if _of(line, unit) <= done]
    with path.open("w") as file:
        file.writelines(line + "\n" for line in kept)

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps({name: _plain(value) for name, value in row.items()}) + "\n")
            file.flush()

        yield write


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _of(line: str, unit: str) -> float:
    try:
        return json.loads(line)[unit]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # torn by a kill
