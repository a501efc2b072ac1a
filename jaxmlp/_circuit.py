"""The chain rule at single gates: any small function as a circuit, its values, local gradients and upstream gradients.

A gate knows nothing of the circuit around it. On the way forward it computes its value and, from its inputs alone, its
local gradients; on the way back it multiplies these by the gradient that comes from upstream, and hands the products to
its inputs. An add gate distributes the upstream gradient, a multiply gate swaps its inputs, max and min gates route it
to the input that won. That is all of backpropagation; backward.py does it a layer at a time. Source: notes 000,
"Explanation of Backprop: Circuit".

Values are read off JAX's own description of the function, its jaxpr; what is differentiated here, by hand and in NumPy,
is the table `GATES`.
"""

from __future__ import annotations

import inspect
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal, jaxpr_as_fun

from jaxmlp import validate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _entry_by_entry(local, upstream, *inputs, **_):
    """`df/dx = df/dout * dout/dx`."""
    return [None if l is None else _onto(x, upstream * l) for l, x in zip(local, inputs, strict=True)]


def _onto(x, gradient):
    """Summed over the axes along which one entry of x went into several."""
    axes = [axis for axis, n in enumerate(gradient.shape) if x.ndim == 0 or x.shape[axis] != n]
    return gradient.sum(tuple(axes)).reshape(x.shape)


class Kind(NamedTuple):
    """What every gate of a kind knows: `local(out, *inputs)` is `dout/dx` for each input x, entry by entry.

    `times(local, upstream, *inputs)` is `df/dx`, where local and upstream gradient meet otherwise than entry by entry.
    """

    local: Callable[..., tuple[Any, ...]]
    times: Callable[..., Sequence[Any]] = _entry_by_entry


def _moving(home: Callable[..., Any]) -> Kind:
    """A gate that moves numbers or adds them up: local gradients of 1, and `home` takes upstream ones where x was."""
    return Kind(lambda out, x, **_: (1,), lambda local, upstream, x, **params: (home(upstream, x, **params),))


def _reducing(local: Callable[..., tuple[Any, ...]]) -> Kind:
    """A gate of one value for many entries: its upstream gradient is that of each of them."""
    return Kind(local, lambda local, upstream, x, axes, **_: (np.expand_dims(upstream, axes) * local[0],))


def _won(x, best, axes):
    """1 where x is the best of its axes, shared among equals."""
    won = x == np.expand_dims(best, axes)
    return won / won.sum(axes, keepdims=True)


def _add_up_copies(upstream, x, broadcast_dimensions, **_):
    lengths = dict(zip(broadcast_dimensions, x.shape, strict=True))
    return _onto(x.reshape([lengths.get(axis, 1) for axis in range(upstream.ndim)]), upstream).reshape(x.shape)


def _put_back(upstream, x, start_indices, limit_indices, strides=None):
    whole, strides = np.zeros_like(x), strides or (None,) * x.ndim
    whole[tuple(map(slice, start_indices, limit_indices, strides))] = upstream
    return whole


def _swap_matrices(local, upstream, x, y, dimension_numbers, **_):
    """`z = x y` gives `df/dx = df/dz y^T` and `df/dy = x^T df/dz`, whichever axes are summed: one einsum each."""
    (x_summed, y_summed), (x_batch, y_batch) = dimension_numbers
    letters = iter(string.ascii_letters)
    xs = [next(letters) for _ in range(x.ndim)]
    ys = [next(letters) for _ in range(y.ndim)]
    for i, j in zip((*x_summed, *x_batch), (*y_summed, *y_batch), strict=True):
        ys[j] = xs[i]
    free = [xs[i] for i in range(x.ndim) if i not in (*x_summed, *x_batch)]
    free += [ys[j] for j in range(y.ndim) if j not in (*y_summed, *y_batch)]
    out, xs, ys = "".join([xs[i] for i in x_batch] + free), "".join(xs), "".join(ys)
    wide = lambda array: array.astype(np.promote_types(array.dtype, np.float32))  # einsum knows no bfloat16
    of_x = np.einsum(f"{out},{ys}->{xs}", wide(upstream), wide(local[0])) if local[0] is not None else None
    of_y = np.einsum(f"{xs},{out}->{ys}", wide(local[1]), wide(upstream)) if local[1] is not None else None
    return of_x, of_y


