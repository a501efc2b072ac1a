"""What a person sees while training runs: a bar on a terminal, one plain line an epoch in a log."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

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
