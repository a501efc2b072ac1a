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

GIVEN = json.loads(sys.argv[1])
N, I, FOLDER = GIVEN["processes"], GIVEN["process"], Path(GIVEN["folder"])
NET = jm.MLP((6, 16, 2), hidden="tanh", output="softmax", loss="cross_entropy")
X = np.random.default_rng(0).normal(size=(96, 6)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int32)
OWN = slice(I * 96 // N, (I + 1) * 96 // N)  # this process's examples
W = np.linspace(0.5, 2, 96, dtype=np.float32)[OWN]

# Calls with one argument that differs between processes, by the name of the mistake.
MISTAKES = {
    "input_noise": {"input_noise": 0.1 + I},
    "shares": {"shares": 4 * (1 + I % 2)},
    "keep": {"keep": None if I else 0.9},
    "batch_size": {"batch_size": 16 * (I > 0)},  # 0 on the first process alone
    "the number of examples": {"data": (X[OWN][I:], Y[OWN][I:]), "shares": 4},
    "batches": {"data": [(X[OWN], Y[OWN])] * (I + 1), "batch_size": None},
}


def fit(**options):
    options = {"data": (X[OWN], Y[OWN])} | options
    mesh = jax.make_mesh((jax.device_count() // GIVEN["model"], GIVEN["model"]), ("data", "model"))
    return jm.fit(
        NET, jm.init(NET, jax.random.key(0)), options.pop("data"), optimizer=optax.sgd(0.1, momentum=0.9),
        key=jax.random.key(1), mesh=mesh, validation=(X[:20], Y[:20]), progress=False, **options,
    )  # fmt: skip


def refuse():
    """Makes each mistake and keeps the message of its error."""
    messages = {}
    for name, options in MISTAKES.items():
        try:
            fit(**{"epochs": 1, "batch_size": 16} | options)
            messages[name] = "no error"
        except ValueError as error:
            messages[name] = str(error)
    (FOLDER / f"refused_{I}.json").write_text(json.dumps(messages))


def die(epoch, metrics):
    """Kills this process, where it is asked to, after an epoch."""
    if GIVEN["dies"] == [I, epoch]:
        os.kill(os.getpid(), signal.SIGKILL)


def train():
    """Fits arrays, with checkpoints, and a stream."""
    fitted = fit(epochs=5, batch_size=16, shares=4, weights=W, keep=0.9, checkpoints=FOLDER, callback=die,
                 log=FOLDER / "log.jsonl")  # fmt: skip
    streamed = fit(data=[(X[OWN][j::3], Y[OWN][j::3]) for j in range(3)], epochs=1)
    if I == 0:
        jm.save(FOLDER / "fitted.safetensors", NET, fitted.last_params)
        jm.save(FOLDER / "streamed.safetensors", NET, streamed.last_params)


if __name__ == "__main__":
    if N > 1:
        jax.distributed.initialize(GIVEN["address"], N, I, heartbeat_timeout_seconds=10)
    if GIVEN["mistakes"]:
        refuse()
    train()
