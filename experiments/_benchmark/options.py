"""The cost of training options beside the plain epoch: monitors, regularization, streams."""

from collections.abc import Iterator
from tempfile import TemporaryDirectory

import jax
import numpy as np
import optax

import jaxmlp as jm
from experiments._benchmark.problem import make_problem, widths
from experiments._benchmark.timing import Cell, milliseconds, quartiles
from experiments.datasets import Pictures
from experiments.output import Output
from jaxmlp.data import Batches, scale_pixels

BATCH_SIZE = 128
OPTIONS = {
    "monitors": {"monitor": True},
    "l2": {"penalties": jm.l2(1e-4)},
    "max-norm": {"penalties": jm.max_norm(2.0)},
    "dropout": {"keep": 0.8},
    "label smoothing": {"label_smoothing": 0.1},
    "input noise": {"input_noise": 0.1},
    "average": {"average": 0.99},
    "checkpoint each epoch": {"checkpoints": ""},
}


def time_epochs(net: jm.MLP, X: np.ndarray, Y: np.ndarray, rounds: int, folder: str, name: str) -> Cell:
    """An epoch with each option beside the plain one, in turns."""
    params, sgd = jm.init(net, jax.random.key(0)), optax.sgd(0.01)
    options: dict[str, dict] = {"plain": {}, "stream": {}, **OPTIONS}

    def seconds(option: str, number: int) -> float:
        """The median seconds of an epoch in a short run, without the first epoch, which compiles."""
        given = dict(options[option])
        if "checkpoints" in given:
            given["checkpoints"] = f"{folder}/{number}"
        data = Batches(X, Y, BATCH_SIZE, key=jax.random.key(2)) if option == "stream" else (X, Y)
        size = None if option == "stream" else BATCH_SIZE
        result = jm.fit(net, params, data, optimizer=sgd, epochs=4, batch_size=size, key=jax.random.key(1),
                        preprocess=scale_pixels, progress=False, **given)  # fmt: skip
        return float(np.median(result.history["seconds"][1:]))

    times: dict[str, list[float]] = {option: [] for option in options}
    for number in range(rounds + 1):
        for option in list(options)[:: 1 if number % 2 else -1]:
            times[option].append(seconds(option, number))
    measured = {option: np.asarray(each[1:]) for option, each in times.items()}
    return Cell("options", name, measured, tuple(measured))


def section(pictures: Pictures, networks: tuple[str, ...], rounds: int, quick: bool, out: Output) -> Iterator[Cell]:
    """An epoch with each option at batch 128, and a table for each network."""
    for network in networks:
        problem = make_problem(widths(network), BATCH_SIZE, pictures, 0.01)
        with TemporaryDirectory() as folder:
            cell = time_epochs(problem.net, problem.pixels, problem.Y, rounds, folder, f"{network}, batch {BATCH_SIZE}")
        yield cell
        out.table(f"options of fit: an epoch of {len(problem.Y):,} examples at {cell.name}", [
            {"an epoch with": option, "ms": milliseconds(seconds), "ratio": f"{cell.ratio(option):.3f}",
             "quartiles": quartiles(cell.ratios(option))} for option, seconds in cell.seconds.items()
        ])  # fmt: skip
