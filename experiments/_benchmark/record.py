"""The record of a run as JSON, and the comparison of two records by ratios to the peers, not by seconds."""

import importlib.metadata
import json
import os
import platform
import reprlib
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments._benchmark.limit import MEMORY, measure_copy_speed
from experiments._benchmark.timing import Cell, cores

PACKAGES = ("jax", "jaxlib", "jax-cuda13-plugin", "numpy", "optax", "equinox", "flax", "torch", "scikit-learn",
            "backpack-for-pytorch", "opacus", "kfac-jax", "curvlinops-for-pytorch", "jax-privacy", "laplace-torch",
            "kronfluence", "neural-tangents")  # fmt: skip


def processor() -> str:
    """The processor's name from Linux, else from Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """The machine and JAX's device of the run, and the load before it: the mean number of busy processes."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"processor": processor(), "cores": cores(), "system": platform.platform(), "load": load,
            "memory_bytes_a_second": measure_copy_speed(MEMORY), "device": jax.devices()[0].device_kind}  # fmt: skip


def versions() -> dict[str, str | None]:
    """The versions of Python and of each package; None for a package that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


LARGEST = 1e9  # of the ratios of two times


class Record:
    """The record's file. Each new cell rewrites it, so that an interrupted run keeps its cells."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.cells = path, []
        self.head = {"date": datetime.now().isoformat(timespec="seconds"), "machine": machine(),
                     "versions": versions(), "settings": settings}  # fmt: skip

    def add(self, cell: Cell) -> None:
        """Adds a cell and writes the file."""
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
        """The new ratio over the old one; above 1 ours has become slower."""
        return self.new / self.old


def read(path: str) -> dict[str, dict[str, Any]]:
    """The cells of a file by section and name."""
    file = Path(path) / "benchmark.json" if Path(path).is_dir() else Path(path)
    try:
        cells = {f"{cell['section']}: {cell['cell']}": cell for cell in json.loads(file.read_text())["cells"]}
        positions(cells)
    except OSError as error:
        raise ValueError(f"compare has {path}, expected a benchmark.json: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"compare has {path}, expected a benchmark.json that this benchmark wrote: {error}") from None
    return cells


def positions(cells: dict[str, dict[str, Any]]) -> dict[tuple[str, str, str], float]:
    """The ratio of each of our times to each peer's; our variants are not compared with each other."""
    found = {}
    for name, cell in cells.items():
        contestants = cell["contestants"]
        for ours, own in contestants.items():
            for peer, other in contestants.items():
                if own["own"] and not other["own"]:
                    found[name, ours, peer] = _ratio(own, name, ours) / _ratio(other, name, peer)
    return found


def _ratio(contestant: dict[str, Any], cell: str, name: str) -> float:
    """A contestant's time over our first one's, if it is one that a clock can have measured."""
    ratio = contestant["ratio"]
    plausible = isinstance(ratio, int | float) and not isinstance(ratio, bool) and 1 / LARGEST <= ratio <= LARGEST
    if not plausible:
        raise ValueError(f"the cell {cell!r} has the ratio {reprlib.repr(ratio)} for {name!r}, expected one from "
                         f"{1 / LARGEST:g} to {LARGEST:g}")  # fmt: skip
    return float(ratio)


def changes(old: dict, new: dict) -> tuple[list[Change], list[str], list[str]]:
    """The comparisons that both files allow, the worst first, and those that only the old or the new file has."""
    before, after = positions(old), positions(new)
    both = [Change(*at, before[at], after[at]) for at in before if at in after]
    alone = lambda these, others: [", ".join(at) for at in these if at not in others]
    return sorted(both, key=lambda change: -change.factor), alone(before, after), alone(after, before)
