"""Variance and noise scale where the mean is far larger than the spread, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import TABLE

import jaxmlp as jm


def trace_of(deltas, inputs, dtype="float32"):
    deltas, inputs = ([jnp.asarray(x).astype(dtype) for x in each] for each in (deltas, inputs))
    return jm.Trace(tuple(inputs), tuple(deltas), tuple(deltas), deltas[-1], jnp.zeros(len(deltas[0]), dtype))


def pairs(relative, size=1.0, m=40):
    """Two layers whose deltas and inputs vary by `relative` of their means, as float32 holds them."""
    rng = np.random.default_rng(0)
    around = lambda n, s: (rng.normal(size=n) * s * (1 + relative * rng.normal(size=(m, n)))).astype(np.float32)
    return [around(3, size), around(2, size)], [around(4, 1.0), around(3, 1.0)]


def slow(deltas, inputs, weights=None):
    """Each example's gradient in float64, one row for each."""
    each = [np.einsum("mo,mi->moi", d, np.c_[a, np.ones(len(a))]) for d, a in zip(deltas, inputs, strict=True)]
    return [np.asarray(g, np.float64) for g in each]


def doubled(deltas, inputs):
    return [d.astype(np.float64) for d in deltas], [a.astype(np.float64) for a in inputs]


@pytest.mark.parametrize("relative", [0.0, 1e-5, 1e-3, 0.1, 3.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_variance_does_not_cancel(relative, weighted):
    deltas, inputs = pairs(relative)
    w = np.random.default_rng(1).uniform(0.2, 2, 40).astype(np.float32) if weighted else np.ones(40, np.float32)
    got = jm.variance(trace_of(deltas, inputs), jnp.asarray(w) if weighted else None)
    for layer, g in zip(got, slow(*doubled(deltas, inputs)), strict=True):
        share = w.astype(np.float64)[:, None, None] / w.astype(np.float64).sum()
        expected = (share * (g - (share * g).sum(0)) ** 2).sum(0)
        np.testing.assert_allclose(layer.W, expected[:, :-1], rtol=2e-4 if relative < 1e-4 else 1e-5, atol=1e-18)
        np.testing.assert_allclose(layer.b, expected[:, -1], rtol=2e-4 if relative < 1e-4 else 1e-5, atol=1e-18)


@pytest.mark.parametrize(("relative", "size"), [(1e-5, 1), (1e-3, 1), (1e-3, 1e-25), (1e-3, 1e25), (0.1, 1), (3.0, 1)])
def test_noise_scale_does_not_cancel_and_has_no_scale(relative, size):
    deltas, inputs = pairs(relative, size)
    rows = np.concatenate([g.reshape(40, -1) for g in slow(*doubled(deltas, inputs))], axis=1)
    sigma = rows.var(0, ddof=1).sum()
    expected = sigma / ((rows.mean(0) ** 2).sum() - sigma / 40)
    got = jm.noise_scale(trace_of(deltas, inputs))
    assert float(got) == pytest.approx(expected, rel=1e-4)


def test_equal_examples_have_no_noise():
    problem = TABLE[2]
    params, X, Y, *_ = (jax.tree.map(lambda a: a.astype(jnp.float32), part) for part in problem.make())
    net = problem.net
    trace = jm.backprop(net, params, jnp.tile(X[:1], (7, 1)), jnp.tile(Y[:1], 7).astype(int))
    assert abs(float(jm.noise_scale(trace))) < 1e-12
    for variance, mean in zip(*map(jax.tree.leaves, (jm.variance(trace), jm.mean_gradient(trace))), strict=True):
        assert (np.asarray(variance) <= 1e-12 * np.asarray(mean) ** 2 + 1e-30).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_right_to_its_rounding(dtype):
    deltas, inputs = pairs(0.1)
    trace = trace_of(deltas, inputs, dtype)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), trace)
    got, expected = jm.variance(trace), jm.variance(wide)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert g.dtype == dtype
        np.testing.assert_array_equal(g, e.astype(dtype))
    assert float(jm.noise_scale(trace)) == float(jm.noise_scale(wide))
