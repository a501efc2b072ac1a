"""Levenberg-Marquardt against dense algebra in float64, in both spaces, and in `fit` and `sweep`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from oracles import as_rows
from problems import KEYS, Problem, fit, tree_error

import jaxmlp as jm
from jaxmlp.methods import gauss_newton

DAMPING = 0.05
NETS = (
    Problem((3, 4, 2), ("tanh",), "identity", "squared_error", 5),
    Problem((3, 4, 2), ("tanh",), "softmax", "cross_entropy", 5, weighted=True),
    Problem((3, 4, 1), ("silu",), "sigmoid", "binary_cross_entropy", 6, weighted=True),
    Problem((3, 4, 2), ("tanh",), "softmax", "squared_error", 4, masked=True),
)


@pytest.mark.parametrize("penalty", [0.0, 0.2])
@pytest.mark.parametrize("problem", NETS, ids=str)
def test_both_spaces_give_the_dense_step(x64, problem, penalty):
    net = problem.net
    params, X, Y, _, weights, masks = problem.make()

    @jax.jit
    def solve(params):
        trace = jm.backprop(net, params, X, Y, masks=masks)
        grads = jax.tree.map(lambda g, p: g + penalty * p, jm.mean_gradient(trace, weights), params)
        given = (net, params, trace, weights, grads, jnp.asarray(DAMPING))
        rows = jm.per_example_gradients(jm.restart(net, params, trace, start=jm.hessian_root))
        return gauss_newton._solve_for_weights(*given), gauss_newton._solve_for_outputs(*given), grads, rows

    *steps, grads, rows = solve(params)
    w = np.ones(problem.m) if weights is None else np.asarray(weights)
    B = as_rows(rows, lead=2)
    G = np.einsum("m,mcp,mcq->pq", w / w.sum(), B, B)
    g = np.asarray(ravel_pytree(grads)[0])
    expected = -np.linalg.solve(G + DAMPING * np.eye(len(g)), g)
    for step in steps:
        assert tree_error(ravel_pytree(step)[0], expected) <= 1e-9


def test_a_step_that_raises_the_cost_is_not_taken(x64):
    """The damping then grows by 2, 4, 8; after an accepted step it shrinks by the gain ratio."""
    problem = NETS[0]
    net = problem.net
    params, X, Y, _, _, _ = problem.make()
    trace = jm.backprop(net, params, X, Y)
    grads = jm.mean_gradient(trace)
    optimizer = jm.gauss_newton(net, DAMPING)
    state = optimizer.init(params)
    J = lambda p: jm.cost(net, p, X, Y)
    told = {"trace": trace, "value": J(params)}

    @jax.jit
    def update(state, factor, rise):
        value = lambda p: factor * J(p) + rise
        return optimizer.update(grads, state, params, value_fn=value, **told)

    for damping, growth in ((2, 4), (8, 8), (64, 16)):
        updates, state = update(state, 0.0, told["value"] + 1)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
        assert float(state.damping) == pytest.approx(DAMPING * damping) and float(state.growth) == growth
    before = float(state.damping)
    updates, state = update(state, 1.0, 0.0)
    d, g = (np.asarray(ravel_pytree(tree)[0]) for tree in (updates, grads))
    modelled = (before * d @ d - g @ d) / 2
    ratio = float(J(params) - J(optax.apply_updates(params, updates))) / modelled
    assert ratio > 0
    assert float(state.damping) == pytest.approx(before * max(1 / 3, 1 - (2 * ratio - 1) ** 3), rel=1e-9)
    assert float(state.growth) == 2
    updates, state = update(state, jnp.nan, 0.0)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates)) and float(state.growth) == 4


def test_a_batch_in_which_no_example_counts_moves_nothing(x64):
    """Not even where a penalty has a gradient: there is no curvature to divide it by."""
    problem = NETS[1]
    params, X, Y, *_ = problem.make()
    optimizer, trace = jm.gauss_newton(problem.net, DAMPING), jm.backprop(problem.net, params, X, Y)
    state, value = optimizer.init(params), lambda p: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))

    @jax.jit
    def update(weights):
        told = {"trace": trace, "weights": weights, "value": value(params), "value_fn": value}
        return optimizer.update(jax.tree.map(lambda p: 2 * p, params), state, params, **told)

    updates, after = update(jnp.zeros(problem.m))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates)) and after == state


CURVE = jm.MLP((1, 6, 1), hidden="tanh")
LM = jm.gauss_newton(CURVE)


def test_it_finds_a_curve_that_another_network_made(x64):
    """A cost below 1e-7 within a hundred steps; and the same from a sweep."""
    x = jnp.linspace(-1, 1, 30)[:, None]
    y = jm.predict(CURVE, jm.init(CURVE, jax.random.key(5), biases="lecun"), x)
    result = fit(jm.init(CURVE, KEYS[0]), (x, y), net=CURVE, optimizer=LM, epochs=100)
    assert result.history["cost"][-1] <= 1e-7
    make = functools.partial(jm.gauss_newton, CURVE)
    many = jm.sweep(CURVE, (x, y), keys=KEYS[:2], optimizer=make, epochs=20, progress=False)
    ten = many.history["cost"][9]
    np.testing.assert_allclose(ten, [result.history["cost"][9], ten[1]], rtol=1e-6)
    assert (np.diff(many.history["cost"], axis=0) <= 0).all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: jm.gauss_newton(CURVE, 0), "damping is 0, expected a finite number above 0"),
        (lambda: jm.gauss_newton(CURVE, [0.1, 0.2]), r"damping has shape \(2,\), expected one number"),
        (lambda: jm.gauss_newton(3), "net is an int, expected an MLP"),
        (lambda: LM.update((), LM.init(jm.init(CURVE, KEYS[0])), jm.init(CURVE, KEYS[0])),
         "gauss_newton's update is called without trace, value, value_fn"),
    ],
)  # fmt: skip
@pytest.mark.wrong_arguments
def test_what_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
