"""`cross_validate`: each fold against the sweep and the scores that its weights ask for."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from internals import summarize_folds
from problems import NET, examples

import jaxmlp as jm

X, Y = examples(20)
GIVEN = {"key": jax.random.key(0), "optimizer": optax.sgd, "hyper": {"learning_rate": 0.3}, "epochs": 4,
         "batch_size": 6, "progress": False}  # fmt: skip


def cross_validate(net=NET, data=(X, Y), folds=2, **settings):
    return jm.cross_validate(net, data, folds, **GIVEN | settings)


@pytest.fixture(scope="module")
def found():
    """Two folds, twice, of weighted examples, whose inputs are halved."""
    return cross_validate(repeats=2, weights=np.linspace(0.5, 1.5, 20), preprocess=lambda x: x / 2)


def test_each_member_is_scored_on_the_examples_that_it_does_not_see(found):
    """The last weights of each member give its last scores on the fold that its weights leave out."""
    fold_key, _ = jax.random.split(GIVEN["key"])
    W = np.concatenate([np.asarray(jm.data.folds(key, 20, 2)) for key in jax.random.split(fold_key, 2)])
    assert ((1 - W[:2]).sum(0) == 1).all() and (W[:2] != W[2:]).any()
    own = np.linspace(0.5, 1.5, 20)
    for i in range(4):
        Y_hat = np.asarray(jm.predict(NET, found.many.member(i).last_params, X / 2), np.float64)
        losses, right = -np.log(Y_hat[np.arange(20), Y]), Y_hat.argmax(1) == Y
        held_out = own * (1 - W[i])
        history = {name: column[-1, i] for name, column in found.many.history.items() if column.ndim == 2}
        assert history["validation_cost"] == pytest.approx(np.average(losses, weights=held_out), rel=1e-5)
        assert history["validation_accuracy"] == pytest.approx(np.average(right, weights=held_out), rel=1e-5)
    assert found.many.preprocess is not None and found.many.net == NET


def test_one_epoch_is_chosen_for_all_members_by_the_mean_of_their_scores(found):
    column = np.asarray(found.many.history["validation_cost"], np.float64)
    at = int(column.mean(1).argmin())
    assert found.epochs == at + 1
    np.testing.assert_allclose(found.scores["validation_cost"], column[at])
    assert found.mean["validation_cost"] == pytest.approx(column[at].mean())
    apart = column[at] - column[at].mean()
    assert found.deviation["validation_cost"] == pytest.approx(np.sqrt((apart**2).sum() / 3))
    lines = str(found).splitlines()
    assert len(lines) == 7 and lines[0].split()[:2] == ["repeat", "fold"] and lines[-2].split()[0] == "mean"
    assert repr(found).startswith("CrossValidation(4 members, ") and "validation_accuracy" in repr(found)


def test_a_choice_by_accuracy_a_fold_that_diverged_and_all_of_them(found):
    """The scores of a sweep's result, whatever trained it."""
    n = found.many.history["validation_accuracy"].shape[0]
    accuracy = np.tile(np.linspace(0.1, 0.4, n)[::-1, None], 4)
    accuracy[1] = 0.9
    accuracy[2, 0] = np.nan  # a member ended
    many = changed(found.many, {"validation_accuracy": accuracy}, np.zeros(4, bool))
    assert summarize_folds(many, 2, "accuracy").epochs == 2
    some = summarize_folds(changed(many, {}, np.arange(4) == 3), 2, "accuracy")
    assert some.epochs == 2 and np.isnan(some.scores["cost"]).tolist() == [False, False, False, True]
    assert np.isnan(some.mean["cost"]) and "nan" in str(some)
    with pytest.raises(ValueError, match="no epoch gives the held-out examples a finite cost: 4 of 4 members diverged"):
        summarize_folds(changed(many, {}, np.ones(4, bool)), 2, "cost")


def changed(many, columns, diverged):
    return replace(many, history=many.history | columns, diverged=diverged)


@pytest.mark.wrong_arguments
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 1}, "folds is 1, expected at least 2"),
        ({"folds": 21}, "folds is 21, expected at most one for each of the 20 examples"),
        ({"folds": 2.5}, "folds is 2.5, expected a whole number"),
        ({"repeats": 0}, "repeats is 0, expected at least 1"),
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"net": [NET, NET]}, "net is .*, expected an MLP: one network, which all folds train"),
        ({"data": X}, r"data is a ndarray, expected a tuple \(X, Y\)"),
        ({"data": (X, Y[:5])}, r"Y has shape \(5,\), expected \(20, 2\) or \(20,\)"),
        ({"data": (X[:, :2], Y)}, "X has 2 features, the network takes 3"),
        ({"key": 3}, "key is 3, expected one key such as"),
        ({"weights": np.ones(3)}, r"weights has shape \(3,\), expected one weight for each of the 20 examples"),
        ({"weights": -np.ones(20)}, "weights holds values from -1 to -1, expected none below 0"),
        ({"hyper": {"learning_rate": [0.1, 0.2]}}, r"hyper\['learning_rate'\] has shape \(2,\), expected a number"),
        ({"keep": (0.5, 2.0)}, "keep is .*, expected finite numbers above 0 and at most 1"),
        ({"keep": np.ones((2, 2))}, r"keep has shape \(2, 2\), expected"),
        ({"validation": (X, Y)}, "validation is given, but cross_validate makes the validation sets itself"),
        ({"keys": GIVEN["key"]}, "keys is given, but cross_validate draws them by key; expected none"),
        ({"batch_sise": 3}, "a further argument of cross_validate is 'batch_sise', .*; did you mean 'batch_size'"),
        ({"patience": 0}, "patience is 0, expected a whole number of at least 1"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        cross_validate(**settings)
