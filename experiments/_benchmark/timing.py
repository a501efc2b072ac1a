"""The timing of contestants at one task, round by round and in turns: seconds, ratios, and rows of tables."""

import gc
import importlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Call = Callable[[], Any]  # does the task once and waits for its result

# Threads of OpenMP and OpenBLAS spin for tens of milliseconds after their last work. The next contestant waits for
# their end, because otherwise it would share the cores with them.
PAUSE = 0.04  # seconds
TURN = 0.03  # seconds: a shorter turn would run on cold caches


def peer(file: str, name: str, *arguments: Any) -> Callable[[], Any]:
    """What makes the peer `name` of a file here, from these arguments; only its call imports the peer's library."""
    return lambda: getattr(importlib.import_module(f"experiments._benchmark.{file}"), name)(*arguments)


def cores() -> int:
    """The cores that this process may use; every contestant gets as many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def time_in_turns(calls: dict[str, Call], rounds: int) -> dict[str, np.ndarray]:
    """The seconds of each call, round by round.

    Every other round runs backwards, so that no call always follows the same one. A turn repeats a short call until
    `TURN` is over and takes the mean. The first round does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    repeats = dict.fromkeys(calls, 1)
    with no_collection():
        for number in range(rounds + 1):
            for name in list(calls)[:: 1 if number % 2 else -1]:
                time.sleep(PAUSE)
                began = time.perf_counter()
                for _ in range(repeats[name]):
                    calls[name]()
                times[name].append((time.perf_counter() - began) / repeats[name])
                if number == 0:
                    repeats[name] = max(1, round(TURN / times[name][0]))
    return {name: np.asarray(seconds[1:]) for name, seconds in times.items()}


@contextmanager
def no_collection() -> Iterator[None]:
    """Stops Python's garbage collector, as timeit does: a collection costs a contestant up to a tenth of an epoch."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass(frozen=True)
class Cell:
    """One task: the contestants' seconds, round by round. The first contestant is ours, and ratios are taken to it."""

    section: str
    name: str
    seconds: dict[str, np.ndarray]
    own: tuple[str, ...] = ("ours",)  # this library's contestants; the others are peers
    absent: dict[str, str] = field(default_factory=dict)  # peers that could not run, and why
    facts: dict[str, Any] = field(default_factory=dict)  # further entries of the record

    @property
    def first(self) -> str:
        """The contestant that ratios are taken to."""
        return next(iter(self.seconds))

    def ratios(self, name: str) -> np.ndarray:
        """The contestant's seconds over ours, round by round."""
        return self.seconds[name] / self.seconds[self.first]

    def ratio(self, name: str) -> float:
        """The median of these ratios."""
        return float(np.median(self.ratios(name)))

    def record(self) -> dict[str, Any]:
        """The cell as a JSON object."""
        contestants = {}
        for name, seconds in self.seconds.items():
            low, median, high = np.percentile(seconds, [25, 50, 75])
            contestants[name] = {"median": median, "quartiles": [low, high], "ratio": self.ratio(name),
                                 "ratio_quartiles": list(np.percentile(self.ratios(name), [25, 75])),
                                 "own": name in self.own}  # fmt: skip
        return {"section": self.section, "cell": self.name, "contestants": contestants, "absent": self.absent,
                **self.facts}  # fmt: skip


def make_contestants(
    makers: dict[str, Callable[[], Call]], own: tuple[str, ...] = ("ours",)
) -> tuple[dict, dict, dict]:
    """Makes the contestants: their calls, the seconds until each has done its task once, and the absent with reasons.

    A peer that fails or is not installed becomes absent. An error of our own is raised.
    """
    calls: dict[str, Call] = {}
    ready: dict[str, float] = {}
    absent: dict[str, str] = {}
    for name, make in makers.items():
        began = time.perf_counter()
        try:
            call = make()
            call()
        except ModuleNotFoundError as error:
            if name in own:
                raise
            absent[name] = f"{error.name} is not installed: the extra benchmark brings it"
        except Exception as error:  # torch.compile without a C++ compiler raises errors of many types
            if name in own:
                raise
            absent[name] = first_line(error)
        else:
            calls[name], ready[name] = call, time.perf_counter() - began
    return calls, ready, absent


def first_line(error: Exception) -> str:
    """The type of an error and the first line of its message, on one line of a table."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:100]


def milliseconds(seconds: np.ndarray) -> str:
    """The median in milliseconds, with at least three digits."""
    return digits(1e3 * float(np.median(seconds)))


def digits(value: float) -> str:
    """The value with at least three digits and without an exponent."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def quartiles(values: np.ndarray) -> str:
    """The quartiles as text, such as `0.99 to 1.02`."""
    return " to ".join(digits(float(value)) for value in np.percentile(values, [25, 75]))


def peer_rows(cell: Cell) -> list[dict[str, str]]:
    """A row for each peer beside ours, and one for each absent peer."""
    rows = []
    for name, seconds in cell.seconds.items():
        if name != cell.first:
            rows.append({"task": cell.name, "peer": name, "ours (ms)": milliseconds(cell.seconds[cell.first]),
                         "peer (ms)": milliseconds(seconds), "times ours": f"{cell.ratio(name):.2f}",
                         "quartiles": quartiles(cell.ratios(name))})  # fmt: skip
    empty = dict.fromkeys(("peer", "ours (ms)", "peer (ms)", "times ours", "quartiles"), "")
    return rows + [{"task": f"{cell.name}, {name}: {why}", **empty} for name, why in cell.absent.items()]