def _tie(x, y):
    return (x == y) / 2


GATES: dict[str, Kind] = {
    # out = gate(x, y): dout/dx, dout/dy
    "add": Kind(lambda out, x, y: (1, 1)),  # distributes
    "sub": Kind(lambda out, x, y: (1, -1)),
    "mul": Kind(lambda out, x, y: (y, x)),  # swaps
    "div": Kind(lambda out, x, y: (1 / y, -out / y)),
    "max": Kind(lambda out, x, y: ((x > y) + _tie(x, y), (y > x) + _tie(x, y))),  # routes; equals share
    "min": Kind(lambda out, x, y: ((x < y) + _tie(x, y), (y < x) + _tie(x, y))),
    "pow": Kind(lambda out, x, y: (np.where(y == 0, 0, y * x ** (y - 1)), out * np.log(np.where(x == 0, 1, x)))),
    # out = gate(x): dout/dx
    "neg": Kind(lambda out, x: (-1,)),
    "integer_pow": Kind(lambda out, x, y: (y * x ** (y - 1) if y else 0,)),  # y is no input, but part of the gate
    "square": Kind(lambda out, x: (2 * x,)),
    "sqrt": Kind(lambda out, x: (0.5 / out,)),
    "rsqrt": Kind(lambda out, x: (-0.5 * out / x,)),
    "abs": Kind(lambda out, x: (np.sign(x),)),
    "exp": Kind(lambda out, x: (out,)),
    "expm1": Kind(lambda out, x: (out + 1,)),
    "log": Kind(lambda out, x: (1 / x,)),
    "log1p": Kind(lambda out, x: (1 / (1 + x),)),
    "sin": Kind(lambda out, x: (np.cos(x),)),
    "cos": Kind(lambda out, x: (-np.sin(x),)),
    "tan": Kind(lambda out, x: (1 + out**2,)),
    "tanh": Kind(lambda out, x: ((1 - out) * (1 + out),)),
    "logistic": Kind(lambda out, x: (out * (1 - out),)),
    "relu": Kind(lambda out, x: (x > 0,)),
    "sign": Kind(lambda out, x: (0,)),
    "floor": Kind(lambda out, x: (0,)),
    "ceil": Kind(lambda out, x: (0,)),
    "round": Kind(lambda out, x, **_: (0,)),
    "stop_gradient": Kind(lambda out, x: (0,)),
    # out = the case that `which` names
    "select_n": Kind(lambda out, which, *cases: (None, *(which == k for k in range(len(cases))))),  # routes
    # sums of products: x and y swap, as in mul
    "dot_general": Kind(lambda out, x, y, **_: (y, x), _swap_matrices),
    # many entries to one
    "reduce_sum": _reducing(lambda out, x, **_: (np.ones_like(x),)),  # distributes
    "reduce_max": _reducing(lambda out, x, axes, **_: (_won(x, out, axes),)),  # routes
    "reduce_min": _reducing(lambda out, x, axes, **_: (_won(x, out, axes),)),
    # entries that move
    "copy": _moving(lambda upstream, x: upstream),
    "convert_element_type": _moving(lambda upstream, x, **_: upstream),
    "reshape": _moving(lambda upstream, x, **_: upstream.reshape(x.shape)),
    "squeeze": _moving(lambda upstream, x, **_: upstream.reshape(x.shape)),
    "transpose": _moving(lambda upstream, x, permutation: upstream.transpose(np.argsort(permutation))),
    "broadcast_in_dim": _moving(_add_up_copies),
    "slice": _moving(_put_back),
    "concatenate": Kind(
        lambda out, *xs, **_: (1,) * len(xs),
        lambda local, upstream, *xs, dimension: np.split(
            upstream, np.cumsum([x.shape[dimension] for x in xs[:-1]]), dimension
        ),
    ),
    "stack": Kind(
        lambda out, *xs, **_: (1,) * len(xs),
        lambda local, upstream, *xs, axis: [upstream.take(k, axis) for k in range(len(xs))],
    ),
}


