"""Scaling: that of scikit-learn, by the training examples alone."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from jaxmlp import data


def test_pictures_become_flat_vectors_between_0_and_1():
    scaled = data.scale_pixels(np.asarray([[0, 51], [204, 255]], np.uint8))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [0, 0.2, 0.8, 1], rtol=1e-6)


@hypothesis.given(
    hnp.arrays(np.float64, st.sampled_from([(1, 2), (2, 1), (6, 3)]), elements=st.integers(-9, 9)),
    st.sampled_from([1e-200, 0.1, 1.0, 1e200]), st.sampled_from([0, 0.1, 1e6]),
)  # fmt: skip
def test_standardized_features_are_those_of_scikit_learn(values, scale, offset):
    """Whatever the scale, squares that under- or overflow included; a constant feature becomes 0, not NaN."""
    X = scale * (values + offset)
    with jax.enable_x64(True):
        scaling = data.standardise(X)
        Z, back = scaling(X), scaling.inverse(scaling(X))
    constant = (values == values[0]).all(0)
    sure = StandardScaler().fit_transform(values)  # of small whole numbers, before scale and offset
    np.testing.assert_allclose(Z, np.where(constant, 0, sure), atol=1e-8)
    np.testing.assert_allclose(back, X, rtol=1e-12, atol=1e-12 * scale * np.abs(values + offset).max())
    assert (np.asarray(scaling.deviation)[constant] == 1).all()


def test_dev_and_test_are_scaled_by_the_training_mean_and_deviation():
    X = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    other = np.random.default_rng(1).normal(5, 1, (20, 4)).astype(np.float32)
    scaling, oracle = data.standardise(X), StandardScaler().fit(X)
    assert scaling.mean.dtype == np.float32
    np.testing.assert_allclose(scaling(other), oracle.transform(other), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scaling(other[0]), scaling(other)[0], rtol=1e-6)  # one example, too
    pixels = data.standardise(X.reshape(50, 2, 2))
    np.testing.assert_allclose(pixels(other.reshape(20, 2, 2)).reshape(20, 4), scaling(other), rtol=1e-6)
    constant = np.full((1000, 1), 0.1, np.float32)  # its mean in float32 is not 0.1
    assert np.mean(constant) != constant[0, 0] and not np.asarray(data.standardise(constant)(constant)).any()
    targets = data.standardise(X[:, 0])
    np.testing.assert_allclose(targets.inverse(targets(other[:, 0])), other[:, 0], rtol=1e-5)
    many = jax.vmap(data.standardise)(jnp.stack([X, 2 * X]))  # a pytree, so a population has one each
    np.testing.assert_allclose(jax.vmap(lambda s, x: s(x))(many, jnp.stack([X, 2 * X]))[1], scaling(X), atol=1e-5)


def test_what_cannot_be_scaled_is_refused():
    scaling = data.standardise(np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"X has shape \(4, 3\), expected features of shape \(2,\), with or without m"):
        scaling(np.ones((4, 3), np.float32))
    with pytest.raises(ValueError, match=r"Z has shape \(\), expected features of shape \(2,\)"):
        scaling.inverse(np.float32(1))
    with pytest.raises(ValueError, match="X has dtype uint8, expected a floating-point type"):
        scaling(np.ones((4, 2), np.uint8))
    with pytest.raises(ValueError, match="X has dtype int32, expected a floating-point type"):
        data.standardise(np.ones((4, 2), np.int32))
    with pytest.raises(ValueError, match=r"X has shape \(0, 2\), expected at least one example"):
        data.standardise(np.ones((0, 2), np.float32))
    with pytest.raises(ValueError, match=r"X holds nan at \(1, 0\), expected finite numbers"):
        data.standardise(np.asarray([[1.0], [np.nan]], np.float32))
    with pytest.raises(ValueError, match=r"X holds 3.*e\+38 at \(0, 1\), whose result float32 cannot hold"):
        data.standardise(np.asarray([[1, 1], [2, 1.1]], np.float32))(np.asarray([[0, 3e38]], np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_both_ends_of_the_range_are_scaled_right_or_refused(dtype):
    """Features of any size around any offset, all in one call: the oracle has the same numbers in float64."""
    rng, ends = np.random.default_rng(0), float(jnp.finfo(dtype).max)
    sizes = [1e-30, 1e-20, 1e-7, 1, 1e4, 1e20, 1e30, 1e38, ends] if dtype != "float16" else [1e-4, 1, 1e3, ends]
    X = np.stack(
        [size * rng.uniform(-0.9, 0.9, 50) + offset for size in sizes for offset in (0, size / 20, -size / 20)], 1
    )
    X[7] = X[0]  # some equal ones
    X = X.astype(jnp.dtype(dtype))
    exact = X.astype(np.float64)
    scaling = data.standardize(X)
    assert scaling.mean.dtype == scaling.deviation.dtype == np.float32
    np.testing.assert_allclose(scaling.deviation, exact.std(0), rtol=1e-5)
    Z = scaling(X)
    assert Z.dtype == X.dtype
    tolerance = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}[dtype]
    np.testing.assert_allclose(np.asarray(Z, np.float64), (exact - exact.mean(0)) / exact.std(0), atol=2 * tolerance)
    back = np.asarray(scaling.inverse(Z), np.float64)
    assert (np.abs(back - exact) <= tolerance * np.abs(exact).max(0)).all()


def test_one_sentinel_among_small_numbers_and_deviations_below_the_range():
    for sentinel in (-3.4028235e38, 1e38, 3.4028235e38):
        X = np.arange(100, dtype=np.float32)[:, None].copy()
        X[7] = sentinel
        exact = X.astype(np.float64)
        scaling = data.standardize(X)
        assert float(scaling.deviation[0]) == pytest.approx(exact.std(), rel=1e-5)
        np.testing.assert_allclose(scaling(X), (exact - exact.mean()) / exact.std(), rtol=1e-5, atol=1e-5)
    extremes = np.asarray([[3e38], [-3e38], [3e38]], np.float32)
    assert float(data.standardize(extremes).deviation[0]) == pytest.approx(2.8284e38, rel=1e-4)
    for tiny in (1e-44, 1e-40, 1e-36):
        with pytest.raises(ValueError, match=r"the deviation of X is .* at \(1,\), expected at least 7.7e-34"):
            data.standardize(np.asarray([[1, 0], [2, tiny]], np.float32))
    with jax.enable_x64(True):
        assert float(data.standardize(np.asarray([0, 1e-200])).deviation) == pytest.approx(5e-201, rel=1e-12)
