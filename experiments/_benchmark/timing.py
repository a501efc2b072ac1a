"""Contestants at one task, timed round by round in turns: their seconds, ratios, and rows of tables."""

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Call = Callable[[], Any]  # does the task once more, and waits until it is done

# Threads of OpenMP and OpenBLAS spin for tens of milliseconds after their last work: the next contestant waits for
# that, or it would share the cores with them.
PAUSE = 0.04
TURN = 0.03  # seconds: what is shorter would be timed on cold caches


def cores() -> int:
    """How many this process may use: the number of threads of every contestant."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def alternated(calls: dict[str, Call], rounds: int) -> dict[str, np.ndarray]:
    """Each call's seconds, round by round; every other round goes backwards, so that none always follows the same one.

    In a turn a short call is repeated until `TURN` is over: its seconds are the mean. The first round is not counted.
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
    """Without Python's garbage collector, as in timeit: whose turn comes after it loses up to a tenth of an epoch."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass(frozen=True)
class Cell:
    """One task: the contestants' seconds, round by round. The first is ours, with which the others are compared."""

    section: str
    name: str
    seconds: dict[str, np.ndarray]
    own: tuple[str, ...] = ("ours",)  # the contestants that are this library's, not peers
    absent: dict[str, str] = field(default_factory=dict)  # peers that could not take part, and why
    facts: dict[str, Any] = field(default_factory=dict)  # what else belongs to the record

    @property
    def first(self) -> str:
        """The contestant that the others are compared with."""
        return next(iter(self.seconds))

    def ratios(self, name: str) -> np.ndarray:
        """Round by round, its seconds over ours."""
        return self.seconds[name] / self.seconds[self.first]

    def ratio(self, name: str) -> float:
        """The median of its rounds' ratios."""
        return float(np.median(self.ratios(name)))

    def record(self) -> dict[str, Any]:
        """As it is kept in JSON."""
        contestants = {}
        for name, seconds in self.seconds.items():
            low, median, high = np.percentile(seconds, [25, 50, 75])
            contestants[name] = {"median": median, "quartiles": [low, high], "ratio": self.ratio(name),
                                 "ratio_quartiles": list(np.percentile(self.ratios(name), [25, 75])),
                                 "own": name in self.own}  # fmt: skip
        return {"section": self.section, "cell": self.name, "contestants": contestants, "absent": self.absent,
                **self.facts}  # fmt: skip


def entered(makers: dict[str, Callable[[], Call]], own: tuple[str, ...] = ("ours",)) -> tuple[dict, dict, dict]:
    """Makes the contestants: their calls, the seconds until each had done its task once, and why others could not.

    A peer that is not installed, or that fails, is told of; what is our own must not fail.
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
        except Exception as error:  # such as torch.compile's without a compiler for C++, which is of no one type
            if name in own:
                raise
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        else:
            calls[name], ready[name] = call, time.perf_counter() - began
    return calls, ready, absent


def milliseconds(seconds: np.ndarray) -> str:
    """The median, in at least three digits."""
    return digits(1e3 * float(np.median(seconds)))


def digits(value: float) -> str:
    """At least three of them, without an exponent."""
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def quartiles(values: np.ndarray) -> str:
    """Such as `0.99 to 1.02`, in three digits."""
    return " to ".join(digits(float(value)) for value in np.percentile(values, [25, 75]))


def contest_rows(cell: Cell) -> list[dict[str, str]]:
    """Ours against each peer, with the peers that could not take part."""
    rows = []
    for name, seconds in cell.seconds.items():
        if name != cell.first:
            rows.append({"task": cell.name, "peer": name, "ours (ms)": milliseconds(cell.seconds[cell.first]),
                         "peer (ms)": milliseconds(seconds), "times ours": f"{cell.ratio(name):.2f}",
                         "quartiles": quartiles(cell.ratios(name))})  # fmt: skip
    empty = dict.fromkeys(("peer", "ours (ms)", "peer (ms)", "times ours", "quartiles"), "")
    return rows + [{"task": f"{cell.name}, {name}: {why}", **empty} for name, why in cell.absent.items()]
