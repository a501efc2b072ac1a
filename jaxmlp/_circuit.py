"""The chain rule at single gates: any small function as a circuit, its values, local gradients and upstream gradients.

A gate knows nothing of the circuit around it. On the way forward it computes its value and, from its inputs alone, its
local gradients. On the way back it multiplies these by the gradient from upstream, and hands the products to its
inputs. An add gate distributes the upstream gradient, a multiply gate swaps its inputs, max and min gates route it to
the input that won. That is all of backpropagation; _backward.py does it a layer at a time. Source: notes 000,
"Explanation of Backprop: Circuit".

JAX describes the function as a jaxpr, and the values come from running that. The gradients are derived by hand, in
circuit_gates.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, jaxpr_as_fun

from jaxmlp import validate
from jaxmlp.circuit_custom import CUSTOM, Call
from jaxmlp.circuit_drawing import draw_circuit
from jaxmlp.circuit_gates import Row
from jaxmlp.circuit_wires import Wire, multiply_back, select_upstream
from jaxmlp.tables import align_columns, align_html, format_array

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _walk(jaxpr, constants, inputs: Sequence[Wire], made: list[Wire], calls: list[Call]) -> list[Wire]:
    """Runs a jaxpr gate by gate, nested ones too, and returns the wires of its outputs.

    Appends all gates to `made`, and to `calls` the functions that bring a derivative of their own.
    """
    wires = dict(zip(jaxpr.constvars, [Wire(_to_numpy(c)) for c in constants], strict=True))
    wires |= dict(zip(jaxpr.invars, inputs, strict=True))
    wire_of = lambda v: Wire(np.asarray(v.val, v.aval.dtype)) if isinstance(v, Literal) else wires[v]  # pyright: ignore
    for equation in jaxpr.eqns:
        given = [wire_of(v) for v in equation.invars]
        nested, inside = _find_nested(equation), []
        outputs = _walk(nested.jaxpr, nested.consts, given, inside, calls) if nested else _run(equation, given, inside)
        if equation.primitive.name in CUSTOM and nested:
            calls.append(Call(jaxpr, equation, given, outputs, inside))
        made += inside
        wires |= dict(zip(equation.outvars, outputs, strict=True))
    return [wire_of(v) for v in jaxpr.outvars]


def _to_numpy(value: Any) -> Any:
    """A value as a NumPy array; a random key stays a key."""
    return value if jnp.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value)


def _find_nested(equation):
    """The jaxpr of a nested function; None for a gate."""
    if equation.primitive.name == "jit":
        return equation.params["jaxpr"]
    if equation.primitive.name in CUSTOM and not _is_relu(equation):
        return equation.params["call_jaxpr"]
    return None


def _is_relu(equation) -> bool:
    """jax.nn.relu has the derivative 0 at 0, where max(x, 0) would have 1/2: it is a gate of its own."""
    inside = equation.params["call_jaxpr"].eqns
    return len(inside) == 1 and inside[0].primitive.name == "jit" and inside[0].params["name"] == "relu"


def _run(equation, given: list[Wire], made: list[Wire]) -> list[Wire]:
    """Runs one gate. Without arguments upstream its output is a constant; a cast to the same dtype is left out."""
    name, params = equation.primitive.name, equation.params
    values = [wire.value for wire in given]
    if name in CUSTOM:
        name, params, outputs = "relu", {}, jaxpr_as_fun(params["call_jaxpr"])(*values)
    else:
        outputs = equation.primitive.bind(*values, **params)
        outputs = outputs if equation.primitive.multiple_results else [outputs]
    if not any(wire.gate for wire in given):
        return [Wire(_to_numpy(value)) for value in outputs]
    if name == "convert_element_type" and outputs[0].dtype == values[0].dtype:
        return given
    params = {key: value for key, value in params.items() if value is not None}
    found = [Wire(_to_numpy(value), name, tuple(given), params) for value in outputs]
    made += found
    return found


SIDES = "<<<><>"  # of the columns of a circuit's table


@dataclass(frozen=True, repr=False)
class Circuit:
    """The result of `circuit`; it prints as a table with a row for each wire."""

    value: jax.Array
    gradients: tuple[Any, ...]  # d f / d argument, an entry for each argument, with its structure
    rows: tuple[Row, ...]  # the arguments, then the gates in the order in which they run

    @property
    def gates(self) -> tuple[Row, ...]:
        """The rows of gates."""
        return tuple(row for row in self.rows if row.gate)

    def __repr__(self) -> str:
        """One line; the table is `str(circuit)`."""
        shown = ", ".join(f"{row.wire}={format_array(row.upstream)}" for row in self.rows[:5] if not row.gate)
        more = ", .." if sum(not row.gate for row in self.rows) > 5 else ""
        return (
            f"Circuit(value={format_array(np.asarray(self.value))}, {len(self.gates)} gates, gradients {shown}{more})"
        )

    def __str__(self) -> str:
        return "\n".join(line.rstrip() for line in align_columns(self._cells(), SIDES))

    def _repr_html_(self) -> str:
        return align_html(self._cells(), SIDES)

    def _cells(self) -> list[tuple[str, ...]]:
        cells = [("wire", "gate", "inputs", "value", "local gradients", "upstream gradient")]
        for row in self.rows:
            local = "" if all(l is None for l in row.local) else ", ".join(map(format_array, row.local))
            upstream = "" if row.upstream is None else format_array(row.upstream)
            cells.append((row.wire, row.gate, ", ".join(row.inputs), format_array(row.value), local, upstream))
        return cells

    def draw(self) -> Figure:
        """A picture of the circuit from left to right: each wire's value above it, its gradient below."""
        return draw_circuit(self.rows)


