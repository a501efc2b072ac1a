"""The stated expectation of the experiment search."""

import jax
import pytest

from experiments import search
from experiments.output import Output


@pytest.fixture(autouse=True)
def quickly_compiled():
    """What the test runs is over in a second; to compile it for speed would take most of its time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_the_winner_is_at_least_as_good_as_the_default(tmp_path):
    settings = search.Settings(quick=True)
    made = Output.create("search", settings, results=tmp_path)
    shown = search.run(settings, made)
    assert shown["passed"]
    assert shown["winner, from scratch, dev"] >= shown["default, dev"]
    assert shown["winner, from scratch, test"] >= shown["default, test"] - 0.01
    assert abs(shown["winner, from scratch, dev"] - shown["winner, as searched, dev"]) <= 0.01
    assert {path.name for path in made.folder.iterdir()} >= {"trials.csv", "scores.png", "report.txt"}
