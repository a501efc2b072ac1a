"""Reports while training runs: a bar on a terminal, one plain line an epoch elsewhere, JSON lines in a file."""

import inspect
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


def check_outputs(callback: Any, log: Any, checkpoints: Any) -> None:
    """Refuses a callback that cannot be called, and a file or folder that cannot be written, before the run starts."""
    if callback is not None:
        _check_callback(callback)
    if log is not None and Path(log).is_dir():
        raise ValueError(f"log is {str(log)!r}, a folder, expected a file's name")
    if checkpoints is not None and Path(checkpoints).exists() and not Path(checkpoints).is_dir():
        raise ValueError(f"checkpoints is {str(checkpoints)!r}, a file, expected a folder")


def _check_callback(callback: Any) -> None:
    if not callable(callback):
        raise ValueError(f"callback is {callback!r}, expected a function of the epoch and its metrics")
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):  # it has none to read
        return
    try:
        signature.bind(1, {})
    except TypeError:
        raise ValueError(
            f"callback takes {signature}, expected a function of two arguments, the epoch and its metrics"
        ) from None


def format_line(metrics: dict[str, float]) -> str:
    """Such as `cost 0.2761  accuracy 92.14%  seconds 0.08`."""
    return "  ".join(f"{name} {_format(name, value)}" for name, value in metrics.items())


def _format(name: str, value: float) -> str:
    if isinstance(value, int):
        return str(value)
    if name.endswith("accuracy"):
        return f"{value:.2%}"
    if name == "seconds":
        return f"{value:.2f}"
    return f"{value:.4f}" if 1e-3 <= value < 1e4 else f"{value:.3e}"


@contextmanager
def show(total: int, unit: str, enabled: bool, done: int = 0) -> Iterator[Report]:
    """Yields the function to call after each of `total` epochs, `done` of them done. It writes to standard error."""
    if not enabled:
        yield lambda epoch, metrics: None
    elif sys.stderr.isatty():
        with tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True) as bar:

            def update(epoch: int, metrics: dict[str, float]) -> None:
                bar.set_postfix_str(format_line({k: v for k, v in metrics.items() if k != "seconds"}), refresh=False)
                bar.update(epoch - bar.n)

            yield update
    else:
        width = len(str(total))
        yield lambda epoch, metrics: print(f"{unit} {epoch:>{width}}/{total}  {format_line(metrics)}", file=sys.stderr)


@contextmanager
def append_json(path: str | Path, unit: str, done: int | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields the function that appends a row as one line.

    On resuming (`done` is then a number), lines at the end of the file after epoch `done` are dropped: the run writes
    them again. All others stay.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    kept = list(lines)
    while done is not None and kept and _read_unit(kept[-1], unit) > done:
        kept.pop()
    if kept != lines:
        part = path.with_name(f".{path.name}.part")
        part.write_text("".join(line + "\n" for line in kept))
        part.replace(path)
    with path.open("a") as file:
        if file.tell() and not path.read_text().endswith("\n"):
            file.write("\n")  # ends a line torn by a kill

        def write(row: dict[str, Any]) -> None:
            file.write(json.dumps({name: _plain(value) for name, value in row.items()}) + "\n")
            file.flush()

        yield write


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _read_unit(line: str, unit: str) -> float:
    """A row's epoch: infinity for a line torn by a kill, minus infinity for a line that no run wrote."""
    try:
        return json.loads(line)[unit]
    except (ValueError, KeyError, TypeError):
        return float("inf") if line.startswith(f'{{"{unit}"') else float("-inf")