@dataclass(frozen=True, eq=False)
class Wire:
    """What a gate gives: its value, the wires that the gate took, and its local gradients. No gate: a constant."""

    value: np.ndarray
    gate: str = ""
    inputs: tuple[Wire, ...] = ()
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def carries(self) -> bool:
        """Whether a gradient comes back on it: a floating-point number that depends on an argument."""
        return bool(self.gate) and jnp.issubdtype(self.value.dtype, jnp.floating)

    @property
    def values(self) -> tuple[np.ndarray, ...]:
        """Those of its gate's inputs."""
        return tuple(wire.value for wire in self.inputs)

    def local(self) -> tuple[np.ndarray | None, ...]:
        """`dout/dx` for each input x, one number where all entries share it; None where nothing comes back."""
        if not self.carries or not any(wire.carries for wire in self.inputs):
            return (None,) * len(self.inputs)
        if self.gate not in GATES:
            raise ValueError(f"function uses the gate {self.gate!r}, expected gates among {', '.join(GATES)}")
        found = GATES[self.gate].local(self.value, *self.values, **self.params)
        pairs = zip(found, self.inputs, strict=True)
        return tuple(np.asarray(l, self.value.dtype) if wire.carries else None for l, wire in pairs)


def _walk(jaxpr, constants, inputs: Sequence[Wire], made: list[Wire]) -> list[Wire]:
    """Runs a jaxpr gate by gate, nested ones too; the wires of its outputs. `made` gathers those of all gates."""
    wires = dict(zip(jaxpr.constvars, [Wire(_held(c)) for c in constants], strict=True))
    wires |= dict(zip(jaxpr.invars, inputs, strict=True))
    wire_of = lambda v: Wire(np.asarray(v.val, v.aval.dtype)) if isinstance(v, Literal) else wires[v]  # pyright: ignore
    for equation in jaxpr.eqns:
        given = [wire_of(v) for v in equation.invars]
        nested = _nested(equation)
        outputs = _walk(nested.jaxpr, nested.consts, given, made) if nested else _run(equation, given, made)
        wires |= dict(zip(equation.outvars, outputs, strict=True))
    return [wire_of(v) for v in jaxpr.outvars]


def _held(value: Any) -> Any:
    """A value as a NumPy array; a random key as it is."""
    return value if jnp.issubdtype(value.dtype, jax.dtypes.extended) else np.asarray(value)


def _nested(equation):
    """What a nested function consists of; None for a gate."""
    if equation.primitive.name == "jit":
        return equation.params["jaxpr"]
    if equation.primitive.name == "custom_jvp_call" and not _is_relu(equation):
        return equation.params["call_jaxpr"]
    return None


def _is_relu(equation) -> bool:
    """jax.nn.relu is max(x, 0) with the derivative 0 at 0, where max and 0 would share: a gate of its own."""
    inside = equation.params["call_jaxpr"].eqns
    return len(inside) == 1 and inside[0].primitive.name == "jit" and inside[0].params["name"] == "relu"


def _run(equation, given: list[Wire], made: list[Wire]) -> list[Wire]:
    """One gate; what depends on no argument is a constant, and what changes nothing is left out."""
    name, params = equation.primitive.name, equation.params
    values = [wire.value for wire in given]
    if name == "custom_jvp_call":
        name, params, outputs = "relu", {}, jaxpr_as_fun(params["call_jaxpr"])(*values)
    else:
        outputs = equation.primitive.bind(*values, **params)
        outputs = outputs if equation.primitive.multiple_results else [outputs]
    if not any(wire.gate for wire in given):
        return [Wire(_held(value)) for value in outputs]
    if name == "convert_element_type" and outputs[0].dtype == values[0].dtype:
        return given
    params = {key: value for key, value in params.items() if value is not None}
    found = [Wire(_held(value), name, tuple(given), params) for value in outputs]
    made += found
    return found


