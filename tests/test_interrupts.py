"""Runs that end in the middle: interrupted, killed, on a full disk, with a log that others write to."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import optax
import pytest
from problems import NET, examples, fit, tree_error

import jaxmlp as jm
from jaxmlp import files

MOMENTUM = optax.sgd(0.3, momentum=0.9)


class Ended(Exception):
    pass


def test_runs_that_end_in_every_way_lose_no_bit():
    """Killed, on a full disk, interrupted, and two in one folder: whole processes; the script has more of each."""
    script = Path(__file__).with_name("kill_runs.py")
    environment = os.environ | {"PYTHONPATH": str(script.parents[1])}
    done = subprocess.run([sys.executable, script, "--quick"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "; 0 bits lost" in done.stdout, done.stdout + done.stderr


def press(*epochs, times=1):
    """A callback during which SIGINT comes in these epochs."""

    def callback(epoch, metrics):
        for _ in range(times if epoch in epochs else 0):
            signal.raise_signal(signal.SIGINT)

    return callback


def interrupted(folder, **options):
    """The run, with its own callback in place of `run`'s."""
    return fit(jm.init(NET, jax.random.key(0)), examples(30), optimizer=MOMENTUM, batch_size=8, checkpoints=folder,
               **{"epochs": 7, "checkpoint_every": 3} | options)  # fmt: skip


@pytest.mark.parametrize("epoch", [2, 7])
def test_an_interrupt_saves_the_epoch_it_names(tmp_path, capsys, epoch):
    """Also one that comes after the epoch's checkpoint was due, and one in the last epoch, which ends all the same."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=f"epoch {epoch} of 7 is saved in .*; the same call goes on from there"):
        interrupted(tmp_path, callback=press(epoch))
    assert signal.getsignal(signal.SIGINT) is before
    assert "this epoch ends first and is saved" in capsys.readouterr().err
    assert files.read(tmp_path / "last.safetensors", "tree")[1]["about"]["done"] == epoch
    assert tree_error(interrupted(tmp_path).last_params, interrupted(None).last_params) == 0


def test_a_second_interrupt_and_one_without_checkpoints_end_the_run_at_once(tmp_path):
    for folder, times in ((tmp_path, 2), (None, 1)):
        with pytest.raises(KeyboardInterrupt) as caught:
            interrupted(folder, callback=press(2, times=times))
        assert not caught.value.args
    assert tree_error(interrupted(tmp_path).last_params, interrupted(None).last_params) == 0


def test_a_run_leaves_the_handlers_of_others_and_needs_no_lock_of_the_file_system(tmp_path, monkeypatch):
    """A process in the background ignores SIGINT, a program may have a handler of its own, NFS locks no folder."""
    fcntl, heard = pytest.importorskip("fcntl"), []

    def refuse(descriptor, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = signal.getsignal(signal.SIGINT)
    try:
        for number, own in enumerate((signal.SIG_IGN, lambda number, frame: heard.append(number))):
            signal.signal(signal.SIGINT, own)
            assert len(interrupted(tmp_path / str(number), callback=press(2)).history["epoch"]) == 7
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]


def epochs_in(log):
    return [(row["epoch"], round(row["cost"], 6)) for row in map(json.loads, log.read_text().splitlines())]


def test_runs_that_share_a_log_keep_each_others_lines(tmp_path):
    """One ended before its first epoch, and one whose lines another run follows."""
    log, one, two = tmp_path / "log.jsonl", tmp_path / "one", tmp_path / "two"
    interrupted(one, log=log)
    lines = log.read_text()

    def end(epoch, metrics):
        raise Ended

    other = {"log": log, "key": jax.random.key(5)}
    with pytest.raises(Ended):
        interrupted(two, callback=end, **other)
    assert json.loads(log.read_text().removeprefix(lines))["epoch"] == 1
    log.write_text(lines)  # as if killed before its first line
    interrupted(two, **other)
    own = log.read_text()
    assert own.startswith(lines) and [epoch for epoch, _ in epochs_in(log)] == [*range(1, 8), *range(1, 8)]
    interrupted(one, log=log, epochs=9)  # follows the lines of the other
    assert log.read_text().startswith(own)
    assert [epoch for epoch, _ in epochs_in(log)][14:] == [8, 9]


@pytest.mark.parametrize("torn", ['{"ep', '{"epoch": 5, "co', "{"])
def test_a_line_torn_anywhere_is_written_again(tmp_path, torn):
    log = tmp_path / "log.jsonl"
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "run", log=log, callback=press(4))
    with log.open("a") as file:
        file.write(torn)
    interrupted(tmp_path / "run", log=log)
    assert [epoch for epoch, _ in epochs_in(log)] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_log_on_a_full_disk_is_named(params):
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        fit(params, log="/dev/full")
