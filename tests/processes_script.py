"""Runs as each of several processes: `processes_script.py JSON`, as `test_processes.launch` calls it.

The processes make mistakes together, if they are asked to, and then train one network. Process i leaves the messages of
its errors in `folder/refused_i.json`, the first process the weights.
"""

import json
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import optax

import jaxmlp as jm

NET = jm.MLP((6, 16, 2), hidden="tanh", output="softmax", loss="cross_entropy")
X = np.random.default_rng(0).normal(size=(96, 6)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int32)
W = np.linspace(0.5, 2, 96, dtype=np.float32)


def own(process, processes):
    """X, Y and the weights of one process's examples."""
    return tuple(array[process * 96 // processes : (process + 1) * 96 // processes] for array in (X, Y, W))


def list_mistakes(process, processes):
    """Calls with one argument that differs between processes, by the name of the mistake."""
    x, y, _ = own(process, processes)
    return {
        "input_noise": {"input_noise": 0.1 + process},
        "shares": {"shares": 4 * (1 + process % 2)},
        "keep": {"keep": None if process else 0.9},
        "batch_size": {"batch_size": 16 * (process > 0)},  # 0 on the first process alone
        "the number of examples": {"data": (x[2 * process :], y[2 * process :]), "shares": 4},
        "batches": {"data": [(x, y)] * (process + 1), "batch_size": None},
    }


def fit(data, mesh, **options):
    return jm.fit(
        NET, jm.init(NET, jax.random.key(0)), data, optimizer=optax.sgd(0.1, momentum=0.9), key=jax.random.key(1),
        mesh=mesh, validation=(X[:20], Y[:20]), progress=False, **options,
    )  # fmt: skip


def refuse(folder, process, processes, mesh):
    """Makes each mistake and keeps the message of its error."""
    messages = {}
    for name, options in list_mistakes(process, processes).items():
        options = {"data": own(process, processes)[:2], "epochs": 1, "batch_size": 16} | options
        try:
            fit(options.pop("data"), mesh, **options)
            messages[name] = "no error"
        except ValueError as error:
            messages[name] = str(error)
    (folder / f"refused_{process}.json").write_text(json.dumps(messages))


def train(folder, process=0, processes=1, mesh=None, dies=None):
    """Fits arrays, with checkpoints, and a stream. A process that `dies`, `[process, epoch]`, is killed there."""
    x, y, w = own(process, processes)

    def die(epoch, metrics):
        if dies == [process, epoch]:
            os.kill(os.getpid(), signal.SIGKILL)

    fitted = fit((x, y), mesh, epochs=5, batch_size=16, shares=4, weights=w, keep=0.9, checkpoints=folder, callback=die,
                 log=folder / "log.jsonl")  # fmt: skip
    streamed = fit([(x[j::3], y[j::3]) for j in range(3)], mesh, epochs=1)
    if process == 0:
        jm.save(folder / "fitted.safetensors", NET, fitted.last_params)
        jm.save(folder / "streamed.safetensors", NET, streamed.last_params)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    folder, process, processes = Path(given["folder"]), given["process"], given["processes"]
    jax.distributed.initialize(given["address"], processes, process, heartbeat_timeout_seconds=10)
    mesh = jax.make_mesh((4, jax.device_count() // 4), ("data", "model"))
    if given["mistakes"]:
        refuse(folder, process, processes, mesh)
    train(folder, process, processes, mesh, given["dies"])
