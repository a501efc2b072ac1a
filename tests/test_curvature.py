"""Curvature against `jax.hessian` and `jax.jacrev` of the plain cost."""

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.flatten_util import ravel_pytree
from problems import TABLE, Problem, tree_error

import jaxmlp as jm
from jaxmlp import eigenvalues

TWICE = [p for p in TABLE if not p.masked]


@pytest.fixture(autouse=True)
def double(x64):
    pass


class Made(NamedTuple):
    """A problem with a direction in its parameters, its curvature by jaxmlp, and what autodiff finds."""

    problem: Problem
    v: Any
    got: dict[str, Any]
    hessian: np.ndarray  # of the cost
    jacobian: np.ndarray  # (m, k, parameters), of the outputs
    jacobian_z: np.ndarray  # of z^K
    loss_hessian: np.ndarray  # (m, k, k), in z^K: its Gauss-Newton part where the pair is not canonical

    @property
    def gauss_newton(self):
        J, w = self.jacobian_z, self.problem.make()[4]
        w = np.ones(len(J)) if w is None else np.asarray(w)
        return np.einsum("m,mkp,mkc,mcq->pq", w / w.sum(), J, self.loss_hessian, J)


@functools.cache
def make(problem):
    """All that jaxmlp computes in one program, and all that autodiff does in another."""
    params, X, Y, rows, weights, _ = problem.make()
    net, v = problem.net, direction(params)

    def compute(params, v, X, Y, weights):
        root = lambda x, y: jm.hessian_root(net, jm.forward(net, params, x)[1], y)
        return {
            "hvp": jm.hvp(net, params, X, Y, v, weights=weights),
            "ggnvp": jm.ggnvp(net, params, X, Y, v, weights=weights),
            "ggn_diagonal": jm.ggn_diagonal(net, params, X, Y, weights=weights),
            "ggn_blocks": jm.ggn_blocks(net, params, X, Y, weights=weights),
            "hessian_root": jax.vmap(root)(X, Y),
            "output_jacobian": jm.output_jacobian(net, params, X),
            "ntk": jm.ntk(net, params, X),
            "ntk of two sets": jm.ntk(net, params, X[:1], X),
        }

    flat, unravel = ravel_pytree(params)

    def differentiate(flat, X, Y, rows, weights):
        f, loss = net.output.f, net.loss.f
        last = lambda theta, x: jm.forward(net, unravel(theta), x)[1].pre_activations[-1]

        def example(x, row):
            z = last(flat, x)
            if net.output == net.loss.canonical:  # split at z, else at y_hat
                H = jax.hessian(lambda z: loss(f(z), row))(z)
            else:
                J = jax.jacobian(f)(z)
                H = J.T @ jax.hessian(loss)(f(z), row) @ J
            output = lambda theta: jm.forward(net, unravel(theta), x)[0]
            return jax.jacrev(output)(flat), jax.jacrev(last)(flat, x), H

        hessian = jax.hessian(lambda theta: jm.cost(net, unravel(theta), X, Y, weights=weights))(flat)
        return hessian, *jax.vmap(example)(X, rows)

    got = jax.jit(compute)(params, v, X, Y, weights)
    expected = jax.jit(differentiate)(flat, X, Y, rows, weights)
    return Made(problem, v, *jax.tree.map(np.asarray, (got, *expected)))


@pytest.fixture(scope="module", params=TWICE, ids=str)
def made(request):
    with jax.enable_x64(True):
        return make(request.param)


def as_vector(tree):
    return oracles.as_rows(tree, lead=0)


def direction(params, seed=3):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)


def test_hvp_is_the_hessian_times_v(made):
    assert jax.tree.structure(made.got["hvp"]) == jax.tree.structure(made.v)
    assert tree_error(as_vector(made.got["hvp"]), made.hessian @ as_vector(made.v)) <= 1e-10


def test_ggnvp_diagonal_and_blocks_are_the_gauss_newton_matrixs(made):
    G = made.gauss_newton
    assert tree_error(as_vector(made.got["ggnvp"]), G @ as_vector(made.v)) <= 1e-10
    assert tree_error(as_vector(made.got["ggn_diagonal"]), np.diag(G)) <= 1e-10
    start = 0
    for block, layer in zip(made.got["ggn_blocks"], made.v, strict=True):
        end = start + layer.W.size + layer.b.size
        assert tree_error(block, G[start:end, start:end]) <= 1e-10
        start = end


def test_the_rows_of_the_root_make_up_the_losses_hessian(made):
    roots = made.got["hessian_root"]
    np.testing.assert_allclose(np.einsum("mck,mcj->mkj", roots, roots), made.loss_hessian, rtol=1e-10, atol=1e-15)


