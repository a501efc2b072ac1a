"""`search`: what is drawn, what successive halving keeps, the winner against its own run of `fit`, bad input."""

import importlib
from functools import partial

import jax
import numpy as np
import optax
import pytest
import scipy.stats
from problems import tree_error

import jaxmlp as jm
from jaxmlp.training import search_space as space

door = importlib.import_module("jaxmlp.training._search")  # the function has its name


@pytest.fixture(scope="module", autouse=True)
def quickly_compiled():
    """What a test runs is over in milliseconds; to compile it for speed would take most of its time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def data(m=20, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(m, 3)).astype(np.float32)
    return X, (X[:, 0] + 0.5 * X[:, 1] > 0).astype(np.int32)


def net(width=5):
    return jm.MLP((3, width, 2), "tanh", "softmax", "cross_entropy")


def search(space, made=None, **settings):
    settings = {"key": jax.random.key(0), "optimizer": optax.sgd, "validation": data(15, 5), "batch_size": 6,
                "progress": False} | settings  # fmt: skip
    return jm.search(space, net() if made is None else made, data(), **settings)


def test_a_distribution_is_its_quantile_function():
    names = space.checked({"a": jm.uniform(-1, 3), "b": jm.log_uniform(1e-4, 1), "c": ["x", "y"],
                           "d": scipy.stats.norm(5, 2).ppf})  # fmt: skip
    drawn = space.drawn(names, jax.random.key(1), 2000)
    a, b, d = (np.asarray([s[name] for s in drawn]) for name in "abd")
    assert scipy.stats.kstest(a, scipy.stats.uniform(-1, 4).cdf).pvalue > 0.01
    assert scipy.stats.kstest(b, scipy.stats.loguniform(1e-4, 1).cdf).pvalue > 0.01
    assert scipy.stats.kstest(d, scipy.stats.norm(5, 2).cdf).pvalue > 0.01
    assert abs(sum(s["c"] == "x" for s in drawn) / 2000 - 0.5) < 0.05
    assert abs(np.corrcoef(a, np.log(b))[0, 1]) < 0.1  # each drawn on its own


def test_a_grid_is_all_combinations():
    assert space.grid({"a": [1, 2], "b": ["x", "y", "z"]}) == [{"a": a, "b": b} for a in (1, 2) for b in "xyz"]


def test_rungs_are_those_of_the_paper():
    """r_k = floor(B / (|S_k| ceil(log2 n))), |S_(k+1)| = floor(|S_k| / 2)."""
    assert door._rungs(64, None, 384) == [(32, 1), (16, 2), (8, 4), (4, 8), (2, 16), (1, 32)]
    assert door._rungs(12, None, 200) == [(6, 4), (3, 8), (1, 16), (1, 50)]
    assert door._rungs(1, None, 7) == [(1, 7)] and door._rungs(64, 5, None) == [(1, 5)]
    for n in range(1, 40):
        sizes = [n, *(kept for kept, _ in door._rungs(n, None, 1000))]
        spent = sum(size * more for size, (_, more) in zip(sizes, door._rungs(n, None, 1000), strict=False))
        assert sizes[-1] == 1 and spent <= 1000


def test_successive_halving_keeps_the_better_half_and_the_winner_is_reproduced():
    """Two shapes and three strengths of everything else; rate 1e9 diverges, 1e-6 learns nothing."""
    rates = [1e9, 0.5, 1e-6, 0.2]
    found = search({"learning_rate": rates, "width": [4]}, net, budget=16, penalties=jm.l2(1e-3), scale=0.5)
    assert [s["learning_rate"] for s in found.trials] == rates and found.epochs.tolist() == [2, 6, 2, 6]
    assert np.isinf(found.scores[0]) and found.settings["learning_rate"] in (0.5, 0.2)
    assert found.scores[found.best] == min(found.scores)
    again = found.retrain(progress=False)
    assert tree_error(again.params, found.result.params) <= 1e-4
    np.testing.assert_allclose(again.history["validation_cost"], found.result.history["validation_cost"], rtol=1e-4)
    assert float(jm.cost(net(4), found.result.params, *data(15, 5))) == pytest.approx(
        found.scores[found.best], rel=1e-4
    )
    lines = str(found).splitlines()
    assert len({len(line) for line in lines}) == 1 and lines[-1].split()[-1] == "inf"


def test_what_is_in_the_space_goes_to_where_it_belongs():
    """Networks, batch sizes, strengths and the optimiser's arguments: each trial is the population's own member."""
    choices = {"width": [4, 5], "l2": [0.0, 0.1], "learning_rate": [0.3]}
    found = search(choices, net, epochs=3)
    assert len(found.trials) == 4 and found.epochs.tolist() == [3] * 4
    key = jax.random.split(jax.random.key(0))[1]
    for width in (4, 5):
        alone = jm.sweep(
            net(width), data(), keys=key, penalties=jm.l2([0.0, 0.1]), hyper={"learning_rate": 0.3},
            optimizer=optax.sgd, epochs=3, batch_size=6, validation=data(15, 5), progress=False,
        )  # fmt: skip
        of_it = [i for i, s in enumerate(found.trials) if s["width"] == width]
        np.testing.assert_allclose(found.scores[of_it], alone.scores, rtol=1e-5)


RATES = {"learning_rate": [0.1, 0.2]}


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (partial(search, RATES), r"epochs is None and budget is None, expected one of them"),
        (partial(search, RATES, epochs=1, budget=2), r"epochs is 1 and budget is 2"),
        (partial(search, RATES, budget=1), r"budget is 1 epochs, expected at least 2: 2 settings in 1 rungs"),
        (partial(search, {}, epochs=1), r"space is \{\}, expected a dict"),
        (partial(search, {"learning_rate": 0.1}, epochs=1), r"space\['learning_rate'\] is 0.1, expected a list"),
        (
            partial(search, {"learning_rate": jm.uniform(0, 1)}, epochs=1),
            r"is a distribution, expected a list for a grid",
        ),
        (partial(search, RATES, epochs=1, trials=0), r"trials is 0, expected at least 1"),
        (partial(search, RATES | {"nope": [1]}, epochs=1), r"a name of space is 'nope', expected one of"),
        (partial(search, RATES, epochs=1, patient=3), r"argument of search is 'patient', .*did you mean 'patience'"),
        (
            partial(search, RATES, epochs=1, optimizer=optax.sgd(0.1)),
            r"space has 'learning_rate', but optimizer is made already: expected a factory",
        ),
        (
            partial(search, {"learning_rat": [0.1]}, epochs=1),
            r"a name of space is 'learning_rat', expected one of .*did you mean 'learning_rate'",
        ),
        (partial(search, RATES, epochs=1, hyper={"learning_rate": 1}), r"learning_rate is given and in the space"),
        (partial(search, {"l2": [0.1]}, epochs=1, penalties=jm.l1(1.0)), r"penalties are given and l2 is in the space"),
        (partial(search, {"width": [0]}, net, epochs=1), r"sizes\[1\] is 0, expected at least 1"),
        (partial(search, RATES, lambda: 3, epochs=1), r"net makes a int of \{\}, expected an MLP"),
        (partial(search, RATES, "net", epochs=1), r"net is 'net', expected an MLP, or a function that makes one"),
        (partial(jm.uniform, 2, 1), r"low is 2 and high 1, expected low below high"),
        (partial(jm.log_uniform, 0, 1), r"low is 0, expected a number above 0"),
    ],
)
def test_bad_input_is_named(run, message):
    with pytest.raises(ValueError, match=message):
        run()


def test_a_space_in_which_all_diverges_is_named():
    with pytest.raises(ValueError, match="space has 2 settings here that all diverged"):
        search({"learning_rate": [1e30, 1e31]}, epochs=3)
