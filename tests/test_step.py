"""One step: the weights of its examples, and the gradient that it descends."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from problems import NET, examples, fit, shuffled_batches, tree_error

import jaxmlp as jm


@pytest.mark.parametrize("size", [1, 4, 10])
def test_example_weights_count_at_every_batch_size(params, size):
    """Relative to their mean over all the data: a batch of one counts by its weight, and one of 0 not at all."""
    X, Y = examples()
    w = np.linspace(0, 2, 10, dtype=np.float32)
    loss = lambda p, X, Yw: jnp.mean(jm.backprop(NET, p, X, Yw[0]).losses * Yw[1] / w.mean())
    order = [np.arange(10)] if size == 10 else map(np.asarray, shuffled_batches(jax.random.key(1), 10, size))
    batches = [(X[i], (Y[i], w[i])) for i in order]
    expected = oracles.sgd(params, batches, 0.1, jax.jit(jax.grad(loss)))
    assert tree_error(fit(params, batch_size=size, weights=3 * w).params, expected) <= 1e-5


def test_another_readout_is_descended_with_a_key_of_each_step(params):
    X, Y = examples()
    clipped = lambda trace, weights, key: jm.clipped_gradient(trace, 0.1, weights)
    by_clipping = jax.jit(lambda p, X, Y: jm.clipped_gradient(jm.backprop(NET, p, X, Y), 0.1))
    expected = oracles.sgd(params, [(X, Y)] * 3, 0.1, by_clipping)
    assert tree_error(fit(params, epochs=3, batch_size=10, readout=clipped).params, expected) <= 1e-5
    noise = lambda trace, weights, key: jax.tree.map(
        lambda g: jax.random.normal(key, g.shape), jm.mean_gradient(trace, weights)
    )
    moved = fit(params, epochs=4, batch_size=10, readout=noise, optimizer=optax.sgd(1.0)).params
    steps = oracles.np.asarray(moved[0].b - params[0].b)
    assert 0.8 < np.abs(steps).mean() < 4  # four independent steps of N(0, 1), not four times the same or none


def test_an_augmented_example_is_what_the_network_sees(params):
    """`augment` comes before `preprocess`, with a key for each example and step, and not at validation."""
    X, Y = examples()
    flip = lambda key, x: jnp.where(jax.random.bernoulli(key), x, -x)
    always = lambda key, x: -x
    got = fit(params, augment=always, preprocess=lambda x: x * 2, batch_size=10, validation=(X, Y))
    expected = fit(params, (-2 * X, Y), batch_size=10)
    assert tree_error(got.params, expected.params) <= 1e-6
    doubled = float(jm.cost(NET, got.params, 2 * X, Y))
    assert got.history["validation_cost"][0] == pytest.approx(doubled, rel=1e-5)
    some = fit(params, augment=flip, batch_size=10).params
    assert tree_error(some, expected.params) > 1e-4 and tree_error(some, fit(params, batch_size=10).params) > 1e-4


@pytest.mark.parametrize(
    ("readout", "match"),
    [
        (
            lambda trace, weights, key: {"g": jm.mean_gradient(trace)},
            "readout gives .*, expected the parameters'",
        ),
        (lambda trace, weights, key: jm.mean_gradient(trace)[:1], "readout gives"),
        (lambda trace, weights, key: jm.per_example_gradients(trace), "readout gives"),
        (lambda trace: jm.mean_gradient(trace), "readout fails on a trace, weights and a key"),
    ],
)
@pytest.mark.parametrize("more", [{}, {"penalties": jm.l2(1e-4)}, {"monitor": True}])
def test_a_readout_of_another_structure_is_named(params, readout, match, more):
    with pytest.raises(ValueError, match=match):
        fit(params, readout=readout, **more)


@pytest.mark.parametrize("settings", [{"sampling": "poisson"}, {"batch_size": 3}])
def test_a_readout_that_counts_what_fills_up_a_batch_is_refused(params, settings):
    settings = {"batch_size": 5} | settings
    with pytest.raises(ValueError, match="readout depends on an example of weight 0, which only fills up a batch"):
        fit(params, readout=lambda trace, weights, key: jm.clipped_gradient(trace, 1.0), **settings)
    fit(params, readout=lambda trace, weights, key: jm.clipped_gradient(trace, 1.0, weights), **settings)
