"""Runs every experiment, side by side, and writes what they show as one page: `results/index.html`."""

import dataclasses
import importlib
import multiprocessing
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from experiments import _page
from experiments.output import Item, Output

QUICK_ONLY = ("benchmark", "results", "killed")  # minutes to hours otherwise: run these by name


@dataclasses.dataclass(frozen=True)
class Settings:
    quick: bool = False  # each experiment's own quick settings: all in less than 5 minutes on two cores
    only: tuple[str, ...] = ()  # these experiments alone
    workers: int = 2  # processes side by side


class Shown(NamedTuple):
    """What one run showed."""

    command: str
    items: list[Item]
    seconds: float
    error: str | None


def main(arguments: list[str], names: list[str]) -> int:
    """`python3 -m experiments all`; the exit status is 1 if an experiment failed."""
    settings = tyro.cli(Settings, args=arguments, prog="python3 -m experiments all", description=__doc__)
    if unknown := [name for name in settings.only if name not in names]:
        print(f"only has {unknown[0]!r}, expected some of {', '.join(names)}", file=sys.stderr)
        return 2
    chosen = [name for name in names if not settings.only or name in settings.only]
    jobs = [(name, "") for name in chosen]
    jobs += [row.experiment for row in _page.ROWS if row.experiment[1] and row.experiment[0] in chosen]
    began, done = time.perf_counter(), {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.workers, mp_context=context) as pool:
        pending = {pool.submit(shown, *job, settings.quick): job for job in sorted(jobs, key=_longest_first)}
        for number, future in enumerate(as_completed(pending), start=1):
            job = pending[future]
            done[job] = future.result()
            state = f"FAILED: {done[job].error.splitlines()[-1]}" if done[job].error else "done"
            print(
                f"{number:>2}/{len(jobs)}  {' '.join(job).strip():<24}{done[job].seconds:6.1f} s  {state}", flush=True
            )
    seconds = time.perf_counter() - began
    page = Path("results") / "index.html"
    page.parent.mkdir(exist_ok=True)
    page.write_text(_page.html({job: done[job] for job in jobs}, seconds), encoding="utf-8")
    failed = [job for job in jobs if done[job].error]
    print(f"{len(jobs) - len(failed)} of {len(jobs)} in {seconds / 60:.1f} minutes; the page is {page}")
    return 1 if failed else 0


def _longest_first(job: tuple[str, str]) -> int:
    """So that the last ones to run are short; those not named here take seconds."""
    order = ("benchmark", "killed", "results", "recipe", "regularization", "search", "surrogate", "alignment")
    return order.index(job[0]) if job[0] in order else len(order)


def shown(name: str, arguments: str, quick: bool) -> Shown:
    """Runs one experiment and keeps what it shows; an error is kept too."""
    began, quick = time.perf_counter(), quick or name in QUICK_ONLY
    given = [*arguments.split(), *(["--quick"] if quick else [])]
    command = " ".join(["python3 -m experiments", name, *given])
    items: list[Item] = []
    error = None
    try:
        module: Any = importlib.import_module(f"experiments.{name}")
        settings = tyro.cli(module.Settings, args=given)
        out = Output.create(name, settings)
        items = out.items
        with open(os.devnull, "w") as nowhere:
            streams, (sys.stdout, sys.stderr) = (sys.stdout, sys.stderr), (nowhere, nowhere)
            try:
                module.run(settings, out)
            finally:
                sys.stdout, sys.stderr = streams
    except Exception:
        error = traceback.format_exc()
    return Shown(command, items, time.perf_counter() - began, error)
