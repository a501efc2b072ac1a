"""Losses: derivatives, the canonical pairs in log space, and the domains."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
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
    by_hand = jax.jit(lambda a, y: (loss.df(a, y), jnp.diag(loss.d2f(a, y))))(y_hat, y)
    gradient, hessian = jax.jit(lambda a, y: (jax.grad(loss.f)(a, y), jax.hessian(loss.f)(a, y)))(y_hat, y)
    np.testing.assert_allclose(by_hand[0], gradient, rtol=1e-13)
    np.testing.assert_allclose(by_hand[1], hessian, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", CANONICAL, ids=lambda loss: loss.name)
def test_both_routes_to_delta_agree(loss):
    """y_hat - y, J^T dL/dy_hat, and autodiff of the loss in z."""
    f = loss.canonical

    @jax.jit
    def route(y_hat, y, z):
        by_autodiff = jax.grad(lambda z: loss.f(f.f(z), y))(z)
        values = loss.value(f, z, y), loss.f(y_hat, y)
        return values, loss.delta(f, z, y_hat, y), y_hat - y, f.pull(z, loss.df(y_hat, y)), by_autodiff

    values, direct, difference, pulled, by_autodiff = route(*example(loss))
    np.testing.assert_allclose(direct, difference, rtol=0)
    np.testing.assert_allclose(direct, pulled, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(direct, by_autodiff, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(*values, rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", CANONICAL, ids=lambda loss: loss.name)
def test_canonical_pairs_are_finite_and_right_far_out(loss, dtype):
    z, y = jnp.asarray([1e4, -1e4, 0.0], dtype), jnp.asarray([0.0, 1.0, 0.0], dtype)
    delta = jax.jit(lambda z: loss.delta(loss.canonical, z, loss.canonical.f(z), y))(z)
    value, gradient = jax.jit(jax.value_and_grad(lambda z: loss.value(loss.canonical, z, y)))(z)
    expected = {"squared_error": 0.5 * (1e8 + 10001**2), "cross_entropy": 2e4, "binary_cross_entropy": 2e4 + np.log(2)}
    np.testing.assert_allclose(value, expected[loss.name], rtol=1e-6)
    np.testing.assert_allclose(delta, gradient, rtol=1e-6, atol=1e-7)


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


OUTPUTS = ("sigmoid", "softmax")
EVERY = [(output, loss) for output in OUTPUTS for loss in losses.NAMED]


def far_out(output, loss):
    """z up to 1e4 with labels of every kind the loss takes: hard, soft, and 0 for a class masked by -inf."""
    rng, cases = np.random.default_rng(0), []
    for size in (0.1, 3, 12, 40, 100, 1e4):
        for z in (rng.normal(size=3) * size, np.asarray([size, 0, 0]), np.asarray([size, size, -size])):
            for y in ([1.0, 0, 0], [0, 0, 1], [0.875, 0.125, 0], [1, 1, 0], [0.25, 0.5, 0.25], [0, 0, 0]):
                if loss != "cross_entropy" or np.isclose(sum(y), 1):
                    cases.append((z, y))
    for z in ([2.0, -np.inf, 1.0], [-np.inf, 30.0, -40.0], [-np.inf, 5.0, -np.inf]):
        cases.append((z, [0.0, 1, 0] if z[1] > 0 else [0.25, 0, 0.75]))
    return tuple(np.asarray(column, np.float32) for column in zip(*cases, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("output", "loss"), EVERY)
def test_every_pair_is_right_far_out(output, loss, dtype):
    Z, Y = far_out(output, loss)
    value, delta = zip(*(oracles.exact_loss(output, loss, z, y) for z, y in zip(Z, Y, strict=True)), strict=True)
    net = jm.MLP((3, 3), output=output, loss=loss)
    Z, Y = jnp.asarray(Z, dtype), jnp.asarray(Y, dtype)

    @jax.jit
    def both(Z, Y):
        trace = jax.vmap(lambda z, y: net.loss.delta(net.output, z, net.output(z), y))(Z, Y)
        return trace, *jax.vmap(jax.value_and_grad(lambda z, y: net.loss.value(net.output, z, y)))(Z, Y)

    by_hand, values, by_autodiff = both(Z, Y)
    rtol = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(values, value, rtol=rtol, atol=rtol)
    scale = np.maximum(np.abs(delta).max(axis=1), 2e-2 if dtype == "float32" else 1e-3)  # y_hat - y rounds
    for got in (by_hand, by_autodiff):
        assert got.dtype == dtype
        assert (np.abs(np.asarray(got) - np.asarray(delta)).max(axis=1) <= rtol * scale).all()


@pytest.mark.parametrize("labels", [[0.0, 1.0], [1.0, 1.0], [0.9, 0.3]])
def test_binary_cross_entropy_keeps_its_digits_where_it_is_small(labels):
    z = np.asarray([[s, s] for s in (-20.0, -12, -3, 0, 3, 12, 20)], np.float32) * (2 * np.round(labels) - 1)
    z, y = z.astype(np.float32), jnp.asarray(labels, jnp.float32)
    got = jax.vmap(lambda z: losses.binary_cross_entropy.value(activations.sigmoid, z, y))(jnp.asarray(z))
    expected = [oracles.exact_loss("sigmoid", "binary_cross_entropy", row, y)[0] for row in z]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_a_masked_class_has_no_part_in_cost_and_gradient(loss):
    """A bias of -inf leaves a class out: as the network without it, for classes and for rows."""
    masked, plain = jm.MLP((2, 3), output="softmax", loss=loss), jm.MLP((2, 2), output="softmax", loss=loss)
    W = jnp.asarray([[1.0, 2.0], [-1.0, 0.5], [7.0, 7.0]])
    params = (jm.Layer(W, jnp.asarray([0.1, 0.2, -jnp.inf])),)
    X, Y = jnp.asarray([[0.3, 0.4], [-1.0, 2.0]]), jnp.asarray([0, 1])
    J, grads = jm.value_and_grad(plain, (jm.Layer(W[:2], params[0].b[:2]),), X, jax.nn.one_hot(Y, 2))
    for labels in (Y, jax.nn.one_hot(Y, 3))[loss == "binary_cross_entropy" :]:
        for value_and_grad in (
            lambda p, Y: jm.value_and_grad(masked, p, X, Y),
            jax.jit(jax.value_and_grad(lambda p, Y: jm.cost(masked, p, X, Y))),
        ):
            got, got_grads = value_and_grad(params, labels)
            assert float(got) == pytest.approx(float(J), rel=1e-12)
            np.testing.assert_allclose(got_grads[0].W, np.pad(grads[0].W, ((0, 1), (0, 0))), rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(got_grads[0].b, np.pad(grads[0].b, (0, 1)), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_an_output_of_0_and_1_alone_is_refused_where_the_loss_is_infinite(loss):
    with pytest.raises(ValueError, match=f"output 'step' gives 0 and 1 alone, where loss '{loss}' is infinite"):
        jm.MLP((2, 3), output="step", loss=loss)
    assert jm.MLP((2, 3), output="step")


@pytest.mark.parametrize("name", [name for name in activations.NAMED if name not in OUTPUTS])
def test_squared_error_of_every_output_is_right_far_out(name):
    """float32 against float64."""
    output, loss = activations.NAMED[name], losses.squared_error
    Z = np.asarray([-1e4, -50, -9, -3, -0.1, 0.2, 3, 9, 50, 1e4], np.float32)
    each = lambda z: (loss.value(output, z, y := jnp.full((1,), 0.7, z.dtype)), loss.delta(output, z, output(z), y)[0])
    got, expected = (jax.jit(jax.vmap(each))(jnp.asarray(Z[:, None], dtype)) for dtype in ("float32", "float64"))
    for g, e in zip(got, expected, strict=True):
        np.testing.assert_allclose(g, e, rtol=1e-5, atol=2e-6)


def test_an_own_loss_with_constants_of_numpy_keeps_the_dtype():
    """Under x64 a float64 scalar of NumPy widens float32."""
    half = np.float64(0.5)
    own = jm.Loss("half", lambda a, y: half * jnp.sum((a - y) ** 2), lambda a, y: 2 * half * (a - y))
    with jax.numpy_dtype_promotion("standard"):
        net = jm.MLP((3, 2), loss=own)
        params = jm.init(net, jax.random.key(0), dtype=jnp.float32)
        J, grads = jm.value_and_grad(net, params, np.ones((4, 3), np.float32), np.zeros((4, 2), np.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves((J, grads))} == {jnp.dtype("float32")}


def test_labels_of_half_precision_outputs_are_drawn_in_float32():
    """float16 draws 1,024 uniform numbers: a probability of 2e-4 would be one of 1e-3."""
    draw = lambda loss, row: np.asarray(
        jax.jit(jax.vmap(loss.sample, (0, None)))(
            jax.random.split(jax.random.key(0), 200_000), jnp.asarray(row, jnp.float16)
        ),
        np.float64,
    )
    rare = draw(losses.binary_cross_entropy, [2e-4]).mean()
    assert rare == pytest.approx(2e-4, abs=1.5e-4)
    assert (draw(losses.cross_entropy, [2e-4, 1]) == 0).mean() == pytest.approx(2e-4, abs=1.5e-4)
    noise = draw(losses.squared_error, [0.0])
    assert noise.std() == pytest.approx(1, rel=0.01) and abs(noise).max() > 4
