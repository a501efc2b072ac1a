"""The stated expectations of the experiments batch_size, regularization and recipe."""

import numpy as np
import pytest

from experiments import batch_size, recipe, regularization
from experiments.output import Output
from jaxmlp.metrics import diagnosis


def test_full_batch_and_size_1_are_the_notes_rules_and_noise_falls_as_foretold(shown):
    numbers = shown(batch_size, ["batch_size"], sizes=(10,))
    assert max(numbers["full"], numbers["one"]) <= 1e-12
    assert 0.8 <= numbers["noise, least"] <= numbers["noise, most"] <= 1.25
    assert numbers["mini_batch"] < numbers["full_batch"] / 2  # after as many epochs
    for wrong, message in (({"examples": 100}, "expected at least 513 examples and 1 of each"),
                           ({"sizes": (10, 11)}, r"sizes is \(10, 11\), expected some of 1, 10, 64, 512")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            batch_size.run(batch_size.Settings(**wrong), Output.create("batch_size", batch_size.Settings()))


def test_dropout_and_shifts_narrow_the_gap_and_l1_makes_zeros(shown):
    numbers = shown(regularization, ["gap", "weights"])
    assert numbers["penalties"] <= 1e-12 and numbers["dropout"] == pytest.approx(1, abs=0.25)
    assert numbers["gap"] >= 0.08
    assert numbers["gap, dropout"] <= 0.9 * numbers["gap"] and numbers["gap, shifts"] <= 0.65 * numbers["gap"]
    assert numbers["zeros"] <= 0.03 and numbers["zeros, L1"] >= 0.3 and numbers["size, L2"] <= 0.5
    with pytest.raises(ValueError, match="no batch above the examples"):
        wrong = regularization.Settings(examples=10)
        regularization.run(wrong, Output.create("regularization", wrong))


def test_the_recipe_finds_bias_then_mismatch_on_digits(shown):
    numbers = shown(recipe, ["cameras", "errors"], steps=2)
    assert numbers["biased_first"] == 1 and numbers["bias"] > 0.05
    assert numbers["mismatch"] > 0.05


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """The recipe's walk where a function of the plan says what the errors are."""

    def walk(errors, steps=12):
        def step(remedy, plan, sets, settings):
            train, dev = errors(plan)
            return recipe.Step(remedy, plan, train, None, dev, dev, diagnosis(train, dev), True, 0.0)

        monkeypatch.setattr(recipe, "_step", step)
        sets = recipe.Sets({}, np.zeros(42_000), {}, *[np.zeros(0)] * 5, mismatched=False)
        settings = recipe.Settings(steps=steps)
        return recipe.follow(recipe.Plan(), sets, settings, Output.create("recipe", settings, tmp_path))

    return walk


def test_remedies_follow_the_problem_in_turn_and_end_when_all_is_low(scripted):
    bias = lambda plan: 0.5 / plan.hidden * (0.5 if plan.optimizer == "Adam" else 1) * 4 / plan.epochs
    variance = lambda plan: 20 / plan.examples * (0.5 if plan.regularisation != "none" else 1)
    walked = scripted(lambda plan: (bias(plan), bias(plan) + variance(plan)))
    assert [step.remedy for step in walked] == ["start", "bigger network", "more data"]
    assert not walked[-1].found.problems and all(step.kept for step in walked)


def test_what_does_not_help_is_undone_and_not_tried_again(scripted):
    walked = scripted(lambda plan: (0.3, 0.3) if plan.epochs == 4 else (0.2, 0.2))
    assert [(step.remedy, step.kept) for step in walked] == [
        ("start", True), ("bigger network", False), ("train longer", True), ("another optimiser", False),
        ("train longer", False),
    ]  # fmt: skip
    assert walked[-1].plan.hidden == 4 and len(walked) < 12  # nothing is left to try
