"""Reports while training runs: a bar on a terminal and in a notebook, else one plain line an epoch; JSON in a file."""

import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from jaxmlp import paths


class Report(Protocol):
    """Called after each epoch with its number and its metrics."""

    def __call__(self, epoch: int, metrics: dict[str, float]) -> None: ...


def check_outputs(callback: Any, log: Any, checkpoints: Any) -> None:
    """Refuses a callback that cannot be called, and a file or folder that cannot be written, before the run starts."""
    if callback is not None:
        _check_callback(callback)
    if log is not None:
        path = paths.check(log, "log")
        _check_writable(path, path.parent, "log")
        if path.is_dir():
            raise ValueError(f"log is {str(log)!r}, a folder, expected a file's name")
    if checkpoints is not None:
        check_folder(checkpoints, "checkpoints")


def check_folder(given: Any, argument: str) -> Path:
    """`given` as the path of a folder that is there, or can be made, and can be written."""
    path = paths.check(given, argument)
    _check_writable(path, path, argument)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{argument} is {str(given)!r}, a file, expected a folder")
    return path


def _check_writable(path: Path, folder: Path, argument: str) -> None:
    """Refuses a path in a folder that is not there and cannot be made: a run makes the folders that it needs."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # such as a name that is too long, or a link to itself
        raise ValueError(
            f"{argument} is {str(path)!r}: {error.strerror}; expected a path that can be written"
        ) from None
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if there != path and not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise ValueError(f"{argument} is {str(path)!r}, but {there} is no folder to write to, expected one")


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
    """Yields the function to call after each of `total` epochs, `done` of them done.

    It writes to standard error; in a notebook's cell its bar is one output, which changes.
    """
    file = None if not enabled else sys.stderr if sys.stderr.isatty() else _find_cell()
    if not enabled:
        yield lambda epoch, metrics: None
    elif file is not None:
        with tqdm(total=total, initial=done, unit=unit, dynamic_ncols=True, file=file) as bar:

            def update(epoch: int, metrics: dict[str, float]) -> None:
                bar.set_postfix_str(format_line({k: v for k, v in metrics.items() if k != "seconds"}), refresh=False)
                bar.update(epoch - bar.n)

            yield update
    else:
        width = len(str(total))
        yield lambda epoch, metrics: print(f"{unit} {epoch:>{width}}/{total}  {format_line(metrics)}", file=sys.stderr)


class _Cell:
    """A file for the bar in a notebook: each write replaces the text of one output.

    The stored notebook then has the bar's last state. Carriage returns on standard error would leave all of them in it,
    and a widget none.
    """

    encoding = "utf-8"

    def __init__(self, display: Callable[..., Any]):
        self.show, self.handle = display, None

    def write(self, text: str) -> None:
        if text.startswith("\r"):  # not the ends of lines
            line = {"text/plain": text[1:].rstrip()}
            if self.handle is None:
                self.handle = self.show(line, raw=True, display_id=True)
            else:
                self.handle.update(line, raw=True)

    def flush(self) -> None:
        """The kernel sends an output at once."""


def _find_cell() -> _Cell | None:
    """Where this process runs a notebook's cells; None elsewhere."""
    if (ipython := sys.modules.get("IPython")) is None:  # every kernel has imported it
        return None
    shell = ipython.get_ipython()
    return None if getattr(shell, "kernel", None) is None else _Cell(ipython.display.display)


@contextmanager
def append_json(
    path: str | Path, unit: str, done: int | None, known: int | None = None
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields the function that appends a row as one line.

    On resuming (`done` is then a number), lines at the end of the file after epoch `done` are dropped: the run writes
    them again. All others stay, so those in the first `known` bytes, which the file had when epoch `done` was saved,
    and all where another run has written since. A run writes into text files only: others are refused.
    """
    path = paths.check(path, "log")
    with paths.name_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    end, torn = _find_end(path, unit, done, _trust(path, known)) if path.is_file() else (None, False)
    with paths.name_errors(path):
        if end is not None:
            os.truncate(path, end)
        file = path.open("ab", buffering=0)  # a buffer would fail once more when it is closed

    def append(text: str) -> None:
        left = text.encode()
        with paths.name_errors(path):
            while left:
                left = left[file.write(left) :]

    with file:
        if torn:
            append("\n")  # ends a line torn by a kill
        yield lambda row: append(json.dumps({name: _plain(value) for name, value in row.items()}) + "\n")


def _trust(path: Path, known: int | None) -> int | None:
    """`known`, if a line ends there: else somebody has changed the file."""
    with path.open("rb") as file:
        file.seek(max((known or 0) - 1, 0))
        return known if not known or file.read(1) == b"\n" else None


def _find_end(path: Path, unit: str, done: int | None, known: int | None) -> tuple[int | None, bool]:
    """Where the lines that stay end, if others follow them, and whether the last one that stays has no end."""
    place, end, torn, above = 0, 0, False, math.inf if done is None else done
    for line in paths.read_lines(path):
        begin, place, number = place, place + len(line.encode()), _read_unit(line, unit)
        if number > above and begin >= (known or 0):
            above = above if known is None else number  # the lines of one run count up
            continue
        end, torn = place, not line.endswith(("\n", "\r"))
        if known is not None and begin >= known:
            above = math.inf  # another run has written here
    return (None if end == place else end), torn


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _read_unit(line: str, unit: str) -> float:
    """A row's epoch: infinity for a line torn by a kill, minus infinity for a line that no run wrote."""
    try:
        number = json.loads(line)[unit]
    except (ValueError, KeyError, TypeError, RecursionError):
        row = f'{{"{unit}"'
        return math.inf if line.startswith(row) or row.startswith(line) else -math.inf
    return number if isinstance(number, int | float) and not isinstance(number, bool) else -math.inf
