"""`sweep`: each member against its own run of `fit`, whatever differs; chunks, shapes, divergence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from internals import population_module
from problems import KEYS, NET, examples, sweep, tree_error

import jaxmlp as jm


def fit(params, data=None, net=NET, **settings):
    """What `problems.sweep` does, for one member."""
    settings = {"hyper": {"learning_rate": 0.3}, "epochs": 5, "batch_size": 6, "optimizer": optax.sgd} | settings
    return problems.fit(params, examples(20) if data is None else data, net, **settings)


def agree(many, alone, i):
    """Member i is what `fit` gave: weights, history, best epoch, and how it ended. Rounding grows with each step."""
    member = many.member(i)
    assert tree_error(member.params, alone.params) <= 1e-4
    assert tree_error(member.last_params, alone.last_params) <= 1e-4
    assert (member.best_epoch, member.stopped_early) == (alone.best_epoch, alone.stopped_early)
    assert set(member.history) == set(alone.history) - {"seconds"}
    for name, column in member.history.items():
        np.testing.assert_allclose(column, alone.history[name], rtol=1e-3, atol=1e-6)


def test_each_member_is_its_own_run_of_fit_and_the_table_says_which_is_best():
    """Key, rate, strengths, dropout, smoothing, noise, average, scale and patience, all different."""
    rates, l2, scale = [0.1, 0.5, 1.0, 2.0], [0.0, 1e-3, 1e-2, 0.1], [1.0, 0.5, 2.0, 1.0]
    keep = [[1.0, 0.9], [1.0, 0.5], [0.8, 1.0], [1.0, 1.0]]
    own = {"label_smoothing": [0.1, 0.2, 0.3, 0.4], "input_noise": [0.1, 0.2, 0.1, 0.3],
           "average": [0.5, 0.9, 0.1, 0.2], "patience": [9, 9, 2, 1]}  # fmt: skip
    held_out = examples(15, seed=5)
    many = sweep(
        hyper={"learning_rate": rates}, penalties=jm.l2(l2), keep=keep, scale=scale, validation=held_out, **own
    )
    assert many.stopped_early.any() and not many.stopped_early.all()
    for i in range(4):
        params = tuple(layer._replace(W=scale[i] * layer.W) for layer in jm.init(NET, KEYS[i]))
        alone = fit(params, key=KEYS[0], hyper={"learning_rate": rates[i]}, penalties=jm.l2(l2[i]), keep=keep[i],
                    validation=held_out, **{name: values[i] for name, values in own.items()})  # fmt: skip
        agree(many, alone, i)
    rows = many.rows()
    assert [row["validation_cost"] for row in rows] == pytest.approx(sorted(many.scores), rel=1e-6)
    assert rows[0]["member"] == many.best == np.argmin(many.scores)
    lines = str(many).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 5 and "stopped at" in str(many)
    assert many.table(2).splitlines()[-1] == "and 2 more"


def test_labels_weights_and_validation_may_be_a_members_own():
    """Cross-validation, on other labels in each fold, with an order of each one's own."""
    X, Y = examples(20)
    W = np.asarray(jm.data.folds(jax.random.key(0), 20, 4))
    labels = np.stack([Y, 1 - Y, Y, np.roll(Y, 1)])
    sizes = np.array([[1.0], [1.0], [1.0], [1e-40]])  # relative to each member's own
    run = partial(sweep, weights=W * sizes, shared_order=False)
    many = run((X, labels), validation=(X, labels, (1 - W) * sizes))
    for i in (0, 3):
        held_out = (X, labels[i], 1 - W[i])
        agree(many, fit(jm.init(NET, KEYS[i]), (X, labels[i]), key=KEYS[i], weights=W[i], validation=held_out), i)
        score = jm.cost(NET, many.member(i).params, X[W[i] == 0], labels[i][W[i] == 0])
        assert many.scores[i] == pytest.approx(float(score), rel=1e-5)
    blind = run((X, np.where(W == 0, 1 - labels, labels)), validation=(X, labels, 1 - W))
    assert tree_error(blind.last_params, many.last_params) <= 1e-6  # what a member is not given counts for nothing


def test_every_example_is_held_out_once():
    W = np.asarray(jm.data.folds(jax.random.key(1), 23, 5))
    assert W.shape == (5, 23) and set(W.ravel()) == {0, 1}
    assert ((1 - W).sum(0) == 1).all() and np.ptp((1 - W).sum(1)) == 1
    assert (np.asarray(jm.data.folds(jax.random.key(2), 23, 5)) != W).any()
    with pytest.raises(ValueError, match="k is 24, expected at most m, which is 23"):
        jm.data.folds(jax.random.key(1), 23, 24)


@pytest.fixture(scope="module")
def plain():
    """Four members that differ in their keys alone."""
    return sweep()


def test_members_in_parts_have_the_same_numbers(plain):
    """Seven, four at once: the second part is filled up."""
    keys = jax.random.split(jax.random.key(7), 7)
    parts = sweep(keys=keys.at[0].set(KEYS[0]).at[1:4].set(KEYS[1:]), members_at_once=4)
    others = sweep(keys=jnp.concatenate([KEYS[:1], keys[4:]]))
    assert parts.params[0].W.shape == (7, 5, 3) and parts.history["cost"].shape == (5, 7)
    for i in range(7):
        alone, at = (plain, i) if i < 4 else (others, i - 3)
        agree(parts, alone.member(at), i)


