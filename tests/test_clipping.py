"""No example adds more than `max_norm` to a clipped sum, whatever its numbers and its dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import as_rows

import jaxmlp as jm

HALVES = ("float16", "bfloat16")


def traces(deltas, inputs, dtype):
    """Traces of one layer; `(n, m, o)` and `(n, m, i)` make n of them."""
    deltas, inputs = jnp.asarray(deltas).astype(dtype), jnp.asarray(inputs).astype(dtype)
    return jm.Trace((inputs,), (deltas,), (deltas,), deltas, jnp.zeros(deltas.shape[:-1], dtype))


def lengths(tree, lead=0):
    """The norm of a gradient, or of each along `lead` axes, in float64."""
    return np.linalg.norm(as_rows(jax.tree.map(lambda g: np.asarray(g, np.float64), tree), lead), axis=-1)


def draw(dtype, n=400):
    """Pairs of single examples over most of the range of a dtype: 40 powers of ten in float32 and bfloat16."""
    rng, about = np.random.default_rng(0), jnp.finfo(dtype)
    low, high = np.log10(float(about.tiny)) + 1, np.log10(float(about.max)) - 1
    size = lambda: 10 ** rng.uniform(low / 2, high / 2, (n, 1, 1))
    return rng.normal(size=(n, 1, 3)) * size(), rng.normal(size=(n, 1, 5)) * size()


@pytest.mark.parametrize("dtype", [*HALVES, "float32"])
def test_one_example_is_clipped_to_the_bound(dtype):
    each = traces(*draw(dtype), dtype)
    delta, a = (np.asarray(x[0][:, 0].astype(jnp.float32), np.float64) for x in (each.deltas, each.inputs))
    true = np.linalg.norm(delta, axis=1) * np.sqrt((a**2).sum(1) + 1)
    norms = jax.jit(jax.vmap(jm.per_example_norms))(each)[:, 0]
    assert norms.dtype == jnp.float32
    np.testing.assert_allclose(norms, true, rtol=1e-5)
    smallest = float(jnp.finfo(dtype).tiny)
    clip = jax.jit(jax.vmap(jm.clipped_gradient, in_axes=(0, None)))
    for max_norm in (1.0, 0.037, 300.0):
        clipped = clip(each, max_norm)
        assert clipped[0].W.dtype == dtype
        got, want = lengths(clipped, lead=1), np.minimum(true, max_norm)
        assert (got <= max_norm * (1 + 1e-6)).all()
        assert (got >= 0.98 * want - 20 * smallest).all()  # what the dtype holds of it


def test_the_bounds_of_reported_cases():
    clip = lambda delta, a, c, dtype: lengths(jm.clipped_gradient(traces([[delta]], [[a]], dtype), c))
    assert 0.98 <= clip(20.0, 20.0, 1.0, "float16") <= 1.0  # squares overflow
    assert 0.98e-5 <= clip(1e-4, 0.0, 1e-5, "float16") <= 1.0e-5  # squares vanish
    assert 0.98 <= clip(16.0, 16.0, 1.0, "bfloat16") <= 1.0  # rounding may not lengthen
    assert 0.98 <= clip(1e25, 1e-3, 1.0, "float32") <= 1 + 1e-6
    assert clip(1e-25, 0.0, 1e-30, "float32") <= 1e-30 * (1 + 1e-6)


@pytest.mark.parametrize("dtype", [*HALVES, "float32"])
def test_sums_of_many_stay_within_their_share(dtype):
    """All gradients alike: the longest mean there is. Each of m examples adds max_norm / m."""
    m = 1000
    trace = traces(np.full((m, 2), 30.0), np.full((m, 4), 7.0), dtype)
    got = lengths(jm.clipped_gradient(trace, 0.7))
    assert 0.98 * 0.7 <= got <= 0.7 * (1 + 1e-6)
    private = jm.private_gradient(trace, 0.7, 0.0, jax.random.key(0), expected_batch_size=m / 2)
    assert lengths(private) == pytest.approx(1.4, rel=0.01)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("where", ["deltas", "inputs"])
def test_an_example_without_a_finite_norm_adds_nothing(bad, where):
    delta, a = np.ones((3, 2), np.float32), np.ones((3, 4), np.float32)
    {"deltas": delta, "inputs": a}[where][1] = bad
    if where == "inputs":
        delta[1] = 0  # 0 times infinity
    clip, privately = jax.jit(jm.clipped_gradient), jax.jit(jm.private_gradient)
    fine, got = (clip(traces(delta[each], a[each], "float32"), 0.5) for each in (slice(0, 3, 2), slice(3)))
    np.testing.assert_allclose(got[0].W, fine[0].W * 2 / 3, rtol=1e-6)
    private = privately(traces(delta, a, "float32"), 0.5, 0.0, jax.random.key(0), 2)
    np.testing.assert_allclose(private[0].b, fine[0].b, rtol=1e-6)


def test_a_feature_beyond_every_square_is_clipped():
    """Hidden units that are dead for an example with a sentinel of 1e37: its first layer's gradient is 0, not NaN."""
    net = jm.MLP((2, 3, 1))
    params = (jm.Layer(-jnp.ones((3, 2)), jnp.zeros(3)), jm.Layer(jnp.ones((1, 3)), jnp.zeros(1)))
    trace = jm.backprop(net, params, np.full((1, 2), 9.96e36, np.float32), np.asarray([[1000.0]], np.float32))
    np.testing.assert_allclose(jm.per_example_norms(trace), [1000])
    np.testing.assert_allclose(jm.layer_norms(trace), [[0, 1000]])
    assert lengths(jm.clipped_gradient(trace, 1.0)) == pytest.approx(1)


