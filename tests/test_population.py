"""Members that stop leave the program, and a sweep that is killed goes on: the same numbers, for the steps taken."""

import contextlib
import signal

import jax
import numpy as np
import pytest
from internals import PopulationCheckpoints, packing, population_module
from problems import KEYS, NET, examples, fit, sweep, tree_error

import jaxmlp as jm

STOPPING = {
    "patience": [1, 1, 1, 9], "hyper": {"learning_rate": [1e-30, 1e-30, 1e9, 0.3]}, "validation": examples(15, seed=5),
    "epochs": 6,
}  # fmt: skip


class Killed(Exception):
    pass


@pytest.fixture
def programs(monkeypatch):
    """Small populations pay; and the sizes of the programs that run, with their epochs."""
    monkeypatch.setattr(packing, "SAVED", 1)
    monkeypatch.setattr(population_module, "OPERATIONS_A_CALL", 0)
    ran, advance = [], population_module.advance

    def note(plan, axes, most, states, *rest):
        members = len(states.epoch)
        made = advance(plan, axes, most, states, *rest)
        ran.append((members, int(made[-1])))
        return made

    monkeypatch.setattr(population_module, "advance", note)
    return ran


@pytest.mark.parametrize("members", [7, 64, 1000])
@pytest.mark.parametrize("devices", [1, 4])
def test_stopped_members_cost_little(members, devices, monkeypatch):
    """Members that stop evenly between a tenth of the epochs and the last cost 1.15 times their steps at most."""
    monkeypatch.setattr(packing, "SAVED", 1)
    epochs, inside = 1000, np.linspace(100, 1000, devices * members).astype(int)
    steps, cost, done = inside.sum(), 0, 0
    while done < epochs:
        fewest = packing.next_size(len(inside), 1.0, epochs - done, devices)
        at = int(np.sort(inside)[len(inside) - fewest - 1])  # then that many go on
        cost, done = cost + len(inside) * (at - done), at
        if (inside > done).any():
            chosen = packing.choose_members(inside <= done, devices)
            assert set(np.flatnonzero(inside > done)) <= set(chosen) and len(set(chosen)) == len(chosen)
            assert len(chosen) % devices == 0 and len(chosen) <= len(inside)
            inside = inside[chosen]
    assert cost <= (1.15 if members > 7 else 1.25) * steps


def test_a_program_that_would_save_less_than_it_costs_is_not_compiled():
    operations = packing.SAVED / 100
    assert packing.next_size(64, operations, 10) == 46  # 10 members save as much as a program costs
    assert packing.next_size(64, operations, 5) == 32
    assert packing.next_size(64, operations, 1) == 0


def test_members_that_stop_leave_the_program_and_a_killed_sweep_goes_on(programs, tmp_path, monkeypatch):
    many = sweep(**STOPPING)
    sizes = [members for members, _ in programs]
    assert sizes[0] == 4 and sizes[-1] == 1 and (np.diff(sizes) <= 0).all()
    assert many.epochs.tolist() == [2, 2, 1, 6] and many.diverged.tolist() == [False, False, True, False]
    lives, save = 0, PopulationCheckpoints.save

    def save_and_die(self, population):
        save(self, population)
        if population.done in (2, 4) and population.done not in died:
            died.append(population.done)
            raise Killed

    died = []
    monkeypatch.setattr(PopulationCheckpoints, "save", save_and_die)
    while lives < 3:
        lives += 1
        with contextlib.suppress(Killed):
            again = sweep(**STOPPING, checkpoints=tmp_path)
    assert died == [2, 4]
    for name in ("params", "last_params", "history", "scores", "epochs", "best_epoch", "stopped_early"):
        jax.tree.map(np.testing.assert_array_equal, getattr(many, name), getattr(again, name))
    others = {
        "label_smoothing: None, here 0.1": {"label_smoothing": 0.1},
        "at most the sweep's 5": {"epochs": 5},
        "batches are shared": {"shared_order": False},
        "members' patience": {"patience": [1, 1, 1, 8]},
    }
    for what, other in others.items():
        with pytest.raises(ValueError, match=what):
            sweep(**STOPPING | other, checkpoints=tmp_path)
    monkeypatch.setattr(packing, "SAVED", 1e30)
    plain = sweep(**STOPPING)
    assert programs[-1][0] == 4
    for name, column in plain.history.items():
        np.testing.assert_allclose(many.history[name], column, rtol=1e-5, err_msg=name)
    assert tree_error(many.params, plain.params) <= 1e-6 and tree_error(many.last_params, plain.last_params) <= 1e-6


def test_members_with_data_and_batches_of_their_own_leave_too(programs, monkeypatch):
    X, Y = examples(20)
    own = {"data": (X, np.stack([Y, 1 - Y, Y, np.roll(Y, 1)])), "weights": jm.data.folds(jax.random.key(0), 20, 4),
           "shared_order": False, **STOPPING}  # fmt: skip
    many = sweep(**own)
    assert programs[-1][0] == 1
    monkeypatch.setattr(packing, "SAVED", 1e30)
    plain = sweep(**own)
    assert tree_error(many.params, plain.params) <= 1e-6
    np.testing.assert_allclose(many.history["cost"], plain.history["cost"], rtol=1e-5)


def test_fewer_members_than_a_program_holds_go_on(programs):
    """Five of eight run in a program of six: the next smaller one, of five, waits until another one stops."""
    many = sweep(keys=jax.random.split(KEYS[0], 8), hyper={"learning_rate": [0.3] * 5 + [1e9] * 3}, epochs=4)
    assert programs == [(8, 1), *[(6, 1)] * 3] and many.diverged.sum() == 3
    assert np.isfinite(many.history["cost"][:, :5]).all() and len(many.history["cost"]) == 4


def test_an_interrupted_sweep_saves_its_epoch_and_says_how_to_go_on(tmp_path):
    shown = []

    def interrupt(self, done):
        shown.append(done)
        if done == 2:
            signal.raise_signal(signal.SIGINT)
        return due(self, done)

    due = PopulationCheckpoints.is_due
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt, match="epoch 2 of 6 is saved in"):
        patch.setattr(population_module, "OPERATIONS_A_CALL", 0)
        patch.setattr(PopulationCheckpoints, "is_due", interrupt)
        sweep(**STOPPING, checkpoints=tmp_path, checkpoint_every=5)
    assert shown == [1, 2]
    assert tree_error(sweep(**STOPPING, checkpoints=tmp_path).params, sweep(**STOPPING).params) == 0


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "fit").mkdir()
    jm.trees.write_tree(tmp_path / "fit" / "last.safetensors", {"a": 1})
    with pytest.raises(ValueError, match="which holds a run of fit, expected another folder"):
        sweep(checkpoints=tmp_path / "fit")
    (tmp_path / "001").mkdir()
    jm.trees.write_tree(tmp_path / "001" / "last.safetensors", {"a": 1})
    with pytest.raises(ValueError, match="holds no checkpoint of a sweep, expected another folder"):
        sweep(checkpoints=tmp_path)
    with pytest.raises(ValueError, match="which holds a sweep, expected another folder"):
        fit(jm.init(NET, KEYS[0]), examples(20), checkpoints=tmp_path)
