"""Programs: equal static arguments share one, it goes with the functions it was made for, and few are kept."""

import gc
import weakref

import jax
import jax.numpy as jnp
import optax
import pytest
from problems import NET, examples, fit

import jaxmlp as jm
from jaxmlp import programs


@programs.compiled("net", "f", donate="x")
def apply(net, x, f=None, y=0.0):
    return (x if f is None else f(x)) + len(net.sizes) + y


def count():
    gc.collect()
    return sum(key[0] is apply.__wrapped__ for key in programs._kept)


@pytest.fixture(autouse=True)
def none_left():
    programs._kept.clear()


def test_equal_networks_share_a_program_and_equal_functions_do_not(compilations):
    for _ in range(2):
        apply(jm.MLP((3, 5, 2)), jnp.ones(2))
    assert compilations.count("jit(apply)") == 1
    apply(jm.MLP((3, 5, 2), hidden="tanh"), jnp.ones(2))
    f = lambda x: 2 * x
    for _ in range(2):
        assert apply(NET, jnp.ones(2), f, 1.0).tolist() == [6, 6]
    g = lambda x: 2 * x
    apply(NET, jnp.ones(2), g)
    assert compilations.count("jit(apply)") == 4 and count() == 4


def test_a_program_goes_with_its_function_and_the_oldest_of_many_goes(monkeypatch):
    f = lambda x: 3 * x
    apply(NET, jnp.ones(2), f)
    for factor in range(5):
        apply(NET, jnp.ones(2), lambda x, factor=factor: factor * x)
    assert count() == 1
    del f
    assert count() == 0
    monkeypatch.setattr(programs, "MOST", 3)
    kept = [lambda x, factor=factor: factor * x for factor in range(5)]
    for f in kept:
        apply(NET, jnp.ones(2), f)
    assert count() == 3


def test_it_is_jit_to_its_caller():
    """Under jit, grad and vmap; the memory of the donated argument is taken; errors leave no trace behind."""
    f = lambda x: x**2
    assert jax.grad(jax.jit(lambda x: apply(NET, x, f).sum()))(jnp.ones(2)).tolist() == [2, 2]
    assert jax.vmap(lambda x: apply(NET, x, f))(jnp.ones((4, 2))).shape == (4, 2)
    x = jnp.ones(2)
    apply(NET, x)
    assert x.is_deleted()
    with pytest.raises(ZeroDivisionError):
        apply(NET, jnp.ones(2), lambda x: x / 0 if False else 1 / 0)
    assert apply(NET, jnp.ones(2), f).tolist() == [4, 4]


def test_a_loop_over_new_optimizers_and_functions_keeps_nothing(params):
    """Each call makes its own optimizer, preprocessing, readout, rule and activation."""
    from jaxmlp.network import MLP

    def once(scale):
        own = jm.Activation("own", lambda z: jnp.tanh(scale * z), lambda z: scale * (1 - jnp.tanh(scale * z) ** 2))
        rule = jm.Rule("own", carry=lambda down: scale * (down.delta @ down.W))
        net = MLP((3, 5, 2), own, "softmax", "cross_entropy")
        fit(params, net=net, optimizer=optax.sgd(scale), preprocess=lambda x: scale * x, rule=rule,
            readout=lambda trace, weights, key: jm.clipped_gradient(trace, scale, weights))  # fmt: skip

    once(0.5)
    before = len(programs._kept)
    once(0.25)
    gc.collect()
    assert len(programs._kept) == before


def test_every_door_lets_go_of_new_functions(params):
    """A fresh activation, preprocessing, readout and rule at each public function that compiles."""
    X, Y = examples()

    def once(scale):
        own = jm.Activation("own", lambda z: jnp.tanh(scale * z), lambda z: scale * (1 - jnp.tanh(scale * z) ** 2),
                            lambda z: 0 * z)  # fmt: skip
        net = jm.MLP((3, 5, 2), own, "softmax", "cross_entropy")
        rule = jm.Rule("own", lambda down: scale * (down.delta @ down.W), init=lambda net, key: (jnp.zeros(()),))
        state = rule.start(net, jax.random.key(0))
        preprocess = {"preprocess": lambda x: scale * x}
        jm.predict(net, params, X, **preprocess)
        jm.cost(net, params, X, Y, **preprocess)
        jm.value_and_grad(net, params, X, Y, rule=rule, rule_state=state, **preprocess)
        jm.backprop(net, params, X, Y, rule=rule, rule_state=state)
        jm.in_chunks(lambda trace: jm.mean_gradient(trace), net, params, X, Y, size=4)
        jm.hvp(net, params, X, Y, params, **preprocess)
        jm.output_jacobian(net, params, X, **preprocess)
        return weakref.ref(own.f), weakref.ref(rule.carry), weakref.ref(preprocess["preprocess"])

    held = once(0.25)
    gc.collect()
    assert [reference() for reference in held] == [None] * 3
    assert not programs._kept
