"""The pure epoch: its history, its validation, its memory, and a population as its `vmap`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from internals import Data, Plan, epoch, epoch_module, start
from problems import NET, examples, fit, gradient, shuffled_batches, tree_error

import jaxmlp as jm


def test_the_history_is_the_mean_over_the_examples_as_they_were_met(params):
    X, Y = map(jnp.asarray, examples())
    batches = [(X[i], Y[i]) for i in shuffled_batches(jax.random.key(1), 10, 4)]
    p, costs, right = params, [], []
    for Xb, Yb in batches:
        costs += jm.backprop(NET, p, Xb, Yb).losses.tolist()
        right += (jm.predict(NET, p, Xb).argmax(1) == Yb).tolist()
        p = oracles.sgd(p, [(Xb, Yb)], 0.1, gradient)
    history = fit(params, batch_size=4).history
    assert list(history) == ["epoch", "cost", "accuracy", "seconds"]
    assert history["cost"][0] == pytest.approx(np.mean(costs), rel=1e-5)
    assert history["accuracy"][0] == pytest.approx(np.mean(right))


def test_a_validation_set_larger_than_one_chunk_is_scored_whole(params, monkeypatch):
    monkeypatch.setattr(epoch_module, "EVALUATED_AT_ONCE", 8)
    X_dev, Y_dev = examples(21, seed=5)
    result = fit(params, validation=(X_dev, Y_dev), optimizer=optax.sgd(0.123))
    expected = float(jm.cost(NET, result.last_params, X_dev, Y_dev))
    assert result.history["validation_cost"][0] == pytest.approx(expected, rel=1e-5)


def test_pictures_stay_bytes_on_the_device_and_in_the_loop(params):
    """The program's arguments hold the bytes; float pictures of the whole set appear nowhere in it."""
    net = jm.MLP((16, 4, 2), output="softmax", loss="cross_entropy")
    plan = Plan(net, optax.sgd(0.1), 8, 8, preprocess=jm.data.scale_pixels)
    X = jnp.asarray(np.random.default_rng(0).integers(0, 256, (64, 4, 4)), jnp.uint8)
    given = Data(X, jnp.zeros(64, jnp.int32))
    state = start(plan, jm.init(net, jax.random.key(0)), given, jax.random.key(1))
    text = jax.jit(epoch, static_argnums=0).lower(plan, state, given).as_text()
    assert "tensor<64x4x4xui8>" in text
    assert "tensor<64x4x4xf32>" not in text and "tensor<64x16xf32>" not in text
    scaled = jm.fit(net, state.params, (X, given.Y), optimizer=optax.sgd(0.1), epochs=1, batch_size=8,
                    key=jax.random.key(1), preprocess=jm.data.scale_pixels, progress=False)  # fmt: skip
    floats = jax.vmap(jm.data.scale_pixels)(X)
    plain = jm.fit(net, state.params, (floats, given.Y), optimizer=optax.sgd(0.1), epochs=1, batch_size=8,
                   key=jax.random.key(1), progress=False)  # fmt: skip
    assert tree_error(scaled.params, plain.params) <= 1e-6


def test_a_population_is_a_vmap_of_the_epoch(params):
    """What `fit` does alone, many states do at once; a stopped one does not change."""
    plan = Plan(NET, optax.sgd, 3, 4, accuracy=True)
    given = Data(*map(jnp.asarray, examples()))
    hyper = {"learning_rate": jnp.asarray([0.1, 0.2, jnp.inf])}
    keys = jax.random.split(jax.random.key(3), 3)
    states = jax.jit(jax.vmap(lambda key, h: start(plan, params, given, key, h)))(keys, hyper)
    states = states._replace(stopped=jnp.asarray([False, True, False]))
    after, metrics = jax.jit(jax.vmap(lambda s: epoch(plan, s, given)))(states)
    alone = fit(params, optimizer=optax.sgd(0.1), key=keys[0], batch_size=3)
    member = lambda i: jax.tree.map(lambda a: np.asarray(a)[i], after.params)
    assert tree_error(member(0), alone.params) <= 1e-5
    assert float(metrics["cost"][0]) == pytest.approx(alone.history["cost"][0], rel=1e-5)
    assert tree_error(member(1), params) == 0 and not bool(after.diverged[1])
    assert tree_error(member(2), params) == 0 and bool(after.diverged[2])
