"""`fit`: the optimizer's steps, the weights that it keeps, and how a run ends."""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from problems import NET, examples, fit, gradient, sweep, tree_error

import jaxmlp as jm

# optax's own schedules promote their step count
loose = jax.numpy_dtype_promotion("standard")


def test_the_full_batch_is_one_step_of_the_mean_gradient(params):
    expected = oracles.sgd(params, [examples()] * 3, 0.1, gradient)
    assert tree_error(fit(params, epochs=3, batch_size=10).params, expected) <= 1e-6


def test_the_same_key_gives_the_same_bits_and_another_key_another_order(params):
    first, second = (fit(given, batch_size=3, epochs=3) for given in (params, list(params)))
    other = fit(params, batch_size=3, epochs=3, key=jax.random.key(2))
    assert tree_error(first.params, second.params) == 0
    assert tree_error(first.params, other.params) > 1e-4


def test_nothing_the_caller_passed_is_donated(params):
    X, Y = map(jnp.asarray, examples())
    before = jax.tree.map(np.array, params)
    fit(params, (X, Y), validation=(X, Y), epochs=2, hyper={"learning_rate": jnp.asarray(0.1)}, optimizer=optax.sgd)
    assert tree_error(params, before) == 0
    assert X.sum() is not None and Y.sum() is not None  # a donated array would raise


def test_another_rate_or_key_does_not_compile_again(params, compilations):
    run = partial(fit, params, optimizer=optax.sgd, batch_size=3, epochs=2)
    run(hyper={"learning_rate": 0.1})
    run(hyper={"learning_rate": 1}, epochs=5)
    compilations.clear()
    other = run(hyper={"learning_rate": 0.3}, key=jax.random.key(9))
    run(hyper={"learning_rate": 2}, epochs=4)
    assert compilations == []
    run(hyper={"learning_rate": 0.3}, batch_size=4)
    assert "jit(epoch)" in compilations and "jit(begin)" not in compilations  # which knows no batch
    expected = fit(params, optimizer=optax.sgd(0.3), key=jax.random.key(9), batch_size=3, epochs=2)
    assert tree_error(other.params, expected.params) <= 1e-4  # rounding: one rate is a constant there


@loose
def test_any_optax_optimizer_with_its_schedule_and_state(params):
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.01, 3, 12)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    got = fit(params, optimizer=optimizer, batch_size=5, epochs=6).params
    X, Y = examples()

    @jax.jit
    def step(p, state, X, Y):
        updates, state = optimizer.update(gradient(p, X, Y), state, p)
        return optax.apply_updates(p, updates), state

    p, state, key = params, jax.jit(optimizer.init)(params), jax.random.split(jax.random.key(1))[0]
    for _ in range(6):
        key, epoch_key = jax.random.split(key)
        order = np.asarray(jax.random.permutation(epoch_key, 10))
        for i in (order[:5], order[5:]):
            p, state = step(p, state, X[i], Y[i])
    assert tree_error(got, p) <= 1e-5


def test_an_optimizer_that_asks_for_the_value(params):
    assert fit(params, optimizer=optax.polyak_sgd(0.5), epochs=5, batch_size=10).history["cost"][-1] < 0.69


def test_best_on_validation_is_kept_not_the_last(params):
    """A rate so large that the validation cost rises again."""
    X_dev, Y_dev = examples(20, seed=5)
    result = fit(params, optimizer=optax.sgd(5.0), batch_size=2, epochs=12, validation=(X_dev, Y_dev))
    scores = result.history["validation_cost"]
    assert result.best_epoch == int(np.argmin(scores)) + 1 < 12
    assert repr(result).startswith(f"Result(epoch={len(scores)}, cost=") and f"best_epoch={result.best_epoch}" in repr(
        result
    )
    assert float(jm.cost(NET, result.params, X_dev, Y_dev)) == pytest.approx(scores.min(), rel=1e-5)
    assert float(jm.cost(NET, result.last_params, X_dev, Y_dev)) == pytest.approx(scores[-1], rel=1e-5)
    by_accuracy = fit(params, optimizer=optax.sgd(5.0), batch_size=2, epochs=12, validation=(X_dev, Y_dev),
                      best_by="accuracy")  # fmt: skip
    assert by_accuracy.best_epoch == int(np.argmax(by_accuracy.history["validation_accuracy"])) + 1


