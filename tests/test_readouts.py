"""Every readout against the gradients of the examples one by one, by `jax.grad`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from problems import TABLE, tree_error

import jaxmlp as jm

table = pytest.mark.parametrize("problem", TABLE, ids=str)


@pytest.fixture(autouse=True)
def double(x64):
    pass


@functools.cache
def made(problem):
    """A trace, its weights (ones where the problem has none), and each example's gradient the slow way."""
    params, X, Y, rows, weights, masks = problem.make()
    trace = jm.backprop(problem.net, params, X, Y, masks=masks)
    cost = lambda p, X, Y, masks: oracles.cost(problem.hidden, problem.output, problem.loss, p, X, Y, None, masks)
    slow = oracles.gradients_one_by_one(cost, params, X, rows, masks)
    return trace, weights, slow


def mean(slow, weights):
    m = jax.tree.leaves(slow)[0].shape[0]
    w = jnp.ones(m) if weights is None else weights
    return jax.tree.map(lambda g: jnp.tensordot(w, g, 1) / w.sum(), slow)


@table
def test_means_of_the_gradients_and_their_squares(problem):
    trace, weights, slow = made(problem)
    squares = jax.tree.map(jnp.square, slow)
    first, second = mean(slow, weights), mean(squares, weights)
    assert tree_error(jm.per_example_gradients(trace), slow) <= 1e-10
    assert tree_error(jm.mean_gradient(trace, weights), first) <= 1e-10
    assert tree_error(jm.second_moment(trace, weights), second) <= 1e-10
    expected = jax.tree.map(lambda s, f: s - f**2, second, first)
    for got, want, scale in zip(*map(jax.tree.leaves, (jm.variance(trace, weights), expected, second)), strict=True):
        assert np.linalg.norm(got - want) <= 1e-10 * max(np.linalg.norm(scale), 1e-30)
        assert bool((got >= 0).all())


@table
def test_norms(problem):
    trace, _, slow = made(problem)
    rows = oracles.as_rows(slow)
    np.testing.assert_allclose(jm.per_example_norms(trace), np.linalg.norm(rows, axis=1), rtol=1e-10)
    by_layer = np.stack([np.linalg.norm(oracles.as_rows(layer), axis=1) for layer in slow], axis=1)
    np.testing.assert_allclose(jm.layer_norms(trace), by_layer, rtol=1e-10)
    deltas = np.stack([np.linalg.norm(layer.b, axis=1) for layer in slow], axis=1)  # delta is the bias's gradient
    np.testing.assert_allclose(jm.delta_norms(trace), deltas, rtol=1e-10)


@table
def test_clipped_gradient(problem):
    trace, weights, slow = made(problem)
    norms = np.linalg.norm(oracles.as_rows(slow), axis=1)
    for max_norm in (0.5 * norms.min(), float(np.median(norms)), 2 * norms.max()):
        factor = np.minimum(1, max_norm / norms)
        clipped = jax.tree.map(lambda g, f=factor: g * f.reshape(-1, *[1] * (g.ndim - 1)), slow)
        assert tree_error(jm.clipped_gradient(trace, max_norm, weights), mean(clipped, weights)) <= 1e-10


def test_a_gradient_of_zero_is_not_clipped():
    net = jm.MLP((2, 2))
    params = jm.init(net, jax.random.key(0), weights="zeros")
    trace = jm.backprop(net, params, jnp.ones((3, 2)), jnp.zeros((3, 2)))
    assert oracles.as_rows(jm.clipped_gradient(trace, 1.0), lead=0).tolist() == [0] * 6


@table
def test_gradient_gram(problem):
    trace, _, slow = made(problem)
    rows = oracles.as_rows(slow)
    np.testing.assert_allclose(jm.gradient_gram(trace), rows @ rows.T, rtol=1e-10, atol=1e-14)


