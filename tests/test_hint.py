"""The sentence about `hyper`, said once to whoever compiles for each new optimizer object."""

import logging
from functools import partial

import optax
import pytest

import jaxmlp as jm
from jaxmlp.training import hint
from jaxmlp.training.state import Plan


@pytest.fixture(autouse=True)
def in_a_new_process(monkeypatch):
    monkeypatch.setattr(hint, "_said", False)
    monkeypatch.setattr(hint, "_seen", {})


def make_plan(optimizer, width=3):
    return Plan(jm.MLP((2, width, 1)), optimizer, batch_size=4, steps=1)


def test_another_rate_is_told_of_hyper_once(caplog):
    for rate in (0.1, 0.2, 0.3):
        hint.name_hyper(make_plan(optax.adam(rate)))
    assert [(record.name, record.levelno) for record in caplog.records] == [("jaxmlp", logging.WARNING)]
    assert "hyper={'learning_rate': 0.1}" in caplog.text


@pytest.mark.parametrize("plans", [
    [make_plan(optimizer) for optimizer in [optax.adam(0.1)] * 3],  # one object
    [make_plan(partial(optax.sgd, 0.1)), make_plan(partial(optax.sgd, 0.2))],  # factories
    [make_plan(optimizer) for optimizer in (optax.sgd(0.1), optax.adam(0.1), optax.sgd(0.1, momentum=0.9))],
    [make_plan(optax.sgd(0.1), width) for width in (3, 4)],  # another network compiles anyway
])  # fmt: skip
def test_whoever_has_another_reason_to_compile_is_not_told(plans, caplog):
    for plan in plans:
        hint.name_hyper(plan)
    assert not caplog.records


def test_a_function_that_calls_itself_or_is_not_filled_yet_has_a_code():
    def calls_itself(n):
        return calls_itself(n - 1) + later

    assert hint._find_code(calls_itself, 0)
    later = 1
