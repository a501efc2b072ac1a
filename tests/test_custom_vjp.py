"""The network as a function with its own derivative, inside other people's `jax.grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import TABLE, tree_error

import jaxmlp as jm
from jaxmlp import rules

PROBLEM = TABLE[6]


@pytest.fixture(autouse=True)
def double(x64):
    pass


def plain(params, x):
    """The same network without a derivative of its own."""
    a = x
    for (W, b), f in zip(params, PROBLEM.net.activations, strict=True):
        a = f.f(W @ a + b)
    return a


def loss(function, params, x):
    """Nobody's cost: another loss around the network, with the network used twice."""
    inner = function(params, jnp.tanh(x))
    return jnp.sum(jnp.sin(inner) ** 2) + jnp.sum(x[:2] * function(params, x))


def both(transform=lambda f: f):
    params, X, *_ = PROBLEM.make()
    f = jm.as_function(PROBLEM.net)
    gradient = lambda function: jax.grad(lambda p, x: loss(transform(function), p, x), argnums=(0, 1))
    return gradient(f), jax.jit(gradient(plain)), params, np.asarray(X)


def test_gradients_in_parameters_and_inputs_equal_the_plain_networks():
    ours, theirs, params, X = both()
    assert tree_error(jm.as_function(PROBLEM.net)(params, X[0]), plain(params, X[0])) <= 1e-14
    assert tree_error(ours(params, X[0]), theirs(params, X[0])) <= 1e-12


@pytest.mark.parametrize("transform", [jax.jit, jax.checkpoint, lambda f: jax.jit(jax.checkpoint(f))])
def test_under_jit_and_checkpoint(transform):
    ours, theirs, params, X = both(transform)
    assert tree_error(jax.jit(ours)(params, X[0]), theirs(params, X[0])) <= 1e-12


def test_under_vmap_over_examples_and_over_parameters():
    ours, theirs, params, X = both()
    many = jax.tree.map(lambda a: np.stack([a, 0.5 * a]), params)
    for axes, arguments in (((None, 0), (params, X)), ((0, None), (many, X[0]))):
        got, expected = (jax.jit(jax.vmap(gradient, axes))(*arguments) for gradient in (ours, theirs))
        assert tree_error(got, expected) <= 1e-12


def test_leading_axes_are_a_batch():
    params, X, *_ = PROBLEM.make()
    f = jm.as_function(PROBLEM.net)
    stacked = np.stack([X, 2 * X])
    each = jax.vmap(jax.vmap(plain, (None, 0)), (None, 0))
    assert f(params, stacked).shape == (2, 6, 2)
    grads = [jax.jit(jax.grad(lambda p, x, g=g: jnp.sum(g(p, x) ** 3), (0, 1)))(params, stacked) for g in (f, each)]
    assert tree_error(*grads) <= 1e-12


def test_two_networks_nested():
    inner, outer = jm.MLP((3, 4, 4), hidden="relu"), PROBLEM.net
    p1, (p2, *_) = jm.init(inner, jax.random.key(0)), PROBLEM.make()
    f, g = jm.as_function(inner), jm.as_function(outer)
    x = np.asarray([0.3, -1.0, 0.4])
    relu = lambda p, x: p[1].W @ jax.nn.relu(p[0].W @ x + p[0].b) + p[1].b
    ours = jax.jit(jax.grad(lambda a, b, x: g(b, f(a, x)).sum(), (0, 1, 2)))(p1, p2, x)
    theirs = jax.jit(jax.grad(lambda a, b, x: plain(b, relu(a, x)).sum(), (0, 1, 2)))(p1, p2, x)
    assert tree_error(ours, theirs) <= 1e-12


def test_another_rule_gives_its_own_gradient():
    params, X, Y, *_ = PROBLEM.make()
    rule = rules.feedback_alignment()
    B = rule.start(PROBLEM.net, jax.random.key(0))
    f = jm.as_function(PROBLEM.net, rule=rule)
    cost = lambda p: jnp.mean(jax.vmap(PROBLEM.net.loss.f)(f(p, X, B), Y))
    expected = jm.value_and_grad(PROBLEM.net, params, X, Y, rule=rule, rule_state=B)[1]
    assert tree_error(jax.jit(jax.grad(cost))(params), expected) <= 1e-11


def test_a_gradient_in_the_feedback_matrix_is_an_error_not_a_silent_zero():
    params, X, *_ = PROBLEM.make()
    rule = rules.feedback_alignment()
    f, B = jm.as_function(PROBLEM.net, rule=rule), rule.start(PROBLEM.net, jax.random.key(0))
    for wrap in (lambda f: f, jax.jit, jax.checkpoint):
        with pytest.raises(ValueError, match="rule_state of 'feedback_alignment' is differentiated"):
            jax.grad(lambda B, wrap=wrap: wrap(f)(params, X, B).sum())(B)
    assert jax.grad(lambda p: f(p, X, jax.lax.stop_gradient(B)).sum())(params)


def test_what_the_function_refuses():
    params, X, *_ = PROBLEM.make()
    f = jm.as_function(PROBLEM.net)
    with pytest.raises(ValueError, match=r"x has shape \(6, 3\), expected \(.., 4\)"):
        f(params, X[:, :3])
    with pytest.raises(ValueError, match="params is 1 layers"):
        f(params[:1], X)
    with pytest.raises(ValueError, match="rule is 'sign', expected a Rule"):
        jm.as_function(PROBLEM.net, rule="sign")
