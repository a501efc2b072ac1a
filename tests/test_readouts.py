"""Every readout against the gradients of the examples one by one, by `jax.grad`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from problems import TABLE, Problem, tree_error

import jaxmlp as jm


@pytest.fixture(autouse=True)
def double(x64):
    pass


class Made(NamedTuple):
    """A problem's trace, its weights (ones where it has none), and each example's gradient the slow way."""

    problem: Problem
    trace: jm.Trace
    weights: np.ndarray
    slow: tuple
    readouts: dict


def read(trace, weights, max_norms):
    """Every readout, in one program."""
    return {
        "per_example_gradients": jm.per_example_gradients(trace),
        "mean_gradient": jm.mean_gradient(trace, weights),
        "second_moment": jm.second_moment(trace, weights),
        "variance": jm.variance(trace, weights),
        "per_example_norms": jm.per_example_norms(trace),
        "layer_norms": jm.layer_norms(trace),
        "delta_norms": jm.delta_norms(trace),
        "clipped_gradients": jax.vmap(lambda max_norm: jm.clipped_gradient(trace, max_norm, weights))(max_norms),
        "gradient_gram": jm.gradient_gram(trace),
        "kronecker_factors": jm.kronecker_factors(trace, weights),
        "weight_jacobians": [
            jm.weight_jacobian(a[0], d.shape[1]) for a, d in zip(trace.inputs, trace.deltas, strict=True)
        ],
    }


def make(problem):
    params, X, Y, rows, weights, masks = problem.make()
    trace = jm.backprop(problem.net, params, X, Y, masks=masks)
    cost = lambda p, X, Y, masks: oracles.cost(problem.hidden, problem.output, problem.loss, p, X, Y, None, masks)
    slow = oracles.gradients_one_by_one(cost, params, X, rows, masks)
    readouts = jax.jit(read)(trace, weights, max_norms(slow))
    w = np.ones(problem.m) if weights is None else np.asarray(weights)
    return Made(problem, trace, w, slow, jax.tree.map(np.asarray, readouts))


def max_norms(slow):
    """Below all norms of the examples' gradients, amidst them, and above."""
    lengths = np.linalg.norm(oracles.as_rows(slow), axis=1)
    return np.asarray([0.5 * lengths.min(), np.median(lengths), 2 * lengths.max()])


@pytest.fixture(scope="module", params=TABLE, ids=str)
def made(request):
    with jax.enable_x64(True):
        return make(request.param)


@pytest.fixture(scope="module")
def masked():
    """The trace of a problem whose examples weigh alike, and each example's gradient the slow way."""
    with jax.enable_x64(True):
        return make(TABLE[6])


def mean(slow, weights):
    return jax.tree.map(lambda g: np.tensordot(weights, g, 1) / weights.sum(), slow)


def test_means_of_the_gradients_and_their_squares(made):
    slow, weights, got = made.slow, made.weights, made.readouts
    first, second = mean(slow, weights), mean(jax.tree.map(np.square, slow), weights)
    assert tree_error(got["per_example_gradients"], slow) <= 1e-10
    assert tree_error(got["mean_gradient"], first) <= 1e-10
    assert tree_error(got["second_moment"], second) <= 1e-10
    expected = jax.tree.map(lambda s, f: s - f**2, second, first)
    for part, want, scale in zip(*map(jax.tree.leaves, (got["variance"], expected, second)), strict=True):
        assert np.linalg.norm(part - want) <= 1e-10 * max(np.linalg.norm(scale), 1e-30)
        assert (part >= 0).all()


def test_norms(made):
    slow, got = made.slow, made.readouts
    rows = oracles.as_rows(slow)
    np.testing.assert_allclose(got["per_example_norms"], np.linalg.norm(rows, axis=1), rtol=1e-10)
    by_layer = np.stack([np.linalg.norm(oracles.as_rows(layer), axis=1) for layer in slow], axis=1)
    np.testing.assert_allclose(got["layer_norms"], by_layer, rtol=1e-10)
    deltas = np.stack([np.linalg.norm(layer.b, axis=1) for layer in slow], axis=1)  # delta is the bias's gradient
    np.testing.assert_allclose(got["delta_norms"], deltas, rtol=1e-10)


