"""Private runs: their epsilon is that of two other accountants, and nothing in `fit` lets an example count more."""

import accountants
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import NET, examples, fit, tree_error

import jaxmlp as jm
from experiments import private

RUNS = ((0.01, 1.1, 1500, 1e-5), (0.1, 2.0, 300, 1e-6), (1.0, 3.0, 10, 1e-5))


def test_the_accountants_agree_with_each_other_where_formulas_are_exact():
    """Renyi's divergence by binomials and by an integral; delta by Fourier transform, by an integral, by a formula."""
    for q, s, order in ((0.01, 1.1, 2), (0.01, 1.1, 32), (0.2, 0.7, 7), (1.0, 2.0, 5)):
        exact = accountants.renyi_by_binomials(q, s, order)
        np.testing.assert_allclose(accountants.renyi_by_quadrature(q, s, order), exact, rtol=1e-7)
    one = accountants.PrivacyLoss(0.2, 1.1, 1)
    ten = accountants.PrivacyLoss(1.0, 3.0, 10)
    for epsilon in (0.1, 0.5, 1.0):
        np.testing.assert_allclose(one.delta(epsilon), accountants.delta_by_quadrature(0.2, 1.1, epsilon), rtol=1e-5)
        np.testing.assert_allclose(ten.delta(epsilon), accountants.delta_of_gaussians(3.0, 10, epsilon), rtol=1e-5)


@pytest.mark.parametrize(("q", "s", "steps", "delta"), RUNS)
def test_the_epsilon_of_a_private_run_is_that_of_two_other_accountants(q, s, steps, delta):
    """To 1e-4 that of Renyi's divergence; above the least epsilon there is, by Fourier transform, by at most 15%."""
    got = private.epsilon(s, q, steps, delta)
    renyi = {order: accountants.renyi_by_quadrature(q, s, order) for order in accountants.ORDERS}
    np.testing.assert_allclose(got, accountants.epsilon_by_renyi(renyi, steps, delta), rtol=1e-4)
    whole = {order: accountants.renyi_by_binomials(q, s, order) for order in range(2, 65)}
    assert got * (1 - 1e-9) <= accountants.epsilon_by_renyi(whole, steps, delta) <= 1.02 * got
    least = accountants.PrivacyLoss(q, s, steps).epsilon(delta)
    assert least <= got <= 1.15 * least


def noiseless(trace, weights, key):
    return jm.private_gradient(trace, 0.5, 0.0, key, 4, weights)


def noise(trace, weights, key):
    """What a readout draws, alone."""
    keys = jax.random.split(key, 4)
    shapes = [(o, i) for o, i in NET.shapes]
    made = tuple(jm.Layer(jax.random.normal(keys[2 * l], (o, i)), jax.random.normal(keys[2 * l + 1], (o,)))
                 for l, (o, i) in enumerate(shapes))  # fmt: skip
    return jax.tree.map(lambda n: n + 0 * trace.losses.sum(), made)


def augment(key, x):
    return x * jax.random.uniform(key, (), x.dtype, 0.5, 1.0)


def test_one_example_moves_a_step_by_its_bound_whatever_the_settings_are(params):
    """The settings act on single examples before clipping, or on weights afterwards: none looks at other examples.

    An example in place of another moves the sum by at most twice max_norm.
    """
    everything = dict(
        optimizer=optax.sgd(1.0), batch_size=10, keep=0.8, input_noise=0.1, label_smoothing=0.1, average=0.9,
        penalties=(jm.l2(0.1), jm.l1(0.01)), augment=augment, preprocess=jnp.tanh, readout=noiseless,
        validation=examples(5, seed=1), rule=jm.rules.kolen_pollack(),
    )  # fmt: skip
    X, Y = examples(10)
    first, lengths = fit(params, (X, Y), **everything), []
    for number, size in ((0, 1e4), (3, -1.0), (9, 1e20)):
        other, labels = X.copy(), Y.copy()
        other[number] *= np.float32(size)
        labels[number] = 1 - labels[number]
        second = fit(params, (other, labels), **everything)
        apart = jax.tree.map(np.subtract, *jax.device_get((first.last_params, second.last_params)))
        lengths.append(np.sqrt(sum(np.sum(np.square(a, dtype=np.float64)) for a in jax.tree.leaves(apart))))
    assert 0.02 < max(lengths) <= 2 * 0.5 / 4 * (1 + 1e-5)


