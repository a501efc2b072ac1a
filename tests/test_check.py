"""The checker passes right gradients, of any network, and says how far apart the three routes are."""

import os
import subprocess
import sys
from dataclasses import replace

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from problems import SMOOTH, TABLE, random_problems

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
    plain = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", AS_USERS], env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@hypothesis.settings(max_examples=5)
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
