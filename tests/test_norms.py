"""Norms against exact ones, for numbers whose squares no dtype holds."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlp import norms


def exact(x):
    """The norm in Python's floats, which hold the squares of no float64 but of every float32; scaled first."""
    x = [float(v) for v in np.asarray(x, np.float64)]
    largest = max(map(abs, x))
    return largest * math.sqrt(sum((v / largest) ** 2 for v in x)) if largest else 0.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_norm_is_right_whatever_the_size(x64, dtype):
    rng, about = np.random.default_rng(0), jnp.finfo(dtype)
    sizes = np.logspace(np.log10(float(about.tiny)), np.log10(float(about.max)) - 1, 60)
    rows = [rng.normal(size=40) * size / 3 * 10.0 ** rng.uniform(-3, 0, 40) for size in sizes]
    x = jnp.asarray(np.asarray(rows)).astype(dtype)
    got = norms.norm(x)
    assert got.dtype == ("float64" if dtype == "float64" else "float32")
    held = [exact(row) for row in x]
    keep = np.asarray(held) > 4 * float(jnp.finfo(got.dtype).tiny)  # smaller ones are subnormal: 0 on many machines
    tolerance = 1e-14 if dtype == "float64" else 1e-6
    np.testing.assert_allclose(np.asarray(got, np.float64)[keep], np.asarray(held)[keep], rtol=tolerance)


def test_norm_has_the_bits_of_the_plain_one_where_that_is_fine():
    x = jax.random.normal(jax.random.key(0), (50, 33)) * jnp.exp(jax.random.normal(jax.random.key(1), (50, 1)))
    np.testing.assert_array_equal(norms.norm(x), jnp.sqrt(jnp.sum(x**2, axis=1)))
    np.testing.assert_array_equal(norms.norm(x, axis=0), jnp.sqrt(jnp.sum(x**2, axis=0)))


def test_the_norm_of_what_is_no_number_or_infinite_says_so():
    x = jnp.asarray([[0.0, 0], [jnp.nan, 1], [jnp.inf, 1], [-jnp.inf, jnp.nan], [3e38, 3e38]])
    np.testing.assert_array_equal(norms.norm(x), [0, jnp.nan, jnp.inf, jnp.nan, jnp.inf])


def test_a_total_forgets_no_part():
    """A part of 0 with a large exponent hides no other part."""
    parts = norms.Squares(jnp.asarray([[0.0, 1.5], [2.0, 1.0], [0.0, 0.0]]), jnp.asarray([[120, -100], [3, 2], [9, 9]]))
    total = norms.root(norms.total(parts))
    np.testing.assert_allclose(total, [math.sqrt(1.5) * 2.0**-100, math.sqrt(2 * 64 + 16), 0], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_down_makes_nothing_larger_and_loses_one_step_at_most(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=2000) * 10.0 ** np.random.default_rng(1).uniform(-9, 6, 2000))
    x = jnp.concatenate([x.astype(jnp.float32), jnp.zeros(1), x[:9].astype(dtype).astype(jnp.float32)])
    got = np.asarray(norms.round_down(x, jnp.dtype(dtype)).astype(jnp.float32), np.float64)
    x, about = np.asarray(x, np.float64), jnp.finfo(dtype)
    assert (np.abs(got) <= np.abs(x)).all() and (got * x >= 0).all()
    held = np.abs(x) <= float(about.max)
    step = np.maximum(np.abs(x) * float(about.eps), float(about.smallest_subnormal))
    assert (np.abs(got - x) <= step)[held].all()
    np.testing.assert_array_equal(got[-10:], x[-10:])
    assert norms.round_down(jnp.ones(2), jnp.dtype("float32")).dtype == jnp.float32