def circuit(function: Callable[..., Any], *arguments: Any) -> Circuit:
    """The circuit of `f = function(*arguments)`: each gate's value, local gradients and upstream gradient `df/dwire`.

    `df/dx = sum over the gates that x feeds of (dout/dx) (df/dout)`: local gradient times upstream gradient.
    The gradients equal `jax.grad`'s, also at kinks: equal inputs of max and min share, abs has the derivative 1 at 0,
    relu, sign and the functions that round have 0. They differ in one place: for `x ** y` with both 0, `df/dx` is 0 and
    not NaN.

    Args:
        function: returns one floating-point number and consists of the gates in `circuit_gates.GATES`, without complex
            numbers. Nested functions are followed, also into those with `jax.custom_jvp` or `jax.custom_vjp`, such as
            `jm.as_function`.
        arguments: numbers, arrays or pytrees of them. Integers become floats.
    Returns:
        `Circuit(value, gradients, rows)`; it prints as a table and has `draw()`.
    Raises:
        ValueError: where the function is not callable, does not take these arguments, does not return one
            floating-point number, uses an unknown gate or complex numbers, or calls a function whose own derivative is
            not that of its gates; where an argument is traced, not finite or not a number.
    Example:
        >>> found = jm.circuit(lambda x, y, z: (x + y) * z, -2, 5, -4)
        >>> print(found)
        wire  gate  inputs  value  local gradients  upstream gradient
        x                      -2                                  -4
        y                       5                                  -4
        z                      -4                                   3
        q     add   x, y        3  1, 1                            -4
        f     mul   q, z      -12  -4, 3                            1

    Source: notes 000, "Explanation of Backprop: Circuit".
    """
    names, leaves, structure = _name_leaves(function, arguments)
    jaxpr = _make_jaxpr(function, structure, leaves)
    inputs, made, calls = [Wire(np.asarray(leaf), "argument") for leaf in leaves], [], []
    output = _walk(jaxpr.jaxpr, jaxpr.consts, inputs, made, calls)[0]
    gates, upstream = select_upstream([output], made), {output: np.ones_like(output.value)}
    with np.errstate(all="ignore"):  # an infinite gradient needs no warning, as in JAX
        local = {wire: wire.local_gradients() for wire in gates}
        multiply_back(upstream, gates, local)
        for call in calls:
            if any(wire in upstream for wire in call.outputs):
                call.check(upstream)
    named = dict(zip(inputs, names, strict=True)) | _name_gates(function, gates, names)
    gradients = [jnp.asarray(upstream.get(wire, np.zeros_like(wire.value))) for wire in inputs]
    rows = [Row(n, "", (), w.value, (), np.asarray(g)) for n, w, g in zip(names, inputs, gradients, strict=True)]
    for wire in gates:
        exponent = (str(wire.params["y"]),) if wire.gate == "integer_pow" else ()
        given = tuple(named.get(x) or format_array(x.value) for x in wire.inputs)
        rows.append(Row(named[wire], wire.gate, given + exponent, wire.value, local[wire], upstream.get(wire)))
    return Circuit(jnp.asarray(output.value), jax.tree.unflatten(structure, gradients), tuple(rows))


def _name_leaves(function, arguments) -> tuple[list[str], list[jax.Array], Any]:
    """The arguments' leaves as floating-point arrays, with their names after the signature, and their structure."""
    if not callable(function):
        raise ValueError(f"function is {function!r}, expected a function")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in functions have none
        signature = inspect.signature(lambda *x: None)
    try:
        bound = signature.bind(*arguments).arguments
    except TypeError as error:
        raise ValueError(f"arguments are {len(arguments)} values, expected {signature}: {error}") from None
    heads = []
    for name, given in bound.items():
        several = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        heads += [f"{name}{k}" for k in range(len(given))] if several else [name]
    leaves, structure = jax.tree_util.tree_flatten_with_path(arguments)
    if not leaves:
        raise ValueError("arguments are empty, expected at least one number or array")
    names = [heads[path[0].idx] + jax.tree_util.keystr(path[1:]) for path, _ in leaves]
    return names, [_to_floats(leaf, name) for (_, leaf), name in zip(leaves, names, strict=True)], structure


def _to_floats(given, name: str) -> jax.Array:
    """`given` as an array of floats, if its values are known and finite."""
    array = validate.array(given, name)
    if not validate.concrete(array):
        raise ValueError(f"{name} is traced, expected a number or an array with known values")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(validate.float_dtype(None)) if array.dtype.kind in "iub" else array
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {array.dtype}, expected real numbers")
    validate.finite(array, name)
    return array


def _make_jaxpr(function, structure, leaves):
    """The function's jaxpr, if it returns one floating-point number."""
    arguments = jax.tree.unflatten(structure, leaves)
    jaxpr, output = jax.make_jaxpr(function, return_shape=True)(*arguments)
    if getattr(output, "shape", None) != () or not jnp.issubdtype(output.dtype, jnp.floating):
        got = f"{output.dtype} of shape {output.shape}" if hasattr(output, "shape") else f"a {type(output).__name__}"
        raise ValueError(f"function returns {got}, expected one floating-point number")
    return jaxpr


def _name_gates(function, gates: Sequence[Wire], taken: Sequence[str]) -> dict[Wire, str]:
    """The last gate gets the function's name ("f" for a lambda); the gates before it get q, or q1, q2, .."""
    letter, last = "q", getattr(function, "__name__", "f")
    last = last if last.isidentifier() else "f"
    while any(name.startswith(letter) for name in (*taken, last)):
        letter += "_"
    while last in taken:
        last += "_"
    inner = [letter] if len(gates) == 2 else [f"{letter}{k}" for k in range(1, len(gates))]
    return dict(zip(gates, [*inner, last], strict=True)) if gates else {}
