"""Every named rule against a few lines of NumPy; state, learning, alignment, and what a rule may not be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from problems import DEEP, TABLE, tree_error

import jaxmlp as jm
from jaxmlp import activations, rules


@pytest.fixture(autouse=True)
def double(x64):
    pass


RULES = {
    "backprop": rules.backprop,
    "feedback_alignment": rules.feedback_alignment(),
    "direct_feedback_alignment": rules.direct_feedback_alignment(),
    "sign_symmetric": rules.sign_symmetric(),
    "sign_symmetric_magnitudes": rules.sign_symmetric("he"),
    "clipped": rules.clipped(0.05),
    "normalised": rules.normalised(),
    "dropped": rules.dropped(0.5),
}


@pytest.fixture(scope="module", params=RULES)
def made(request):
    """The rule's name, its state, and in one program: trace, f'(z), mean gradients without and with weights, and each
    example's gradient."""
    rule, net = RULES[request.param], DEEP.net

    def compute(params, X, Y, state):
        trace = jm.backprop(net, params, X, Y, rule=rule, rule_state=state)
        slopes = [f.df(z) for f, z in zip(net.hidden, trace.pre_activations, strict=False)]
        of = lambda X, Y, w=None: jm.value_and_grad(net, params, X, Y, weights=w, rule=rule, rule_state=state)[1]
        each = jax.vmap(lambda x, y: of(x[None], y[None]))(X, Y)
        return trace, slopes, of(X, Y), of(X, Y, WEIGHTS), each

    with jax.enable_x64(True):
        params, X, Y, *_ = DEEP.make()
        state = rule.start(net, jax.random.key(5))
        return request.param, state, *jax.tree.map(np.asarray, jax.jit(compute)(params, X, Y, state))


WEIGHTS = np.linspace(0.5, 2, DEEP.m)


def test_each_rule_is_its_few_lines_of_numpy(made):
    name, state, trace, slopes, *_ = made
    weights = [layer.W for layer in DEEP.make()[0]]
    feedback = None if RULES[name].init is None else [s.mask if name == "dropped" else s for s in state]
    for i in range(DEEP.m):
        df = [slope[i] for slope in slopes]
        expected = oracles.deltas_by_rule(name, weights, df, trace.deltas[-1][i], feedback, max_norm=0.05)
        for got, want in zip(trace.deltas, expected, strict=False):
            np.testing.assert_allclose(got[i], want, rtol=1e-12, atol=1e-16)


def test_a_rules_mean_gradient_is_the_mean_of_its_examples(made):
    """Whether the mean is taken at the start, as for linear rules, or at the end."""
    *_, plain, weighted, each = made
    for got, weights in ((plain, None), (weighted, WEIGHTS)):
        mean = jax.tree.map(lambda g, w=weights: np.average(g, axis=0, weights=w), each)
        assert tree_error(got, mean) <= 1e-12


def test_with_one_hidden_layer_direct_feedback_alignment_is_feedback_alignment():
    problem = TABLE[2]
    params, X, Y, *_ = problem.make()
    B = (jax.random.normal(jax.random.key(0), (2, 3)),)
    one, two = (
        jm.value_and_grad(problem.net, params, X, Y, rule=rule, rule_state=B)
        for rule in (rules.feedback_alignment(), rules.direct_feedback_alignment())
    )
    assert tree_error(one, two) == 0


