"""Random networks against complex steps in extended precision: `python3 -m experiments gradcheck --networks 10000`."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmlp as jm
from experiments import _random_networks as random_networks
from experiments import gradcheck


def test_complex_steps_are_the_derivative_of_a_known_cost(x64):
    """`(w x + b - y)^2 / 2` by hand."""
    layer = jm.Layer(np.asarray([[2.0]]), np.asarray([0.5]))
    X, rows = np.asarray([[3.0], [1.0]]), np.asarray([[1.0], [2.0]])
    problem = random_networks.Problem(jm.MLP((1, 1)), (layer,), X, rows, rows, np.asarray([1.0, 3.0]), None)
    J, (W, b) = random_networks.differentiate(problem)
    assert (J, W.item(), b.item()) == ((5.5**2 / 2 + 3 * 0.5**2 / 2) / 4, (5.5 * 3 + 3 * 0.5) / 4, (5.5 + 3 * 0.5) / 4)


def test_random_networks_have_right_gradients(x64):
    """Each pair of output and loss three times; every hidden activation and depth is among them.

    Widths of 1 and 2 share the programs of single operations, so that few are compiled.
    """
    found = gradcheck.check_random_networks(48, 1, widest=2)
    assert max(each.error for each in found) <= gradcheck.TOLERANCE
    nets = [each.problem.net for each in found]
    assert {(net.output.name, net.loss.name) for net in nets} == set(random_networks.list_pairs())
    assert {f.name for net in nets for f in net.hidden} == set(random_networks.HIDDEN)
    assert {net.depth for net in nets} == set(range(1, 8)) and min(min(net.sizes) for net in nets) == 1


def test_a_wrong_derivative_is_found_and_is_the_exit_status(x64, monkeypatch):
    def draw_wrong(rng, pair, widest):
        problem = random_networks.draw(rng, pair, widest)
        wrong = tuple(replace(f, df=lambda z: 1.001 * jnp.ones_like(z)) for f in problem.net.hidden)
        object.__setattr__(problem.net, "hidden", wrong)  # the dataclass is frozen
        return problem

    monkeypatch.setattr(gradcheck, "draw", draw_wrong)
    monkeypatch.setattr(gradcheck, "list_pairs", lambda: [("identity", "squared_error")])
    found = gradcheck.check_random_networks(4, 0, widest=2)
    assert any(each.error > gradcheck.TOLERANCE for each in found if each.problem.net.hidden)
    with pytest.raises(SystemExit, match=r"of 4 random networks have a wrong gradient, the first MLP"):
        gradcheck.exit_if_wrong(found)
    gradcheck.exit_if_wrong([each._replace(error=1e-12) for each in found])
