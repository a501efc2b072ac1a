"""What an optimizer is told in a step, against the same loop in optax; and those that do not fit, by name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from problems import NET, examples, fit, tree_error

import jaxmlp as jm
from jaxmlp import optimizers

L2 = jm.l2(0.5)
STEPS = 6
RELU = jm.MLP(NET.sizes, "relu", "softmax", "cross_entropy")
OTHER_NETWORK = r"MLP\(.*hidden=relu.*\), expected the one that is trained, MLP\(.*hidden=tanh"


def loop(optimizer, params, J, steps=STEPS, **more):
    """The plain loop of optax."""

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(J)(params)
        told = {"value": value, "grad": grads, "value_fn": J} | more
        updates, state = optax.with_extra_args_support(optimizer).update(grads, state, params, **told)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


OBJECTIVES = {
    "backtracking": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)),
    "polyak": optax.polyak_sgd(1.0),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("weighted", [False, True])
def test_value_gradient_and_function_are_of_one_objective(params, name, weighted):
    """With penalties, and with weights that a full batch counts relative to their mean."""
    X, Y = examples(16)
    w = np.linspace(0.5, 2, 16, dtype=np.float32) if weighted else None
    J = lambda p: jm.cost(NET, p, X, Y, weights=w) + L2.cost(p)
    got = fit(params, (X, Y), optimizer=OBJECTIVES[name], epochs=STEPS, batch_size=16, penalties=L2, weights=w)
    assert tree_error(got.params, loop(OBJECTIVES[name], params, J)) <= 1e-4


def test_weights_of_a_streams_batch_count_in_the_value_too(params):
    """Its gradient is `sum w g / b`, so its value is `sum w L / b`."""
    X, Y = examples(16)
    w = np.linspace(0, 3, 16, dtype=np.float32)
    J = lambda p: w.mean() * jm.cost(NET, p, X, Y, weights=w) + L2.cost(p)
    optimizer = OBJECTIVES["backtracking"]
    got = fit(params, [(X, Y, w)], optimizer=optimizer, epochs=STEPS, penalties=L2)
    assert tree_error(got.params, loop(optimizer, params, J)) <= 1e-4


@pytest.mark.parametrize("optimizer", [optax.lbfgs(), OBJECTIVES["backtracking"]], ids=["lbfgs", "backtracking"])
def test_a_line_search_takes_what_a_step_tells(params, optimizer):
    """optax's refuse an argument that neither they nor the cost's function name. It is only traced."""
    optimizers.check(NET, lambda: optimizer, {}, params)


@pytest.mark.parametrize("opaque", [False, True])
def test_sam_by_the_plain_gradient_and_by_a_gradient_function(params, opaque):
    X, Y = examples(16)
    J = lambda p: jm.cost(NET, p, X, Y) + L2.cost(p)
    with jax.numpy_dtype_promotion("standard"):  # SAM needs it
        sam = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=opaque)
        told = {"grad_fn": lambda p, _: jax.grad(J)(p)} if opaque else {}

        @jax.jit
        def step(p, state):
            updates, state = sam.update(jax.grad(J)(p), state, p, **told)
            return optax.apply_updates(p, updates), state

        expected, state = params, jax.jit(sam.init)(params)
        for _ in range(4):
            expected, state = step(expected, state)
        got = fit(params, (X, Y), optimizer=sam, epochs=4, batch_size=16, penalties=L2)
    assert tree_error(got.params, expected) <= 1e-5


def test_the_update_ratio_is_that_of_the_next_step_of_a_line_search(params):
    data = examples(16)
    settings = {"optimizer": OBJECTIVES["backtracking"], "batch_size": 16, "monitor": True, "penalties": L2}
    run = lambda epochs: fit(params, data, epochs=epochs, **settings)
    now, after = run(2), run(3)
    ratios = [float(jnp.linalg.norm(b.W - a.W) / jnp.linalg.norm(a.W))
              for a, b in zip(now.params, after.params, strict=True)]  # fmt: skip
    np.testing.assert_allclose(now.history["update_ratio"][-1], ratios, rtol=1e-3)


def test_an_optimizer_may_descend_what_it_reads_from_the_trace(params):
    """With dropout's masks, ragged batches and weights; it draws by a key of its own in each step."""
    w = np.linspace(0.5, 2, 10, dtype=np.float32)
    settings = {"epochs": 3, "batch_size": 4, "keep": 0.8, "weights": w}
    masked = []

    def update(grads, state, params=None, *, trace, weights, key, **_):
        read = jm.mean_gradient(trace, weights)  # a ragged batch descends `sum w g / (b mean(w))`, with another scale
        cosine = lambda a, b: jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b)
        apart = jnp.abs(1 - cosine(read[0].W, grads[0].W))
        masked.append(trace.masks is not None)
        step, worst, bits = state
        bits = bits.at[step].set(jax.random.bits(key, (), jnp.uint32))
        return jax.tree.map(lambda g: -0.1 * g, grads), (step + 1, jnp.maximum(worst, apart), bits)

    init = lambda params: (jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(9, jnp.uint32))
    reads = optax.GradientTransformationExtraArgs(init, update)
    got = fit(params, optimizer=reads, **settings)
    assert tree_error(got.params, fit(params, **settings).params) <= 1e-6  # of plain descent
    _, worst, bits = got.state.opt_state
    assert masked[-1] and float(worst) <= 1e-5 and len(np.unique(bits)) == 9
    stream = fit(params, [examples(10)] * 3, optimizer=reads, keep=0.8, epochs=3)
    assert len(np.unique(stream.state.opt_state[2])) == 9


