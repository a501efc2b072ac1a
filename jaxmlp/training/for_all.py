"""Settings of `fit` that hold for all members of a sweep."""

import dataclasses
from typing import Any

import numpy as np

from jaxmlp import penalties
from jaxmlp.network import MLP
from jaxmlp.training.settings import TABLE, Context


def for_all(given: dict[str, Any], net: MLP) -> dict[str, Any]:
    """Settings as `fit` takes them, in the form in which `sweep` takes them: values by layer get a member axis."""
    in_front = lambda value: np.asarray(value)[None] if np.ndim(value) == 1 else value
    made = dict(given)
    for name, value in given.items():
        if value is None or not TABLE[name].by_member:
            continue
        TABLE[name].read(value, name, Context((net,)))
        if name == "penalties":
            each = penalties.as_tuple(value)
            made[name] = tuple(dataclasses.replace(p, strength=in_front(p.strength)) for p in each)
        elif name != "hyper":  # which has no layers
            made[name] = in_front(value)
    return made
