"""A run on disk: it goes on to the same bits, refuses another run's folder, and its log has each epoch once."""

import json
import shutil
from pathlib import Path

import checkpoint_runs
import jax
import numpy as np
import optax
import pytest
from problems import NET, examples, fit, tree_error

import jaxmlp as jm

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
        ({"optimizer": optax.sgd(0.1)}, "optimizer's first updates"),
        ({"optimizer": optax.sgd(0.3, momentum=0.8)}, "optimizer's first updates"),
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
