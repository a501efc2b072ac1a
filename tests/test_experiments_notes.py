"""The stated expectation of each experiment that shows a row of the notes."""

import jax
import numpy as np
import pytest

from experiments import activations, demand, housing, shapes, vectorization
from experiments.output import Output


@pytest.fixture(autouse=True)
def as_users_run_them():
    """With JAX's usual promotion, which optax's schedules need."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def shown(tmp_path):
    """What an experiment shows in a quick run; its pictures are drawn, too."""

    def show(experiment, pictures=(), **settings):
        given = experiment.Settings(quick=True, **settings)
        out = Output.create(experiment.__name__.split(".")[-1], given, results=tmp_path)
        numbers = experiment.run(given, out)
        assert {path.stem for path in out.folder.glob("*.png")} == set(pictures)
        return numbers

    return show


def test_what_the_notes_say_of_shapes_holds(shown):
    differences = shown(shapes, ["blocks"])
    assert len(differences) == 6 and max(differences.values()) <= 1e-15


def test_relu_fits_kinks_and_tanh_a_sine(shown):
    errors = shown(activations, ["activations", "kinks"])
    assert errors["derivatives"] <= 1e-14
    assert errors["kinks, relu"] <= errors["kinks, tanh"] / 10
    assert errors["sine, tanh"] <= errors["sine, relu"] / 3


def test_loops_and_vectors_give_one_gradient(shown):
    numbers = shown(vectorization, ["seconds", "calories"])
    assert numbers["apart"] <= 1e-14 and numbers["sums"] <= 1e-12
    assert numbers["faster"] >= 10  # 100 where this was written
    share = 100 * np.asarray([56, 1.2, 1.8]) / 59
    assert vectorization.FOODS[0] == "apples" and share[0] == pytest.approx(94.9, abs=0.05)


def test_house_prices_by_a_network_and_by_least_squares(shown):
    numbers = shown(housing, ["predicted"])
    assert numbers["apart"] <= 10
    assert numbers["over_guess"] <= 0.65 and 0.9 <= numbers["over_least_squares"] <= 1.1


def test_hidden_units_find_the_hidden_factors(shown):
    numbers = shown(demand, ["probabilities", "factors"])
    assert 0 <= numbers["excess"] and numbers["over_regression"] <= 0.1
    assert numbers["matched"] >= 0.9
