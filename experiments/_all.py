"""Runs every experiment, each in a process of its own, and makes one page of them: `results/index.html`.

benchmark and results run with --quick only: at their defaults they take hours. When an experiment fails, the page shows
its error, the others go on, and the exit status is 1. Experiments run side by side, which lengthens their times.
"""

import importlib
import multiprocessing
import os
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from experiments._page import Run, write
from experiments._rows import rows_by_command
from experiments.output import Output

Command = tuple[str, ...]
QUICK_ONLY = ("benchmark", "results")
FIRST = ("killed", "results", "recipe")  # the longest start first, so that none of them runs alone at the end


@dataclass(frozen=True)
class Settings:
    workers: int = 2  # experiments that run side by side
    only: tuple[str, ...] = ()  # names of experiments; all if empty
    quick: bool = False  # every experiment with --quick: a few minutes


def commands(settings: Settings) -> list[Command]:
    """The commands to run, each the words after `python3 -m experiments`."""
    known = list(rows_by_command())
    for name in settings.only:
        if (name,) not in known:
            names = ", ".join(command[0] for command in known if len(command) == 1)
            raise ValueError(f"only has {name!r}, expected some of {names}")
    if settings.workers < 1:
        raise ValueError(f"workers is {settings.workers}, expected at least 1")
    chosen = [command for command in known if not settings.only or command[0] in settings.only]
    quick = lambda command: settings.quick or command[0] in QUICK_ONLY
    return [(*command, "--quick") if quick(command) else command for command in chosen]


def run(settings: Settings, results: Path = Path("results")) -> int:
    """Runs them, reports each, and writes the page. The exit status: 1 if one failed, else 0."""
    began, started, chosen = time.perf_counter(), datetime.now(), commands(settings)
    base = results / "all" / started.strftime("%Y-%m-%d_%H-%M-%S")
    runs: list[Run] = []
    with ThreadPoolExecutor(settings.workers) as pool:
        longest_first = sorted(chosen, key=lambda command: command[0] not in FIRST)
        waiting = [
            pool.submit(run_one, command, base / "_".join(command).replace("--", "")) for command in longest_first
        ]
        for number, done in enumerate(as_completed(waiting), start=1):
            runs.append(made := done.result())
            how = "FAILED: " + made.error.splitlines()[-1] if made.error else "done"
            print(f"[{number:2} of {len(chosen)}]  {made.seconds:6.1f} s  {' '.join(made.command)}: {how}", flush=True)
    seconds = time.perf_counter() - began
    arguments = [f"--only {' '.join(settings.only)}"] * bool(settings.only) + ["--quick"] * settings.quick
    page = write(results / "index.html", runs, " ".join(["all", *arguments]), started, seconds)
    failed = [" ".join(made.command) for made in runs if made.error]
    print(f"{len(runs) - len(failed)} of {len(runs)} experiments ran in {seconds / 60:.1f} minutes; {page} shows them")
    if failed:
        print(f"failed: {'; '.join(failed)}; their logs are in {base}", file=sys.stderr)
    return int(bool(failed))


def run_one(command: Command, folder: Path) -> Run:
    """Runs one experiment in a new process. Its output goes into `folder`, its printed lines into a log beside it."""
    began, log = time.perf_counter(), folder.with_name(folder.name + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("spawn").Process(target=_run_child, args=(command, folder, log))
    process.start()
    process.join()
    error = ""
    if process.exitcode:
        error = log.read_text().strip()[-2000:] if log.exists() else ""
        if process.exitcode < 0:  # a killed process leaves no message
            error += f"\nended by signal {-process.exitcode}"
    return Run(command, folder, time.perf_counter() - began, error.strip())


def _run_child(command: Command, folder: Path, log: Path) -> None:
    # Experiments that run side by side share a GPU. By default JAX takes three quarters of it for each process.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        module = importlib.import_module(f"experiments.{command[0]}")
        settings = parse(module, command)
        module.run(settings, Output.into(folder, settings))
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def parse(module: Any, command: Command) -> Any:
    """The settings of a command line."""
    import tyro

    prog = f"python3 -m experiments {command[0]}"
    return tyro.cli(module.Settings, args=list(command[1:]), prog=prog, description=module.__doc__)
