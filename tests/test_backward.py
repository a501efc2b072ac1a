"""The recursion against closed formulas, paths, Jacobians and autodiff."""

from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from problems import TABLE, Problem, random_problems, tree_error

import jaxmlp as jm


@pytest.fixture(autouse=True)
def double(x64):
    pass


class Made(NamedTuple):
    """A problem's gradient and trace by hand, and what autodiff finds for the obvious cost and for its tails."""

    problem: Problem
    value_and_grad: Any
    trace: jm.Trace
    slopes: list[np.ndarray]  # f'(z) of the hidden layers
    expected: Any
    tails: list[np.ndarray]


@pytest.fixture(scope="module", params=TABLE, ids=str)
def made(request):
    """All by hand in one program, and all by autodiff in another."""
    problem = request.param
    net = problem.net

    def compute(params, X, Y, weights, masks):
        trace = jm.backprop(net, params, X, Y, masks=masks)
        slopes = [f.df(z) for f, z in zip(net.hidden, trace.pre_activations, strict=False)]
        return jm.value_and_grad(net, params, X, Y, weights=weights, masks=masks), trace, slopes

    def differentiate(params, X, Y, rows, weights, masks, zs):
        slow = lambda p: oracles.cost(problem.hidden, problem.output, problem.loss, p, X, rows, weights, masks)
        tail = lambda layer: lambda z, y, mask: jm.tail_loss(net, params, layer, z, y, mask)
        tails = [jax.vmap(jax.grad(tail(layer)))(z, Y, masks) for layer, z in enumerate(zs, start=1)]
        return jax.value_and_grad(slow)(params), tails

    with jax.enable_x64(True):
        params, X, Y, rows, weights, masks = problem.make()
        got = jax.jit(compute)(params, X, Y, weights, masks)
        expected = jax.jit(differentiate)(params, X, Y, rows, weights, masks, got[1].pre_activations)
    return Made(problem, *jax.tree.map(np.asarray, (*got, *expected)))


def test_gradient_equals_autodiff_of_the_obvious_cost(made):
    assert tree_error(made.value_and_grad, made.expected) <= 1e-12


@hypothesis.given(random_problems(dtypes=("float64",)))
def test_gradient_equals_autodiff_on_random_networks(problem):
    """The plain statement, without the checker: see test_check for the checker on such networks."""
    params, X, Y, _, weights, masks = problem.make()
    J, grads = jm.value_and_grad(problem.net, params, X, Y, weights=weights, masks=masks)
    cost = lambda p: jm.cost(problem.net, p, X, Y, weights=weights, masks=masks)
    expected = jax.jit(jax.value_and_grad(cost))(params)
    assert float(J) == pytest.approx(float(expected[0]), rel=1e-13)
    total = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(expected[1])))
    for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(expected[1]), strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        assert np.linalg.norm(got - want) <= 1e-12 * max(total, 1e-3)


def test_the_closed_two_layer_formulas():
    """The written-out 2-2-1 case of notes 001 and its appendix."""
    net = jm.MLP((2, 2, 1), hidden="sigmoid", output="tanh")
    params = jm.init(net, jax.random.key(3), biases="small_normal")
    x, y = np.asarray([0.7, -1.1]), np.asarray([0.4])
    (W1, b1), (W2, b2) = jax.tree.map(np.asarray, params)
    z1 = W1 @ x + b1
    x1 = 1 / (1 + np.exp(-z1))
    x2 = np.tanh(W2 @ x1 + b2)
    phi2 = -(y - x2) * (1 - x2**2)
    phi1 = (W2.T @ phi2) * (x1 * (1 - x1))
    _, grads = jm.value_and_grad(net, params, x[None], y[None])
    expected = (jm.Layer(np.outer(phi1, x), phi1), jm.Layer(np.outer(phi2, x1), phi2))
    assert tree_error(grads, expected) <= 1e-14


def test_delta_has_as_many_entries_as_w_has_rows(made):
    assert [d.shape for d in made.trace.deltas] == [(made.problem.m, o) for o, _ in made.problem.net.shapes]


