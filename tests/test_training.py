"""`fit` and the pure epoch: what a step is, what an epoch covers, what is kept, and what never happens twice."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from problems import tree_error

import jaxmlp as jm
from jaxmlp import training
from jaxmlp.training.sampling import permutation

NET = jm.MLP((3, 5, 2), hidden="tanh", output="softmax", loss="cross_entropy")


# optax's own schedules promote their step count
loose = jax.numpy_dtype_promotion("standard")


def data(m=10, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(m, 3)).astype(np.float32)
    return X, (X[:, 0] + 0.5 * X[:, 1] > 0).astype(np.int32)


@pytest.fixture
def params(key):
    return jm.init(NET, key)


def fit(params, examples=None, **settings):
    settings = {"optimizer": optax.sgd(0.1), "key": jax.random.key(1), "epochs": 1, "progress": False} | settings
    return jm.fit(NET, params, examples or data(), **settings)


def gradient(params, X, Y):
    return jax.grad(lambda p: jm.cost(NET, p, X, Y))(params)


def test_the_full_batch_is_one_step_of_the_mean_gradient(params):
    X, Y = map(jnp.asarray, data())
    expected = oracles.sgd(params, [(X, Y)] * 3, 0.1, gradient)
    assert tree_error(fit(params, epochs=3, batch_size=10).params, expected) <= 1e-6


def shuffled_batches(key, m, size):
    """The batches `fit` takes in its first epoch, derived as its documentation says."""
    after_start, _ = jax.random.split(key)
    order = jax.random.permutation(jax.random.split(after_start)[1], m)
    return [order[i : i + size] for i in range(0, m, size)]


@pytest.mark.parametrize("size", [1, 3, 4, 5])
def test_an_epoch_takes_every_example_once_the_ragged_last_batch_included(params, size):
    """Size 1 is the per-example rule; 3 and 4 leave a last batch of 1 and 2, which counts as its own mean."""
    X, Y = map(jnp.asarray, data())
    batches = shuffled_batches(jax.random.key(1), 10, size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(10))
    expected = oracles.sgd(params, [(X[i], Y[i]) for i in batches], 0.1, gradient)
    assert tree_error(fit(params, batch_size=size).params, expected) <= 1e-6


@pytest.mark.parametrize("size", [1, 4, 10])
def test_example_weights_count_at_every_batch_size(params, size):
    """Relative to their mean over all the data: a batch of one counts by its weight, and one of 0 not at all."""
    X, Y = map(jnp.asarray, data())
    w = jnp.linspace(0, 2, 10)
    loss = lambda p, X, Yw: jnp.mean(jm.backprop(NET, p, X, Yw[0]).losses * Yw[1] / w.mean())
    order = [jnp.arange(10)] if size == 10 else shuffled_batches(jax.random.key(1), 10, size)
    batches = [(X[i], (Y[i], w[i])) for i in order]
    expected = oracles.sgd(params, batches, 0.1, jax.grad(loss))
    assert tree_error(fit(params, batch_size=size, weights=3 * w).params, expected) <= 1e-5


def test_the_history_is_the_mean_over_the_examples_as_they_were_met(params):
    X, Y = map(jnp.asarray, data())
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


def test_the_same_key_gives_the_same_bits_and_another_key_another_order(params):
    first, second = (fit(params, batch_size=3, epochs=3) for _ in range(2))
    other = fit(params, batch_size=3, epochs=3, key=jax.random.key(2))
    assert tree_error(first.params, second.params) == 0
    assert tree_error(first.params, other.params) > 1e-4


def test_nothing_the_caller_passed_is_donated(params):
    X, Y = map(jnp.asarray, data())
    before = jax.tree.map(np.array, params)
    fit(params, (X, Y), validation=(X, Y), epochs=2, hyper={"learning_rate": jnp.asarray(0.1)}, optimizer=optax.sgd)
    assert tree_error(params, before) == 0
    assert X.sum() is not None and Y.sum() is not None  # a donated array would raise


def test_another_rate_or_key_does_not_compile_again(params):
    fit_module = importlib.import_module("jaxmlp.training._fit")

    run = partial(fit, params, optimizer=optax.sgd, batch_size=3, epochs=2)
    run(hyper={"learning_rate": 0.1})
    compiled = fit_module._compiled_epoch._cache_size(), fit_module._compiled_start._cache_size()
    other = run(hyper={"learning_rate": 0.3}, key=jax.random.key(9))
    run(hyper={"learning_rate": 1}, epochs=5)
    assert (fit_module._compiled_epoch._cache_size(), fit_module._compiled_start._cache_size()) == compiled
    expected = fit(params, optimizer=optax.sgd(0.3), key=jax.random.key(9), batch_size=3, epochs=2)
    assert tree_error(other.params, expected.params) <= 1e-4  # rounding: one rate is a constant there


@loose
def test_any_optax_optimizer_with_its_schedule_and_state(params):
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.01, 3, 12)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    got = fit(params, optimizer=optimizer, batch_size=5, epochs=6).params
    X, Y = map(jnp.asarray, data())
    p, state, key = params, optimizer.init(params), jax.random.split(jax.random.key(1))[0]
    for _ in range(6):
        key, epoch_key = jax.random.split(key)
        order = jax.random.permutation(epoch_key, 10)
        for i in (order[:5], order[5:]):
            updates, state = optimizer.update(gradient(p, X[i], Y[i]), state, p)
            p = optax.apply_updates(p, updates)
    assert tree_error(got, p) <= 1e-5


def test_an_optimizer_that_asks_for_the_value(params):
    assert fit(params, optimizer=optax.polyak_sgd(0.5), epochs=5, batch_size=10).history["cost"][-1] < 0.69


def test_best_on_validation_is_kept_not_the_last(params):
    """A rate so large that the validation cost rises again."""
    X_dev, Y_dev = data(20, seed=5)
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
    X_dev, Y_dev = data(20, seed=5)
    run = partial(fit, params, optimizer=optax.sgd(5.0), batch_size=2, validation=(X_dev, Y_dev), epochs=60)
    result = run(patience=3)
    assert result.stopped_early
    assert len(result.history["epoch"]) == result.best_epoch + 3
    assert not run(patience=60).stopped_early


def test_a_validation_set_larger_than_one_chunk_is_scored_whole(params, monkeypatch):
    epoch_module = importlib.import_module("jaxmlp.training._epoch")

    monkeypatch.setattr(epoch_module, "EVALUATED_AT_ONCE", 8)
    X_dev, Y_dev = data(21, seed=5)
    result = fit(params, validation=(X_dev, Y_dev), optimizer=optax.sgd(0.123))
    expected = float(jm.cost(NET, result.last_params, X_dev, Y_dev))
    assert result.history["validation_cost"][0] == pytest.approx(expected, rel=1e-5)


@loose
def test_steps_with_replacement_return_the_best_not_the_last(params):
    """MATH row 23: T steps, each on one example drawn with replacement, step sizes eta_1..eta_T."""
    X_dev, Y_dev = data(20, seed=5)
    etas = optax.piecewise_constant_schedule(3.0, {10: 2.0})
    result = fit(params, epochs=None, steps=35, validate_every=10, sampling="replacement", optimizer=optax.sgd(etas),
                 validation=(X_dev, Y_dev))  # fmt: skip
    assert result.history["step"].tolist() == [10, 20, 30, 35]
    scores = result.history["validation_cost"]
    assert float(jm.cost(NET, result.params, X_dev, Y_dev)) == pytest.approx(scores.min(), rel=1e-5)
    assert result.best_epoch == int(np.argmin(scores)) + 1


def test_replacement_draws_some_examples_twice_and_follows_the_draws(params):
    X, Y = map(jnp.asarray, data())
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

    fit(params, data(400), sampling="poisson", batch_size=20, epochs=30, readout=readout)
    jax.effects_barrier()
    sizes = np.asarray([w.sum() for w in seen])
    assert len(sizes) == 30 * 20 and len({w.shape for w in seen}) == 1
    assert abs(sizes.mean() - 20) < 5 * (20 * 0.95 / 600) ** 0.5
    assert abs(sizes.var() / (20 * 0.95) - 1) < 0.3
    assert set(np.unique(np.concatenate(seen))) == {0, 1}


def test_another_readout_is_descended_with_a_key_of_each_step(params):
    X, Y = map(jnp.asarray, data())
    clipped = lambda trace, weights, key: jm.clipped_gradient(trace, 0.1, weights)
    by_clipping = lambda p, X, Y: jm.clipped_gradient(jm.backprop(NET, p, X, Y), 0.1)
    expected = oracles.sgd(params, [(X, Y)] * 3, 0.1, by_clipping)
    assert tree_error(fit(params, epochs=3, batch_size=10, readout=clipped).params, expected) <= 1e-5
    noise = lambda trace, weights, key: jax.tree.map(
        lambda g: jax.random.normal(key, g.shape), jm.mean_gradient(trace, weights)
    )
    moved = fit(params, epochs=4, batch_size=10, readout=noise, optimizer=optax.sgd(1.0)).params
    steps = oracles.np.asarray(moved[0].b - params[0].b)
    assert 0.8 < np.abs(steps).mean() < 4  # four independent steps of N(0, 1), not four times the same or none


def test_pictures_stay_bytes_on_the_device_and_in_the_loop(params):
    """The program's arguments hold the bytes; float pictures of the whole set appear nowhere in it."""
    net = jm.MLP((16, 4, 2), output="softmax", loss="cross_entropy")
    plan = training.Plan(net, optax.sgd(0.1), 8, 8, preprocess=jm.data.scale_pixels)
    X = jnp.asarray(np.random.default_rng(0).integers(0, 256, (64, 4, 4)), jnp.uint8)
    given = training.Data(X, jnp.zeros(64, jnp.int32))
    state = training.start(plan, jm.init(net, jax.random.key(0)), given, jax.random.key(1))
    text = jax.jit(training.epoch, static_argnums=0).lower(plan, state, given).as_text()
    assert "tensor<64x4x4xui8>" in text
    assert "tensor<64x4x4xf32>" not in text and "tensor<64x16xf32>" not in text
    scaled = jm.fit(net, state.params, (X, given.Y), optimizer=optax.sgd(0.1), epochs=1, batch_size=8,
                    key=jax.random.key(1), preprocess=jm.data.scale_pixels, progress=False)  # fmt: skip
    floats = jax.vmap(jm.data.scale_pixels)(X)
    plain = jm.fit(net, state.params, (floats, given.Y), optimizer=optax.sgd(0.1), epochs=1, batch_size=8,
                   key=jax.random.key(1), progress=False)  # fmt: skip
    assert tree_error(scaled.params, plain.params) <= 1e-6


