"""Functions in a circuit that bring a derivative of their own, by `jax.custom_jvp` or `jax.custom_vjp`.

A circuit follows such a function into its gates. That is right where its own derivative is the one of its gates, which
is checked here: both carry the same gradients from the outputs back to the inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from jaxmlp.circuit_wires import Wire, add_to, multiply_back, select_upstream

CUSTOM = ("custom_jvp_call", "custom_vjp_call")


class Call(NamedTuple):
    """One call of such a function."""

    jaxpr: Any  # in which it stands
    equation: Any
    inputs: list[Wire]
    outputs: list[Wire]
    gates: list[Wire]  # inside it

    def check(self, upstream: dict[Wire, np.ndarray]) -> None:
        """Refuses the function if the two derivatives differ, for the gradients from upstream or for random ones."""
        chosen = [k for k, wire in enumerate(self.outputs) if wire.carries]
        carrying = {v: x for v, x in zip(self.equation.invars, self.inputs, strict=True) if x.carries}
        if not chosen or not carrying:
            return
        outputs, rng = [self.outputs[k] for k in chosen], np.random.default_rng(0)
        drawn = [np.asarray(rng.normal(size=wire.value.shape), wire.value.dtype) for wire in outputs]
        arrived = [upstream.get(wire, np.zeros_like(wire.value)) for wire in outputs]
        function, values = self._isolate(carrying, chosen)
        pull = jax.vjp(function, *values)[1]
        for starts in (drawn, arrived):
            by_gates = self._carry_back(outputs, starts)
            by_itself: dict[Wire, np.ndarray] = {}
            for wire, gradient in zip(carrying.values(), pull([jnp.asarray(s) for s in starts]), strict=True):
                add_to(by_itself, wire, np.asarray(gradient))
            for wire, gradient in by_itself.items():
                if not _is_near(by_gates.get(wire, np.zeros_like(gradient)), gradient):
                    name = self.equation.params["call_jaxpr"].jaxpr.debug_info.func_name
                    raise ValueError(f"function calls {name!r}, which has a derivative of its own that is not the one "
                                     "of its gates here, expected functions whose two derivatives agree")  # fmt: skip

    def _carry_back(self, outputs: list[Wire], starts: Sequence[Any]) -> dict[Wire, np.ndarray]:
        """The gradients of the inputs by the gates inside."""
        upstream: dict[Wire, np.ndarray] = {}
        for wire, start in zip(outputs, starts, strict=True):
            add_to(upstream, wire, start)
        gates = select_upstream(outputs, self.gates)
        multiply_back(upstream, gates, {wire: wire.local_gradients() for wire in gates})
        return upstream

    def _isolate(self, carrying: dict[Any, Wire], chosen: list[int]):
        """The call as a function of the inputs that carry a gradient, and their values."""
        equation = self.equation
        named = {v: x.value for v, x in zip(equation.invars, self.inputs, strict=True) if not isinstance(v, Literal)}
        alone = self.jaxpr.replace(constvars=[], invars=list(named), outvars=equation.outvars, eqns=[equation],
                                   debug_info=equation.params["call_jaxpr"].jaxpr.debug_info)  # fmt: skip
        run = jaxpr_as_fun(ClosedJaxpr(alone, ()))

        def call(*inputs):
            made = run(*(named | dict(zip(carrying, inputs, strict=True))).values())
            return [made[k] for k in chosen]

        return call, [wire.value for wire in carrying.values()]


def _is_near(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays agree to 100 roundings of their largest finite entry."""
    unit = 100 * float(jnp.finfo(b.dtype).eps)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    largest = max(np.abs(g[np.isfinite(g)]).max(initial=0) for g in (a, b))
    return np.allclose(a, b, 0, unit * largest, equal_nan=True)