def test_jacobian_of_the_outputs_and_tangent_kernel(made):
    J = made.jacobian
    np.testing.assert_allclose(oracles.as_rows(made.got["output_jacobian"], lead=2), J, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(made.got["ntk"], np.einsum("mkp,ncp->mnkc", J, J), rtol=1e-9, atol=1e-14)
    some = np.einsum("mkp,ncp->mnkc", J[:1], J)
    np.testing.assert_allclose(made.got["ntk of two sets"], some, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("problem", [TABLE[2], TABLE[5]], ids=str)
def test_eigenvalues_and_trace_are_the_hessians(problem):
    params, X, Y, _, weights, _ = problem.make()
    H = make(problem).hessian
    expected = np.linalg.eigvalsh(H)[::-1]
    for k in (1, 3):
        got = jm.hessian_eigenvalues(problem.net, params, X, Y, k, weights=weights, tolerance=1e-12)
        np.testing.assert_allclose(got, expected[:k], rtol=1e-8)
    samples = 2000
    spread = np.sqrt(2 * (np.sum(np.square(H)) - np.sum(np.square(np.diag(H)))) / samples)
    got = jm.hessian_trace(problem.net, params, X, Y, jax.random.key(1), samples, weights=weights)
    assert abs(float(got) - np.trace(H)) <= 5 * spread


def test_lanczos_on_a_network_too_large_for_the_matrix():
    net = jm.MLP((6, 8, 3), hidden="tanh", output="softmax", loss="cross_entropy")
    params = jm.init(net, jax.random.key(0))
    X, Y = jax.random.normal(jax.random.key(1), (20, 6)), jnp.arange(20) % 3
    flat, unravel = ravel_pytree(params)
    H = jax.jit(jax.hessian(lambda t: jm.cost(net, unravel(t), X, Y)))(flat)
    got = jm.hessian_eigenvalues(net, params, X, Y, 4, tolerance=1e-10)
    np.testing.assert_allclose(got, np.linalg.eigvalsh(H)[::-1][:4], rtol=1e-7)
    of_ggn = jm.hessian_eigenvalues(net, params, X, Y, 2, product=jm.ggnvp, tolerance=1e-10)
    assert (of_ggn > 0).all() and not np.allclose(of_ggn, got[:2])


@pytest.mark.parametrize(
    ("output", "loss"),
    [("softmax", "binary_cross_entropy"), ("sigmoid", "cross_entropy"), ("sigmoid", "binary_cross_entropy"),
     ("softmax", "cross_entropy"), ("softmax", "squared_error")],
)  # fmt: skip
def test_saturated_outputs_have_the_curvature_of_their_cost(output, loss):
    """Where y_hat rounds to 0 and 1, d2L/dy_hat^2 is infinite and the Jacobian 0."""
    net = jm.MLP((3, 3), output=output, loss=loss)
    params = (jm.Layer(jnp.eye(3), jnp.zeros(3)),)
    flat, unravel = ravel_pytree(params)
    X, Y = np.asarray([[1.0, 0, -1], [0, 1, 0.5]]), np.asarray([[1.0, 0, 0], [0.25, 0.25, 0.5]])
    v = direction(params)

    @jax.jit
    def curve(params, X):
        H = jax.hessian(lambda theta: jm.cost(net, unravel(theta), X, Y))(flat)
        of = lambda function, *given: function(net, params, X, Y, *given)
        return H, of(jm.hvp, v), of(jm.ggn_blocks), of(jm.ggnvp, v), of(jm.ggn_diagonal)

    for size in (1.0, 15.0, 40.0, 1e4):
        hessian, got, (block,), along, diagonal = jax.tree.map(np.asarray, curve(params, size * X))
        tiny = 1e-15 * size**2
        np.testing.assert_allclose(as_vector(got), hessian @ as_vector(v), rtol=1e-10, atol=tiny)
        assert np.isfinite(block).all()
        np.testing.assert_allclose(as_vector(along), block @ as_vector(v), rtol=1e-10, atol=tiny)
        np.testing.assert_allclose(as_vector(diagonal), np.diag(block), rtol=1e-10, atol=tiny)
        assert np.linalg.eigvalsh(block).min() >= -tiny


def matrices():
    rng = np.random.default_rng(0)
    low = (u := rng.normal(size=(40, 3))) @ u.T
    return {"zero": 0 * low, "multiple of 1": 3 * np.eye(40), "rank 3": low, "negative": -low, "tiny": 1e-30 * low,
            "huge": 1e30 * low, "one entry": np.diag(np.eye(40)[3])}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", matrices())
def test_lanczos_on_matrices_it_breaks_down_on(name, dtype):
    matrix = matrices()[name].astype(dtype)
    expected = np.sort(np.linalg.eigvalsh(matrix.astype(np.float64)))[::-1]
    start = np.random.default_rng(1).normal(size=40).astype(dtype)
    for k in (1, 5, 38):
        got = eigenvalues._iterate_lanczos(lambda v: matrix @ np.ravel(v).astype(dtype), start, k, 1e-4)
        np.testing.assert_allclose(got, expected[:k], rtol=1e-4, atol=1e-5 * abs(expected).max())


def test_eigenvalues_of_a_flat_cost_and_of_small_networks():
    """A saturated softmax in float32: its Hessian is 0."""
    net = jm.MLP((6, 8, 3), "relu", "softmax", "cross_entropy")
    first, last = jm.init(net, jax.random.key(0), dtype=jnp.float32)
    params = (first, jm.Layer(0 * last.W, jnp.asarray([200.0, 0, 0], jnp.float32)))
    X = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    assert jm.hessian_eigenvalues(net, params, X, np.zeros(10, int), 2).tolist() == [0, 0]
    small = jm.MLP((1, 1))
    params = (jm.Layer(jnp.ones((1, 1)), jnp.zeros(1)),)
    np.testing.assert_allclose(jm.hessian_eigenvalues(small, params, [[2.0]], [1.0], 2), [5, 0], atol=1e-12)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    X = jnp.asarray([[2.0]], jnp.bfloat16)
    np.testing.assert_allclose(jm.hessian_eigenvalues(small, half, X, jnp.ones(1), 1), [5], rtol=0.01)
    broken = (jm.Layer(jnp.full((1, 1), jnp.inf), jnp.zeros(1)),)
    with pytest.raises(ValueError, match="the product with the matrix holds NaN or infinity"):
        jm.hessian_eigenvalues(jm.MLP((1, 1), output="tanh"), broken, [[0.0]], [1.0])


@pytest.mark.parametrize(
    ("output", "loss"),
    [("identity", "squared_error"), ("sigmoid", "binary_cross_entropy"), ("softmax", "cross_entropy")],
)
def test_labels_sampled_from_the_model_make_the_fisher(output, loss):
    """For these losses the Fisher is the Gauss-Newton matrix, so sampled second moments tend to its diagonal."""
    net = jm.MLP((3, 2), output=output, loss=loss)
    params = jm.init(net, jax.random.key(0), biases="small_normal")
    X = jax.random.normal(jax.random.key(1), (2, 3))
    many = jnp.tile(X, (20_000, 1))
    Y = jm.sample_labels(net, jm.predict(net, params, many), jax.random.key(2))
    fisher = jm.second_moment(jm.backprop(net, params, many, Y))
    exact = jm.ggn_diagonal(net, params, X, jm.sample_labels(net, jm.predict(net, params, X), jax.random.key(3)))
    assert tree_error(fisher, exact) <= 0.03


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n, p, X, Y: jm.hvp(n, p, X, Y, p[:1]), r"v: params is 1 layers, expected a tuple of 2"),
        (lambda n, p, X, Y: jm.ggnvp(n, p, X, Y, jax.tree.map(jnp.float32, p)), r"v has dtype float32, the param"),
        (lambda n, p, X, Y: jm.hessian_eigenvalues(n, p, X, Y, 999), r"k is 999, but there are \d+ parameters"),
        (lambda n, p, X, Y: jm.hessian_trace(n, p, X, Y, jax.random.key(0), 0), r"samples is 0, expected at least 1"),
        (lambda n, p, X, Y: jm.ntk(n, p, X, X[:, :2]), r"X2 has 2 features, the network takes"),
    ],
)
def test_bad_input_is_named(call, message):
    params, X, Y, *_ = TABLE[2].make()
    with pytest.raises(ValueError, match=message):
        call(TABLE[2].net, params, X, Y)


