"""Several processes train one network; up to rounding its weights equal those of one process.

`--processes N` starts N processes on this machine, which `jax.distributed` joins by Gloo. Each shuffles its own share
of the pictures. The table has the same run on 1, 2, 4 and 8 devices of one process and on 1, 2 and 4 processes, all on
this machine's CPU. Expect the weights to differ by less than 1e-5 after one epoch, and the accuracies by less than
half a point. The bits are not equal, because each number of devices sums a batch's gradient in another order.

On a cluster each task runs the same command with `--join` (`srun python3 -m experiments distributed --join`). It joins
by the environment, with all devices that it has. `--checkpoints FOLDER`, on a disk that all processes see, saves a run
that dies with one of its processes: the same command, with any number of processes, goes on from the checkpoint.
"""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import jaxmlp as jm
from experiments import _one_process, datasets
from experiments._one_process import Run
from experiments.output import Output
from jaxmlp.network import Params

GRACE = 6 * _one_process.LOST_AFTER  # seconds for the others to end by themselves after one has died


@dataclass(frozen=True)
class Settings:
    processes: int = 4  # processes to start on this machine
    devices: int = 1  # devices of each process: virtual ones on this machine's CPU
    join: bool = False  # be one of the processes that a cluster has started, with its own devices
    checkpoints: str | None = None  # folder of checkpoints; without one, runs on other numbers of devices are compared
    epochs: int = 4
    batch_size: int = 512
    learning_rate: float = 0.2
    examples: int = 55_000  # examples of MNIST: a multiple of 8, the number of shares
    quick: bool = False  # one process against two, 2,000 examples, 2 epochs


def run(settings: Settings, out: Output) -> dict[str, float]:
    if min(settings.processes, settings.devices, settings.epochs) < 1:
        raise ValueError(f"processes, devices and epochs are {settings.processes}, {settings.devices}, "
                         f"{settings.epochs}; expected at least 1 of each")  # fmt: skip
    if settings.join:
        return _join_cluster(settings, out)
    datasets.load("mnist")  # fails here, not in every process
    asked = (settings.processes, settings.devices)
    machines = [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (4, 1)]
    if settings.checkpoints is not None:  # one run alone: a second one would resume the first
        machines = [asked]
    elif settings.quick:
        machines = [(1, 1), (2, 1)]
    elif asked not in machines:
        machines.append(asked)
    rows, numbers, first = [], {}, None
    with TemporaryDirectory() as folder:
        for processes, devices in machines:
            began = time.perf_counter()
            launch(processes, devices, _run(settings, folder))
            summary = json.loads((Path(folder) / "summary.json").read_text())
            weights = [jm.load(Path(folder) / f"{at}_epoch.safetensors")[1] for at in ("first", "last")]
            first = weights if first is None else first
            after = [_difference(one, other) for one, other in zip(weights, first, strict=True)]
            rows.append({"processes": str(processes), "devices of each": str(devices),
                         "weights differ after 1 epoch": f"{after[0]:.1e}", "after all": f"{after[1]:.1e}",
                         "test": f"{summary['accuracy']:.2%}",
                         "seconds an epoch": f"{np.median(summary['seconds'][1:] or summary['seconds']):.2f}",
                         "with start-up": f"{time.perf_counter() - began:.1f}"})  # fmt: skip
            numbers[f"{processes}x{devices}"] = after[0]
    out.table("the same run on several numbers of processes and devices", rows)
    out.close()
    return {"worst": max(numbers.values()), "accuracy": float(summary["accuracy"])}


def _run(settings: Settings, folder: str) -> Run:
    epochs, examples = (2, 2000) if settings.quick else (settings.epochs, settings.examples)
    return Run(epochs, settings.batch_size, examples, settings.learning_rate, folder, settings.checkpoints)


def _join_cluster(settings: Settings, out: Output) -> dict[str, float]:
    """Trains as one of a cluster's processes; the first of them reports the run."""
    import jax

    _one_process.join()
    summary = _one_process.train(_run(settings, str(out.folder)))
    if jax.process_index() == 0:
        kind, seconds = jax.devices()[0].device_kind, np.median(summary["seconds"])
        out.say(f"{jax.process_count()} processes, {jax.device_count()} devices ({kind}): {summary['accuracy']:.2%} of "
                f"the test set, {seconds:.2f} seconds an epoch")  # fmt: skip
        out.close()
    return {"accuracy": summary["accuracy"]}


def launch(processes: int, devices: int, run: Run) -> None:
    """Starts the processes and waits for them; if one dies, ends the others and raises ChildProcessError."""
    given = {"processes": processes, "address": f"localhost:{free_port()}", "run": run}
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    start = lambda i: subprocess.Popen(
        [sys.executable, "-m", "experiments._one_process", json.dumps(given | {"process": i})], env=environment
    )
    wait_for([start(i) for i in range(processes)])


def wait_for(children: list[subprocess.Popen]) -> None:
    """Waits until all have ended. If one fails, the others get some time to end by themselves."""
    failures = lambda: [(i, child.returncode) for i, child in enumerate(children) if child.poll()]
    try:
        while not failures() and any(child.poll() is None for child in children):
            time.sleep(0.05)
        if not (bad := failures()):
            return
        limit = time.monotonic() + GRACE
        while time.monotonic() < limit and any(child.poll() is None for child in children):
            time.sleep(0.05)
        states = [child.poll() for child in children]
        raise ChildProcessError(
            f"process {bad[0][0]} of {len(children)} ended with status {bad[0][1]} and ended the run; the statuses "
            f"of all are {states} (None: killed)"
        )
    finally:
        for child in children:
            child.kill()
            child.wait()


def free_port() -> int:
    """A port that no process listens on."""
    with socket.socket() as socket_:
        socket_.bind(("localhost", 0))
        return socket_.getsockname()[1]


def _difference(one: Params, other: Params) -> float:
    """The largest difference between two sets of weights."""
    return max(float(np.abs(a - b).max()) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))
