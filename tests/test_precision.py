"""Mixed precision: products of bfloat16 factors, weights and sums in float32."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import tree_error

import jaxmlp as jm

NET = jm.MLP((20, 30, 30, 4), "tanh", "softmax", "cross_entropy", products="bfloat16")
EXACT = replace(NET, products=None)


@pytest.fixture
def problem(key):
    X = jax.random.normal(jax.random.key(1), (64, 20))
    return jm.init(NET, key), X, jax.random.randint(jax.random.key(2), (64,), 0, 4)


def rounded(array):
    return np.asarray(jnp.asarray(array, jnp.float32).astype(jnp.bfloat16).astype(jnp.float32), np.float64)


def test_only_the_factors_of_products_are_rounded(problem):
    """NumPy in float64 with rounded factors: what is left of the difference is the sums' float32."""
    params, X, Y = problem
    trace = jm.backprop(NET, params, X, Y)
    a, deltas = np.asarray(X), [np.asarray(d) for d in trace.deltas]
    for l, (W, b) in enumerate(params):
        z = rounded(a) @ rounded(W).T + np.asarray(b)
        np.testing.assert_allclose(trace.pre_activations[l], z, atol=2e-5)
        a = np.tanh(trace.pre_activations[l])
    for l in (1, 0):
        error = rounded(deltas[l + 1]) @ rounded(params[l + 1].W)
        np.testing.assert_allclose(deltas[l], (1 - np.tanh(trace.pre_activations[l]) ** 2) * error, atol=2e-5)
    grads = jm.value_and_grad(NET, params, X, Y)[1]
    for g, delta, a in zip(grads, deltas, trace.inputs, strict=True):
        np.testing.assert_allclose(g.W, rounded(delta / 64).T @ rounded(a), atol=2e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves((trace, grads))} == {jnp.dtype("float32")}


def test_the_gradient_is_that_of_exact_products_but_for_rounding(problem):
    params, X, Y = problem
    rough, fine = (jm.value_and_grad(net, params, X, Y)[1] for net in (NET, EXACT))
    assert 1e-4 < tree_error(rough, fine) < 2e-2
    assert jm.check_gradients(NET, params, X[:8], Y[:8], entries=20).passed
    stale = jm.rules.feedback_alignment()
    state = stale.start(NET, jax.random.key(3))
    by_rule = [jm.value_and_grad(net, params, X, Y, rule=stale, rule_state=state)[1] for net in (NET, EXACT)]
    assert 1e-4 < tree_error(*by_rule) < 2e-2


def test_as_function_and_fit_use_it(problem):
    params, X, Y = problem
    loss = lambda p, net: jnp.sum(jm.as_function(net)(p, X) ** 2)
    assert 1e-4 < tree_error(jax.grad(loss)(params, NET), jax.grad(loss)(params, EXACT)) < 3e-2
    run = lambda net: jm.fit(
        net, params, (X, Y), optimizer=optax.sgd(0.1), epochs=3, key=jax.random.key(0), progress=False
    )
    rough, fine = run(NET).params, run(EXACT).params
    assert 1e-5 < tree_error(rough, fine) < 1e-2


@pytest.mark.parametrize("m", [1, 31, 200])
def test_products_of_every_size_run(key, m):
    """XLA chooses another routine by size, and has none for such factors on a CPU."""
    net = jm.MLP((50, 80, 3), output="softmax", loss="cross_entropy", products="bfloat16")
    X, Y = jax.random.normal(key, (m, 50)), jnp.zeros(m, int)
    J, grads = jm.value_and_grad(net, jm.init(net, key), X, Y)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((J, grads)))
    autodiff = jax.grad(lambda p: jm.cost(net, p, X, Y))(jm.init(net, key))
    assert tree_error(grads, autodiff) <= 2e-2


def test_tensorfloat32_keeps_ten_bits(problem):
    params, X, Y = problem
    rough, fine = (jm.value_and_grad(net, params, X, Y)[1] for net in (replace(NET, products="tensorfloat32"), EXACT))
    assert 1e-5 < tree_error(rough, fine) < 2e-3


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_are_asked_for_such_products(problem, platform):
    """Lowered for a machine that is not here: 2 products forward, 1 down and 2 of the gradient, as the setting says."""
    params, X, Y = problem
    deep = lambda products: jm.MLP((20, 30, 4), "tanh", "softmax", "cross_entropy", products=products)
    params = (params[0], params[2])

    def lowered(products):
        step = jax.jit(lambda p: jm.value_and_grad(deep(products), p, X, Y)[1])
        with jax.default_matmul_precision("default"):
            text = jax.export.export(step, platforms=(platform,))(params).mlir_module()
        return [line for line in text.splitlines() if "stablehlo.dot_general" in line]

    assert sum("xbf16>, tensor" in line and "-> tensor<" in line for line in lowered("bfloat16")) == 5
    assert sum("precision = [HIGH, HIGH]" in line for line in lowered("tensorfloat32")) == 5
    assert not any("bf16" in line or "HIGH" in line for line in lowered(None))


def test_other_products_are_refused():
    with pytest.raises(ValueError, match=r"products is 'float16', expected one of 'bfloat16'"):
        jm.MLP((2, 3), products="float16")
    assert "products=bfloat16" in repr(NET)


@pytest.mark.parametrize(("dtype", "sizes"), [("float16", (1e-9, 3e5)), ("float32", (3e-39, 1e38))])
def test_only_the_ratios_of_weights_count_however_large_they_are(key, dtype, sizes):
    """The sum of 64 of them would be 0 or infinity."""
    params = jm.init(EXACT, key, dtype=dtype)
    X, Y = jax.random.normal(jax.random.key(1), (64, 20), dtype), jnp.arange(64) % 4
    ratios = np.random.default_rng(0).uniform(0.5, 1, 64)
    expected = jm.value_and_grad(EXACT, params, X, Y, weights=ratios)
    for size in sizes:
        J, grads = jm.value_and_grad(EXACT, params, X, Y, weights=size * ratios)
        assert float(J) == pytest.approx(float(expected[0]), rel=1e-3)
        assert tree_error(grads, expected[1]) <= 4 * float(jnp.finfo(dtype).eps) and np.any(grads[0].W)
    settings = {"optimizer": optax.sgd(0.1), "epochs": 1, "batch_size": 32, "key": key, "progress": False}
    once = lambda w: jm.fit(EXACT, params, (X, Y), weights=w, validation=(X, Y, w), **settings).history
    one, other = once(ratios), once(sizes[0] * ratios)
    for name in ("cost", "validation_cost"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-2)


def test_the_posterior_counts_weights_as_they_are(problem):
    params, X, Y = problem
    w = np.full(64, 2.0**40)
    assert jm.laplace(EXACT, params, X, Y, "diagonal", weights=w).count == 2**46
