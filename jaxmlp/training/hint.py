"""One sentence a process for whoever compiles the same training once for each new optimizer object."""

import dataclasses
import logging
import types
from typing import Any

import optax

from jaxmlp.training.state import Plan

SENTENCE = (
    "jaxmlp.fit compiles once more for each new optimizer object, such as another optax.sgd(0.1). A factory and its "
    "arguments compile once for all values: optimizer=optax.sgd, hyper={'learning_rate': 0.1}"
)
EMPTY = types.CellType()
_said = False
# A plan's hash without the numbers of its optimizer, and the hash of the optimizer: neither holds a function.
_seen: dict[int, int] = {}


def name_hyper(plan: Plan) -> None:
    """Logs the sentence where a plan differs from an earlier one in nothing but the numbers of its optimizer."""
    global _said
    if _said or not isinstance(plan.optimizer, optax.GradientTransformation):
        return
    others = (getattr(plan, field.name) for field in dataclasses.fields(plan) if field.name != "optimizer")
    own = hash(plan.optimizer)
    if _seen.setdefault(hash((*others, _find_code(plan.optimizer, 0))), own) != own:
        logging.getLogger("jaxmlp").warning(SENTENCE)
        _said = True


def _find_code(value: Any, depth: int) -> Any:
    """The code of a function and of those it has closed over; their numbers are left out."""
    if isinstance(value, tuple | list):
        return tuple(_find_code(entry, depth) for entry in value)
    cells = (getattr(value, "__closure__", None) or ()) if depth < 8 else ()
    inner = tuple(_find_code(cell.cell_contents, depth + 1) for cell in cells if cell != EMPTY)
    return getattr(value, "__code__", None), inner
