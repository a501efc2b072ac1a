"""Several processes: they train one network, and end, are saved and go on together."""

import json
import os
import signal
import subprocess
import sys

import pytest
from problems import tree_error

import jaxmlp as jm
from experiments.distributed import free_port, wait_for

# What each process runs: its part of the examples, and with `dies` one that is killed after the second epoch.
PROCESS = """
import json, os, signal, sys
import jax, numpy as np, optax
import jaxmlp as jm

given = json.loads(sys.argv[1])
n, i = given["processes"], given["process"]
if n > 1:
    jax.distributed.initialize(given["address"], n, i, heartbeat_timeout_seconds=10)
net = jm.MLP((6, 16, 2), hidden="tanh", output="softmax", loss="cross_entropy")
X = np.random.default_rng(0).normal(size=(96, 6)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int32)
mine = slice(i * 96 // n, (i + 1) * 96 // n)
w = np.linspace(0.5, 2, 96, dtype=np.float32)[mine]

def fit(data, **options):
    return jm.fit(
        net, jm.init(net, jax.random.key(0)), data, optimizer=optax.sgd(0.1, momentum=0.9), key=jax.random.key(1),
        mesh=jax.make_mesh((jax.device_count() // given["model"], given["model"]), ("data", "model")),
        validation=(X[:20], Y[:20]), progress=False, **options)

def callback(epoch, metrics):
    if given["dies"] == [i, epoch]:
        os.kill(os.getpid(), signal.SIGKILL)

if n > 1:
    for differs in ({"input_noise": 0.1 + i}, {"batch_size": 16 * (i > 0)}, {"shares": 4 * (1 + i % 2)},
                    {"keep": None if i else 0.9}):
        try:
            fit((X[mine], Y[mine]), **{"epochs": 1, "batch_size": 16} | differs)
            sys.exit("no error")
        except ValueError as error:
            print(error)
    for wrong in ((X[mine][i:], Y[mine][i:]), [(X[mine], Y[mine])] * (i + 1)):  # another number of examples, of batches
        try:
            fit(wrong, epochs=1, **({"shares": 4, "batch_size": 16} if isinstance(wrong, tuple) else {}))
            sys.exit("no error")
        except ValueError as error:
            print(error)
result = fit((X[mine], Y[mine]), epochs=5, batch_size=16, shares=4, weights=w, keep=0.9,
             checkpoints=given["folder"], callback=callback, log=given["folder"] + "/log.jsonl")
streamed = fit([(X[mine][j::3], Y[mine][j::3]) for j in range(3)], epochs=1)
if i == 0:
    jm.save(given["folder"] + "/fitted.safetensors", net, result.last_params)
    jm.save(given["folder"] + "/streamed.safetensors", net, streamed.last_params)
"""


def launch(folder, processes, devices=1, model=1, dies=None):
    """Starts them; what process i says is in `folder/i.txt`."""
    folder.mkdir(exist_ok=True)
    given = {"processes": processes, "address": f"localhost:{free_port()}", "folder": str(folder), "model": model,
             "dies": dies}  # fmt: skip
    flags = {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}"),
             "JAX_PLATFORMS": "cpu",
             "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # fmt: skip
    children = []
    for i in range(processes):
        with (folder / f"{i}.txt").open("w") as said:
            command = [sys.executable, "-c", PROCESS, json.dumps(given | {"process": i})]
            children.append(subprocess.Popen(command, env=os.environ | flags, stdout=said, stderr=said))
    return children


def weights(folder, name):
    return jm.load(folder / f"{name}.safetensors")[1]


def test_four_processes_train_one_network_and_one_death_is_the_end_of_all(tmp_path):
    """One of four is killed; the others end with an error. Two go on, and have the weights of one that did it alone."""
    children = launch(tmp_path / "run", 4, dies=[2, 2])
    with pytest.raises(ChildProcessError, match="process 2 of 4 ended with status -9"):
        wait_for(children)
    statuses = [child.returncode for child in children]
    assert statuses[2] == -signal.SIGKILL and all(status not in (0, None) for status in statuses), statuses
    for i in range(4):
        said = (tmp_path / "run" / f"{i}.txt").read_text()
        for name in ("input_noise", "shares", "keep", "the number of examples"):
            assert f"{name} is not the same on all processes" in said
        assert ("batch_size is 0" if i == 0 else "the call is refused on another process") in said
        assert "the number of examples is not the same on all processes" in said and "gives other batches" in said
    wait_for(launch(tmp_path / "run", 2, devices=4, model=2))
    wait_for(launch(tmp_path / "alone", 1))
    for name in ("fitted", "streamed"):
        assert tree_error(weights(tmp_path / "run", name), weights(tmp_path / "alone", name)) < 1e-5
    logged = [json.loads(line)["epoch"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert logged == [1, 2, 3, 4, 5]