def test_clipped_gradient(made):
    slow, weights = made.slow, made.weights
    norms = np.linalg.norm(oracles.as_rows(slow), axis=1)
    for k, max_norm in enumerate(max_norms(slow)):
        factor = np.minimum(1, max_norm / norms)
        clipped = jax.tree.map(lambda g, f=factor: g * f.reshape(-1, *[1] * (g.ndim - 1)), slow)
        got = jax.tree.map(lambda g, k=k: g[k], made.readouts["clipped_gradients"])
        assert tree_error(got, mean(clipped, weights)) <= 1e-10


def test_a_gradient_of_zero_is_not_clipped():
    net = jm.MLP((2, 2))
    params = jm.init(net, jax.random.key(0), weights="zeros")
    trace = jm.backprop(net, params, jnp.ones((3, 2)), jnp.zeros((3, 2)))
    assert oracles.as_rows(jax.jit(jm.clipped_gradient)(trace, 1.0), lead=0).tolist() == [0] * 6


def test_gradient_gram(made):
    rows = oracles.as_rows(made.slow)
    np.testing.assert_allclose(made.readouts["gradient_gram"], rows @ rows.T, rtol=1e-10, atol=1e-14)


def test_kronecker_factors(made):
    """From the examples' slow gradients: delta is the bias's, and a~ follows from W's where delta is not 0."""
    problem, w = made.problem, made.weights
    for factors, layer, a in zip(made.readouts["kronecker_factors"], made.slow, made.trace.inputs, strict=True):
        delta, homogeneous = layer.b, np.hstack([a, np.ones((problem.m, 1))])
        np.testing.assert_allclose(layer.W, np.einsum("mo,mi->moi", delta, a), rtol=1e-9, atol=1e-14)
        A = sum(w_ * np.outer(x, x) for w_, x in zip(w, homogeneous, strict=True)) / w.sum()
        G = sum(w_ * np.outer(d, d) for w_, d in zip(w, delta, strict=True)) / w.sum()
        np.testing.assert_allclose(factors.A, A, rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(factors.G, G, rtol=1e-10, atol=1e-15)
        if problem.m == 1:  # the Kronecker product is the second moment itself
            g = np.concatenate([layer.W[0], layer.b[0][:, None]], axis=1).ravel()
            np.testing.assert_allclose(np.kron(factors.G, factors.A), np.outer(g, g), rtol=1e-10, atol=1e-16)


def test_weight_jacobian_ties_the_weights_to_the_recursion(made):
    """Row 26 of the notes' systems: `z = B vec(W)`, B the Jacobian, and `B^T delta = vec(delta a^T)`."""
    params = jax.tree.map(np.asarray, made.problem.make()[0])
    layers = zip(params, made.trace.inputs, made.trace.deltas, made.readouts["weight_jacobians"], strict=True)
    for layer, inputs, deltas, B in layers:
        W, a, delta = layer.W, np.asarray(inputs)[0], np.asarray(deltas)[0]
        assert B.shape == (W.shape[0], W.size)
        columns = [unit.reshape(W.shape) @ a for unit in np.eye(W.size)]  # z is linear in W
        np.testing.assert_array_equal(B, np.stack(columns, axis=1))
        np.testing.assert_allclose(B @ W.ravel(), W @ a, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(B.T @ delta, np.outer(delta, a).ravel(), rtol=1e-12)


def test_noise_scale_is_the_ratio_of_unbiased_estimates(masked):
    trace, rows = masked.trace, oracles.as_rows(masked.slow)
    m = len(rows)
    trace_sigma = np.trace(np.cov(rows.T))  # divides by m - 1
    squared_norm = np.sum(rows.mean(0) ** 2) - trace_sigma / m
    np.testing.assert_allclose(jax.jit(jm.noise_scale)(trace), trace_sigma / squared_norm, rtol=1e-10)
    with pytest.raises(ValueError, match="trace holds 1 example, expected at least 2"):
        jm.noise_scale(jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[:1]), trace))