def test_divergence_is_an_error_that_carries_the_last_good_weights():
    net = jm.MLP((3, 4, 1), hidden="relu")
    X, _ = data()
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
    X, _ = data(50)
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


def test_a_population_is_a_vmap_of_the_epoch(params):
    """What `fit` does alone, many states do at once; a stopped one does not change."""
    plan = training.Plan(NET, optax.sgd, 3, 4, accuracy=True)
    given = training.Data(*map(jnp.asarray, data()))
    hyper = {"learning_rate": jnp.asarray([0.1, 0.2, jnp.inf])}
    keys = jax.random.split(jax.random.key(3), 3)
    states = jax.vmap(lambda key, h: training.start(plan, params, given, key, h))(keys, hyper)
    states = states._replace(stopped=jnp.asarray([False, True, False]))
    after, metrics = jax.vmap(lambda s: training.epoch(plan, s, given))(states)
    alone = fit(params, optimizer=optax.sgd(0.1), key=keys[0], batch_size=3)
    member = lambda i: jax.tree.map(lambda a: a[i], after.params)
    assert tree_error(member(0), alone.params) <= 1e-5
    assert float(metrics["cost"][0]) == pytest.approx(alone.history["cost"][0], rel=1e-5)
    assert tree_error(member(1), params) == 0 and not bool(after.diverged[1])
    assert tree_error(member(2), params) == 0 and bool(after.diverged[2])


