"""A run on disk: it goes on to the same bits, refuses another run's folder, and its log has each epoch once."""

import json
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import checkpoint_runs
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import NET, SGD, examples, fit, tree_error

import jaxmlp as jm
from jaxmlp.training import probe
from jaxmlp.training.checkpoint import Checkpoints, check_run

MOMENTUM = optax.sgd(0.3, momentum=0.9)


class Killed(Exception):
    pass


def run(folder=None, stop_after=None, **options):
    """Everything at once: dropout, noise, an average, a rule that learns, validation; killed after an epoch's log."""

    def callback(epoch, metrics):
        if epoch == stop_after:
            raise Killed

    options = {"epochs": 7, "checkpoints": folder, "average": 0.9, "monitor": True, "data": examples(30),
               "optimizer": MOMENTUM} | options  # fmt: skip
    return fit(
        jm.init(NET, jax.random.key(0)), batch_size=8, keep=0.8, input_noise=0.1, rule=jm.rules.kolen_pollack(),
        validation=examples(20, seed=1), callback=callback, **options,
    )  # fmt: skip


def same(first, second):
    assert tree_error(first.params, second.params) == 0 and tree_error(first.last_params, second.last_params) == 0
    assert first.best_epoch == second.best_epoch and list(first.history) == list(second.history)
    for name, column in first.history.items():
        if name != "seconds":
            np.testing.assert_array_equal(column, second.history[name])


@pytest.fixture(scope="module")
def uninterrupted():
    with jax.numpy_dtype_promotion("strict"):
        return run()


@pytest.mark.parametrize("every", [1, 3])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, uninterrupted, every):
    """Killed after several epochs, some of them after the last checkpoint: what was lost is done again."""
    log = tmp_path / "log" / "run.jsonl"
    for stop_after in (2, 5, 6):
        with pytest.raises(Killed):
            run(tmp_path / "run", stop_after, checkpoint_every=every, log=log)
    result = run(tmp_path / "run", checkpoint_every=every, log=log)
    same(result, uninterrupted)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["cost"] for line in lines] == result.history["cost"].tolist()
    assert len(lines[0]["delta_norm"]) == 2
    same(run(tmp_path / "run", log=log), uninterrupted)  # a finished run is only read
    assert len(log.read_text().splitlines()) == 7
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"last.safetensors", "best.safetensors"}


def test_more_epochs_go_further_and_fewer_are_refused(tmp_path, uninterrupted):
    run(tmp_path, epochs=4)
    same(run(tmp_path), uninterrupted)
    with pytest.raises(ValueError, match=r"epochs is 2, but the run in checkpoints=.* has done 7; expected at least"):
        run(tmp_path, epochs=2)


def test_the_best_epochs_state_is_kept(tmp_path):
    result = run(tmp_path)
    (tmp_path / "last.safetensors").write_bytes((tmp_path / "best.safetensors").read_bytes())
    best = run(tmp_path, epochs=result.best_epoch)
    assert len(best.history["epoch"]) == best.best_epoch == result.best_epoch
    assert tree_error(best.params, result.params) == 0


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"data": examples(30, seed=2)}, "X .checksum."),
        ({"key": jax.random.key(2)}, "key"),
        ({"penalties": jm.l2(0.1)}, r"penalties: {}, here {'l2': 0.1"),
        ({"patience": 3}, "patience: -1, here 3"),
        ({"best_by": "accuracy"}, "best_by: cost, here accuracy"),
        ({"monitor": False}, "monitor: True, here False"),
        ({"average": None}, "average: 0.89.*, here None"),
        ({"optimizer": optax.sgd(0.1)}, r"optimizer's .*step_size: -0.3, here -0.1"),
        ({"optimizer": optax.sgd(0.3, momentum=0.8)}, r"optimizer's .*decay: 0.9, here 0.8"),
        ({"optimizer": optax.sgd, "hyper": {"learning_rate": 0.1}}, "hyper: {}, here {'learning_rate': 0.1"),
        ({"preprocess": lambda x: 2 * x}, "examples preprocessed"),
        ({"augment": lambda key, x: 2 * x}, "examples augmented"),
        ({"class_weights": [1, 2]}, "weights and class_weights"),
    ],
)
def test_another_runs_folder_is_refused(tmp_path, options, what):
    run(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=rf"last.safetensors was written by another run \({what}"):
        run(tmp_path, **options)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"batch size": 5, "keep": None, "key": "1" * 8}, "batch size: 4, here 5; keep: 0.5, here None"),
        ({"key": "1" * 8, "X": "2" * 8, "validation": "3" * 8}, "key; X; validation: none, here some"),
        ({"shares": "0000000a 0000000b"}, "shares"),
    ],
)
def test_settings_that_differ_are_named_in_words(changes, what):
    """All of them; checksums alone where no setting tells the runs apart, and without their digits."""
    saved = {"batch size": 4, "keep": 0.5, "key": "0" * 8, "X": "0" * 8, "validation": None, "shares": "0" * 8}
    with pytest.raises(ValueError, match=re.escape(f"written by another run ({what}); expected the same arguments")):
        check_run(saved | changes | {"new": 1}, saved, Path("last.safetensors"))