def _leading_to(output: Wire, made: Sequence[Wire]) -> list[Wire]:
    """Those of the wires, in their order, that the output depends on."""
    needed = {output}
    for wire in reversed(made):
        if wire in needed:
            needed.update(wire.inputs)
    return [wire for wire in made if wire in needed]


def backward(output: Wire, gates: Sequence[Wire], local: dict[Wire, Any]) -> dict[Wire, np.ndarray]:
    """The upstream gradient `df/dwire` of each wire: `df/dx = sum over the gates that x feeds of local * upstream`."""
    upstream = {output: np.ones_like(output.value)}
    for out in reversed(gates):
        if out not in upstream or not any(l is not None for l in local[out]):
            continue
        downstream = GATES[out.gate].times(local[out], upstream[out], *out.values, **out.params)
        for x, gradient in zip(out.inputs, downstream, strict=True):
            if x.carries:
                upstream[x] = upstream.get(x, 0) + np.asarray(gradient, x.value.dtype)
    return upstream


@dataclass(frozen=True)
class Row:
    """One wire of a circuit: an argument, or what a gate gives."""

    wire: str
    gate: str  # such as "mul"; "" for an argument
    inputs: tuple[str, ...]  # wires, or constants as they are
    value: np.ndarray
    local: tuple[np.ndarray | None, ...]  # d wire / d input; None for what carries no gradient
    upstream: np.ndarray | None  # d f / d wire


@dataclass(frozen=True)
class Circuit:
    """What `circuit` found; printed, it is a table."""

    value: jax.Array
    gradients: tuple[Any, ...]  # d f / d argument, one entry an argument, with its structure
    rows: tuple[Row, ...]  # the arguments, then the gates in the order in which they run

    @property
    def gates(self) -> tuple[Row, ...]:
        """The rows that come out of a gate."""
        return tuple(row for row in self.rows if row.gate)

    def __str__(self) -> str:
        cells = [("wire", "gate", "inputs", "value", "local gradients", "upstream gradient")]
        for row in self.rows:
            local = "" if all(l is None for l in row.local) else ", ".join(map(shown, row.local))
            upstream = "" if row.upstream is None else shown(row.upstream)
            cells.append((row.wire, row.gate, ", ".join(row.inputs), shown(row.value), local, upstream))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        align = (str.ljust, str.ljust, str.ljust, str.rjust, str.ljust, str.rjust)
        lines = ["  ".join(f(c, w) for f, c, w in zip(align, line, widths, strict=True)) for line in cells]
        return "\n".join(line.rstrip() for line in lines)

    def draw(self) -> Figure:
        """The circuit from left to right: each wire's value above it, its gradient below."""
        from jaxmlp.circuit_drawing import draw_circuit

        return draw_circuit(self)


def shown(value: np.ndarray | None, digits: int = 4) -> str:
    """A number, an array of at most 4 such as `[1 2.5]`, or the shape of a larger one."""
    if value is None:
        return "-"
    if value.size > 4:
        return "x".join(map(str, value.shape)) + " array"
    if value.ndim:
        return "[" + " ".join(shown(part, digits) for part in value) + "]"
    is_real = jnp.issubdtype(value.dtype, jnp.floating)
    return f"{float(value) + 0:.{digits}g}" if is_real else str(value)  # + 0 makes -0 0