def test_surrogates_stand_in_for_the_derivative_of_steps_alone():
    net = jm.MLP((3, 4, 4, 2), hidden=(activations.step, "tanh"), output="softmax", loss="cross_entropy")
    params = jm.init(net, jax.random.key(0), biases="small_normal")
    X, Y = np.random.default_rng(1).normal(size=(5, 3)), np.arange(5) % 2
    true = jm.backprop(net, params, X, Y)
    assert not true.deltas[0].any()  # the step's own derivative is 0
    trace = jm.backprop(net, params, X, Y, rule=rules.surrogate("triangle"))
    np.testing.assert_array_equal(trace.deltas[1], true.deltas[1])
    expected = np.maximum(0, 1 - np.abs(np.asarray(trace.pre_activations[0]))) * (
        np.asarray(trace.deltas[1]) @ np.asarray(params[1].W)
    )
    np.testing.assert_allclose(trace.deltas[0], expected, rtol=1e-12)
    lengths = jm.backprop(net, params, X, Y, rule=rules.surrogate("triangle", rules.normalized())).deltas
    lengths = [np.linalg.norm(delta, axis=1) for delta in lengths]
    np.testing.assert_allclose(lengths[:2], [lengths[2]] * 2, rtol=1e-12)
    assert set(np.unique(jm.forward(net, params, X[0])[1].inputs[1])) <= {0, 1}


def test_dropped_errors_are_right_in_the_mean():
    params, X, Y, *_ = TABLE[2].make()
    rule = rules.dropped(0.3)
    start = lambda k: rule.start(TABLE[2].net, k)
    of = lambda k: jm.value_and_grad(TABLE[2].net, params, X, Y, rule=rule, rule_state=start(k))[1]
    dropped = jax.jit(jax.vmap(of))(jax.random.split(jax.random.key(0), 4000))
    mean = jax.tree.map(lambda g: np.asarray(g).mean(0), dropped)
    assert tree_error(mean, jm.value_and_grad(TABLE[2].net, params, X, Y)[1]) < 0.1


def test_rules_compose():
    params, X, Y, *_ = DEEP.make()
    rule = rules.clipped(0.01, rules.dropped(0.8, rules.feedback_alignment()))
    state = rule.start(DEEP.net, jax.random.key(0))
    trace = jm.backprop(DEEP.net, params, X, Y, rule=rule, rule_state=state)
    for delta in trace.deltas[:-1]:
        assert float(jnp.linalg.norm(delta, axis=1).max()) <= 0.01 * (1 + 1e-12)


def test_kolen_pollacks_feedback_learns_as_the_weights_do():
    """`W - B` shrinks by `1 - decay` a step; the oracle makes the two updates side by side."""
    decay, rate = 0.1, 0.2
    net = jm.MLP((3, 5, 2), hidden="tanh", output="softmax", loss="cross_entropy")
    params = jm.init(net, jax.random.key(0))
    X, Y = jax.random.normal(jax.random.key(1), (8, 3)), jnp.arange(8) % 2
    rule = rules.kolen_pollack(decay)
    B = rule.start(net, jax.random.key(2))
    optimizer = optax.chain(optax.sgd(rate), optax.add_decayed_weights(-decay))
    result = jm.fit(net, params, (X, Y), optimizer=optimizer, epochs=7, batch_size=8, key=jax.random.key(3), rule=rule,
                    rule_state=B, progress=False)  # fmt: skip
    W, feedback = jax.tree.map(np.asarray, (params, B))
    for _ in range(7):
        made = jm.value_and_grad(net, W, X, Y, rule=rules.feedback_alignment(), rule_state=feedback)[1]
        g = jax.tree.map(np.asarray, made)
        feedback = (feedback[0] - rate * g[1].W - decay * feedback[0],)
        W = jax.tree.map(lambda w, g: w - rate * g - decay * w, W, g)
    assert tree_error(result.params, W) <= 1e-12
    assert tree_error(result.state.rule_state, feedback) <= 1e-12
    gap = lambda params, B: float(np.linalg.norm(np.asarray(params[1].W) - np.asarray(B[0])))
    after = gap(result.params, result.state.rule_state)
    assert after == pytest.approx((1 - decay) ** 7 * gap(params, B), rel=1e-10)