@table
def test_kronecker_factors(problem):
    """From the examples' slow gradients: delta is the bias's, and a~ follows from W's where delta is not 0."""
    trace, weights, slow = made(problem)
    w = np.ones(problem.m) if weights is None else np.asarray(weights)
    for factors, layer, a in zip(jm.kronecker_factors(trace, weights), slow, trace.inputs, strict=True):
        delta, homogeneous = np.asarray(layer.b), np.hstack([a, np.ones((problem.m, 1))])
        np.testing.assert_allclose(layer.W, np.einsum("mo,mi->moi", delta, a), rtol=1e-9, atol=1e-14)
        A = sum(w_ * np.outer(x, x) for w_, x in zip(w, homogeneous, strict=True)) / w.sum()
        G = sum(w_ * np.outer(d, d) for w_, d in zip(w, delta, strict=True)) / w.sum()
        np.testing.assert_allclose(factors.A, A, rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(factors.G, G, rtol=1e-10, atol=1e-15)


def test_for_one_example_the_kronecker_product_is_the_second_moment():
    problem = next(p for p in TABLE if p.m == 1)
    trace, _, slow = made(problem)
    for factors, layer in zip(jm.kronecker_factors(trace), slow, strict=True):
        g = np.concatenate([layer.W[0], layer.b[0][:, None]], axis=1).ravel()
        np.testing.assert_allclose(np.kron(factors.G, factors.A), np.outer(g, g), rtol=1e-10, atol=1e-16)


def test_noise_scale_is_the_ratio_of_unbiased_estimates():
    problem = TABLE[6]
    trace, _, slow = made(problem)
    rows = oracles.as_rows(slow)
    m = len(rows)
    trace_sigma = np.trace(np.cov(rows.T))  # divides by m - 1
    squared_norm = np.sum(rows.mean(0) ** 2) - trace_sigma / m
    np.testing.assert_allclose(jm.noise_scale(trace), trace_sigma / squared_norm, rtol=1e-10)
    with pytest.raises(ValueError, match="trace holds 1 example, expected at least 2"):
        jm.noise_scale(jax.tree.map(lambda a: a[:1], trace))


def test_private_gradient_is_clipped_plus_noise_of_the_stated_scale(key):
    problem = TABLE[6]
    trace, _, _ = made(problem)
    exact = jm.private_gradient(trace, 0.3, 0.0, key, expected_batch_size=4)
    scaled = jax.tree.map(lambda g: g * problem.m / 4, jm.clipped_gradient(trace, 0.3))
    assert tree_error(exact, scaled) <= 1e-12
    draws = jax.vmap(lambda k: jm.private_gradient(trace, 0.3, 2.0, k, 4.0))(jax.random.split(key, 2000))
    noise = oracles.as_rows(draws) - oracles.as_rows(exact, lead=0)
    assert abs(noise.std() / (0.3 * 2.0 / 4) - 1) < 0.02
    assert abs(np.corrcoef(noise.T) - np.eye(noise.shape[1])).max() < 0.12  # independent in every entry


def test_what_readouts_refuse(key):
    trace, _, _ = made(TABLE[6])
    m = TABLE[6].m
    for call, message in (
        (lambda: jm.clipped_gradient(trace, -1.0), "max_norm is -1.0, expected a number above 0"),
        (
            lambda: jm.private_gradient(trace, 1.0, -1.0, key),
            "noise_multiplier is -1.0, expected a number of at least 0",
        ),
        (lambda: jm.private_gradient(trace, 1.0, 1.0, key, 0), "expected_batch_size is 0"),
        (
            lambda: jm.mean_gradient(trace, jnp.ones(1)),
            r"weights has shape \(1,\), expected one weight for each of the 6",
        ),
        (lambda: jm.second_moment(trace, -jnp.ones(m)), "weights holds values from -1 to -1"),
        (
            lambda: jm.in_chunks(jm.gradient_gram, TABLE[6].net, *TABLE[6].make()[:3], 2),
            "readout gives a shape that de",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    unclipped = jm.clipped_gradient(trace, jnp.inf)
    assert tree_error(unclipped, jm.mean_gradient(trace)) <= 1e-12


def test_private_gradient_does_not_see_padding(key):
    problem = TABLE[6]
    trace, _, _ = made(problem)
    weights = jnp.asarray([1.0, 1, 0, 1, 0, 0])
    kept = jax.tree.map(lambda a: a[jnp.asarray([0, 1, 3])], trace)
    got = jm.private_gradient(trace, 0.3, 1.0, key, 3, weights)
    assert tree_error(got, jm.private_gradient(kept, 0.3, 1.0, key, 3)) <= 1e-12


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once(dtype):
    """70,000 examples: infinite in float16, as are sums of squares; 1/70,000 is a subnormal number there."""
    m = 70_000
    rng = np.random.default_rng(0)
    delta, a = (jnp.asarray(rng.normal(size=(m, n)) * size + 1, dtype) for n, size in ((2, 3), (3, 0.5)))
    trace = jm.Trace((a,), (delta,), (delta,), delta, jnp.zeros(m, dtype))
    wide = jax.tree.map(lambda array: array.astype(jnp.float64), trace)
    weights = jnp.asarray(rng.uniform(0.5, 2, m), dtype)
    for readout in (jm.mean_gradient, jm.second_moment, jm.kronecker_factors):
        for w in (None, weights):
            got, expected = readout(trace, w), readout(wide, None if w is None else w.astype(jnp.float64))
            for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                assert g.dtype == dtype
                np.testing.assert_allclose(g.astype(jnp.float64), e, rtol=float(jnp.finfo(dtype).eps), atol=1e-4)
    np.testing.assert_allclose(jm.per_example_norms(trace), jm.per_example_norms(wide), rtol=1e-6)
    few = jax.tree.map(lambda array: 300 * array[:50], trace)  # squares above 65,504
    np.testing.assert_allclose(jm.gradient_gram(few), jm.gradient_gram(jax.tree.map(jnp.float64, few)), rtol=1e-4)


@table
def test_weight_jacobian_ties_the_weights_to_the_recursion(problem):
    """Row 26 of the notes' systems: `z = B vec(W)`, B the Jacobian, and `B^T delta = vec(delta a^T)`."""
    params, X, Y, *_ = problem.make()
    trace = jm.backprop(problem.net, params, X, Y)
    for layer, a, delta in zip(params, trace.inputs, trace.deltas, strict=True):
        n_out, n_in = layer.W.shape
        B = jm.weight_jacobian(a[0], n_out)
        assert B.shape == (n_out, n_out * n_in)
        jacobian = jax.jacobian(lambda w, a=a, s=layer.W.shape: w.reshape(s) @ a[0])(layer.W.ravel())
        np.testing.assert_array_equal(B, jacobian)
        np.testing.assert_allclose(B @ layer.W.ravel(), layer.W @ a[0], rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(B.T @ delta[0], jnp.outer(delta[0], a[0]).ravel(), rtol=1e-12)
