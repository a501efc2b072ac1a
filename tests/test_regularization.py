"""Penalties, dropout, smoothing, noise, class weights, averages: against autodiff of the whole cost, and in `fit`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from internals import Data, Plan, Regularization, epoch, start
from problems import fit, random_problems, tree_error
from sklearn.utils.class_weight import compute_sample_weight

import jaxmlp as jm
from jaxmlp.training.examples import weigh_classes

NET = jm.MLP((4, 6, 5, 3), hidden=("tanh", "relu"), output="softmax", loss="cross_entropy")


def examples(m=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, 4)).astype(np.float32), rng.integers(0, 3, m).astype(np.int32)


@pytest.fixture
def params(key):
    return jm.init(NET, key, biases="small_normal")


def run(params, **options):
    return fit(params, options.pop("data", examples()), NET, **options)


@settings(max_examples=4)
@given(random_problems().filter(lambda p: p.dtype == "float64"), st.integers(0, 2**30))
def test_the_whole_cost_equals_autodiff(x64, problem, seed):
    """Dropout, example weights and penalties of a strength for each layer together, float64."""
    net, (params, X, Y, *_) = problem.net, problem.make()
    rng, m, dtype = np.random.default_rng(seed), X.shape[0], params[0].W.dtype
    draw = jax.jit(lambda key, keep: jm.dropout_masks(net, key, keep, m, dtype))
    masks = draw(jax.random.key(seed), rng.uniform(0.3, 1, net.depth))
    weights, strengths = rng.uniform(0.1, 1.1, m), rng.uniform(size=net.depth)
    penalties = (jm.l2(strengths), jm.l1(0.3))

    def whole(p):
        penalty = sum(s / 2 * jnp.sum(layer.W**2) + 0.3 * jnp.abs(layer.W).sum()
                      for s, layer in zip(strengths, p, strict=True))  # fmt: skip
        return jm.cost(net, p, X, Y, weights=weights, masks=masks) + penalty

    @jax.jit
    def by_hand(p):
        J, grads = jm.value_and_grad(net, p, X, Y, weights=weights, masks=masks)
        for penalty in penalties:
            J, grads = J + penalty.cost(p), penalty.gradient(p, grads)
        return J, grads

    J, grads = by_hand(params)
    expected_J, expected = jax.jit(jax.value_and_grad(whole))(params)
    assert abs(J - expected_J) <= 1e-12 * abs(expected_J)
    assert tree_error(grads, expected) <= 1e-12


def test_the_notes_forms_of_l2(params):
    """`lambda/(2m) sum ||W||^2` is l2(lambda / m); the step `w - eta (v + lambda w)` is l2(lambda)."""
    X, Y = examples()
    v = jm.value_and_grad(NET, params, X, Y)[1]
    got = run(params, penalties=jm.l2(0.2), batch_size=12).params
    for layer, before, grad in zip(got, params, v, strict=True):
        np.testing.assert_allclose(layer.W, before.W - 0.1 * (grad.W + 0.2 * before.W), atol=1e-6)
        np.testing.assert_allclose(layer.b, before.b - 0.1 * grad.b, atol=1e-6)  # biases are not penalized
    decayed = run(params, optimizer=optax.chain(optax.add_decayed_weights(0.2, mask=only_weights), optax.sgd(0.1)))
    assert tree_error(got, decayed.params) <= 1e-6
    history = run(params, penalties=(jm.l2(0.2), jm.l1(0.1)), batch_size=12).history
    assert history["penalty"][0] > 0 and history["cost"][0] == pytest.approx(float(jm.cost(NET, params, X, Y)))


def only_weights(params):
    return tuple(jm.Layer(True, False) for _ in params)


def test_a_quadratic_penalty_draws_all_parameters_to_its_center(params):
    """Biases included; against autodiff, and a step of training by hand."""
    X, Y = examples()
    changed = lambda change: jax.tree.map(lambda leaf: jnp.asarray(change(np.asarray(leaf))), params)
    center, precision, zeros = changed(lambda leaf: leaf + 0.5), changed(np.square), changed(np.zeros_like)
    strengths = jnp.asarray([0.5, 1.0, 2.0])
    penalty = jm.quadratic_penalty(center, precision, strengths)

    def whole(p):
        each = [s / 2 * sum(jnp.sum(h * (x - c) ** 2) for x, c, h in zip(*layer, strict=True))
                for s, *layer in zip(strengths, p, center, precision, strict=True)]  # fmt: skip
        return sum(each)

    by_hand = jax.jit(lambda p: (penalty.cost(p), penalty.gradient(p, zeros)))
    (J, own), (cost, grads) = by_hand(params), jax.jit(jax.value_and_grad(whole))(params)
    assert float(J) == pytest.approx(float(cost), rel=1e-6) and tree_error(own, grads) <= 1e-6
    v = jm.value_and_grad(NET, params, X, Y)[1]
    result = run(params, penalties=penalty, batch_size=12)
    expected = jax.tree.map(lambda p, g, own: p - 0.1 * (g + own), *jax.tree.map(np.asarray, (params, v, grads)))
    assert tree_error(result.params, expected) <= 1e-5 and result.history["penalty"][0] > 0
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, center, precision)))
    of_number = jm.quadratic_penalty(zeros, 0.2)  # l2, and the biases
    assert float(of_number.cost(params)) == pytest.approx(
        sum(0.1 * float(np.sum(np.square(p))) for p in jax.tree.leaves(params))
    )
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), zeros)
    for number in (1e-8, 1e5):  # float16 holds neither
        held = jax.tree.leaves(jm.quadratic_penalty(half, number).precision)
        assert all((leaf == np.float32(number)).all() for leaf in held)
    away = jm.quadratic_penalty(result.params, precision, 3.0)
    assert away.tell() != penalty.tell() and jm.quadratic_penalty(center, precision, strengths).tell() == penalty.tell()


def test_members_of_a_sweep_differ_in_the_strength_of_a_quadratic_penalty(params, compilations):
    settings = dict(initial=params, epochs=2, batch_size=6, keys=jax.random.key(1))
    of = lambda s, c: jm.quadratic_penalty(jax.tree.map(lambda leaf: leaf + c, params), params_of_one(params), s)
    many = problems.sweep(examples(), NET, penalties=of([0.0, 0.1, 1.0], 1.0), **settings)
    compilations.clear()
    again = problems.sweep(examples(), NET, penalties=of([0.2, 0.1, 0.0], 1.0), **settings)
    assert "advance" not in compilations
    assert tree_error(many.member(1).params, again.member(1).params) == 0
    assert tree_error(many.member(0).params, again.member(2).params) == 0
    apart = [float(of(1.0, 1.0).cost(many.member(e).params)) for e in range(3)]
    assert apart == sorted(apart, reverse=True)


def params_of_one(params):
    return jax.tree.map(jnp.ones_like, params)


@pytest.mark.wrong_arguments
def test_what_a_quadratic_penalty_refuses(params):
    for make, message in (
        (lambda: jm.quadratic_penalty(3, 1.0), r"params is int, expected a tuple of layers \(W, b\)"),
        (lambda: jm.quadratic_penalty(params, -1.0), "precision is -1.0, expected a finite number of at least 0"),
        (lambda: jm.quadratic_penalty(params, None), "precision is None, expected a finite number of at least 0"),
        (lambda: jm.quadratic_penalty(params, params[:2]), "precision has another structure than params"),
        (lambda: jm.quadratic_penalty(params, jax.tree.map(lambda p: -1 - p**2, params)), "expected finite num"),
        (lambda: jm.quadratic_penalty(params, 1.0, -1.0), "strength is -1.0, expected numbers of at least 0"),
        (lambda: run(params, penalties=jm.quadratic_penalty(params[:2], 1.0)),
         "quadratic: params is 2 layers, expected a tuple of 3 layers"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make()


def test_max_norm_shortens_each_units_incoming_weights_after_every_step(params):
    limits = (0.5, 0.8, 1e6)
    got = run(params, penalties=jm.max_norm(limits), batch_size=12).params
    free = run(params, batch_size=12).params
    for layer, without, limit in zip(got, free, limits, strict=True):
        norms = np.linalg.norm(without.W, axis=1, keepdims=True)
        np.testing.assert_allclose(layer.W, without.W * np.minimum(1, limit / norms), rtol=1e-5)
    assert (np.linalg.norm(free[0].W, axis=1) > 0.5).any()


def test_dropout_masks_keep_their_share_and_the_mean():
    keep = jnp.asarray([0.8, 0.5, 1.0])
    masks = jax.jit(lambda key, keep: jm.dropout_masks(NET, key, keep, 50_000))(jax.random.key(0), keep)
    assert [mask.shape for mask in masks] == [(50_000, 4), (50_000, 6), (50_000, 5)]
    for mask, p in zip(masks, keep, strict=True):
        np.testing.assert_allclose(np.unique(mask), [1 / p] if p == 1 else [0, 1 / p])
        deviation = ((1 - p) / p / mask.size) ** 0.5
        assert abs(mask.mean() - 1) <= 5 * deviation + 1e-4
        # entries are independent: neighbours in a row, a column, and masks of two layers
        centred = np.asarray(mask) - 1
        assert abs((centred[:, 1:] * centred[:, :-1]).mean()) <= 5 * deviation
        assert abs((centred[1:] * centred[:-1]).mean()) <= 5 * deviation
    again, other = (jm.dropout_masks(NET, jax.random.key(k, impl="rbg"), 0.5, 9) for k in (0, 1))
    assert tree_error(again, other) > 0 and {float(v) for mask in again for v in mask.ravel()} == {0.0, 2.0}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("keep", [0.5, 0.8, 0.999, 1.0])
def test_dropout_masks_in_half_precision_keep_their_share(dtype, keep):
    masks = jm.dropout_masks(NET, jax.random.key(0), keep, 50_000, dtype)
    exact = jm.dropout_masks(NET, jax.random.key(0), keep, 50_000)
    for mask, other in zip(masks, exact, strict=True):
        assert mask.dtype == dtype
        np.testing.assert_array_equal(mask, other.astype(dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_max_norm_and_l2_hold_whatever_the_size_of_the_weights(dtype):
    """Units whose squares over- and underflow, and strengths that float16 holds as 0."""
    about = jnp.finfo(dtype)
    sizes = np.logspace(np.log10(float(about.tiny)) + 2, np.log10(float(about.max)) - 1, 40)[:, None]
    W = jnp.asarray(np.random.default_rng(0).normal(size=(40, 30)) * sizes / 3).astype(dtype)
    params, held = (jm.Layer(W, jnp.zeros(40, dtype)),), np.asarray(W.astype(jnp.float32), np.float64)
    norms = np.linalg.norm(held, axis=1, keepdims=True)
    for limit in (1.0, 0.07, 1000.0):
        got = jm.max_norm(limit).project(params)[0].W
        assert got.dtype == dtype
        got = np.asarray(got.astype(jnp.float32), np.float64)
        assert (np.linalg.norm(got, axis=1) <= limit * (1 + 1e-6)).all()
        kept = np.linalg.norm(got, axis=1, keepdims=True)
        near = np.isclose(kept, np.minimum(norms, limit), rtol=0.02)
        assert (near | (limit / norms < 1e-37)).all()  # no number of float32 shortens what is longer still
    grads = jm.l2(1e-8).gradient(params, (jm.Layer(jnp.zeros_like(W), params[0].b),))[0].W
    eps, least = float(about.eps), max(float(about.smallest_subnormal), float(jnp.finfo(jnp.float32).tiny))
    np.testing.assert_allclose(grads.astype(jnp.float32), 1e-8 * held, rtol=eps, atol=least)
    ones = (jm.Layer(jnp.ones((400, 400), dtype), jnp.zeros(400, dtype)),)  # 160,000 squares of 1
    for penalty in (jm.l2(2e-3), jm.l1(1e-3)):
        cost = penalty.cost(ones)
        assert cost.dtype == dtype and float(cost) == pytest.approx(160, rel=eps)


def test_dropout_in_fit_is_a_step_with_masks_drawn_anew_and_none_at_validation(params):
    X, Y = examples()
    got = run(params, keep=(0.9, 0.6, 0.6), batch_size=12, validation=(X, Y))
    other = run(params, keep=(0.9, 0.6, 0.6), batch_size=12, validation=(X, Y), key=jax.random.key(2))
    assert tree_error(got.params, other.params) > 1e-4
    assert got.history["validation_cost"][0] == pytest.approx(float(jm.cost(NET, got.params, X, Y)), rel=1e-5)
    none_dropped = run(params, keep=(1.0, 1.0, 1.0), batch_size=12, validation=(X, Y)).params
    assert tree_error(none_dropped, run(params, batch_size=12).params) <= 1e-6
    # the mean step over many keys is the step of the mean gradient over masks
    many = jax.vmap(lambda key: jm.dropout_masks(NET, key, 0.5, 12))(jax.random.split(jax.random.key(5), 8000))
    mean = jax.jit(jax.vmap(lambda masks: jm.value_and_grad(NET, params, *map(jnp.asarray, (X, Y)), masks=masks)[1]))
    expected = jax.tree.map(lambda g: g.mean(0), mean(many))
    plan = Plan(NET, optax.sgd(1.0), 12, 1, accuracy=True)
    data = Data(jnp.asarray(X), jnp.asarray(Y))
    half = Regularization(keep=jnp.asarray(0.5))
    step = lambda key: epoch(plan, start(plan, params, data, key, regularisation=half), data)[0].params
    after = jax.jit(jax.vmap(step))(jax.random.split(jax.random.key(6), 8000))
    got_mean = jax.tree.map(lambda before, p: before - p.mean(0), params, after)
    assert tree_error(got_mean, expected) <= 0.1


def test_smoothed_labels():
    strengths = Regularization(label_smoothing=jnp.asarray(0.3, jnp.float32))
    smooth = lambda net, Y: strengths.smooth(net, Y, jnp.float32)
    np.testing.assert_allclose(smooth(NET, jnp.asarray([1])), [[0.1, 0.8, 0.1]], rtol=1e-6)
    rows = jnp.asarray([[0.5, 0.5, 0.0]])
    np.testing.assert_allclose(smooth(NET, rows), optax.smooth_labels(rows, 0.3), rtol=1e-6)
    single = jm.MLP((4, 1), output="sigmoid", loss="binary_cross_entropy")
    np.testing.assert_allclose(smooth(single, jnp.asarray([0, 1])), [0.15, 0.85], rtol=1e-6)


def test_smoothing_class_weights_and_noise_in_fit(params):
    X, Y = examples()
    rows = jnp.asarray(optax.smooth_labels(jax.nn.one_hot(Y, 3), 0.2))
    got = run(params, label_smoothing=0.2, batch_size=5)
    assert tree_error(got.params, run(params, data=(X, rows), batch_size=5).params) <= 1e-6
    assert got.history["accuracy"] == run(params, batch_size=5).history["accuracy"]  # of the true labels
    by_class = np.asarray([1.0, 2.0, 0.5], np.float32)
    got = run(params, class_weights=by_class, batch_size=5).params
    assert tree_error(got, run(params, weights=by_class[Y], batch_size=5).params) <= 1e-6
    both = run(params, class_weights=by_class, weights=np.arange(12.0), batch_size=5).params
    assert tree_error(both, run(params, weights=by_class[Y] * np.arange(12), batch_size=5).params) <= 1e-6
    with pytest.raises(ValueError, match=r"label_smoothing is given, but loss 'squared_error' takes numbers"):
        net = jm.MLP((4, 1))
        jm.fit(net, jm.init(net, jax.random.key(0)), (X, X[:, 0]), optimizer=optax.sgd(0.1), epochs=1,
               key=jax.random.key(0), label_smoothing=0.1)  # fmt: skip


BALANCED = jm.MLP((4, 3), output="softmax", loss="cross_entropy")


@pytest.mark.parametrize("labels", [[0] * 5 + [1] * 3 + [2] * 4, [0] * 9 + [2] * 3], ids=["all occur", "one is absent"])
def test_class_weights_by_name_are_those_of_scikit_learn(labels):
    weigh = lambda given, Y: weigh_classes(BALANCED, given, jnp.asarray(Y), jnp.float32)
    for Y in (np.asarray(labels), np.eye(3, dtype=np.float32)[labels]):
        np.testing.assert_allclose(weigh("balanced", Y), compute_sample_weight("balanced", labels), rtol=1e-6)
        np.testing.assert_allclose(weigh({0: 2.0, np.int64(2): 0.5}, Y), [{0: 2, 1: 1, 2: 0.5}[c] for c in labels])
    single = jm.MLP((4, 1), output="sigmoid", loss="binary_cross_entropy")
    got = weigh_classes(single, "balanced", jnp.asarray([0, 0, 0, 1]), jnp.float32)
    np.testing.assert_allclose(got, [2 / 3, 2 / 3, 2 / 3, 2], rtol=1e-6)


def test_a_member_is_balanced_by_its_own_labels():
    X, Y = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32), np.arange(12) % 3
    other = np.asarray([0] * 8 + [1, 1, 1, 2])
    sweep = partial(jm.sweep, BALANCED, keys=jax.random.split(jax.random.key(0), 2), optimizer=optax.sgd,
                    hyper={"learning_rate": 0.1}, epochs=2, batch_size=5, progress=False)  # fmt: skip
    got = sweep((X, np.stack([Y, other])), class_weights="balanced")
    weights = np.stack([compute_sample_weight("balanced", labels) for labels in (Y, other)])
    assert tree_error(got.params, sweep((X, np.stack([Y, other])), weights=weights).params) <= 1e-6
    halves = np.asarray([[1, 0] * 6, [0, 1] * 6], np.float32)
    got = sweep((X, Y), class_weights={0: 2.0}, weights=halves)
    assert tree_error(got.params, sweep((X, Y), weights=halves * np.where(Y == 0, 2, 1)).params) <= 1e-6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("balance", "class_weights is 'balance', expected one of 'balanced'; did you mean 'balanced'"),
        ({3: 1}, "class_weights has the class 3, expected classes 0 to 2"),
        ({-1: 1}, "a class of class_weights is -1, expected at least 0"),
        ({"cat": 1}, "a class of class_weights is 'cat', expected a whole number"),
        ({0: -1}, r"class_weights\[0\] is -1, expected a finite number of at least 0"),
        ({0: np.nan}, r"class_weights\[0\] is nan"),
        ({0: 0, 1: 0}, "class_weights leave no example a weight above 0"),
        ([1, 2], r"class_weights has shape \(2,\), expected one weight for each of the 3 classes"),
    ],
)
def test_wrong_class_weights_are_named(given, message):
    X, Y = np.zeros((4, 4), np.float32), np.asarray([0, 1, 0, 1])
    with pytest.raises(ValueError, match=message):
        jm.fit(BALANCED, jm.init(BALANCED, jax.random.key(0)), (X, Y), optimizer=optax.sgd(0.1), epochs=1,
               key=jax.random.key(0), class_weights=given, progress=False)  # fmt: skip


def test_input_noise_has_its_deviation():
    """A linear unit's squared error rises by `deviation^2 ||w||^2 / 2`."""
    net = jm.MLP((4, 1))
    p = (jm.Layer(jnp.asarray([[1.0, -2.0, 0.5, 3.0]]), jnp.zeros(1)),)
    X = jnp.zeros((20_000, 4))
    fit = partial(jm.fit, net, p, (X, jnp.zeros(20_000)), optimizer=optax.sgd(0.0), epochs=1, batch_size=2000,
                  key=jax.random.key(0), progress=False)  # fmt: skip
    assert fit(input_noise=0.3).history["cost"][0] == pytest.approx(0.5 * 0.09 * 14.25, rel=0.05)
    assert fit().history["cost"][0] == 0


def test_another_strength_does_not_compile_again(params, compilations):
    strengths = lambda s: dict(penalties=(jm.l2(s), jm.max_norm(1 + s)), keep=1 - s, label_smoothing=s, input_noise=s,
                               average=s, batch_size=5)  # fmt: skip
    first = run(params, **strengths(0.1))
    compilations.clear()
    second = run(params, **strengths(0.2))
    assert compilations == [] and tree_error(first.params, second.params) > 1e-3
