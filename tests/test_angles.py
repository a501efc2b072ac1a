"""The angle between two gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import DEEP

import jaxmlp as jm
from jaxmlp import rules
from jaxmlp.angles import angle, norm_ratios


@pytest.fixture(autouse=True)
def double(x64):
    pass


def test_backprops_angle_is_0_and_only_the_output_layer_of_another_rule_agrees():
    params, X, Y, *_ = DEEP.make()
    true = jm.backprop(DEEP.net, params, X, Y)
    assert float(jm.alignment(true, true).max()) <= 1e-12
    rule = rules.feedback_alignment()
    other = jm.backprop(DEEP.net, params, X, Y, rule=rule, rule_state=rule.start(DEEP.net, jax.random.key(0)))
    angles = np.asarray(jm.alignment(other, true))
    assert angles[3] <= 1e-12 and (angles[:3] > 1).all()


def test_angles_are_accurate_near_0_and_at_180():
    u = jnp.asarray([1.0, 0.0])
    for degrees in (1e-10, 1e-3, 45, 90, 179.999, 180):
        v = 3 * jnp.asarray([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
        assert float(angle(u, v)) == pytest.approx(degrees, rel=1e-9)
    assert float(angle(0 * u, 0 * u)) == 0 and np.isnan(float(angle(u, 0 * u)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_has_the_angle_of_its_numbers(dtype):
    """Means of gradients that are 0 in float16, and more entries of 1 than float16 counts."""
    rng = np.random.default_rng(0)
    draw = lambda n, size: jnp.asarray(rng.normal(size=(5, n)) * size).astype(dtype)

    def trace(delta, a):
        return jm.Trace((a,), (delta,), (delta,), delta, jnp.zeros(5, dtype))

    traces = [trace(draw(3, 1e-5), draw(4, 1e-4)) for _ in range(2)]
    wide = [jax.tree.map(lambda x: x.astype(jnp.float64), t) for t in traces]
    np.testing.assert_allclose(jm.alignment(*traces), jm.alignment(*wide), rtol=1e-4)
    ones = jnp.ones(70_000, dtype)
    assert float(angle(ones, ones)) == 0 and float(angle(ones, -ones)) == 180
    layers = (jm.Layer(jnp.ones((300, 300), dtype), jnp.zeros(300, dtype)),)
    half = (jm.Layer(layers[0].W / 2, layers[0].b),)
    assert norm_ratios(layers, half).tolist() == [2]
