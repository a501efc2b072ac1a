"""The state's average of the weights."""

import jax
import numpy as np
import pytest
from problems import NET, examples, fit, tree_error

import jaxmlp as jm


def test_an_average_equals_the_closed_form_and_is_what_is_validated(params):
    """`(1 - beta) sum_i beta^(t-i) theta_i / (1 - beta^t)` after each epoch of one step."""
    X, Y = examples()
    points = [fit(params, epochs=t).params for t in (1, 2, 3)]
    result = fit(params, epochs=3, average=0.7, validation=(X, Y))
    coefficients = 0.3 * 0.7 ** np.arange(2, -1, -1) / (1 - 0.7**3)
    expected = jax.tree.map(lambda *theta: sum(c * t for c, t in zip(coefficients, theta, strict=True)), *points)
    assert result.best_epoch == 3
    assert tree_error(result.params, expected) <= 1e-6
    assert tree_error(result.last_params, points[-1]) <= 1e-6
    assert result.history["validation_cost"][-1] == pytest.approx(float(jm.cost(NET, expected, X, Y)), rel=1e-5)
    without = fit(params, epochs=3, average=0.7)
    assert tree_error(without.params, expected) <= 1e-6
