"""The wires of a circuit, and the way back: local gradient times upstream gradient, gate by gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmlp.circuit_gates import GATES


@dataclass(frozen=True, eq=False)
class Wire:
    """The output of a gate, an argument, or a constant."""

    value: Any  # an array of NumPy, or a random key
    gate: str = ""  # a name in GATES, "argument", or "" for a constant
    inputs: tuple[Wire, ...] = ()  # of the gate
    params: dict[str, Any] = field(default_factory=dict)  # of the gate, such as axes

    @property
    def carries(self) -> bool:
        """Whether it carries a gradient: a floating-point number that depends on an argument."""
        return bool(self.gate) and jnp.issubdtype(self.value.dtype, jnp.floating)

    @property
    def input_values(self) -> tuple[np.ndarray, ...]:
        """The values of the gate's inputs."""
        return tuple(wire.value for wire in self.inputs)

    def local_gradients(self) -> tuple[np.ndarray | None, ...]:
        """`dout/dx` for each input x: an array, one number where all entries share it, None for no gradient."""
        if not any(wire.carries for wire in self.inputs):
            return (None,) * len(self.inputs)
        if jnp.issubdtype(self.value.dtype, jnp.complexfloating):
            raise ValueError(f"function makes complex numbers by the gate {self.gate!r}, expected real numbers only")
        if not self.carries:
            return (None,) * len(self.inputs)
        if self.gate not in GATES:
            raise ValueError(f"function uses the gate {self.gate!r}, expected gates among {', '.join(GATES)}")
        found = GATES[self.gate].local(self.value, *self.input_values, **self.params)
        pairs = zip(found, self.inputs, strict=True)
        return tuple(np.asarray(l, self.value.dtype) if wire.carries else None for l, wire in pairs)


def select_upstream(ends: Sequence[Wire], made: Sequence[Wire]) -> list[Wire]:
    """The wires that the ends depend on, in their order."""
    needed = set(ends)
    for wire in reversed(made):
        if wire in needed:
            needed.update(wire.inputs)
    return [wire for wire in made if wire in needed]


def multiply_back(upstream: dict[Wire, np.ndarray], gates: Sequence[Wire], local: dict[Wire, Any]) -> None:
    """Adds `df/dwire` of each wire to `upstream`: `df/dx = sum over the gates that x feeds of local * upstream`."""
    for out in reversed(gates):
        if out not in upstream or not any(l is not None for l in local[out]):
            continue
        downstream = GATES[out.gate].times(local[out], upstream[out], *out.input_values, **out.params)
        for x, gradient in zip(out.inputs, downstream, strict=True):
            if x.carries:
                add_to(upstream, x, np.asarray(gradient, x.value.dtype))


def add_to(upstream: dict[Wire, np.ndarray], wire: Wire, gradient: np.ndarray) -> None:
    """Adds to a wire's gradient, in its dtype: in some versions of NumPy `0 + gradient` widens bfloat16."""
    upstream[wire] = upstream[wire] + gradient if wire in upstream else gradient