def test_patience_ends_the_run(params):
    X_dev, Y_dev = examples(20, seed=5)
    run = partial(fit, params, optimizer=optax.sgd(5.0), batch_size=2, validation=(X_dev, Y_dev), epochs=60)
    result = run(patience=3)
    assert result.stopped_early
    assert len(result.history["epoch"]) == result.best_epoch + 3
    assert not run(patience=60).stopped_early


@loose
def test_steps_with_replacement_return_the_best_not_the_last(params):
    """Row 23 of the notes' systems: T steps, each on one example drawn with replacement, step sizes eta_1..eta_T."""
    X_dev, Y_dev = examples(20, seed=5)
    etas = optax.piecewise_constant_schedule(3.0, {10: 2.0})
    result = fit(params, epochs=None, steps=35, validate_every=10, sampling="replacement", optimizer=optax.sgd(etas),
                 validation=(X_dev, Y_dev))  # fmt: skip
    assert result.history["step"].tolist() == [10, 20, 30, 35]
    scores = result.history["validation_cost"]
    assert float(jm.cost(NET, result.params, X_dev, Y_dev)) == pytest.approx(scores.min(), rel=1e-5)
    assert result.best_epoch == int(np.argmin(scores)) + 1


def test_divergence_is_an_error_that_carries_the_last_good_weights():
    net = jm.MLP((3, 4, 1), hidden="relu")
    X, _ = examples()
    start = jm.init(net, jax.random.key(0))
    with pytest.raises(jm.DivergedError, match=r"training diverged in epoch \d+: cost .* a smaller learning rate") as e:
        jm.fit(net, start, (X, X[:, :1]), optimizer=optax.sgd(3.0), epochs=50, key=jax.random.key(0), progress=False)
    result = e.value.result
    assert e.value.epoch == len(result.history["cost"])
    assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(result.params))
    if e.value.epoch == 1:
        assert tree_error(result.params, start) == 0


def test_a_start_that_is_all_but_perfect_does_not_diverge(params):
    net = jm.MLP((3, 1))
    X, _ = examples(50)
    X = jnp.asarray(X)
    exact = (jm.Layer(jnp.ones((1, 3)), jnp.zeros(1)),)
    result = jm.fit(net, exact, (X, X.sum(1)), optimizer=optax.sgd(0.01, 0.9), epochs=20, key=jax.random.key(0),
                    batch_size=10, progress=False)  # fmt: skip
    assert len(result.history["cost"]) == 20


def test_hyperparameters_that_enter_the_optimizers_state_have_the_parameters_dtype(params):
    with jax.enable_x64(True):
        single = jax.tree.map(lambda a: a.astype(jnp.float32), params)
        for hyper in ({"learning_rate": 0.1, "momentum": 0.9}, {"learning_rate": 0.1}):
            result = fit(single, optimizer=optax.sgd, hyper=hyper, batch_size=5)
            assert result.params[0].W.dtype == jnp.float32


def test_one_hot_rows_have_an_accuracy_under_squared_error_and_numbers_have_none(params):
    X, Y = examples()
    net = jm.MLP((3, 4, 2), hidden="sigmoid", output="sigmoid")
    run = partial(jm.fit, net, jm.init(net, jax.random.key(0)), optimizer=optax.sgd(0.1), key=jax.random.key(1),
                  epochs=1, progress=False)  # fmt: skip
    assert "accuracy" in run((X, np.eye(2, dtype=np.float32)[Y])).history
    assert "accuracy" not in run((X, X[:, :2])).history


def cosine(y_hat, y):
    return -jnp.dot(y_hat, y) / (jnp.linalg.norm(y_hat) * jnp.linalg.norm(y))


def normal(y_hat, y):
    """Minus the log-likelihood of `N(mean, e^(2 s))`, below 0 for a small deviation."""
    mean, s = y_hat
    return s + (y[0] - mean) ** 2 * jnp.exp(-2 * s) / 2


