"""Copies and pickles of descriptions: records of functions, which are equal only if they hold the same functions.

A copy is the object itself, for nothing in it can change. A pickle refers to what a module holds by its name, as
`pickle` does to a plain function, so that what comes back is equal and compiles no second program.
"""

from __future__ import annotations

import copy
import importlib
import pickle
import sys
from dataclasses import fields, replace
from types import BuiltinFunctionType, FunctionType
from typing import Any, ClassVar

HOMES = ("activations", "losses", "rules")  # modules of jaxmlp that hold named descriptions


class Description:
    """A frozen dataclass whose fields are functions, numbers, texts and other descriptions."""

    def __copy__(self):
        return self

    def __deepcopy__(self, memo: dict[int, Any]):
        return self

    def __reduce__(self):
        return refer_to_named(self) or (_restore, (type(self), *(_refer(getattr(self, f.name)) for f in fields(self))))  # pyright: ignore


class WithFunctions:
    """A dataclass with fields of functions. A copy keeps these; a pickle has a stand-in for one that it cannot hold."""

    STAND_INS: ClassVar[dict[str, Any]]  # by field

    def __getstate__(self) -> dict[str, Any]:
        lost = {name: other for name, other in self.STAND_INS.items() if not _can_pickle(getattr(self, name))}
        return vars(self) | lost

    def __copy__(self):
        return replace(self)  # pyright: ignore[reportArgumentType]

    def __deepcopy__(self, memo: dict[int, Any]):
        return replace(self, **copy.deepcopy(vars(self), memo))  # pyright: ignore[reportArgumentType]


def _can_pickle(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def refer_to_named(description: Any) -> tuple[Any, ...] | None:
    """How to pickle one of jaxmlp's own named descriptions: as its name. None for any other."""
    for home in HOMES:
        module = sys.modules.get(f"jaxmlp.{home}")
        if getattr(module, getattr(description, "name", ""), None) is description:
            return _find, (f"jaxmlp.{home}", description.name)
    return None


class _Reference:
    """What pickles as the name under which a module holds it."""

    def __init__(self, module: str, name: str):
        self.place = module, name

    def __reduce__(self):
        return _find, self.place


def _refer(value: Any) -> Any:
    """By reference what `pickle` cannot: a callable object that a module holds, such as one of `jax.custom_jvp`."""
    if not callable(value) or isinstance(value, FunctionType | BuiltinFunctionType | type):
        return value
    module = getattr(value, "__module__", "")
    held = (name for name, other in vars(sys.modules.get(module, object)).items() if other is value)
    name = next(held, None)
    return value if name is None else _Reference(module, name)


def _find(module: str, name: str) -> Any:
    """What a module holds under this name."""
    return getattr(importlib.import_module(module), name)


def _restore(cls: Any, *values: Any) -> Any:
    """A description of these fields, which were checked when the first one was made."""
    made = cls.__new__(cls)
    for field, value in zip(fields(cls), values, strict=True):
        object.__setattr__(made, field.name, value)
    return made
