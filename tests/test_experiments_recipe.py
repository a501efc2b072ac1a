"""The recipe's walk from remedy to remedy."""

import numpy as np
import pytest

from experiments import recipe
from experiments.output import Output
from jaxmlp.metrics import diagnosis


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
    variance = lambda plan: 20 / plan.examples * (0.5 if plan.regularization != "none" else 1)
    walked = scripted(lambda plan: (bias(plan), bias(plan) + variance(plan)))
    assert [step.remedy for step in walked] == ["start", "bigger network", "more data"]
    assert not walked[-1].found.problems and all(step.kept for step in walked)


def test_what_does_not_help_is_undone_and_not_tried_again(scripted):
    walked = scripted(lambda plan: (0.3, 0.3) if plan.epochs == 4 else (0.2, 0.2))
    assert [(step.remedy, step.kept) for step in walked] == [
        ("start", True), ("bigger network", False), ("train longer", True), ("another optimizer", False),
        ("train longer", False),
    ]  # fmt: skip
    assert walked[-1].plan.hidden == 4 and len(walked) < 12  # nothing is left to try