def own(scale):
    """An activation of one name, whatever it does."""
    return jm.Activation("own", lambda z: jnp.tanh(scale * z), lambda z: scale * (1 - jnp.tanh(scale * z) ** 2))


def three(*hidden):
    return jm.MLP((3, 5, 5, 5, 2), hidden, "softmax", "cross_entropy")


BLANK = (np.vstack([np.zeros((1, 3), np.float32), examples(19)[0]]), examples(20)[1])  # the first example is blank
HALVES = lambda learning_rate, times: optax.chain(optax.sgd(learning_rate), *[optax.scale(0.5)] * times)


def clipped(norm):
    return {"readout": lambda trace, weights, key: jm.clipped_gradient(trace, norm, weights)}


def slower(rate):
    """The rate stands in no variable of the schedule."""
    return {"optimizer": optax.sgd(lambda count, rate=rate: jnp.where(count < 500, 0.1, rate))}


def patient(steps):
    """Equal but where gradients are not finite, or as many steps make one."""
    optimizer = optax.MultiSteps(optax.apply_if_finite(MOMENTUM, steps), 5 * steps)
    return {"optimizer": optimizer.gradient_transformation()}


def halves(times):
    return {"optimizer": HALVES, "hyper": {"learning_rate": 0.1, "times": times}}


@pytest.mark.wrong_arguments
def test_the_numbers_in_an_optimizers_functions_are_found():
    """Those of nested functions and of a method's object, once each; a variable that is not set yet is none."""

    class Slots(NamedTuple):
        number: int

        def update(self):
            return self.number

    def make(rate):
        again = lambda: (rate, step, unset, methods)
        step, methods = (lambda: (again, rate), 3), (Slots(5).update, optax.MultiSteps(SGD, 7).update)
        return again
        unset = 0

    plan = SimpleNamespace(transformation=lambda hyper: SimpleNamespace(update=make(0.5)))
    found = probe.find_numbers(plan, SimpleNamespace(hyper={}))
    assert found["rate"] == 0.5 and found["step[1]"] == 3 and "unset" not in found
    assert found["methods[1]._every_k_schedule.every_k_schedule"] == 7


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ({"net": three("tanh", "relu", "relu")}, {"net": three("tanh", "relu", "tanh")}, "hidden activations"),
        ({"net": three(own(1.0), "tanh", "relu")}, {"net": three(own(2.0), "tanh", "relu")}, "own functions"),
        (clipped(1.0), clipped(0.9), "readout of fixed numbers"),
        (slower(0.05), slower(0.01), "optimizer's later updates"),
        (patient(3), patient(7), r"optimizer's .*every_k_schedule: 15, here 35; .*max_consecutive_errors: 3, here 7"),
        (halves(1), halves(2), "hyperparameters compiled in: {'times': 1}, here {'times': 2}"),
        ({"penalties": (jm.l2(0.1), jm.l2(0.2))}, {"penalties": (jm.l2(0.3), jm.l2(0.2))}, "penalties"),
        ({"data": BLANK}, {"data": BLANK, "preprocess": lambda x: 2 * x}, "examples preprocessed"),
        (
            {"validation": (*examples(6), np.ones(6, np.float32))},
            {"validation": (*examples(6), np.arange(6, dtype=np.float32))},
            "validation .checksum.",
        ),
    ],
)
def test_a_run_is_known_by_what_its_functions_do(tmp_path, before, after, what):
    def once(**settings):
        net = settings.pop("net", NET)
        with jax.numpy_dtype_promotion("standard"):  # which MultiSteps needs
            fit(jm.init(net, jax.random.key(0)), net=net, checkpoints=tmp_path, **settings)

    once(**before)
    once(**before)
    with pytest.raises(ValueError, match=rf"was written by another run \({what}"):
        once(**after)


def test_steps_that_are_validated_elsewhere_are_refused(tmp_path):
    """25 steps end between two validations of a run of 50."""
    steps = {"sampling": "replacement", "epochs": None, "validate_every": 10, "checkpoints": tmp_path}
    params = jm.init(NET, jax.random.key(0))
    fit(params, steps=25, **steps)
    with pytest.raises(ValueError, match="validated at 10, 20, 25; expected the same steps"):
        fit(params, steps=50, **steps)


