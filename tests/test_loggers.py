"""Loggers write every epoch at once, under the names of the history, and go on where a run goes on."""

import re
import struct
import sys

import numpy as np
import pytest
from problems import fit

import jaxmlp as jm


def read_events(folder):
    """The events of each file of a folder, the older file first."""
    messages = pytest.importorskip("tensorboardX.proto.event_pb2")
    files = []
    for path in sorted(folder.iterdir()):
        raw, at, events = path.read_bytes(), 0, []
        while at < len(raw):
            (length,) = struct.unpack_from("<Q", raw, at)  # and its checksum, the event, and that one's
            events.append(messages.Event.FromString(raw[at + 12 : at + 12 + length]))
            at += length + 16
        files.append(events)
    return files


def read_scalars(events):
    """What each step has under each name."""
    values = [(event.step, value) for event in events for value in event.summary.value]
    found = {step: {} for step, _ in values}
    for step, value in values:
        found[step][value.tag] = np.float32(value.simple_value)
    return found


def test_tensorboard_finds_every_column_of_every_epoch_before_the_next_one(params, tmp_path):
    folder, seen = tmp_path / "runs" / "one", []
    write = jm.loggers.tensorboard(folder)
    assert not folder.exists()

    def write_and_read(epoch, metrics):
        write(epoch, metrics)
        seen.append(list(read_scalars(read_events(folder)[0])))

    fit(params, epochs=2, callback=write_and_read, checkpoints=tmp_path / "state")
    assert seen == [[1], [1, 2]]
    history = fit(
        params, epochs=3, callback=jm.loggers.tensorboard(str(folder)), checkpoints=tmp_path / "state"
    ).history
    first, second = read_events(folder)
    assert [(event.step, event.session_log.status) for event in second][1] == (3, 1)  # START: from here on anew
    scalars = read_scalars(first) | read_scalars(second)
    assert list(scalars) == [1, 2, 3] and list(read_scalars(second)) == [3]
    assert {"cost", "seconds"} < set(scalars[1]) == set(history) - {"epoch"}
    for name in scalars[1]:
        np.testing.assert_array_equal([scalars[epoch][name] for epoch in (1, 2, 3)], np.float32(history[name]), name)


def test_a_run_that_starts_again_gets_a_file_of_its_own(tmp_path):
    write = jm.loggers.tensorboard(tmp_path)
    for epoch in (1, 2, 2, 3):
        write(epoch, {"cost": float("nan"), "dead": [0.0, 0.5]})
    files = [read_scalars(events) for events in read_events(tmp_path)]
    assert [list(scalars) for scalars in files] == [[1, 2], [2, 3]]
    assert list(files[0][1]) == ["cost", "dead/1", "dead/2"]


class Run:
    def __init__(self):
        self.calls = []

    def log(self, columns, step=None):
        self.calls.append((columns, step))


class Wandb(Run):
    def log(self, columns, step=None, commit=None):
        self.calls.append((columns, step, commit))


def test_wandb_gets_an_epoch_with_its_step_and_keeps_none_back():
    for run, rest in ((Run(), ()), (Wandb(), (True,))):
        jm.loggers.wandb(run)(3, {"cost": 0.5, "dead": [0.0, 0.25], "seconds": 0.1})
        assert run.calls == [({"cost": 0.5, "dead/1": 0.0, "dead/2": 0.25, "seconds": 0.1}, 3, *rest)]


@pytest.mark.wrong_arguments
def test_bad_arguments_of_loggers_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder, message in (
        (tmp_path / "file", "file', a file, expected a folder"),
        (tmp_path / "file" / "under", "file is no folder to write to"),
        ("", "'', expected the name of a file or folder"),
        (5, "5, expected the name of a file or folder"),
    ):
        with pytest.raises(ValueError, match=rf"folder is .*{message}"):
            jm.loggers.tensorboard(folder)
    for run in (None, "run", Run, type("NoStep", (), {"log": lambda self, columns: None})()):
        with pytest.raises(
            ValueError, match=r"run is .*, expected one of wandb.init\(..\), or an object with a method"
        ):
            jm.loggers.wandb(run)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=re.escape("python3 -m pip install 'jaxmlp[loggers]'")):
        jm.loggers.tensorboard(tmp_path)
