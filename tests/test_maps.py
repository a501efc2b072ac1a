"""Maps between traces: the identities of Kronecker factors, by dense algebra in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import Problem, tree_error

import jaxmlp as jm
from jaxmlp.inverse import invert
from jaxmlp.maps import transform_gradient

DAMPING = 0.03
PROBLEM = Problem((3, 4, 2), ("tanh",), "softmax", "cross_entropy", 7, weighted=True)


@pytest.fixture(autouse=True)
def double(x64):
    pass


def homogeneous(layer):
    """`[W b]`, with leading axes."""
    return np.concatenate([layer.W, np.asarray(layer.b)[..., None]], axis=-1)


def damped(factors, damping=DAMPING):
    """Martens and Grosse, section 6.3, in NumPy."""
    A, G = map(np.asarray, factors)
    pi = np.sqrt((np.trace(A) / len(A)) / (np.trace(G) / len(G)))
    return A + pi * np.sqrt(damping) * np.eye(len(A)), G + np.sqrt(damping) / pi * np.eye(len(G))


@pytest.fixture
def made():
    params, X, Y, _, weights, _ = PROBLEM.make()
    trace = jm.backprop(PROBLEM.net, params, X, Y)
    return trace, jm.kronecker_factors(trace, weights), weights


def test_the_mean_of_the_mapped_pairs_is_the_dense_solution(made):
    trace, factors, weights = made
    M = jm.factor_power(factors, -1, DAMPING)
    mapped = jm.mean_gradient(jm.transform(trace, M), weights)
    grads = jm.mean_gradient(trace, weights)
    for got, same, g, layer in zip(mapped, transform_gradient(M, grads), grads, factors, strict=True):
        A, G = damped(layer)
        expected = np.linalg.solve(np.kron(G, A), homogeneous(g).ravel()).reshape(homogeneous(g).shape)
        assert tree_error(homogeneous(got), expected) <= 1e-10
        assert tree_error(homogeneous(same), expected) <= 1e-10


@pytest.mark.parametrize("power", [-1, -0.5, 0.5, 2])
def test_powers_of_damped_factors(made, power):
    for got, layer in zip(jm.factor_power(made[1], power, DAMPING), made[1], strict=True):
        for x, dense in zip(got, damped(layer), strict=True):
            values, vectors = np.linalg.eigh(dense)
            assert tree_error(x, vectors * values**power @ vectors.T) <= 1e-10


def test_the_gram_of_whitened_traces_is_the_inner_product_by_the_inverse(made):
    trace, factors, _ = made
    other = trace._replace(deltas=tuple(delta[::-1] for delta in trace.deltas))
    M = jm.factor_power(factors, -0.5, DAMPING)
    got = jm.gradient_gram(jm.transform(trace, M), jm.transform(other, M))
    expected = 0
    for g, h, layer in zip(*map(jm.per_example_gradients, (trace, other)), factors, strict=True):
        A, G = damped(layer)
        g, h = (homogeneous(x).reshape(PROBLEM.m, -1) for x in (g, h))
        expected = expected + g @ np.linalg.solve(np.kron(G, A), h.T)
    assert tree_error(got, expected) <= 1e-10
    twice = jm.transform(jm.transform(trace, M), M)  # a map of a mapped trace
    once = jm.transform(trace, jm.factor_power(factors, -1, DAMPING))
    assert tree_error(jm.mean_gradient(twice), jm.mean_gradient(once)) <= 1e-10


def test_the_second_moment_along_the_eigenvectors_is_that_of_the_projected_gradients(made):
    trace, factors, _ = made
    U = jm.factor_eigenvectors(factors)
    moment = jm.second_moment(jm.transform(trace, U))
    for got, g, (U_A, U_G), layer in zip(moment, jm.per_example_gradients(trace), U, factors, strict=True):
        projected = np.einsum("po,moi,qi->mpq", U_G, homogeneous(g), U_A)
        assert tree_error(homogeneous(got), (projected**2).mean(0)) <= 1e-10
        for u, x in zip((U_A, U_G), layer, strict=True):
            rotated = np.asarray(u @ x @ u.T)
            assert np.abs(rotated - np.diag(np.diag(rotated))).max() <= 1e-12
            assert tree_error(u @ u.T, np.eye(len(u))) <= 1e-12


@pytest.mark.parametrize(
    ("problem", "one"),
    [
        (Problem((3, 2), (), "identity", "squared_error", 6), False),  # G is the identity
        (Problem((3, 4, 2), ("identity",), "identity", "squared_error", 1), True),
        (Problem((3, 4, 2), ("identity",), "softmax", "cross_entropy", 1), True),
    ],
    ids=str,
)
def test_where_the_product_of_the_factors_is_the_gauss_newton_matrix(problem, one):
    params, X, Y, _, _, _ = problem.make()
    factors = jm.kronecker_factors(jm.backprop(problem.net, params, X, Y, start=jm.hessian_root))
    blocks = jm.ggn_blocks(problem.net, params, X, Y)
    for (A, G), block in zip(factors, blocks, strict=True):
        o, i = len(G), len(A) - 1
        place = np.arange(o * (i + 1)).reshape(o, i + 1)
        W_then_b = np.concatenate([place[:, :-1].ravel(), place[:, -1]])
        assert tree_error(np.kron(G, A)[np.ix_(W_then_b, W_then_b)], block) <= 1e-10


@pytest.mark.parametrize("n", [1, 2, 7, 161, 333])
def test_the_inverse_by_products(n):
    x = np.random.default_rng(n).normal(size=(n, n + 5))
    x = x @ x.T / n + 0.01 * np.eye(n)
    inverse = jax.jit(invert)
    assert tree_error(inverse(jnp.asarray(x)), np.linalg.inv(x)) <= 1e-10
    assert not np.isfinite(inverse(jnp.asarray(-np.eye(n)))).all()


@pytest.mark.wrong_arguments
def test_what_is_refused(made):
    trace, factors, _ = made
    for wrong, match in [
        (factors[:1], r"M is tuple, expected KroneckerFactors\(A, G\) for each of 2 layers"),
        ((factors[1], factors[1]), r"M: A of layer 1 has shape \(5, 5\), expected 4 columns"),
    ]:
        with pytest.raises(ValueError, match=match):
            jm.transform(trace, wrong)
    with pytest.raises(ValueError, match="damping is -1, expected a finite number of at least 0"):
        jm.factor_power(factors, -1, -1)
    with pytest.raises(ValueError, match="power is "):
        jm.factor_power(factors, "inverse")
    zero = jm.KroneckerFactors(jnp.zeros((4, 4)), jnp.zeros((2, 2)))  # units that never learn
    assert np.isfinite(jm.factor_power((zero,), -1, 0.1)[0].A).all()
