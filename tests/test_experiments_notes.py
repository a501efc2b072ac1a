"""The stated expectation of each experiment that shows a row of the notes."""

import numpy as np
import pytest

from experiments import (
    activations,
    averages,
    demand,
    housing,
    initialization,
    normalization,
    saturation,
    shapes,
    vanishing,
    vectorization,
)


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
    share = 100 * np.asarray([56, 1.2, 1.8]) / 59
    assert vectorization.FOODS[0] == "apples" and share[0] == pytest.approx(94.9, abs=0.05)


def test_house_prices_by_a_network_and_by_least_squares(shown):
    numbers = shown(housing, ["predicted"])
    assert numbers["apart"] <= 10
    assert numbers["over_guess"] <= 0.65 and 0.9 <= numbers["over_least_squares"] <= 1.1


def test_hidden_units_find_the_hidden_factors(shown):
    numbers = shown(demand, ["probabilities", "factors"])
    assert numbers["excess"] >= 0 and numbers["over_regression"] <= 0.1
    assert numbers["matched"] >= 0.9


def test_equal_units_stay_equal_and_the_variance_decides(shown):
    numbers = shown(initialization, ["initialization"])
    assert numbers["symmetric"] == 1 and numbers["broken"] > 0.01
    assert numbers["cost, zeros"] > 2 * numbers["cost, lecun"]
    assert numbers["kept"] <= 2 and numbers["left"] >= 1000
    assert 1 / 200 <= numbers["tanh"] <= 1 / 50


def test_large_weights_saturate_and_learn_slowly(shown):
    numbers = shown(saturation, ["saturation"])
    assert numbers["saturated"] >= 0.9 and numbers["saturated, first"] <= 0.01
    assert numbers["f'"] >= 10 and numbers["delta"] >= 10 and numbers["moved"] >= 10
    assert numbers["within"] <= 0.1
    assert numbers["cost"] >= 3


def test_gradients_vanish_or_explode_as_the_factors_say(shown):
    factor = shown(vanishing, ["norms"])
    assert factor["apart"] <= 0.05
    for name, expected in {"identity, 1/n": 1, "relu, 2/n": 1, "relu, 1/n": 0.5**0.5, "identity, 2/n": 2**0.5}.items():
        assert factor[name] == pytest.approx(expected, abs=0.05)
    assert factor["sigmoid, 1/n"] < 0.3 and factor["tanh, 4/n"] > 1.1


def test_normalised_inputs_need_fewer_steps(shown):
    steps = shown(normalization, ["contours"])
    assert steps["over raw"] <= 0.01 and steps["over centred"] <= 0.2 and steps["over divided"] <= 0.2
    assert steps["same order"] and steps["condition"] < 2


def test_averages_and_the_optimisers_built_on_them(shown):
    numbers = shown(averages, ["averages", "paths"])
    assert numbers["closed"] <= 1e-12 and numbers["optax"] <= 1e-12
    assert numbers["uncorrected"] == pytest.approx(0.02) and numbers["corrected"] == pytest.approx(1)
    assert numbers["smoother"] <= 0.5
    for name in ("momentum", "RMSprop", "Adam"):
        assert numbers[f"{name} over descent"] < 1


@pytest.mark.parametrize(
    ("experiment", "settings", "message"),
    [
        (activations, {"units": 0}, "units, starts and steps are 0, 20, 4000; expected at least 1 of each"),
        (averages, {"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\), expected numbers of at least 0 and below 1"),
        (demand, {"examples": 10}, "examples and starts are 10, 3, expected at least 100 and 1"),
        (housing, {"splits": 0}, "splits is 0, expected at least 1"),
        (initialization, {"depth": 1}, "depth=1.*, expected at least 1 of each, and at least 2 layers"),
        (normalization, {"close": 2.0}, "close and most are 2.0, 1000000, expected 0 to 1 and at least 1"),
        (saturation, {"scales": (1.0,)}, r"scales=\(1.0,\).*, expected at least two scales above 0"),
        (shapes, {"examples": 1}, "examples is 1, expected at least 2 to make a batch"),
        (vanishing, {"width": 1}, "width=1.*, expected .* a width and depth of at least 2"),
        (
            vectorization,
            {"examples": ()},
            r"features, repeats and examples are 20, 5, \(\); expected at least 1 of each",
        ),
    ],
)
def test_wrong_settings_are_refused(shown, experiment, settings, message):
    with pytest.raises(ValueError, match=message):
        shown(experiment, **settings)
