"""Several processes train one network, and end, are saved and go on together."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import processes_script
import pytest
from problems import tree_error

import jaxmlp as jm
from experiments.distributed import free_port, wait_for

SCRIPT = Path(__file__).with_name("processes_script.py")


def launch(folder, processes, devices, mistakes=False, dies=None):
    """Starts the processes, whose output is in `folder/0.txt`, `folder/1.txt`, .."""
    given = {"processes": processes, "address": f"localhost:{free_port()}", "folder": str(folder), "mistakes": mistakes,
             "dies": dies}  # fmt: skip
    flags = {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}"),
             "JAX_PLATFORMS": "cpu",
             "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # fmt: skip
    children = []
    for i in range(processes):
        with (folder / f"{i}.txt").open("w") as output:
            command = [sys.executable, SCRIPT, json.dumps(given | {"process": i})]
            children.append(subprocess.Popen(command, env=os.environ | flags, stdout=output, stderr=output))
    return children


@pytest.fixture(scope="module")
def run(once):
    """A folder that two processes trained in, until one of them died."""

    def train(folder):
        children = launch(folder, 2, 2, mistakes=True, dies=[1, 2])
        try:
            wait_for(children)
            error = "no error"
        except ChildProcessError as raised:
            error = str(raised)
        statuses = [child.returncode for child in children]
        (folder / "end.json").write_text(json.dumps({"error": error, "statuses": statuses}))

    return once("two_processes", train)


def copy(run, folder):
    """A copy of the folder as the two processes left it."""
    return shutil.copytree(run, folder, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def went_on(once, run):
    """Copies of the folder in which two processes of four devices each, a layer on two, went on, and one alone."""

    def train(folder):
        wait_for(launch(copy(run, folder / "two"), 2, 4))
        processes_script.train(copy(run, folder / "one"))

    return once("went_on", train)


@pytest.fixture(scope="module")
def alone(once):
    """A folder that one process trained in, alone."""
    return once("one_process", processes_script.train)


def refused(run, name):
    """The message of each process's error at this mistake."""
    return [json.loads((run / f"refused_{i}.json").read_text())[name] for i in range(2)]


def test_the_death_of_one_process_ends_all(run):
    end = json.loads((run / "end.json").read_text())
    assert "process 1 of 2 ended with status -9" in end["error"]
    assert end["statuses"][1] == -signal.SIGKILL
    assert all(status not in (0, None) for status in end["statuses"]), end["statuses"]


@pytest.mark.parametrize("name", ["input_noise", "shares", "keep", "the number of examples"])
def test_a_setting_that_differs_is_named_on_every_process(run, name):
    for message in refused(run, name):
        assert f"{name} is not the same on all processes" in message


def test_a_call_that_one_process_refuses_is_refused_on_all(run):
    first, *others = refused(run, "batch_size")
    assert "batch_size is 0" in first
    for message in others:
        assert "the call is refused on another process" in message


def test_streams_of_different_lengths_are_refused_on_every_process(run):
    for message in refused(run, "batches"):
        assert "gives different batches" in message


@pytest.mark.parametrize("processes", ["two", "one"])
@pytest.mark.parametrize("name", ["fitted", "streamed"])
def test_other_processes_go_on_to_the_weights_of_one_alone(went_on, alone, processes, name):
    weights = [jm.load(folder / f"{name}.safetensors")[1] for folder in (went_on / processes, alone)]
    assert tree_error(*weights) < 1e-5


@pytest.mark.parametrize("processes", ["two", "one"])
def test_the_log_has_each_epoch_once(went_on, processes):
    lines = (went_on / processes / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4, 5]