@pytest.mark.parametrize("dtype", HALVES)
def test_noise_is_drawn_in_float32(dtype):
    trace = traces(np.zeros((1, 300)), np.zeros((1, 300)), dtype)
    noise = np.asarray(jm.private_gradient(trace, 1.0, 1.0, jax.random.key(0), 1.0)[0].W, np.float64)
    assert noise.std() == pytest.approx(1, rel=0.01) and 4 < abs(noise).max() < 6
    full = traces(np.zeros((1, 300)), np.zeros((1, 300)), "float32")
    exact = jm.private_gradient(full, 1.0, 1.0, jax.random.key(0), 1.0)[0].W
    np.testing.assert_array_equal(noise, np.asarray(exact.astype(dtype), np.float64))


def test_sums_beyond_a_dtypes_largest_number_come_back_divided():
    m = 70_000  # infinite in float16, and so is the sum of as many gradients of 1
    trace = traces(np.ones((m, 1)), np.ones((m, 1)), "float16")
    assert float(jm.private_gradient(trace, 2.0, 0.0, jax.random.key(0))[0].W[0, 0]) == 1
    assert float(jm.clipped_gradient(trace, 2.0)[0].W[0, 0]) == 1


def test_weights_count_from_0_to_1_where_jit_hides_them():
    trace = traces([[1.0], [1.0], [1.0]], [[0.0], [0.0], [0.0]], "float32")
    private = jax.jit(lambda t, w: jm.private_gradient(t, 1.0, 0.0, jax.random.key(0), 1.0, w)[0].b[0])
    clipped = jax.jit(lambda t, w: jm.clipped_gradient(t, 0.5, w)[0].b[0])
    for weights, total in (([1.0, -9, 0], 1.0), ([5.0, 0.5, -jnp.inf], 1.5), ([jnp.nan, 1, 1], 2.0)):
        assert float(private(trace, jnp.asarray(weights))) == total
    for weights, total in (([1.0, 1, 1e10], 3.0), ([1e-12, 1e-12, 0], 2e-12)):  # known ones count by their sizes, too
        got = jm.private_gradient(trace, 1.0, 0.0, jax.random.key(0), 1.0, jnp.asarray(weights))[0].b[0]
        assert float(got) == pytest.approx(total)
    for weights in ([1.0, -9, 0], [1.0, -1, 1e-3], [-1.0, jnp.nan, 2]):
        assert float(clipped(trace, jnp.asarray(weights))) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="weights holds values from -9 to 1"):
        jm.private_gradient(trace, 1.0, 0.0, jax.random.key(0), 1.0, jnp.asarray([1.0, -9, 0]))
