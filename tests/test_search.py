"""`search`: what is drawn, what successive halving keeps, the winner against its own run of `fit`."""

import jax
import numpy as np
import optax
import pytest
import scipy.stats
from internals import check_space, draw_settings, list_grid, rungs
from problems import examples, search, tree_error

import jaxmlp as jm


def net(width):
    return jm.MLP((3, width, 2), "tanh", "softmax", "cross_entropy")


def test_a_distribution_is_its_quantile_function():
    names = check_space({"a": jm.uniform(-1, 3), "b": jm.log_uniform(1e-4, 1), "c": ["x", "y"],
                           "d": scipy.stats.norm(5, 2).ppf})  # fmt: skip
    drawn = draw_settings(names, jax.random.key(1), 2000)
    a, b, d = (np.asarray([s[name] for s in drawn]) for name in "abd")
    assert scipy.stats.kstest(a, scipy.stats.uniform(-1, 4).cdf).pvalue > 0.01
    assert scipy.stats.kstest(b, scipy.stats.loguniform(1e-4, 1).cdf).pvalue > 0.01
    assert scipy.stats.kstest(d, scipy.stats.norm(5, 2).cdf).pvalue > 0.01
    assert abs(sum(s["c"] == "x" for s in drawn) / 2000 - 0.5) < 0.05
    assert abs(np.corrcoef(a, np.log(b))[0, 1]) < 0.1  # each drawn on its own


def test_a_grid_is_all_combinations():
    assert list_grid({"a": [1, 2], "b": ["x", "y", "z"]}) == [{"a": a, "b": b} for a in (1, 2) for b in "xyz"]


def test_rungs_are_those_of_the_paper():
    """r_k = floor(B / (|S_k| ceil(log2 n))), |S_(k+1)| = floor(|S_k| / 2)."""
    assert rungs(64, None, 384) == [(32, 1), (16, 2), (8, 4), (4, 8), (2, 16), (1, 32)]
    assert rungs(12, None, 200) == [(6, 4), (3, 8), (1, 16), (1, 50)]
    assert rungs(1, None, 7) == [(1, 7)] and rungs(64, 5, None) == [(1, 5)]
    for n in range(1, 40):
        sizes = [n, *(kept for kept, _ in rungs(n, None, 1000))]
        spent = sum(size * more for size, (_, more) in zip(sizes, rungs(n, None, 1000), strict=False))
        assert sizes[-1] == 1 and spent <= 1000


def test_successive_halving_keeps_the_better_half_and_the_winner_is_reproduced(x64):
    """Two shapes and three strengths of everything else; rate 1e9 diverges, 1e-6 learns nothing."""
    rates = [1e9, 0.5, 1e-6, 0.2]
    settings = {"penalties": jm.l2((1e-3, 2e-3)), "keep": (1.0, 0.9), "scale": 0.5}  # by layer, for all
    found = search({"learning_rate": rates, "width": [4]}, net, budget=16, **settings)
    assert [s["learning_rate"] for s in found.trials] == rates and found.epochs.tolist() == [2, 6, 2, 6]
    assert np.isinf(found.scores[0]) and found.settings["learning_rate"] in (0.5, 0.2)
    assert found.scores[found.best] == min(found.scores)
    again = found.retrain(progress=False)
    assert tree_error(again.params, found.result.params) <= 1e-4
    np.testing.assert_allclose(again.history["validation_cost"], found.result.history["validation_cost"], rtol=1e-4)
    assert float(jm.cost(net(4), found.result.params, *examples(15, 5))) == pytest.approx(
        found.scores[found.best], rel=1e-4
    )
    lines = str(found).splitlines()
    assert len({len(line) for line in lines}) == 1 and lines[-1].split()[-1] == "inf"


def test_what_is_in_the_space_goes_to_where_it_belongs():
    """Networks, batch sizes, strengths and the optimizer's arguments: each trial is the population's own member."""
    choices = {"width": [4, 5], "l2": [0.0, 0.1], "learning_rate": [0.3], "keep": [(1.0, 0.9)]}
    found = search(choices, net, epochs=3)
    assert len(found.trials) == 4 and found.epochs.tolist() == [3] * 4
    key = jax.random.split(jax.random.key(0))[1]
    for width in (4, 5):
        alone = jm.sweep(
            net(width), examples(20), keys=key, penalties=jm.l2([0.0, 0.1]), hyper={"learning_rate": 0.3},
            keep=[(1.0, 0.9)], optimizer=optax.sgd, epochs=3, batch_size=6, validation=examples(15, 5), progress=False,
        )  # fmt: skip
        of_it = [i for i, s in enumerate(found.trials) if s["width"] == width]
        np.testing.assert_allclose(found.scores[of_it], alone.scores, rtol=1e-5)


def test_a_space_in_which_all_diverges_is_named():
    with pytest.raises(ValueError, match="space has 2 settings here that all diverged"):
        search({"learning_rate": [1e30, 1e31]}, epochs=3)