def test_softmax_with_the_second_of_four_classes_true():
    """Notes 003: `delta^K = y_hat - y`, by the path of Jacobians too."""
    net = jm.MLP((3, 5, 4), hidden="tanh", output="softmax", loss="cross_entropy")
    params = jm.init(net, jax.random.key(1), biases="small_normal")
    x, y = jnp.asarray([0.2, -0.4, 1.0]), jnp.asarray(1)
    y_hat, tape = jm.forward(net, params, x)
    delta = jm.output_delta(net, tape, y)
    np.testing.assert_allclose(delta, np.asarray(y_hat) - [0.0, 1, 0, 0], rtol=1e-15)
    z1, z2 = map(np.asarray, tape.pre_activations)
    dL_dyhat = np.asarray([0.0, -1 / float(y_hat[1]), 0, 0])
    J_softmax = np.asarray(jax.jit(jax.jacobian(jax.nn.softmax))(z2))
    J_linear, J_tanh = np.asarray(params[1].W), np.diag(1 - np.tanh(z1) ** 2)
    np.testing.assert_allclose(delta, J_softmax.T @ dL_dyhat, rtol=1e-12)
    path = (J_softmax @ J_linear @ J_tanh).T @ dL_dyhat
    np.testing.assert_allclose(jm.backward(net, params, tape, delta)[0], path, rtol=1e-12)


def test_the_sum_over_all_paths_is_the_recursions_entry(made):
    """For one weight of the first layer: the slow way and the reused way. The masks are factors of f'."""
    params, X, *_, masks = jax.tree.map(np.asarray, made.problem.make())
    x = X[0] if masks is None else masks[0][0] * X[0]
    df = [slope[0] if masks is None else masks[l][0] * slope[0] for l, slope in enumerate(made.slopes, start=1)]
    reused = np.outer(made.trace.deltas[0][0], x)
    for unit, entry in np.ndindex(reused.shape):
        slow = oracles.sum_over_paths(params, df, x, made.trace.deltas[-1][0], unit, entry)
        assert slow == pytest.approx(reused[unit, entry], rel=1e-11, abs=1e-16)


def test_deltas_are_the_gradients_of_the_tail(made):
    for deltas, by_autodiff in zip(made.trace.deltas, made.tails, strict=True):
        np.testing.assert_allclose(deltas, by_autodiff, rtol=1e-11, atol=1e-15)


def test_the_recursion_is_linear_in_its_start():
    problem = TABLE[6]
    params, X, _, _, _, _ = problem.make()
    _, tape = jm.forward(problem.net, params, X[0])
    run = jax.jit(lambda start: jm.backward(problem.net, params, tape, start))
    u, v = np.asarray([1.0, 2.0]), np.asarray([-3.0, 0.5])
    combined = jax.tree.map(lambda a, b: 2 * np.asarray(a) - np.asarray(b), run(u), run(v))
    assert tree_error(run(2 * u - v), combined) <= 1e-14


def test_full_weights_are_one_examples_gradient():
    problem = TABLE[2]
    params, X, Y, _, _, _ = problem.make()
    only_third = jnp.asarray([0, 0, 1.0, 0, 0])
    weighted = jm.value_and_grad(problem.net, params, X, Y, weights=only_third)
    alone = jm.value_and_grad(problem.net, params, X[2:3], Y[2:3])
    assert tree_error(weighted, alone) <= 1e-14


def test_another_rule_carries_deltas_down():
    """Sign-symmetric feedback, written where it is used; with W's own sign it is not the gradient."""
    sign = jm.Rule("sign", carry=lambda down: jnp.sign(down.W).T @ down.delta)
    problem = TABLE[6]
    params, X, Y, _, _, _ = problem.make()
    trace = jm.backprop(problem.net, params, X, Y, rule=sign)
    e = trace.deltas[1] @ jnp.sign(params[1].W)
    np.testing.assert_allclose(trace.deltas[0], problem.net.hidden[0].df(trace.pre_activations[0]) * e, rtol=1e-13)
    by_rule, true = (jm.value_and_grad(problem.net, params, X, Y, rule=r)[1] for r in (sign, jm.rules.backprop))
    assert tree_error(by_rule[2], true[2]) <= 1e-14 and tree_error(by_rule[0], true[0]) > 0.1


def test_a_rule_with_a_state_is_given_it_layer_by_layer():
    def matrices(net, key):
        keys = jax.random.split(key, net.depth - 1)
        return tuple(jax.random.normal(k, shape) for k, shape in zip(keys, net.shapes[1:], strict=True))

    feedback = jm.Rule("feedback", carry=lambda down: down.state.T @ down.delta, init=matrices)
    problem = TABLE[6]
    params, X, Y, _, _, _ = problem.make()
    B = feedback.start(problem.net, jax.random.key(0))
    trace = jm.backprop(problem.net, params, X, Y, rule=feedback, rule_state=B)
    for l in (0, 1):
        e = trace.deltas[l + 1] @ B[l]
        np.testing.assert_allclose(trace.deltas[l], problem.net.hidden[l].df(trace.pre_activations[l]) * e, rtol=1e-13)
    same = jm.backprop(problem.net, params, X, Y, rule=feedback, rule_state=tuple(layer.W for layer in params[1:]))
    assert tree_error(same.deltas, jm.backprop(problem.net, params, X, Y).deltas) <= 1e-14
    with pytest.raises(ValueError, match="rule_state is None, but rule 'feedback' has a state"):
        jm.backprop(problem.net, params, X, Y, rule=feedback)


