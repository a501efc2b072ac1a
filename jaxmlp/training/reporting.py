"""What a person sees while training runs: a bar on a terminal, one plain line an epoch in a log."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm


class Report(Protocol):
    """Called after each epoch with its number and its metrics."""

    def __call__(self, epoch: int, metrics: dict[str, float]) -> None: ...


def line(metrics: dict[str, float]) -> str:
    """Such as `cost 0.2761  accuracy 92.14%  seconds 0.08`."""
    return "  ".join(f"{name} {_number(name, value)}" for name, value in metrics.items())


def _number(name: str, value: float) -> str:
    if isinstance(value, int):
        return str(value)
    if name.endswith("accuracy"):
        return f"{value:.2%}"
    if name == "seconds":
        return f"{value:.2f}"
    return f"{value:.4f}" if 1e-3 <= value < 1e4 else f"{value:.3e}"


@contextmanager
def shown(total: int, unit: str, enabled: bool, done: int = 0) -> Iterator[Report]:
    """Yields the function to call after each of `total` epochs, `done` of them before. All goes to standard error."""
    if not enabled:
        yield lambda epoch, metrics: None
    elif sys.stderr.isatty():
        with tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True) as bar:

            def update(epoch: int, metrics: dict[str, float]) -> None:
                bar.set_postfix_str(line({k: v for k, v in metrics.items() if k != "seconds"}), refresh=False)
                bar.update(epoch - bar.n)

            yield update
    else:
        width = len(str(total))
        yield lambda epoch, metrics: print(f"{unit} {epoch:>{width}}/{total}  {line(metrics)}", file=sys.stderr)


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
