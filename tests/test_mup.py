"""mu-P: its exponents against the published table, the standard at the base width, factories, what is refused."""

import functools
import inspect
from typing import Any

import jax
import numpy as np
import optax
import pytest
from problems import KEYS, NET, SGD, examples, fit, gradient, sweep, tree_error

import jaxmlp as jm
from jaxmlp import initializers, optimizers

OPTIMIZERS = {"adam": optax.sign_sgd, "sgd": optax.sgd}  # Adam's first step is that of the signs
# Yang, Hu et al. 2021, table 3: the powers of the width in the rates of (W, b), of input, hidden and output layer.
EXPONENTS = {"adam": ((0, 0), (-1, 0), (-1, 0)), "sgd": ((1, 1), (0, 1), (-1, 0))}


def network(*hidden):
    return jm.MLP((3, *hidden, 2), "tanh", "softmax", "cross_entropy")


def find_factors(net, base_width, rates):
    """The sizes of an update for a gradient of ones at a rate of 1: of W and b of each layer."""
    ones: Any = tuple(jm.Layer(np.ones((o, i), np.float32), np.ones(o, np.float32)) for o, i in net.shapes)
    optimizer = jm.mup(net, base_width, OPTIMIZERS[rates](1.0), rates=rates)
    updates, _ = optimizer.update(ones, optimizer.init(ones), ones)
    each = [[np.unique(a) for a in u] for u in updates]  # one number in each array
    return -np.asarray(each)[..., 0]


@pytest.mark.parametrize("rates", EXPONENTS)
def test_rates_grow_and_fall_as_the_table_says(rates):
    narrow, wide = (find_factors(network(n, n), 4, rates) for n in (8, 16))
    np.testing.assert_allclose(np.log2(wide / narrow), EXPONENTS[rates], atol=1e-5)


def test_hidden_layers_of_several_widths_have_a_ratio_each():
    net = network(8, 6)  # 2 and 3 times the base network's
    np.testing.assert_allclose(find_factors(net, (4, 2), "sgd"), [(2, 2), (3 / 2, 3), (1 / 3, 1)], rtol=1e-5)
    np.testing.assert_allclose(find_factors(net, (4, 2), "adam"), [(1, 1), (1 / 2, 1), (1 / 3, 1)], rtol=1e-5)


def test_variances_fall_as_the_table_says(key):
    """The draws are those of a variance that no width changes, times a number for each layer."""
    net, base = network(8, 8), 4
    for name in ("small_normal", "xavier"):
        params = jm.init(net, key, weights=jm.mup_weights(net, base, name))
        of_base = [initializers.VARIANCES[name](n_in, n_out) for n_in, n_out in ((3, 4), (4, 4), (4, 2))]
        plain = jm.init(net, key, weights="small_normal")
        for layer, same, variance, power in zip(params, plain, of_base, (0, -1, -2), strict=True):
            expected = (variance * 2.0**power) ** 0.5 / 0.01
            np.testing.assert_allclose(layer.W, expected * np.asarray(same.W), rtol=1e-5)
    assert not any(np.asarray(layer.b).any() for layer in params)


def test_at_the_base_width_weights_and_updates_are_the_standard_ones_bit_for_bit(key):
    for name in initializers.VARIANCES:
        assert tree_error(jm.init(NET, key, weights=jm.mup_weights(NET, 5, name)), jm.init(NET, key, name)) == 0
    params, grads = jm.init(NET, key), jm.init(NET, KEYS[0], biases="small_normal")
    for rates, make in OPTIMIZERS.items():
        plain, ours = make(0.1), jm.mup(NET, 5, make(0.1), rates=rates)
        expected, _ = plain.update(grads, plain.init(params), params)
        assert tree_error(ours.update(grads, ours.init(params), params)[0], expected) == 0


