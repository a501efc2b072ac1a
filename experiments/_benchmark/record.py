"""What a run measured, as JSON; and two such files compared by their ratios to the peers, not by seconds."""

import importlib.metadata
import json
import os
import platform
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from experiments._benchmark.limit import MEMORY, passed
from experiments._benchmark.timing import Cell, cores

PACKAGES = ("jax", "jaxlib", "numpy", "optax", "equinox", "flax", "torch", "scikit-learn", "backpack-for-pytorch",
            "opacus")  # fmt: skip


def processor() -> str:
    """Its name as Linux has it, else as Python has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Where the run takes place, and how busy it was before: the load is the mean number of processes at work."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"processor": processor(), "cores": cores(), "system": platform.platform(), "load": load,
            "memory_bytes_a_second": passed(MEMORY)}  # fmt: skip


def versions() -> dict[str, str | None]:
    """Of Python and of each package; None where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


class Record:
    """The file, written anew after each cell: a run that is ended keeps what it has."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.cells = path, []
        self.head = {"date": datetime.now().isoformat(timespec="seconds"), "machine": machine(),
                     "versions": versions(), "settings": settings}  # fmt: skip

    def add(self, cell: Cell) -> None:
        """Keeps a cell."""
        self.cells.append(cell)
        made = {**self.head, "cells": [each.record() for each in self.cells]}
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps(made, indent=1) + "\n")
        partial.replace(self.path)


class Change(NamedTuple):
    """Our time over a peer's in a cell, before and after."""

    cell: str
    ours: str
    peer: str
    old: float
    new: float

    @property
    def factor(self) -> float:
        """After over before: above 1 ours has lost ground."""
        return self.new / self.old


def read(path: str) -> dict[str, dict[str, Any]]:
    """The cells of a file, by section and name."""
    file = Path(path) / "benchmark.json" if Path(path).is_dir() else Path(path)
    try:
        cells = {f"{cell['section']}: {cell['cell']}": cell for cell in json.loads(file.read_text())["cells"]}
        positions(cells)
    except OSError as error:
        raise ValueError(f"compare has {path}, expected a benchmark.json: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"compare has {path}, expected a benchmark.json as the benchmark writes it: {error}") from None
    return cells


def positions(cells: dict[str, dict[str, Any]]) -> dict[tuple[str, str, str], float]:
    """Each of our times over each peer's: our variants are not compared with each other."""
    found = {}
    for name, cell in cells.items():
        contestants = cell["contestants"]
        for ours, own in contestants.items():
            for peer, other in contestants.items():
                if own["own"] and not other["own"]:
                    found[name, ours, peer] = own["ratio"] / other["ratio"]
    return found


def changes(old: dict, new: dict) -> tuple[list[Change], list[str], list[str]]:
    """What both files have, the worst first; and what the old and the new one alone have."""
    before, after = positions(old), positions(new)
    both = [Change(*at, before[at], after[at]) for at in before if at in after]
    alone = lambda these, others: [", ".join(at) for at in these if at not in others]
    return sorted(both, key=lambda change: -change.factor), alone(before, after), alone(after, before)