def test_fit_draws_a_rules_state_and_dropped_masks_change_every_step():
    net = jm.MLP((3, 50, 2), hidden="tanh", output="softmax", loss="cross_entropy")
    params = jm.init(net, jax.random.key(0))
    X, Y = jax.random.normal(jax.random.key(1), (8, 3)), jnp.arange(8) % 2
    run = lambda epochs: jm.fit(net, params, (X, Y), optimizer=optax.sgd(0.1), epochs=epochs, batch_size=8,
                                key=jax.random.key(3), rule=rules.dropped(0.5), progress=False)  # fmt: skip
    masks = [np.asarray(run(epochs).state.rule_state[0].mask) for epochs in (1, 2)]
    assert set(np.unique(masks)) == {0, 2} and (masks[0] != masks[1]).any()


def test_a_rule_with_equal_options_is_the_same_object():
    assert rules.clipped(1.0) is rules.clipped(max_norm=1.0)
    assert rules.feedback_alignment() is rules.feedback_alignment("he")
    assert rules.clipped(1.0) is not rules.clipped(2.0)


def test_the_checker_says_how_far_a_rule_is_without_failing_it():
    params, X, Y, *_ = DEEP.make()
    report = jm.check_gradients(DEEP.net, params, X, Y, rule=rules.sign_symmetric())
    assert report.passed
    assert [d.layer for d in report.distances] == [1, 2, 3, 4]
    assert report.distances[3][1:] == pytest.approx((0, 1), abs=1e-9) and report.distances[0].angle > 0
    assert "rule sign_symmetric, layer 1: " in str(report) and "degrees from the gradient" in str(report)
    assert not jm.check_gradients(DEEP.net, params, X, Y).distances


ONE_A_LAYER = jm.Rule("one a layer", rules.backprop.carry, lambda net, key: tuple(jnp.ones(net.depth)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda *p: jm.backprop(*p, rule="sign"), r"rule is 'sign', expected a Rule such as rules.backprop"),
        (lambda *p: jm.backprop(*p, rule=rules.clipped), r"made by a call, such as rules.clipped\(1.0\)"),
        (lambda *p: jm.value_and_grad(*p, rule=rules.feedback_alignment()), r"rule_state is None, but rule 'fe"),
        (lambda *p: jm.backprop(*p, rule=rules.feedback_alignment(), rule_state=(jnp.ones(3),)), r"rule_state has sh"),
        (
            lambda net, *p: ONE_A_LAYER.start(net, jax.random.key(0)),
            "init of rule 'one a layer' gives 4 entries, expected 3, one a hidden layer",
        ),
        (lambda *p: rules.clipped(0.0), r"max_norm is 0"),
        (lambda *p: rules.dropped(1.5), r"keep is 1.5"),
        (lambda *p: rules.surrogate("triangel"), r"derivative is 'triangel', .*did you mean 'triangle'\?"),
        (lambda *p: rules.clipped([1.0]), r"clipped got .*expected numbers, names and rules"),
    ],
)
def test_what_is_no_rule_is_refused(call, message):
    params, X, Y, *_ = DEEP.make()
    with pytest.raises(ValueError, match=message):
        call(DEEP.net, params, X, Y)


NORMALIZED = rules.normalized()  # one object: another one compiles again


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_clipped_and_normalized_know_norms_whose_squares_no_dtype_holds(dtype, size):
    factor = size if dtype == "float16" else size**7  # 1e-21 to 2e17 squared
    net = jm.MLP((2, 3, 2), "identity")
    dtype = jnp.dtype(dtype)
    params = tuple(jm.Layer(np.ones(s, dtype), np.zeros(s[0], dtype)) for s in net.shapes)
    X = np.zeros((1, 2), dtype)
    Y = np.asarray([[-3 * factor, -4 * factor]]).astype(dtype)
    for rule, expected in ((rules.clipped(factor), factor), (NORMALIZED, 5 * factor)):
        delta = jm.backprop(net, params, X, Y, rule=rule).deltas[0]
        assert delta.dtype == dtype
        norm = np.linalg.norm(np.asarray(delta).astype(np.float64))
        assert norm == pytest.approx(expected, rel=4 * float(jnp.finfo(dtype).eps))