@pytest.mark.parametrize(("loss", "output"), [(cosine, "identity"), (cosine, "sigmoid"), (normal, "identity")])
def test_a_loss_below_0_is_no_divergence(loss, output):
    """Not even where it has no value at weights of 0, as the cosine of an output of 0."""
    net = jm.MLP((3, 2), (), output, jm.Loss("own", loss, jax.grad(loss)))
    X, Y = examples(40)[0], np.tile(np.float32([0.7, 0.2]), (40, 1))
    start = (jm.Layer(jnp.full((2, 3), 0.01), jnp.asarray([0.7, -0.5])),)
    history = fit(start, (X, Y), net, epochs=20, optimizer=optax.sgd(0.02)).history["cost"]
    assert history[-1] < history[0] < 0


def test_a_loss_below_0_that_blows_up_diverges():
    net = jm.MLP((3, 2), (), "identity", jm.Loss("own", lambda a, y: y @ a - 1, lambda a, y: y))
    X, Y = np.ones((10, 3), np.float32), np.ones((10, 2), np.float32)
    with pytest.raises(jm.DivergedError, match="diverged in epoch"):
        fit(jm.init(net, jax.random.key(0)), (X, Y), net, epochs=50, optimizer=optax.sgd(-100.0))


def test_a_validation_without_a_finite_score_is_an_error_that_says_so():
    net = jm.MLP((3, 8, 1))
    X, _ = examples()
    bad = np.full((3, 3), 3e38, np.float32), np.zeros(3, np.float32)
    with pytest.raises(jm.DivergedError, match="validation has no finite score in any of 2 epochs") as e:
        fit(jm.init(net, jax.random.key(0)), (X, X[:, 0]), net, epochs=5, validation=bad, patience=2)
    assert not e.value.result.stopped_early and len(e.value.result.history["cost"]) == 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_averages_counts_and_sums_in_float32(params, dtype):
    """An average whose decay is 1 in half precision, and more examples than float16 can count."""
    half = jax.tree.map(lambda a: a.astype(dtype), params)
    X, Y = examples(70_000)
    X = np.asarray(jnp.asarray(X, dtype))
    got = fit(half, (X, Y), batch_size=7000, epochs=2, average=0.9999, optimizer=optax.sgd(0.5), validation=(X, Y))
    assert got.params[0].W.dtype == dtype and tree_error(got.params, got.last_params) > 1e-3
    still = fit(half, (X, Y), batch_size=7000, optimizer=optax.sgd(0.0), validation=(X, Y)).history
    whole = fit(jax.tree.map(lambda a: a.astype(jnp.float32), half), (X.astype(np.float32), Y), batch_size=7000,
                optimizer=optax.sgd(0.0), validation=(X.astype(np.float32), Y)).history  # fmt: skip
    for name in ("cost", "accuracy", "validation_cost", "validation_accuracy"):
        np.testing.assert_allclose(still[name], whole[name], rtol=0.01)


@pytest.mark.parametrize("flag", ["jax_debug_nans", "jax_debug_infs"])
def test_flags_that_look_for_nan_and_infinity_do_not_stop_a_healthy_run(params, flag):
    jax.config.update(flag, True)
    try:
        fit(params, epochs=2, validation=examples(6), patience=2, average=0.9, penalties=jm.l2(0.1))
        many = sweep(epochs=3, validation=examples(6), patience=[1, 1, 2, 3], hyper={"learning_rate": 20.0})
    finally:
        jax.config.update(flag, False)
    assert np.isnan(many.history["cost"]).any()  # of members that have stopped


def test_an_error_of_divergence_can_be_pickled():
    """A pool of processes would else lose it, and end."""
    net = jm.MLP((3, 4, 2), output="softmax", loss="cross_entropy")
    with pytest.raises(jm.DivergedError) as e:
        fit(jm.init(net, jax.random.key(0)), net=net, optimizer=optax.sgd(1e30), epochs=3)
    copy = pickle.loads(pickle.dumps(e.value))
    assert str(copy) == str(e.value) and copy.epoch == e.value.epoch
    assert tree_error(copy.result.params, e.value.result.params) == 0