def test_how_a_population_lies_in_memory_and_how_many_epochs_a_call_takes_do_not_matter(plain, monkeypatch):
    monkeypatch.setattr(population_module, "OPERATIONS_A_CALL", 0)
    monkeypatch.setattr(population_module, "TINY", 0)
    other = sweep()
    for i in range(4):
        agree(other, plain.member(i), i)


def test_a_member_that_diverges_is_marked_and_the_others_go_on(plain):
    many = sweep(hyper={"learning_rate": [0.3, 1e9, 0.3, 0.3]})
    assert many.diverged.tolist() == [False, True, False, False]
    assert np.isinf(many.scores[1]) and many.epochs.tolist() == [5, 1, 5, 5]
    assert tree_error(many.member(1).params, jm.init(NET, KEYS[1])) <= 1e-6
    assert np.isnan(many.history["cost"][1:, 1]).all() and np.isfinite(np.delete(many.history["cost"], 1, 1)).all()
    agree(many, plain.member(3), 3)
    rows = str(many).splitlines()
    assert rows[-1].endswith("diverged") and len(rows) == 5


def test_a_population_ends_when_all_have_stopped():
    many = sweep(hyper={"learning_rate": [1e9, 1e9, 1e9, 1e9]}, epochs=1000)
    assert many.diverged.all() and many.history["cost"].shape == (1, 4)


def test_parameters_may_be_given_stacked_or_once():
    stacked = jax.vmap(lambda key: jm.init(NET, key, biases="small_normal"))(KEYS)
    before = jax.tree.map(np.array, stacked)
    many = sweep(initial=stacked)
    assert tree_error(stacked, before) == 0
    one = jax.tree.map(lambda a: a[1], stacked)
    agree(many, fit(one, key=KEYS[0]), 1)
    agree(sweep(initial=one), many.member(1), 3)


def test_shapes_are_grouped_and_come_back_in_order():
    """Equal to each shape's own population, which shares its program."""
    other = jm.MLP((3, 4, 2), "relu", "softmax", "cross_entropy")
    rates, key = np.linspace(0.1, 0.8, 8), KEYS[2]
    nets = [NET, other, other, NET, NET, other, NET, other]
    many = sweep(net=nets, keys=key, hyper={"learning_rate": rates})
    assert [params[0].W.shape[0] for params in many.params] == [net.sizes[1] for net in nets]
    for net in (NET, other):
        of_it = [i for i in range(8) if nets[i] == net]
        alone = sweep(net=net, keys=key, hyper={"learning_rate": rates[of_it]})
        for at, i in enumerate(of_it):
            agree(many, alone.member(at), i)
    assert set(many.settings) == {"net", "learning_rate"} and "3-4-2 relu" in str(many)
    assert many.net == tuple(nets) and alone.net == other and many.preprocess is None


def test_an_optimizer_for_one_of_the_networks_is_refused_before_any_trains(compilations):
    other = jm.MLP(NET.sizes, "relu", "softmax", "cross_entropy")
    compilations.clear()
    with pytest.raises(ValueError, match=r"kfac is for .*tanh.* expected the one that is trained, .*relu"):
        sweep(net=[NET, other], keys=KEYS[2], optimizer=partial(jm.kfac, NET), hyper={"learning_rate": 0.1})
    assert not any("epoch" in name or "begin" in name for name in compilations)


def test_a_member_that_is_none_is_named(plain):
    with pytest.raises(ValueError, match="member is 4, expected 0 to 3"):
        plain.member(4)
    assert tree_error(plain.member(-1).params, plain.member(3).params) == 0


@pytest.mark.parametrize("keys", [KEYS[:2], jax.random.key(3)])
def test_the_noise_of_a_private_readout_is_each_members_own(keys):
    """It does not cancel in the difference of two members, whether they have keys of their own or one."""
    private = lambda trace, weights, key: jm.private_gradient(trace, 1.0, 50.0, key, 20, weights)
    many = sweep(keys=keys, initial=jm.init(NET, KEYS[0]), batch_size=20, epochs=1, readout=private,
                 hyper={"learning_rate": [1.0, 1.0]})  # fmt: skip
    a, b = many.member(0).params, many.member(1).params
    apart = 20 * np.sqrt(sum(float(((p - q) ** 2).sum()) for p, q in zip(*map(jax.tree.leaves, (a, b)), strict=True)))
    weights = sum(p.size for p in jax.tree.leaves(a))
    assert 0.7 < apart / (50 * np.sqrt(2 * weights)) < 1.3


def test_a_member_whose_validation_is_never_finite_is_last_and_not_stopped_early():
    net = jm.MLP((3, 8, 1))
    X, _ = examples(20)
    far = np.full((3, 3), 1e18, np.float32), np.zeros(3, np.float32)
    many = sweep((X, X[:, 0]), net, validation=far, epochs=2, scale=[0.0, 0.0, 1e3, 1.0], hyper={"learning_rate": 0.0})
    assert np.isfinite(many.scores).tolist() == [True, True, False, True]
    assert not many.stopped_early.any() and many.rows()[-1]["member"] == 2