def test_whole_numbers_stay_whole_where_the_optimizer_needs_them(params):
    """They are compiled in; a rate that happens to be whole is traced as any other."""
    data = examples(16)
    J = lambda p: jm.cost(NET, p, *data)
    halved = lambda learning_rate, times: optax.chain(optax.sgd(learning_rate), *[optax.scale(0.5)] * times)
    got = fit(params, data, optimizer=halved, hyper={"learning_rate": 0.8, "times": 2}, epochs=STEPS, batch_size=16)
    assert tree_error(got.params, loop(optax.sgd(0.2), params, J)) <= 1e-5
    assert list(got.state.hyper) == ["learning_rate"]
    whole = fit(params, data, optimizer=optax.sgd, hyper={"learning_rate": 1}, batch_size=16)
    assert whole.state.hyper["learning_rate"].dtype == jnp.float32
    assert tree_error(whole.params, loop(optax.sgd(1.0), params, J, 1)) <= 1e-6


@pytest.mark.parametrize(
    ("optimizer", "hyper", "match"),
    [
        (optax.lookahead(optax.sgd(0.1), 5, 0.5), None, "optimizer "),
        (optax.contrib.sophia(0.1), None, "optimizer fails on the network's parameters: Type"),
        (optax.chain(optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1))), None, "optimizer fails"),
        (optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (g[:1], s)), None, "optimizer makes updates"),
        (
            optax.GradientTransformation(lambda p: 0, lambda g, s, p=None: (g, s + 0.5)),
            None,
            "optimizer makes the state",
        ),
        (optax.lbfgs, {"memory_size": 2.5}, r"optimizer with hyper={'memory_size': ..} fails"),
        (optax.chain(optax.clip(1.0), jm.kfac(RELU, 0.1)), None, "kfac is for the network " + OTHER_NETWORK),
        (functools.partial(optax.inject_hyperparams(jm.gauss_newton), RELU), {"damping": 0.1},
         "gauss_newton is for the network " + OTHER_NETWORK),
    ],
)  # fmt: skip
def test_an_optimizer_that_does_not_fit_is_named_before_anything_compiles(
    params, compilations, optimizer, hyper, match
):
    compilations.clear()
    with pytest.raises(ValueError, match=match):
        fit(params, optimizer=optimizer, hyper=hyper)
    assert "jit(epoch)" not in compilations and "jit(begin)" not in compilations


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"optimizer": optax.adam, "hyper": {"learning_rate": 0.1, "b2": 0.9999}},
            r"hyper\['b2'\] is 0.9999, which is 1 in",
        ),
        (
            {"optimizer": optax.adam, "hyper": {"learning_rate": 0.1, "eps": 1e-9}},
            r"hyper\['eps'\] is 1e-09, which is 0 in",
        ),
        ({"penalties": jm.l2(1e-9)}, "penalties.* is 1e-09, which is 0 in the parameters' float16"),
        (
            {"optimizer": optax.sgd, "hyper": {"learning_rate": 1e5}},
            r"hyper\['learning_rate'\] is 100000, which is inf in",
        ),
    ],
)
def test_a_strength_that_half_precision_turns_into_another_is_refused(params, settings, match):
    half = jax.tree.map(lambda a: a.astype(jnp.float16), params)
    X, Y = examples()
    with pytest.raises(ValueError, match=match):
        fit(half, (X.astype(np.float16), Y), **settings)
