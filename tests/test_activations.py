"""Each derivative written by hand against autodiff, and values that never overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxmlp as jm
from jaxmlp import activations

ELEMENTWISE = [f for f in activations.NAMED.values() if f.name != "softmax"]
by_name = pytest.mark.parametrize("f", ELEMENTWISE, ids=lambda f: f.name)


@pytest.fixture(autouse=True)
def double(x64):
    pass


POINTS = np.concatenate([np.linspace(-30, 30, 1201) + 0.013, [-1e4, -100.0, 100.0, 1e4]])


@jax.jit
def by_hand(z):
    """f, f' and f'' of every activation by its name, in one program."""
    return {f.name: (f.f(z), f.df(z), f.d2f(z)) for f in ELEMENTWISE}


@jax.jit
def by_autodiff(z):
    """f' and f'' of every activation by its name, in one program."""
    slope = lambda f: jax.grad(f.f)
    return {f.name: (jax.vmap(slope(f))(z), jax.vmap(jax.grad(slope(f)))(z)) for f in ELEMENTWISE}


@by_name
def test_derivative_equals_autodiff(f):
    np.testing.assert_allclose(by_hand(POINTS)[f.name][1], by_autodiff(POINTS)[f.name][0], rtol=1e-12, atol=1e-14)


@by_name
def test_second_derivative_equals_autodiff(f):
    np.testing.assert_allclose(by_hand(POINTS)[f.name][2], by_autodiff(POINTS)[f.name][1], rtol=1e-10, atol=1e-13)


@by_name
def test_values_are_those_of_jax_nn(f):
    others = {"identity": lambda z: z, "tanh": jnp.tanh, "step": lambda z: jnp.where(z < 0, 0.0, 1.0), "sign": jnp.sign}
    reference = others.get(f.name) or getattr(jax.nn, f.name)
    np.testing.assert_array_equal(f.f(jnp.asarray(POINTS)), reference(jnp.asarray(POINTS)))


@by_name
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_never_overflows_and_keeps_the_dtype(f, dtype):
    z = jnp.asarray([-1e30, -1e4, -50, -1, 0, 1, 50, 1e4, 1e30], dtype)
    for values in by_hand(z)[f.name]:
        assert values.dtype == z.dtype
        assert np.isfinite(values).all()


@by_name
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_right_to_its_rounding(f, dtype):
    about = jnp.finfo(dtype)
    z = jnp.asarray([-6e4, -300, -41, -9, -3, -0.3, 0, 0.3, 3, 9, 41, 300, 6e4]).astype(dtype)
    wide = z.astype(jnp.float64)
    for got, expected in ((f(z), f(wide)), (f.df(z), f.df(wide)), (f.d2f(z), f.d2f(wide))):
        assert got.dtype == dtype
        expected = np.asarray(expected)
        apart = np.abs(np.asarray(got).astype(np.float64) - expected)
        assert (apart <= 8 * float(about.eps) * np.maximum(np.abs(expected), 1)).all()


@by_name
def test_range_holds_every_value(f):
    values = np.asarray(by_hand(POINTS)[f.name][0])
    assert f.range[0] <= values.min() and values.max() <= f.range[1]


@by_name
def test_kinks_are_where_f_or_a_derivative_jumps(f):
    # f, f' and f'' a hair left and right of 0, the only place where any of these jumps
    jumps = any(abs(left - right) > 1e-6 for left, right in by_hand(np.asarray([-1e-9, 1e-9]))[f.name])
    assert jumps == (0 in f.kinks)


def test_conventions_at_the_kink():
    assert float(activations.relu.df(jnp.asarray(0.0))) == 0  # as jax.nn.relu has it
    assert float(activations.leaky_relu.df(jnp.asarray(0.0))) == 1
    assert float(activations.step.f(jnp.asarray(0.0))) == 1  # the notes' perceptron says 1 where z >= 0


def test_softmax_jacobian_is_that_of_the_notes():
    z = jnp.asarray([0.3, -1.2, 2.0, 0.5])
    a = np.asarray(jax.nn.softmax(z))
    written_out = [[a[i] * ((i == j) - a[j]) for j in range(4)] for i in range(4)]
    by_hand, by_autodiff = jax.jit(lambda z: (activations.softmax.df(z), jax.jacobian(jax.nn.softmax)(z)))(z)
    np.testing.assert_allclose(by_hand, written_out, rtol=1e-14)
    np.testing.assert_allclose(by_hand, by_autodiff, rtol=1e-13)