def test_value_and_grad_runs_inside_jit_vmap_and_float32():
    problem = TABLE[2]
    params, X, Y, _, _, _ = problem.make()
    eager = jm.value_and_grad(problem.net, params, X, Y)
    jitted = jax.jit(lambda p, X, Y: jm.value_and_grad(problem.net, p, X, Y))(params, X, Y)
    assert tree_error(eager, jitted) <= 1e-14
    population = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)
    many = jax.vmap(lambda p: jm.value_and_grad(problem.net, p, X, Y))(population)
    assert tree_error(jax.tree.map(lambda a: a[0], many), eager) <= 1e-13
    single = jax.tree.map(lambda a: a.astype(jnp.float32), (params, X))
    assert {g.dtype for g in jax.tree.leaves(jm.value_and_grad(problem.net, *single, Y))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_gradient_of_many_examples_in_half_precision(dtype):
    """70,000 examples, whose number is infinite in float16, and the same in float64."""
    net = jm.MLP((2, 2), output="softmax", loss="cross_entropy")
    X = jnp.asarray(np.random.default_rng(0).normal(size=(70_000, 2)), dtype)
    Y = (np.asarray(X)[:, 0] > 0).astype(int)
    params = jm.init(net, jax.random.key(0), dtype=dtype)
    (W, b), x = (np.asarray(a).astype(np.float64) for a in params[0]), np.asarray(X).astype(np.float64)
    z = x @ W.T + b
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    delta = p - np.eye(2)[np.asarray(Y)]
    expected = np.mean(-np.log(p[np.arange(70_000), Y])), delta.T @ x / 70_000, delta.mean(0)
    for weights in (None, np.full(70_000, 0.5, dtype)):
        J, grads = jm.value_and_grad(net, params, X, Y, weights=weights)
        assert float(J) == pytest.approx(float(expected[0]), rel=0.01)
        for g, e in zip(jax.tree.leaves(grads), expected[1:], strict=True):
            assert g.dtype == dtype
            np.testing.assert_allclose(g.astype(jnp.float32), e, rtol=0.02, atol=2e-3)


def test_a_batch_of_any_size_is_exported():
    """`jax.export` with a symbol for the number of examples; what is exported runs on batches of two sizes."""
    net = jm.MLP((6, 9, 4), "tanh", "softmax", "cross_entropy")
    params = jm.init(net, jax.random.key(0), dtype=jnp.float32)
    (b,) = jax.export.symbolic_shape("b")
    key, f = jax.random.key(1), jm.as_function(net)

    def everything(params, X, Y, weights):
        trace = jm.backprop(net, params, X, Y)
        return (
            jm.value_and_grad(net, params, X, Y),
            jm.value_and_grad(net, params, X, Y, weights=weights, rule=jm.rules.clipped(0.1)),
            jm.value_and_grad(net, params, X, Y, rule=jm.rules.clipped(0.1)),
            jm.mean_gradient(trace), jm.mean_gradient(trace, weights), jm.per_example_norms(trace),
            jm.layer_norms(trace), jm.delta_norms(trace), jm.per_example_gradients(trace), jm.gradient_gram(trace),
            jm.second_moment(trace), jm.variance(trace), jm.noise_scale(trace), jm.kronecker_factors(trace),
            jm.clipped_gradient(trace, 0.1, weights), jm.private_gradient(trace, 0.1, 1.0, key),
            jm.alignment(trace, trace), jm.ggn_diagonal(net, params, X, Y), jm.ggnvp(net, params, X, Y, params),
            jm.hvp(net, params, X, Y, params), jax.grad(lambda p, X: f(p, X)[:, 0].sum(), (0, 1))(params, X),
        )  # fmt: skip

    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (((b, 6), "float32"), ((b,), "int32"))]
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    exported = jax.export.export(jax.jit(everything))(like, *shapes, jax.ShapeDtypeStruct((b,), jnp.float32))
    for m in (3, 20):
        X = jax.random.normal(key, (m, 6), jnp.float32)
        arguments = params, X, jnp.arange(m, dtype=jnp.int32) % 4, jnp.linspace(0.5, 1, m, dtype=jnp.float32)
        got, expected = exported.call(*arguments), jax.jit(everything)(*arguments)
        for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(g, e, rtol=1e-4, atol=1e-5)