def test_two_runs_do_not_share_a_folder(tmp_path):
    params, refused = jm.init(NET, jax.random.key(0)), []

    def again(epoch, metrics):
        with pytest.raises(ValueError, match=r"checkpoints is .*, which another run is writing now; expected another"):
            fit(params, checkpoints=tmp_path)
        refused.append(epoch)

    alone = fit(params, epochs=3)
    got = fit(params, epochs=3, checkpoints=tmp_path, callback=again)
    assert refused == [1, 2, 3] and tree_error(got.params, alone.params) == 0
    fit(params, epochs=3, checkpoints=tmp_path)  # the folder is free again


def test_a_file_that_changes_while_it_is_read_is_read_whole(tmp_path, monkeypatch):
    """State and history are of one moment, whatever another process saves in between."""
    params = jm.init(NET, jax.random.key(0))
    alone = fit(params, epochs=5)
    fit(params, epochs=2, checkpoints=tmp_path)
    read_tree, others = jm.trees.read_tree, []

    def meanwhile(path, like):
        if not others:
            others.append(1)
            fit(params, epochs=3, checkpoints=tmp_path)
        return read_tree(path, like)

    monkeypatch.setattr(jm.trees, "read_tree", meanwhile)
    got = fit(params, epochs=5, checkpoints=tmp_path)
    assert len(got.history["epoch"]) == 5 and tree_error(got.params, alone.params) == 0


def test_the_log_has_each_epoch_though_the_run_ends_right_after_a_checkpoint(tmp_path, monkeypatch):
    params, save = jm.init(NET, jax.random.key(0)), Checkpoints.save

    def full(self, state, columns, done, last):
        save(self, state, columns, done, last)
        if done == 2:
            raise OSError(28, "No space left on device")

    log = tmp_path / "log.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", full)
        with pytest.raises(OSError, match="No space"):
            fit(params, epochs=4, checkpoints=tmp_path / "run", log=log)
    fit(params, epochs=4, checkpoints=tmp_path / "run", log=log)
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [1, 2, 3, 4]


def test_a_relative_folder_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    move = lambda epoch, metrics: os.chdir(tmp_path / "elsewhere")
    fit(jm.init(NET, jax.random.key(0)), epochs=3, checkpoints="run", log="log.jsonl", callback=move)
    assert (tmp_path / "run" / "last.safetensors").exists() and not list((tmp_path / "elsewhere").iterdir())
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


def test_an_interrupted_run_saves_its_epoch_and_says_how_to_go_on(tmp_path, capsys):
    """The first SIGINT waits for the end of the epoch, whatever `checkpoint_every` says."""
    params = jm.init(NET, jax.random.key(0))
    interrupt = lambda epoch, metrics: epoch == 2 and signal.raise_signal(signal.SIGINT)
    settings = {"epochs": 6, "checkpoints": tmp_path, "checkpoint_every": 5}
    with pytest.raises(KeyboardInterrupt, match=r"epoch 2 of 6 is saved in .*; the same call goes on from there"):
        fit(params, callback=interrupt, **settings)
    assert "interrupted: this epoch ends first and is saved" in capsys.readouterr().err
    got = fit(params, **settings)
    assert tree_error(got.params, fit(params, epochs=6).params) == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_somebody_elses_tree_is_no_checkpoint(tmp_path):
    for about in (None, {"run": {}, "done": 1}, {"run": {}, "done": 1, "history": {"cost": [1.0, 2.0]}}):
        jm.trees.write_tree(tmp_path / "last.safetensors", {"a": 1}, about)
        with pytest.raises(ValueError, match=r"last.safetensors holds no checkpoint of a run, expected another folder"):
            fit(jm.init(NET, jax.random.key(0)), checkpoints=tmp_path)


@pytest.mark.parametrize("name", checkpoint_runs.RUNS)
def test_a_folder_that_0_1_0_wrote_goes_on(tmp_path, name):
    """To the weights that 0.1.0 had in the end; to the bits where this machine rounds as the one that it ran on."""
    folder = Path(__file__).with_name("data") / "checkpoint_0_1_0"
    shutil.copytree(folder / name, tmp_path / name)
    resumed, unbroken = checkpoint_runs.fit(name, checkpoints=tmp_path / name), checkpoint_runs.fit(name)
    stored = jm.load(folder / f"{name}.safetensors")[1]
    assert tree_error(unbroken.last_params, stored) <= 1e-5 and tree_error(resumed.last_params, stored) <= 1e-5
    if tree_error(unbroken.last_params, stored) == 0:
        same(resumed, unbroken)


def test_a_broken_checkpoint_is_named(tmp_path):
    run(tmp_path, epochs=1)
    path = tmp_path / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"last\.safetensors"):
        run(tmp_path)


def test_a_diverged_run_stays_diverged(tmp_path):
    options = {"optimizer": optax.sgd(1e9), "epochs": 3, "checkpoints": tmp_path}
    for _ in range(2):
        with pytest.raises(jm.DivergedError):
            run(tmp_path, **options)
