"""Shifts and elastic distortions: scipy's numbers, the right spread, the type that was stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given
from hypothesis import strategies as st

from jaxmlp import data
from jaxmlp.data import augment


@given(h=st.integers(1, 9), w=st.integers(1, 9), sigma=st.floats(0.2, 6), seed=st.integers(0, 99))
def test_smoothing_is_scipys(h, w, sigma, seed):
    u = np.random.default_rng(seed).uniform(-1, 1, (2, h, w))
    G_h, G_w = augment.gaussian(h, sigma), augment.gaussian(w, sigma)
    expected = [scipy.ndimage.gaussian_filter(field, sigma, mode="constant", truncate=4) for field in u]
    np.testing.assert_allclose(G_h @ u @ G_w.T, expected, atol=1e-12)


def test_smoothing_multiplies_by_the_matrices():
    u = np.random.default_rng(0).uniform(-1, 1, (2, 9, 12)).astype(np.float32)
    expected = [scipy.ndimage.gaussian_filter(field, 1.5, mode="constant", truncate=4) for field in u]
    np.testing.assert_allclose(augment.smooth(jnp.asarray(u), 1.5), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 5), (1, 3)])
@pytest.mark.parametrize("size", [0.0, 1.0, 3.0, 40.0])
def test_displacing_is_scipys(x64, shape, size):
    """Also far outside, on whole pixels, and exactly on the frame."""
    rng = np.random.default_rng(0)
    x, d = rng.normal(size=shape), size * rng.normal(size=(50, 2, *shape))
    d[::2] = d[::2].round()
    at = np.indices(shape) + d
    expected = [scipy.ndimage.map_coordinates(x, places, order=1, mode="grid-constant") for places in at]
    got = jax.jit(jax.vmap(augment.displace, (None, 0)))(jnp.asarray(x), jnp.asarray(d))
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_elastic_displaces_by_smoothed_uniform_numbers(key):
    x = np.random.default_rng(0).uniform(0, 255, (12, 9)).astype(np.float32)
    d = 20 * augment.smooth(augment.draw_uniform(key, (2, 12, 9)), 3.0)
    expected = scipy.ndimage.map_coordinates(x, np.indices(x.shape) + np.asarray(d), order=1, mode="grid-constant")
    moved = jax.jit(data.elastic(20, 3))
    np.testing.assert_allclose(moved(key, x), expected, atol=1e-3)
    stored = moved(key, x.round().astype(np.uint8))
    assert stored.dtype == jnp.uint8
    assert np.abs(np.asarray(stored, float) - expected).max() <= 1.01  # x's rounding, and the result's: not cut


def test_displacements_spread_as_the_docstring_says():
    keys = jax.random.split(jax.random.key(0), 300)
    u = np.asarray(jax.vmap(lambda key: augment.draw_uniform(key, (2, 27, 27)))(keys))
    assert (u.min(), u.max()) == (-1, 1)
    assert abs(u.mean()) <= 5 / np.sqrt(3 * u.size) and u.var() == pytest.approx(1 / 3, rel=0.02)
    levels = np.bincount(np.round((u + 1) * 127.5).astype(int).ravel(), minlength=256)
    assert np.abs(levels - u.size / 256).max() <= 6 * np.sqrt(u.size / 256)  # 256 levels, each as likely
    pairs = np.corrcoef(u.reshape(300, -1)[:, :64].T) - np.eye(64)
    assert np.abs(pairs).max() <= 5.5 / np.sqrt(300)  # the four of a word tell nothing about each other
    fields = 34 * np.asarray(jax.vmap(lambda u: augment.smooth(u, 4.0))(jnp.asarray(u)))
    assert fields[:, :, 11:16, 11:16].std() == pytest.approx(34 / (2 * np.sqrt(3 * np.pi) * 4), rel=0.05)


def test_shifts_move_whole_pictures_each_as_often():
    x = np.random.default_rng(0).integers(1, 256, (5, 4)).astype(np.uint8)
    framed, n = np.pad(x, 2), 4000
    moved = {framed[r : r + 5, c : c + 4].tobytes(): (r, c) for r in range(5) for c in range(5)}
    got = np.asarray(jax.jit(jax.vmap(data.shifts(2), (0, None)))(jax.random.split(jax.random.key(0), n), x))
    counts = {place: 0 for place in moved.values()}
    for picture in got:
        counts[moved[picture.tobytes()]] += 1  # nothing else ever comes out
    assert max(abs(count - n / 25) for count in counts.values()) <= 5 * np.sqrt(n / 25)


@pytest.mark.parametrize("make", [data.shifts, data.elastic])
def test_a_picture_keeps_its_type_and_a_batch_is_its_examples(make, key):
    for dtype in ("uint8", "float32", "bfloat16", "float16"):
        made = jax.eval_shape(make(), key, jax.ShapeDtypeStruct((8, 7), dtype))
        assert (made.shape, made.dtype) == ((8, 7), dtype)
    x, keys = np.random.default_rng(0).integers(0, 256, (8, 7)).astype(np.uint8), jax.random.split(key, 3)
    got = np.asarray(jax.jit(jax.vmap(make(), (0, None)))(keys, x), int)
    for one, picture in zip(keys, got, strict=True):
        np.testing.assert_allclose(jax.jit(make())(one, x).astype(int), picture, atol=1)  # a tie may round either way
    assert len({picture.tobytes() for picture in got}) == 3  # three keys, three pictures


def test_equal_options_are_one_object():
    assert data.shifts(3) is data.shifts(np.int64(3)) is not data.shifts(2)
    assert data.elastic() is data.elastic(34, 4.0) is data.elastic(sigma=4) is not data.elastic(33)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: data.shifts(0), r"pixels is 0, expected at least 1"),
        (lambda: data.shifts(1.5), r"pixels is 1\.5, expected a whole number"),
        (lambda: data.elastic(alpha=0), r"alpha is 0, expected a finite number above 0"),
        (lambda: data.elastic(sigma=-1), r"sigma is -1, expected a finite number above 0"),
        (lambda: data.elastic(sigma=[4]), r"sigma is \[4\], expected a number"),
        (lambda: data.elastic(sigma=np.inf), r"sigma is inf, expected a finite number above 0 and at most 1e\+06"),
        (lambda: data.elastic(float("nan")), r"alpha is nan, expected a finite number above 0"),
        (lambda: data.elastic()(jax.random.key(0), jnp.zeros(784)), r"x has shape \(784,\), expected one picture"),
        (lambda: data.shifts()(jax.random.key(0), jnp.zeros((2, 2), int)), r"x has dtype int32, expected uint8 or"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