def test_a_log_gets_one_plain_line_an_epoch(params, capsys):
    fit(params, epochs=2, validation=data(20, seed=5), progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("epoch 1/2  cost 0.") and "\r" not in "".join(lines)
    assert "validation_accuracy" in lines[1] and "%" in lines[1]


def test_one_hot_rows_have_an_accuracy_under_squared_error_and_numbers_have_none(params):
    X, Y = data()
    net = jm.MLP((3, 4, 2), hidden="sigmoid", output="sigmoid")
    run = partial(jm.fit, net, jm.init(net, jax.random.key(0)), optimizer=optax.sgd(0.1), key=jax.random.key(1),
                  epochs=1, progress=False)  # fmt: skip
    assert "accuracy" in run((X, np.eye(2, dtype=np.float32)[Y])).history
    assert "accuracy" not in run((X, X[:, :2])).history


def bad(**settings):
    return settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (bad(examples=(data()[0],)), r"data is a tuple of 1, expected a tuple \(X, Y\)"),
        (
            bad(examples=[1, 2]),
            r"data: batch 0 is a int, expected \(X, Y\) or \(X, Y, weights\); arrays go into a tuple",
        ),
        (bad(examples=iter([data()])), r"data is a list_iterator, which can be read only once"),
        (bad(examples=3), r"data is a int, expected a tuple \(X, Y\), or a re-iterable"),
        (bad(examples=[data()], batch_size=3), r"batch_size is given, but data is an iterable of batches"),
        (bad(examples=[data(), data()[:1]]), r"data: batch 1 is 1 things, expected \(X, Y\)"),
        (bad(examples=[data(), (data()[0] * np.nan, data()[1])]), r"data: X of batch 1 holds nan at \(0, 0\)"),
        (bad(penalties=0.1), r"penalties is 0.1, expected penalties such as jaxmlp.l2"),
        (bad(penalties=jm.l2([1, 2, 3])), r"l2 has 3 strengths, expected one or 2"),
        (bad(keep=(0.5, 0.5, 0.5)), r"keep has shape \(3,\), expected a number or 2: the inputs' first"),
        (bad(keep=0), r"keep is 0, expected probabilities above 0 and at most 1"),
        (bad(label_smoothing=1.5), r"label_smoothing is 1.5, expected a number of at least 0 and below 1"),
        (bad(input_noise=-1), r"input_noise is -1, expected a number of at least 0"),
        (bad(average=1), r"average is 1, expected a number of at least 0 and below 1"),
        (
            bad(class_weights=[1, 2, 3]),
            r"class_weights has shape \(3,\), expected one weight for each of the 2 classes",
        ),
        (bad(augment=lambda key, x: x[:2]), r"augment turns an example \(3,\) of float32 into \(2,\) of float32"),
        (bad(augment=lambda x: x), r"augment fails on a key and an example \(3,\)"),
        (bad(callback=3), r"callback is 3, expected a function"),
        (
            bad(callback=lambda epoch: None),
            r"callback takes \(epoch\), expected a function of two arguments",
        ),
        (bad(log="."), r"log is '.', a folder"),
        (bad(checkpoints=__file__), r"checkpoints is .*test_training.py', a file, expected a folder"),
        (bad(checkpoint_every=0), r"checkpoint_every is 0, expected at least 1"),
        (bad(examples=(data()[0][:, :2], data()[1])), r"X has 2 features, the network takes 3"),
        (bad(examples=(data()[0], data()[1][:7])), r"Y has shape \(7,\), expected \(10, 2\) or \(10,\)"),
        (bad(examples=(data()[0] * np.nan, data()[1])), r"X holds nan at \(0, 0\), expected finite numbers"),
        (bad(examples=(data()[0][:0], data()[1][:0])), r"X is empty"),
        (bad(validation=data(5)[:1]), r"validation is a tuple of 1"),
        (bad(validation=(data(5)[0][:, :1], data(5)[1])), r"validation X has 1 features"),
        (bad(epochs=0), r"epochs is 0, expected at least 1"),
        (bad(epochs=2.5), r"epochs is 2.5, expected a whole number"),
        (bad(epochs=None), r"epochs is None, .*expected epochs alone"),
        (bad(steps=5), r"steps is 5, .*expected epochs alone with sampling='shuffle'"),
        (bad(sampling="replacement"), r"steps is None, epochs is 1; expected steps"),
        (bad(sampling="bootstrap"), r"sampling is 'bootstrap', expected one of 'shuffle', 'replacement', 'poisson'"),
        (bad(batch_size=0), r"batch_size is 0, expected at least 1"),
        (bad(batch_size=11), r"batch_size is 11, but there are 10 examples; expected at most 10"),
        (bad(patience=3), r"patience is 3, but validation is None"),
        (bad(patience=0, validation=data(5)), r"patience is 0, expected at least 1"),
        (bad(best_by="acuracy"), r"best_by is 'acuracy', .*did you mean 'accuracy'\?"),
        (bad(weights=np.ones(3)), r"weights has shape \(3,\), expected one weight for each of the 10 examples"),
        (bad(weights=-np.ones(10)), r"weights holds values from -1 to -1, expected none below 0 and not all 0"),
        (bad(key=3), r"key is 3, expected one key"),
        (bad(optimizer="sgd"), r"optimizer is 'sgd', expected an optax transformation, or a factory and hyper"),
        (bad(hyper={"learning_rate": 1.0}), r"hyper is .*, but optimizer is made already"),
        (bad(optimizer=optax.sgd, hyper={"rate": 1.0}), r"hyper is .*which the optimizer's factory does not take"),
        (bad(optimizer=optax.sgd), r"hyper is None, which the optimizer's factory does not take"),
        (bad(optimizer=optax.sgd, hyper={"learning_rate": np.inf}), r"hyper\['learning_rate'\] holds inf"),
        (bad(optimizer=optax.sgd, hyper={"learning_rate": optax.constant_schedule(1)}), r"is a function; pass a sched"),
        (
            bad(optimizer=optax.sgd, hyper={"learning_rate": 1, "nesterov": True}),
            r"'nesterov'\] is True, .*partial",
        ),
        (bad(optimizer=optax.MultiSteps(optax.sgd(0.1), 2)), r"expected what its gradient_transformation\(\) gives"),
        (bad(rule="sign"), r"rule is 'sign', expected a Rule"),
        (bad(optimizer=lambda: 3), r"optimizer makes a int, expected an optax transformation"),
    ],
)
def test_bad_input_is_named_before_anything_compiles(params, settings, message):
    examples = settings.pop("examples", None)
    with pytest.raises(ValueError, match=message), jax.log_compiles(False):
        fit(params, examples, **settings)


@pytest.mark.parametrize("m", [1, 2, 3, 1625, 1626, 5000])
def test_the_order_is_jaxs_own(m):
    """On both sides of where one round of sorting no longer does; for keys one by one and many at once."""
    keys = jax.random.split(jax.random.key(0), 3)
    own = jax.jit(jax.vmap(lambda key: permutation(key, m)))(keys)
    expected = np.asarray([jax.random.permutation(key, m) for key in keys])
    np.testing.assert_array_equal(own, expected)
    assert own.dtype == jnp.int32
