"""Losses: derivatives, the canonical pairs in log space, and the domains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmlp as jm
from jaxmlp import activations, losses

CANONICAL = list(losses.NAMED.values())


@pytest.fixture(autouse=True)
def double(x64):
    pass


def example(loss, k=4):
    z = jnp.asarray(np.random.default_rng(1).normal(size=k))
    y = jnp.asarray(np.random.default_rng(2).dirichlet(np.ones(k)))
    return loss.canonical.f(z), y, z


@pytest.mark.parametrize("loss", CANONICAL, ids=lambda loss: loss.name)
def test_derivatives_equal_autodiff(loss):
    y_hat, y, _ = example(loss)
    np.testing.assert_allclose(loss.df(y_hat, y), jax.grad(loss.f)(y_hat, y), rtol=1e-13)
    np.testing.assert_allclose(jnp.diag(loss.d2f(y_hat, y)), jax.hessian(loss.f)(y_hat, y), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", CANONICAL, ids=lambda loss: loss.name)
def test_both_routes_to_delta_agree(loss):
    """y_hat - y, J^T dL/dy_hat, and autodiff of the loss in z."""
    y_hat, y, z = example(loss)
    direct = loss.delta(loss.canonical, z, y_hat, y)
    np.testing.assert_allclose(direct, y_hat - y, rtol=0)
    np.testing.assert_allclose(direct, loss.canonical.pull(z, loss.df(y_hat, y)), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(direct, jax.grad(lambda z: loss.f(loss.canonical.f(z), y))(z), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(loss.value(loss.canonical, z, y), loss.f(y_hat, y), rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", CANONICAL, ids=lambda loss: loss.name)
def test_canonical_pairs_are_finite_and_right_far_out(loss, dtype):
    z, y = jnp.asarray([1e4, -1e4, 0.0], dtype), jnp.asarray([0.0, 1.0, 0.0], dtype)
    value, gradient = jax.value_and_grad(lambda z: loss.value(loss.canonical, z, y))(z)
    expected = {"squared_error": 0.5 * (1e8 + 10001**2), "cross_entropy": 2e4, "binary_cross_entropy": 2e4 + np.log(2)}
    np.testing.assert_allclose(value, expected[loss.name], rtol=1e-6)
    np.testing.assert_allclose(loss.delta(loss.canonical, z, loss.canonical.f(z), y), gradient, rtol=1e-6, atol=1e-7)


def test_binary_cross_entropy_where_a_rounds_to_0_or_1():
    z = jnp.asarray([800.0, -800.0])
    assert losses.binary_cross_entropy.canonical.f(z).tolist() == [1, 0]
    for y, value in (([1.0, 0.0], 0.0), ([0.0, 1.0], 1600.0)):
        assert float(losses.binary_cross_entropy.value(activations.sigmoid, z, jnp.asarray(y))) == value


def test_zero_times_log_zero_is_zero():
    """A sigmoid output that rounds to 0 for a class that is not the label."""
    a, y = jnp.asarray([0.0, 0.5]), jnp.asarray([0.0, 1.0])
    assert float(losses.cross_entropy.f(a, y)) == np.log(2)
    assert losses.cross_entropy.df(a, y).tolist() == [0, -2]
    assert jax.grad(losses.cross_entropy.f)(a, y).tolist() == [0, -2]


@pytest.mark.parametrize(
    ("output", "loss"),
    [("identity", "binary_cross_entropy"), ("tanh", "binary_cross_entropy"), ("identity", "cross_entropy"),
     ("relu", "cross_entropy"), ("softplus", "binary_cross_entropy")],
)  # fmt: skip
def test_a_pair_that_cannot_be_is_refused(output, loss):
    with pytest.raises(ValueError, match=rf"output '{output}' gives values in .* but loss '{loss}' takes values in"):
        jm.MLP((2, 3), output=output, loss=loss)


def test_a_users_own_loss():
    quartic = jm.Loss("quartic", lambda y_hat, y: jnp.sum((y_hat - y) ** 4), lambda y_hat, y: 4 * (y_hat - y) ** 3)
    net = jm.MLP((3, 4, 2), hidden="tanh", output="sigmoid", loss=quartic)
    params = jm.init(net, jax.random.key(0))
    X, Y = jax.random.normal(jax.random.key(1), (5, 3)), jnp.ones((5, 2))
    assert jm.check_gradients(net, params, X, Y).passed


def test_labels_of_one_output_may_be_a_column_or_not():
    net = jm.MLP((3, 2, 1), output="sigmoid", loss="binary_cross_entropy")
    params, X = jm.init(net, jax.random.key(0)), jnp.ones((4, 3))
    y = jnp.asarray([0, 1, 1, 0])
    J = jm.cost(net, params, X, y)
    for same in (y[:, None], y.astype(float), y.astype(bool), y.tolist()):
        assert float(jm.cost(net, params, X, same)) == float(J)


def test_classes_and_one_hot_rows_are_the_same_labels():
    net = jm.MLP((3, 4), output="softmax", loss="cross_entropy")
    params, X = jm.init(net, jax.random.key(0)), jnp.ones((4, 3))
    y = jnp.asarray([0, 3, 1, 2])
    assert float(jm.cost(net, params, X, y)) == float(jm.cost(net, params, X, jax.nn.one_hot(y, 4)))
