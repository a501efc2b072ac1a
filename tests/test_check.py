"""The checker passes right gradients, of any network, and says how far apart the three routes are."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from problems import SMOOTH, TABLE, Problem, random_problems

import jaxmlp as jm
from jaxmlp.check import central_difference


@pytest.fixture(autouse=True)
def double(x64):
    pass


@hypothesis.given(random_problems())
def test_random_networks_pass_by_all_three_routes(problem):
    """Widths 1 to 6, depths 1 to 6, batches of 1 to 5, both dtypes; kinks are left out by name."""
    params, X, Y, _, weights, masks = problem.make()
    report = jm.check_gradients(problem.net, params, X, Y, weights=weights, masks=masks, entries=6)
    assert report.passed, f"{problem}\n{report}"
    assert len(report.rows) == 5 * problem.net.depth


AS_USERS = """
import jax
jax.config.update("jax_enable_x64", True)
import jaxmlp as jm
net = jm.MLP((5, 33, 70, 3), hidden=("relu", "tanh"), output="softmax", loss="cross_entropy")
keys = jax.random.split(jax.random.key(0), 3)
params, X = jm.init(net, keys[0]), jax.random.normal(keys[1], (20, 5))
report = jm.check_gradients(net, params, X, jax.random.randint(keys[2], (20,), 0, 3), entries=6)
assert report.passed, str(report)
"""


def test_a_network_passes_as_users_compile_it():
    """In a process of its own, with XLA as it comes: in this one most optimizations and the newer emitters are off."""
    ours = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    plain = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run([sys.executable, "-c", AS_USERS], env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@hypothesis.settings(max_examples=3)
@hypothesis.given(random_problems(dtypes=("float64",), hidden=SMOOTH))
def test_smooth_networks_meet_the_notes_formula(problem):
    params, X, Y, _, weights, masks = problem.make()
    report = jm.check_gradients(problem.net, params, X, Y, weights=weights, masks=masks, entries=6)
    for row in report.rows:
        assert row.error <= (1e-7 if row.route == "differences" else 1e-12)
        assert not row.straddling or problem.output == "relu"


def test_a_trained_network_whose_deltas_all_but_vanish_passes():
    """Where y_hat has nearly reached y, `y_hat - y` and log space differ by roundings of y, which is no mistake."""
    net = jm.MLP((2, 3, 1), hidden="tanh", output="sigmoid", loss="binary_cross_entropy")
    params = jax.tree.map(lambda a: 8 * a, jm.init(net, jax.random.key(0), biases="small_normal"))
    X = jnp.asarray([[1.0, 2.0], [-1.0, 0.5]])
    Y = (jm.predict(net, params, X) > 0.5).astype(float)
    assert float(jm.cost(net, params, X, Y)) < 1e-2
    assert jm.check_gradients(net, params, X, Y).passed


def test_the_report_is_a_table_that_names_the_worst():
    params, X, Y, *_ = TABLE[2].make()
    report = jm.check_gradients(TABLE[2].net, params, X, Y)
    lines = str(report).splitlines()
    assert lines[0].split() == ["array", "against", "error", "at", "most", "worst", "entry", "by", "hand", "expected"]
    assert lines[-1] == "passed"
    assert [line.split()[0] for line in lines[1:-1]] == [
        "W^1", "b^1", "W^2", "b^2", "delta^1", "delta^2", "W^1", "b^1", "W^2", "b^2",
    ]  # fmt: skip
    assert len({len(line.rstrip()) for line in lines[1:-1]}) == 1  # the columns line up
    assert report.worst in report.rows


def test_entries_that_straddle_a_kink_are_named_not_hidden():
    net = jm.MLP((2, 2, 1), hidden="relu")
    params = (jm.Layer(jnp.eye(2), jnp.zeros(2)), jm.Layer(jnp.ones((1, 2)), jnp.zeros(1)))
    X, Y = jnp.asarray([[1e-6, 1.0]]), jnp.asarray([[0.0]])  # z = 1e-6: a step of 1e-5 crosses 0
    report = jm.check_gradients(net, params, X, Y)
    assert report.passed
    straddling = {row.name: row.straddling for row in report.rows if row.straddling}
    assert straddling == {"W^1": ((0, 1),), "b^1": ((0,),)}  # W[0, 0] moves z by 1e-11 only
    assert "left out of b^1: a step crosses a kink at [0]" in str(report)


def test_float32_parameters_are_held_to_float32_and_differences_taken_in_float64():
    problem = replace(TABLE[2], dtype="float32")
    with jax.enable_x64(False):
        params, X, Y, *_ = problem.make()
        report = jm.check_gradients(problem.net, params, X, Y)
    assert report.passed
    assert {row.tolerance for row in report.rows} == {1e-5, 1e-7}


def test_the_worked_example_of_the_notes():
    """theta^3 at 1 with eps = 0.01: 3.0001, error 1e-4."""
    approximation = float(central_difference(lambda t: t**3, jnp.asarray(1.0), 0.01))
    assert approximation == pytest.approx(3.0001, abs=1e-12)
    assert approximation - 3 == pytest.approx(1e-4, rel=1e-6)


def own(name, f, df):
    return jm.Activation(name, f, df)


ABSOLUTE = jm.Loss("absolute", lambda a, y: jnp.abs(a - y).sum(), lambda a, y: jnp.sign(a - y))
LEFT = jm.Loss("left", lambda a, y: jnp.abs(a - y).sum(), lambda a, y: jnp.where(a > y, 1.0, -1.0).astype(a.dtype))
HINGE = jm.Loss("hinge", lambda a, y: jnp.maximum(0, 1 - a).sum(), lambda a, y: -(a < 1).astype(a.dtype))
ABS = own("abs", jnp.abs, jnp.sign)
RELU_FROM_0 = own("relu from 0", jax.nn.relu, lambda z: (z >= 0).astype(z.dtype))
ROOT = own("root", lambda z: jnp.where(z > 0, jnp.sqrt(z), 0), lambda z: jnp.where(z > 0, z, jnp.inf) ** -0.5 / 2)


@jax.custom_jvp
def lying(z):
    return jnp.tanh(z)


lying.defjvp(lambda z, dz: (jnp.tanh(z[0]), 3 * dz[0]))

ALONE = {  # autodiff is wrong, or chooses another subgradient: the network, its biases, and the function to blame
    "elu far below 0": (jm.MLP((3, 4, 2), "elu"), -40.0, "elu at layer 1"),
    "elu below 0": (jm.MLP((3, 4, 2), "elu"), -12.0, "elu at layer 1"),
    "abs at 0": (jm.MLP((3, 4, 2), ABS), 0.0, "abs at layer 1"),
    "relu from 0": (jm.MLP((3, 4, 4, 2), RELU_FROM_0), 0.0, "relu from 0 at layer 2"),
    "a NaN of where": (jm.MLP((3, 4, 4, 2), ("tanh", ROOT)), 0.1, "root at layer 2"),
    "a wrong custom_jvp": (jm.MLP((3, 4, 2), own("tanh", lying, jm.activations.tanh.df)), 0.1, "tanh at layer 1"),
    "a loss at its kink": (jm.MLP((3, 4, 2), "tanh", loss=ABSOLUTE), 0.0, "the loss absolute"),
    "a loss's other side": (jm.MLP((3, 4, 2), "tanh", loss=LEFT), 0.0, "the loss left"),
    "a hinge": (jm.MLP((3, 2), (), loss=HINGE), 1.0, "the loss hinge"),
}


def examples_at_kinks(net, bias, dtype="float64"):
    """Biases that are all `bias`; the first of three examples is 0, and so are all labels."""
    params, X, *_ = Problem(net.sizes, ("tanh",) * (net.depth - 1), "identity", "squared_error", 3).make()
    params = tuple(jm.Layer(0.5 * W, jnp.full_like(b, bias)) for W, b in params)
    cast = lambda a: jnp.asarray(a, dtype)
    return jax.tree.map(cast, (params, X.at[0].set(0), jnp.zeros((3, net.sizes[-1]))))


@pytest.mark.parametrize("name", ALONE)
def test_autodiff_alone_does_not_fail_the_gradient_by_hand(name):
    net, bias, blamed = ALONE[name]
    params, X, Y = examples_at_kinks(net, bias)
    report = jm.check_gradients(net, params, X, Y if "loss" in blamed else Y + 1)
    assert report.passed, str(report)
    assert not report.looks_like and any(sentence.startswith(blamed) for sentence in report.autodiff_alone)
    assert "autodiff is outvoted; it is alone in " in str(report)
    assert {row.alone for row in report.rows} == {"", "autodiff"}


def test_autodiff_alone_in_float32():
    with jax.enable_x64(False):
        for net, bias in ((jm.MLP((3, 4, 2), "elu"), -17.0), (ALONE["abs at 0"][0], 0.0)):
            report = jm.check_gradients(net, *examples_at_kinks(net, bias, "float32"))
            assert report.passed, str(report)


WRONG = {  # never passed, whatever the vote says about other entries
    "twice below 0": ("elu", -40.0, lambda net: with_slope(net, lambda z: 2 * net.hidden[0].df(z))),
    "a missing f' below 0": ("elu", -40.0, lambda net: with_slope(net, jnp.ones_like)),
    "beside the kink's slopes": ("relu", 0.0, lambda net: with_slope(net, lambda z: jnp.heaviside(z, 2.0))),
}
RIGHT = {  # other choices at kinks, and autodiff's own gradient
    "relu'(0) = 1": ("relu", 0.0, lambda net: with_slope(net, lambda z: (z >= 0).astype(z.dtype))),
    "relu'(0) = 1/2": ("relu", 0.0, lambda net: with_slope(net, lambda z: jnp.heaviside(z, 0.5))),
    "autodiff's": ("elu", -40.0, lambda net: lambda _, *at: jax.grad(lambda p, *d: jm.cost(net, p, *d))(*at)),
}


def with_slope(net, df):
    broken = jm.MLP(net.sizes, [replace(net.hidden[0], df=df)], net.output, net.loss)
    return lambda _, *at: jm.value_and_grad(broken, *at)[1]


@pytest.mark.parametrize("name", [*WRONG, *RIGHT])
def test_a_users_gradient_at_kinks_and_where_autodiff_is_off(name):
    hidden, bias, make = (WRONG | RIGHT)[name]
    net = jm.MLP((3, 4, 2), hidden)
    params, X, Y = examples_at_kinks(net, bias)
    report = jm.check_gradients(net, params, X, Y + 1, backward=make(net))
    assert report.passed == (name in RIGHT), str(report)


def test_a_derivative_that_lies_as_autodiff_does_is_caught_by_differences():
    net = jm.MLP((3, 4, 2), own("lie", lying, lambda z: jnp.full_like(z, 3)))
    report = jm.check_gradients(net, *examples_at_kinks(net, 0.1))
    assert not report.passed and "central differences are alone in W^1, b^1" in str(report)


def test_one_wrong_entry_is_caught_where_no_difference_is_taken():
    net = jm.MLP((40, 30, 2), "tanh")
    params, X, Y, *_ = Problem(net.sizes, ("tanh",), "identity", "squared_error", 3).make()

    def backward(*arguments):
        first, last = jm.value_and_grad(*arguments)[1]
        return first._replace(W=first.W.at[7, 9].add(1e-7)), last

    report = jm.check_gradients(net, params, X, Y, backward=backward, entries=1)
    assert not report.passed and report.worst.entry == (7, 9)


def test_a_wrong_gradient_too_small_for_differences_is_caught():
    problem = Problem((4, 5, 5, 3), ("sigmoid", "sigmoid"), "softmax", "cross_entropy", 5)
    params, X, Y, *_ = problem.make()
    params = (params[0], *(layer._replace(W=1e-7 * layer.W) for layer in params[1:]))
    first = lambda grads: (jax.tree.map(lambda g: 2 * g, grads[0]), *grads[1:])
    backward = lambda *arguments: first(jm.value_and_grad(*arguments)[1])
    report = jm.check_gradients(problem.net, params, X, Y, backward=backward, entries=4)
    assert report.looks_like == ("a constant factor of 2, in W^1", "a constant factor of 2, in b^1")


def test_a_wrong_derivative_is_named_where_it_is():
    wrong = own("own_tanh", jnp.tanh, lambda z: 1 - jnp.tanh(z))  # forgot the square
    net = jm.MLP((3, 4, 4, 2), ("sigmoid", wrong), loss=ABSOLUTE)
    report = jm.check_gradients(net, *examples_at_kinks(net, 0.1))
    assert len(report.looks_like) == 1 and "own_tanh at layer 2, z = " in report.looks_like[0], str(report)
    assert "the gradient by hand is alone in W^1, b^1, W^2, b^2" in str(report)
    loss = replace(ABSOLUTE, df=lambda a, y: 2 * jnp.sign(a - y))
    net = jm.MLP((3, 2), (), loss=loss)
    report = jm.check_gradients(net, *examples_at_kinks(net, 0.1))
    assert len(report.looks_like) == 1 and "the loss absolute, z = " in report.looks_like[0], str(report)


def test_a_report_shows_itself_in_one_line():
    params, X, Y, *_ = TABLE[2].make()
    assert re.fullmatch(
        r"Report\(passed, 10 rows, worst \d\.\de-\d+ against (autodiff|differences) at [Wbd].*\]\)",
        repr(jm.check_gradients(TABLE[2].net, params, X, Y)),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backward": lambda *_: jnp.zeros(3)}, "backward returned 1 arrays, expected W and b for each of 2 layers"),
        ({"entries": 0}, "entries is 0, expected at least 1"),
        ({"backward": jm.mean_gradient, "weights": jnp.ones(5)}, "expected no weights and no masks"),
    ],
)
def test_what_the_checker_refuses(arguments, message):
    params, X, Y, *_ = TABLE[2].make()
    with pytest.raises(ValueError, match=message):
        jm.check_gradients(TABLE[2].net, params, X, Y, **arguments)
    with pytest.raises(ValueError, match="params have dtype float16, expected float32 or float64"):
        half = jax.tree.map(lambda a: a.astype(jnp.float16), (params, X))
        jm.check_gradients(TABLE[2].net, *half, Y)
