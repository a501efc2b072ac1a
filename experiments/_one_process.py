"""One of several processes that train a network together: it joins, takes its share of the examples, and fits.

On this machine `distributed` starts it by `python3 -m experiments._one_process`. A cluster's processes find each other
by their environment.
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

import jaxmlp as jm
from experiments import datasets

SHARES = 8  # parts of the data, each with its own shuffling: the same batches on 1, 2, 4 or 8 devices or processes
NET = jm.MLP((784, 64, 10), output="softmax", loss="cross_entropy")
LOST_AFTER = 10  # seconds of silence after which a process counts as lost


class Run(NamedTuple):
    """The settings of a run, the same for all processes."""

    epochs: int
    batch_size: int
    examples: int
    learning_rate: float
    folder: str  # for the weights and the summary, which the first process writes
    checkpoints: str | None


def join(address: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the other processes. The environment (SLURM, Kubernetes, a TPU pod) replaces arguments that are None."""
    jax.distributed.initialize(address, processes, process, heartbeat_timeout_seconds=LOST_AFTER)


def train(run: Run) -> dict[str, Any]:
    """Trains together with the other processes; the first one writes the weights after one epoch and after all."""
    pictures, n, i = datasets.load("mnist"), jax.process_count(), jax.process_index()
    if run.examples % SHARES or run.examples > len(pictures.X) or SHARES % jax.device_count():
        raise ValueError(f"examples are {run.examples} of {len(pictures.X)} and devices {jax.device_count()}; "
                         f"expected a multiple of {SHARES} and a number that divides {SHARES}")  # fmt: skip
    mine = slice(i * run.examples // n, (i + 1) * run.examples // n)
    mesh = jax.make_mesh((jax.device_count(),), ("data",))

    sgd = optax.sgd(run.learning_rate, momentum=0.9)

    def fit(epochs: int, checkpoints: str | None) -> jm.Result:
        return jm.fit(
            NET, jm.init(NET, jax.random.key(0)), (pictures.X[mine], pictures.Y[mine]),
            optimizer=sgd, epochs=epochs, batch_size=run.batch_size,
            key=jax.random.key(1), preprocess=jm.data.scale_pixels, mesh=mesh, shares=SHARES,
            validation=(pictures.X_test, pictures.Y_test), checkpoints=checkpoints,
        )  # fmt: skip

    first = fit(1, None)
    result = fit(run.epochs, run.checkpoints)
    summary = {"seconds": result.history["seconds"].tolist(),
               "accuracy": float(result.history["validation_accuracy"][-1])}  # fmt: skip
    if i == 0:
        folder = Path(run.folder)
        folder.mkdir(parents=True, exist_ok=True)
        jm.save(folder / "first_epoch.safetensors", NET, first.last_params)
        jm.save(folder / "last_epoch.safetensors", NET, result.last_params)
        (folder / "summary.json").write_text(json.dumps(summary))
    return summary


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if given["processes"] > 1:
        join(given["address"], given["processes"], given["process"])
    train(Run(*given["run"]))