def test_private_gradient_is_clipped_plus_noise_of_the_stated_scale(key, masked):
    trace = masked.trace
    private = lambda noise, k: jm.private_gradient(trace, 0.3, noise, k, expected_batch_size=4)
    exact, clipped = jax.jit(lambda: (private(0.0, key), jm.clipped_gradient(trace, 0.3)))()
    scaled = jax.tree.map(lambda g: np.asarray(g) * masked.problem.m / 4, clipped)
    assert tree_error(exact, scaled) <= 1e-12
    draws = jax.jit(jax.vmap(lambda k: private(2.0, k)))(jax.random.split(key, 2000))
    noise = oracles.as_rows(draws) - oracles.as_rows(exact, lead=0)
    assert abs(noise.std() / (0.3 * 2.0 / 4) - 1) < 0.02
    assert abs(np.corrcoef(noise.T) - np.eye(noise.shape[1])).max() < 0.12  # independent in every entry


def test_what_readouts_refuse(key, masked):
    trace, m = masked.trace, TABLE[6].m
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
    both = jax.jit(lambda trace: (jm.clipped_gradient(trace, jnp.inf), jm.mean_gradient(trace)))
    assert tree_error(*both(trace)) <= 1e-12


def test_private_gradient_does_not_see_padding(key, masked):
    weights = jnp.asarray([1.0, 1, 0, 1, 0, 0])
    kept = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[[0, 1, 3]]), masked.trace)
    private = jax.jit(lambda trace, weights: jm.private_gradient(trace, 0.3, 1.0, key, 3, weights))
    assert tree_error(private(masked.trace, weights), private(kept, None)) <= 1e-12


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once(dtype):
    """70,000 examples: infinite in float16, as are sums of squares; 1/70,000 is a subnormal number there."""
    m = 70_000
    rng = np.random.default_rng(0)
    delta, a = (jnp.asarray(rng.normal(size=(m, n)) * size + 1, dtype) for n, size in ((2, 3), (3, 0.5)))
    trace = jm.Trace((a,), (delta,), (delta,), delta, jnp.zeros(m, dtype))
    wide, weights = (
        [np.asarray(array).astype(np.float64) for array in (delta, a)],
        jnp.asarray(rng.uniform(0.5, 2, m), dtype),
    )
    for w in (None, weights):
        got = [readout(trace, w) for readout in (jm.mean_gradient, jm.second_moment, jm.kronecker_factors)]
        expected = moments(*wide, np.ones(m) if w is None else np.asarray(w).astype(np.float64))
        for g, e in zip(jax.tree.leaves(got), expected, strict=True):
            assert g.dtype == dtype
            np.testing.assert_allclose(g.astype(jnp.float64), e, rtol=float(jnp.finfo(dtype).eps), atol=1e-4)
    squares = [(array**2).sum(1) for array in wide]
    np.testing.assert_allclose(jm.per_example_norms(trace), np.sqrt(squares[0] * (squares[1] + 1)), rtol=1e-6)
    few = jax.tree.map(lambda array: jnp.asarray(300 * np.asarray(array)[:50]), trace)  # squares above 65,504
    d, x = (np.asarray(array).astype(np.float64) for array in (few.deltas[0], few.inputs[0]))
    np.testing.assert_allclose(jm.gradient_gram(few), d @ d.T * (x @ x.T + 1), rtol=1e-4)


def moments(delta, a, w):
    """W and b of the mean gradient and of the second moment, and the Kronecker factors, of one layer."""
    share, with_one = w / w.sum(), np.hstack([a, np.ones((len(a), 1))])
    product = lambda x, y: (share[:, None] * x).T @ y
    return (product(delta, a), share @ delta, product(delta**2, a**2), share @ delta**2,
            product(with_one, with_one), product(delta, delta))  # fmt: skip
