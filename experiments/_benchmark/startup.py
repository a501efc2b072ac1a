"""The time of a new process to its first finished step, and the time of compilation by depth."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from experiments._benchmark.ours import Epoch, by_autodiff
from experiments._benchmark.problem import make_problem
from experiments._benchmark.timing import Cell, quartiles
from experiments.datasets import Pictures
from experiments.output import Output

ROOT = Path(__file__).parents[2]
# A loop over two steps compiles to the same program as a loop over the 469 of a whole epoch.
FIRST_STEP = """
import time
began = time.perf_counter()
import jax
import optax
import jaxmlp as jm
from experiments import datasets
from jaxmlp.data import scale_pixels
imported = time.perf_counter()
pictures = datasets.load("mnist")
loaded = time.perf_counter()
net = jm.MLP((784, 64, 10), output="softmax", loss="cross_entropy")
jm.fit(net, jm.init(net, jax.random.key(0)), (pictures.X[:256], pictures.Y[:256]), optimizer=optax.sgd(0.1), epochs=1,
       batch_size=128, key=jax.random.key(1), preprocess=scale_pixels, progress=False)
print(imported - began, loaded - imported, time.perf_counter() - loaded, flush=True)
"""
CACHED = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


def first_step(cache: str | None) -> tuple[float, float, float, float]:
    """Seconds of a new process to its first finished step: in all, for imports, for reading MNIST, for training."""
    # With bytecode, as an installed package has it.
    changed = {"JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE"}
    environment = {name: value for name, value in os.environ.items() if name not in changed}
    if cache is not None:
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache, **CACHED}
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", FIRST_STEP], cwd=ROOT, env=environment, text=True,
                               stdout=subprocess.PIPE)  # fmt: skip
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError("the process that trains for one step failed; see its message above")
    importing, reading, training = map(float, line.split())
    return seconds, importing, reading, training


def section(pictures: Pictures, rounds: int, quick: bool, out: Output) -> Iterator[Cell]:
    """The first step without a persistent compilation cache, and with one that holds the programs."""
    with TemporaryDirectory() as cache:
        first_step(cache)
        times = {"cold": [], "warm": []}
        for _ in range(1 if quick else min(rounds, 5)):
            times["cold"].append(first_step(None))
            times["warm"].append(first_step(cache))
    columns = {name: np.asarray(each).T for name, each in times.items()}
    cell = Cell("startup", "784-64-10", {name: each[0] for name, each in columns.items()}, ("cold", "warm"))
    yield cell
    out.table("from a new process to the first finished step of MNIST training, 784-64-10, in seconds", [
        {"compilation cache": {"cold": "none", "warm": "filled"}[name], "all": f"{np.median(all_of_it):.2f}",
         "quartiles": quartiles(all_of_it), "import": f"{np.median(importing):.2f}",
         "read MNIST": f"{np.median(reading):.2f}", "compile, train": f"{np.median(training):.2f}"}
        for name, (all_of_it, importing, reading, training) in columns.items()
    ])  # fmt: skip


def compilation(pictures: Pictures, rounds: int, quick: bool, out: Output) -> Iterator[Cell]:
    """The seconds of compiling an epoch of 784-64-..-64-10 at batch 128, by hand and by `jax.grad`."""
    rows = []
    for depth in (1, 4) if quick else (1, 4, 16):
        problem = make_problem((784, *[64] * depth, 10), 128, pictures, 0.01)
        make = {"ours": partial(Epoch, problem), "jax.grad": partial(Epoch, problem, by_autodiff)}
        times = {name: [] for name in make}
        for number in range(1 if quick else min(rounds, 3)):
            for name in list(make)[:: 1 if number % 2 else -1]:
                times[name].append(make[name]().compile_seconds)
        cell = Cell("compilation", f"{depth} hidden layers", {name: np.asarray(each) for name, each in times.items()})
        yield cell
        rows.append({"hidden layers of 64": str(depth), "ours (s)": f"{np.median(cell.seconds['ours']):.2f}",
                     "jax.grad (s)": f"{np.median(cell.seconds['jax.grad']):.2f}",
                     "jax.grad / ours": f"{cell.ratio('jax.grad'):.2f}"})  # fmt: skip
    out.table("compilation of an epoch by depth", rows)