def test_softmax_pull_is_the_product_with_its_jacobian():
    z, error = jnp.asarray([0.3, -1.2, 2.0]), jnp.asarray([1.0, -2.0, 0.7])
    expected = np.asarray(jax.jit(jax.jacobian(jax.nn.softmax))(z)).T @ np.asarray(error)
    np.testing.assert_allclose(activations.softmax.pull(z, error), expected, rtol=1e-13)


def test_softmax_pull_keeps_its_digits_where_a_class_is_almost_certain():
    """`a_0 a_1 (e_0 - e_1)` and its negative, in float32 where 1 - a_0 is 0."""
    z, error = jnp.asarray([20.0, 0.0], jnp.float32), jnp.asarray([1.0, -1.0], jnp.float32)
    expected = 2 * np.exp(-20) / (1 + np.exp(-20)) ** 2
    np.testing.assert_allclose(activations.softmax.pull(z, error), [expected, -expected], rtol=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "softmax"])
def test_log_odds_and_their_derivatives(name):
    odds, f = activations.NAMED[name].log_odds, activations.NAMED[name]
    z, error, dz = jnp.asarray([0.3, -1.2, 2.0, 2.0]), jnp.asarray([1.0, -2.0, 0.7, 0.1]), jnp.asarray([0.5, 1, -1, 2])
    a = np.asarray(f(z))
    by_hand = lambda z: (odds.f(z), odds.jacobian(z), odds.pull(z, error), odds.pull_derivative(z, error, dz))
    log_odds, jacobian, pulled, derivative = jax.jit(by_hand)(z)
    np.testing.assert_allclose(log_odds, np.log(a / (1 - a)), rtol=1e-13)
    J = np.asarray(jax.jit(jax.jacobian(odds.f))(z))
    np.testing.assert_allclose(jacobian, J, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(pulled, J.T @ error, rtol=1e-12)
    along = jax.jit(lambda z, dz: jax.jvp(lambda z: odds.pull(z, error), (z,), (dz,))[1])(z, dz)
    np.testing.assert_allclose(derivative, along, rtol=1e-11, atol=1e-15)


def test_constants_of_numpy_keep_the_parameters_dtype():
    """Under x64 a float64 scalar of NumPy widens float32: in f, in f' and in f''."""
    alpha = np.float64(1.67)
    own = jm.Activation(
        "own",
        lambda z: jnp.where(z > 0, z, alpha * (jnp.exp(z) - 1)),
        lambda z: jnp.where(z > 0, np.float64(1), alpha * jnp.exp(z)),
        lambda z: jnp.where(z > 0, np.float64(0), alpha * jnp.exp(z)),
    )
    X, Y = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32), np.asarray([0, 1] * 3)
    with jax.numpy_dtype_promotion("standard"):
        net = jm.MLP((3, 4, 2), own, "softmax", "cross_entropy")
        params = jm.init(net, jax.random.key(0), dtype=jnp.float32)
        masks = tuple(np.ones((6, n)) for n in (3, 4))  # float64
        results = (
            jm.value_and_grad(net, params, X, Y, masks=masks),
            jax.grad(lambda p: jm.cost(net, p, X, Y))(params),
            jm.backprop(net, params, X, Y),
            jm.hvp(net, params, X, Y, params),
            jax.grad(lambda p: jm.as_function(net)(p, X).sum())(params),
            jm.fit(net, params, (X, Y), optimizer=optax.adam(0.1), epochs=1, batch_size=2, key=jax.random.key(0),
                   progress=False).params,
        )  # fmt: skip
        wide = jax.tree.map(lambda a: a.astype(jnp.float64), params)
        expected = jm.value_and_grad(net, wide, X.astype(np.float64), Y)
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype("float32")}
    for got, want in zip(jax.tree.leaves(results[0]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_a_users_own_activation():
    cube = jm.Activation("cube", lambda z: z**3, lambda z: 3 * z**2)
    net = jm.MLP((3, 4, 2), hidden=cube)
    params = jm.init(net, jax.random.key(0))
    X, Y = jax.random.normal(jax.random.key(1), (5, 3)), jnp.ones((5, 2))
    assert jm.check_gradients(net, params, X, Y).passed
    wrong = jm.Activation("cube", lambda z: z**3, lambda z: 2 * z**2)
    assert not jm.check_gradients(jm.MLP((3, 4, 2), hidden=wrong), params, X, Y).passed