def test_what_lacks_a_second_derivative_says_so():
    cube = jm.Activation("cube", lambda z: z**3, lambda z: 3 * z**2)
    absolute = jm.Loss("absolute", lambda a, y: jnp.abs(a - y).sum(), lambda a, y: jnp.sign(a - y))
    X, Y = jnp.ones((2, 3)), jnp.ones((2, 2))
    net = jm.MLP((3, 4, 2), hidden=cube)
    params = jm.init(net, jax.random.key(0))
    with pytest.raises(ValueError, match="activation 'cube' has no d2f"):
        jm.hvp(net, params, X, Y, params)
    assert jm.ggnvp(net, params, X, Y, params)  # needs none
    net = jm.MLP((3, 4, 2), loss=absolute)
    rootless = replace(absolute, canonical=net.output)
    with pytest.raises(ValueError, match="loss 'absolute' has no root, expected one for curvature at its canonical"):
        jm.ggn_diagonal(replace(net, loss=rootless), params, X, Y)
    with pytest.raises(ValueError, match="loss 'absolute' has no d2f"):
        jm.ggn_diagonal(net, params, X, Y)
    with pytest.raises(ValueError, match="gives no distribution, expected a loss with"):
        jm.sample_labels(net, jnp.ones((2, 2)), jax.random.key(0))
