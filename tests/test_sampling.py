"""Which examples a step sees: every one once an epoch, drawn with replacement, by coins, or share by share."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from internals import Data, Plan, draw, gather, permute
from problems import NET, SGD, examples, fit, gradient, shuffled_batches, tree_error

import jaxmlp as jm


@pytest.mark.parametrize("size", [1, 3, 4, 5])
def test_an_epoch_takes_every_example_once_the_ragged_last_batch_included(params, size):
    """Size 1 is the per-example rule; 3 and 4 leave a last batch of 1 and 2, which counts as its own mean."""
    X, Y = map(jnp.asarray, examples())
    batches = shuffled_batches(jax.random.key(1), 10, size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(10))
    expected = oracles.sgd(params, [(X[i], Y[i]) for i in batches], 0.1, gradient)
    assert tree_error(fit(params, batch_size=size).params, expected) <= 1e-6


def test_replacement_draws_some_examples_twice_and_follows_the_draws(params):
    X, Y = map(jnp.asarray, examples())
    drawn = jax.random.randint(jax.random.split(jax.random.split(jax.random.key(1))[0])[1], (12, 1), 0, 10)
    assert len(set(drawn.ravel().tolist())) < 10
    expected = oracles.sgd(params, [(X[i], Y[i]) for i in drawn], 0.1, gradient)
    got = fit(params, epochs=None, steps=12, validate_every=12, sampling="replacement")
    assert tree_error(got.last_params, expected) <= 1e-6


def test_poisson_sampling_takes_each_example_with_its_own_coin(params):
    """The sizes of the batches are binomial, padding has weight 0, and the steps follow the draws."""
    seen = []

    def readout(trace, weights, key):
        jax.debug.callback(lambda w: seen.append(np.asarray(w)), weights)
        return jm.mean_gradient(trace, weights)

    fit(params, examples(400), sampling="poisson", batch_size=20, epochs=30, readout=readout)
    jax.effects_barrier()
    seen = seen[2:]  # the first two look whether the readout weighs its examples
    sizes = np.asarray([w.sum() for w in seen])
    assert len(sizes) == 30 * 20 and len({w.shape for w in seen}) == 1
    assert abs(sizes.mean() - 20) < 5 * (20 * 0.95 / 600) ** 0.5
    assert abs(sizes.var() / (20 * 0.95) - 1) < 0.3
    assert set(np.unique(np.concatenate(seen))) == {0, 1}


def test_shares_are_shuffled_each_by_itself():
    """A batch has as many examples of each share, every example comes once an epoch."""
    X = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None], (24, 3))
    plan = Plan(NET, SGD, batch_size=8, steps=3, shares=4)
    data = Data(jnp.asarray(X), jnp.zeros(24, jnp.int32))
    drawn = jax.jit(lambda key: draw(plan, data, key, random=False))(jax.random.key(0))
    batches = jax.jit(jax.vmap(lambda one: gather(plan, data, one).X[:, 0]))(drawn)
    seen = np.asarray(batches).astype(int)
    assert sorted(seen.ravel()) == list(range(24))
    orders = [seen[seen // 6 == share] % 6 for share in range(4)]
    assert len({tuple(order) for order in [*orders, range(6)]}) == 5
    assert (np.sort(seen // 6, axis=1) == np.repeat(np.arange(4), 2)).all()


@pytest.mark.parametrize("m", [1, 2, 3, 1625, 1626, 5000])
def test_the_order_is_jaxs_own(m):
    """On both sides of where one round of sorting no longer does; for keys one by one and many at once."""
    keys = jax.random.split(jax.random.key(0), 3)
    own = jax.jit(jax.vmap(lambda key: permute(key, m)))(keys)
    expected = np.asarray([jax.random.permutation(key, m) for key in keys])
    np.testing.assert_array_equal(own, expected)
    assert own.dtype == jnp.int32