REFUSED = {
    "weights": ({"weights": np.ones(10)}, "weights are given, expected none with"),
    "class_weights": ({"class_weights": [1, 2]}, "weights are given, expected none with"),
    "weights of a stream": ({"data": [(*examples(), np.ones(10))], "batch_size": None}, "batch 0 has weights"),
    "padding": ({"batch_size": 4, "readout": lambda t, w, k: jm.private_gradient(t, 1.0, 1.0, k, 4)},
                "readout depends on an example of weight 0"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_would_weaken_a_private_run_is_refused(params, options, message):
    with pytest.raises(ValueError, match=message):
        fit(params, **{"readout": noiseless} | options)


def test_a_stream_on_a_mesh_fills_its_batches_with_examples_that_a_readout_must_not_count(params):
    mesh, batches = jax.make_mesh((2,), ("data",)), [examples(9)]
    settings = dict(data=batches, batch_size=None, epochs=1, mesh=mesh)
    with pytest.raises(ValueError, match="readout depends on an example of weight 0"):
        fit(params, **settings, readout=lambda t, w, k: jm.private_gradient(t, 0.5, 0.0, k, 4))
    got = fit(params, **settings, readout=noiseless)
    assert tree_error(got.params, fit(params, examples(9), readout=noiseless).params) <= 1e-4


def drawn(readout=noise):
    """A readout, and the list of the first numbers that it draws."""
    seen = []

    def read(trace, weights, key):
        made = readout(trace, weights, key)
        jax.debug.callback(lambda n: seen.append(float(n)), made[0].W[0, 0])
        return made

    return read, seen


def test_no_two_steps_or_members_or_settings_draw_the_same_noise(params):
    """A member of a sweep, of a search, and a step of a run that has dropout and coins as well."""
    read, seen = drawn()
    fit(params, sampling="poisson", batch_size=2, epochs=4, keep=0.9, input_noise=0.1, readout=read)
    jax.effects_barrier()
    assert len(set(seen)) == len(seen) - 1 == 21  # the first two look whether the readout weighs its examples
    sweep = lambda readout, **options: jm.sweep(NET, examples(10), optimizer=optax.sgd(0.1), epochs=2, batch_size=5,
                                                readout=readout, progress=False, **options)  # fmt: skip
    key, keys = jax.random.key(0), jax.random.split(jax.random.key(0), 3)
    for options in ({"keys": keys}, {"keys": jnp.stack([key] * 3)}, {"keys": keys, "shared_order": False}):
        read, seen = drawn()
        sweep(read, **options)
        jax.effects_barrier()
        assert len(seen) >= 12 and len(set(seen[-12:])) == 12
    with pytest.raises(ValueError, match="keys holds a key twice, expected one for each member with a readout"):
        sweep(noise, keys=jnp.stack([key] * 3), shared_order=False)


def test_settings_of_a_search_that_train_apart_draw_their_own_noise():
    read, seen = drawn()
    jm.search({"initial": ["he", "lecun"]}, NET, examples(10), validation=examples(5), optimizer=optax.sgd(0.1),
              epochs=1, key=jax.random.key(0), readout=read, progress=False)  # fmt: skip
    jax.effects_barrier()
    assert len(seen) >= 2 and seen[-1] != seen[-2]


def test_a_private_run_that_is_killed_goes_on_with_the_same_noise(params, tmp_path):
    """To the same bits: whoever has seen the weights on the way learns nothing more."""
    read = lambda trace, weights, key: jm.private_gradient(trace, 0.5, 1.0, key, 4, weights)
    settings = dict(sampling="poisson", batch_size=4, readout=read)
    run = lambda epochs, **options: fit(params, epochs=epochs, **settings, **options)
    run(2, checkpoints=tmp_path)
    assert tree_error(run(4, checkpoints=tmp_path).last_params, run(4).last_params) == 0