def circuit(function: Callable[..., Any], *arguments: Any) -> Circuit:
    """The circuit of `f(arguments)`: each gate's value, its local gradients, and the upstream gradient `df/dwire`.

    `arguments` are numbers, arrays or pytrees of them, integers taken as floats. f returns one number and is made of
    the gates in `GATES`; nested functions are walked through, those of `jax.custom_jvp` as they are written, whatever
    derivative they declare. The gradients equal `jax.grad`'s, at ties of max and min too. Raises ValueError that names
    an unknown gate. Source: notes 000, "Explanation of Backprop: Circuit".

        print(jm.circuit(lambda x, y, z: (x + y) * z, -2, 5, -4))
    """
    names, leaves, structure = _checked(function, arguments)
    jaxpr = _traced(function, structure, leaves)
    inputs, made = [Wire(np.asarray(leaf), "argument") for leaf in leaves], []
    output = _walk(jaxpr.jaxpr, jaxpr.consts, inputs, made)[0]
    gates = _leading_to(output, made)
    with np.errstate(all="ignore"):  # infinite gradients are infinite, as in JAX
        local = {wire: wire.local() for wire in gates}
        upstream = backward(output, gates, local)
    named = dict(zip(inputs, names, strict=True)) | _gate_names(function, gates, names)
    gradients = [jnp.asarray(upstream.get(wire, np.zeros_like(wire.value))) for wire in inputs]
    rows = [Row(n, "", (), w.value, (), np.asarray(g)) for n, w, g in zip(names, inputs, gradients, strict=True)]
    for wire in gates:
        exponent = (str(wire.params["y"]),) if wire.gate == "integer_pow" else ()
        given = tuple(named.get(x) or shown(x.value) for x in wire.inputs)
        rows.append(Row(named[wire], wire.gate, given + exponent, wire.value, local[wire], upstream.get(wire)))
    return Circuit(jnp.asarray(output.value), jax.tree.unflatten(structure, gradients), tuple(rows))


def _checked(function, arguments) -> tuple[list[str], list[jax.Array], Any]:
    """Each leaf's name, after the function's signature, the leaves as floating-point arrays, and their structure."""
    if not callable(function):
        raise ValueError(f"function is {function!r}, expected a function")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in functions have none
        signature = inspect.signature(lambda *x: None)
    try:
        bound = signature.bind(*arguments).arguments
    except TypeError as error:
        raise ValueError(f"arguments are {len(arguments)} values, expected those of {signature}: {error}") from None
    heads = []
    for name, given in bound.items():
        several = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        heads += [f"{name}{k}" for k in range(len(given))] if several else [name]
    leaves, structure = jax.tree_util.tree_flatten_with_path(arguments)
    if not leaves:
        raise ValueError("arguments are empty, expected at least one number or array")
    names = [heads[path[0].idx] + jax.tree_util.keystr(path[1:]) for path, _ in leaves]
    return names, [_number(leaf, name) for (_, leaf), name in zip(leaves, names, strict=True)], structure


def _number(given, name: str) -> jax.Array:
    """A concrete, finite floating-point array."""
    array = validate.array(given, name)
    if not validate.concrete(array):
        raise ValueError(f"{name} is traced, expected a number or an array with known values")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(validate.float_dtype(None)) if array.dtype.kind in "iub" else array
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {array.dtype}, expected real numbers")
    validate.finite(array, name)
    return array


def _traced(function, structure, leaves):
    """The function's jaxpr, once it is known to return one number."""
    arguments = jax.tree.unflatten(structure, leaves)
    jaxpr, made = jax.make_jaxpr(function, return_shape=True)(*arguments)
    if getattr(made, "shape", None) != () or not jnp.issubdtype(made.dtype, jnp.floating):
        got = f"{made.dtype} of shape {made.shape}" if hasattr(made, "shape") else f"a {type(made).__name__}"
        raise ValueError(f"function returns {got}, expected one floating-point number")
    return jaxpr


def _gate_names(function, gates: Sequence[Wire], taken: Sequence[str]) -> dict[Wire, str]:
    """The last gate has the function's name ("f" for a lambda), those before it are q, or q1, q2, .."""
    letter, last = "q", getattr(function, "__name__", "f")
    last = last if last.isidentifier() else "f"
    while any(name.startswith(letter) for name in (*taken, last)):
        letter += "_"
    while last in taken:
        last += "_"
    inner = [letter] if len(gates) == 2 else [f"{letter}{k}" for k in range(1, len(gates))]
    return dict(zip(gates, [*inner, last], strict=True)) if gates else {}