def test_a_factory_stays_one_and_members_of_a_sweep_have_rates_of_their_own():
    weights, factory = jm.mup_weights(NET, 2, "lecun"), jm.mup(NET, 2, optax.sign_sgd)
    assert factory == jm.mup(NET, 2, optax.sign_sgd)  # equal ones share a program
    assert inspect.signature(factory) == inspect.signature(optax.sign_sgd)  # by which a search knows its names
    rates, (X, Y) = [0.03, 0.1], examples(20)
    many = sweep(optimizer=factory, keys=KEYS[:2], hyper={"learning_rate": rates}, initial=weights, epochs=1,
                 batch_size=20)  # fmt: skip
    for i, rate in enumerate(rates):
        first, second = jm.init(NET, KEYS[i], weights)
        of_first, of_second = jax.tree.map(lambda g, rate=rate: rate * np.sign(g), gradient((first, second), X, Y))
        expected = (jm.Layer(first.W - of_first.W, first.b - of_first.b),
                    jm.Layer(second.W - 2 / 5 * of_second.W, second.b - of_second.b))  # fmt: skip
        assert tree_error(many.member(i).params, expected) <= 1e-6


def test_an_optimizer_inside_is_told_what_it_takes(params):
    """It is only traced."""
    reads = lambda g, s, p=None, *, trace, **told: (jm.mean_gradient(trace), s)
    for optimizer in (optax.GradientTransformationExtraArgs(lambda p: (), reads), optax.polyak_sgd(1.0)):
        optimizers.check(NET, functools.partial(jm.mup, NET, 5, optimizer), {}, params)


OTHER = network(8, 6)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: jm.mup(jm.MLP, 4, optax.adam), "net is the class MLP"),
        (lambda: jm.mup(NET, 0, optax.adam), "base_width is 0, expected at least 1"),
        (lambda: jm.mup(NET, 2.5, optax.adam), "base_width is 2.5, expected a whole number"),
        (lambda: jm.mup(OTHER, (4,), optax.adam), "base_width has 1 widths, expected 2, one for each hidden layer"),
        (lambda: jm.mup(OTHER, [4, 0], optax.adam), r"base_width\[1\] is 0, expected at least 1"),
        (lambda: jm.mup(NET, 4, "adam"), "optimizer is 'adam', expected an optax transformation, or a factory"),
        (lambda: jm.mup(NET, 4, optax.adam, "Adam"), "rates is 'Adam', expected one of 'adam', 'sgd'"),
        (lambda: jm.mup(NET, 4, optax.sgd), "rates is 'adam' with optax.sgd, expected 'sgd'"),
        (lambda: jm.mup(NET, 4, lambda rate: rate)(0.1), "optimizer makes a float, expected an optax transformation"),
        (lambda: fit(jm.init(NET, KEYS[0]), optimizer=jm.mup(OTHER, 4, SGD, rates="sgd")),
         r"optimizer fails on the network's parameters: ValueError: params is 2 layers, expected a tuple of 3"),
        (lambda: fit(jm.init(NET, KEYS[0]), optimizer=jm.mup(NET, 4, optax.chain(optax.clip(1.0), jm.kfac(NET, 0.1)))),
         "optimizer fails .*: mup scales kfac, which chooses its steps by the curvature; expected kfac alone"),
        (lambda: fit(jm.init(NET, KEYS[0]), hyper={"damping": 0.1},
                     optimizer=jm.mup(NET, 4, functools.partial(jm.gauss_newton, NET))), "mup scales gauss_newton"),
        (lambda: jm.mup_weights(NET, (4, 4)), "base_width has 2 widths, expected 1"),
        (lambda: jm.mup_weights(NET, 4, "hee"), "weights is 'hee', expected one of .*did you mean 'he'"),
        (lambda: jm.mup_weights(NET, 4, jax.nn.initializers.he_normal()), "weights is <function .*, expected one of"),
        (lambda: jm.init(OTHER, KEYS[0], jm.mup_weights(NET, 4)),
         r"weights are for a network of widths \(3, 5, 2\), expected \(3, 8, 6, 2\)"),
        (lambda: jm.init(NET, KEYS[0], biases=jm.mup_weights(NET, 4)),
         "biases: the initializer fails .*these initializers are for the weights of a network"),
    ],
)  # fmt: skip
@pytest.mark.wrong_arguments
def test_what_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
