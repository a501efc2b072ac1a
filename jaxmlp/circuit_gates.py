"""The gates of circuits: the local gradients of each, and their products with the gradient from upstream.

The table `GATES` holds every derivative that `jm.circuit` uses, derived by hand, in NumPy. Source: notes 000,
"Explanation of Backprop: Circuit".
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class Row:
    """One wire of a circuit: an argument, or the output of a gate."""

    wire: str
    gate: str  # such as "mul"; "" for an argument
    inputs: tuple[str, ...]  # names of wires, or the numbers of constants
    value: np.ndarray
    local: tuple[np.ndarray | None, ...]  # d wire / d input; None for an input without a gradient
    upstream: np.ndarray | None  # d f / d wire


def _multiply_entries(local, upstream, *inputs, **_):
    """`df/dx = df/dout * dout/dx`, entry by entry."""
    return [None if l is None else _sum_onto(x, upstream * l) for l, x in zip(local, inputs, strict=True)]


def _route_entries(local, upstream, *inputs, **_):
    """The same for local gradients of 1 and 0: what was not chosen gets 0, whatever comes from upstream."""
    routed = [
        None if l is None else np.where(l, upstream, 0).astype(x.dtype) for l, x in zip(local, inputs, strict=True)
    ]
    return [r if r is None else _sum_onto(x, r) for r, x in zip(routed, inputs, strict=True)]


def _sum_onto(x, gradient):
    """The gradient in x's shape: summed over the axes along which x was broadcast."""
    axes = [axis for axis, n in enumerate(gradient.shape) if x.ndim == 0 or x.shape[axis] != n]
    return gradient.sum(tuple(axes)).reshape(x.shape)


class Gate(NamedTuple):
    """The two gradients of one kind of gate, for its output `out` and its inputs."""

    local: Callable[..., tuple[Any, ...]]  # (out, *inputs): dout/dx for each input x
    times: Callable[..., Sequence[Any]] = _multiply_entries  # (local, upstream, *inputs): df/dx for each input x


def _move(home: Callable[..., Any]) -> Gate:
    """A gate that moves entries or adds them up: its local gradients are 1, and `home` moves upstream ones back."""
    return Gate(lambda out, x, **_: (1,), lambda local, upstream, x, **params: (home(upstream, x, **params),))


def _block() -> Gate:
    """A gate that is flat between its jumps: it hands nothing back, whatever comes from upstream."""
    return Gate(lambda out, x, **_: (0,), _route_entries)


def _reduce(local: Callable[..., tuple[Any, ...]]) -> Gate:
    """A gate that makes one value of many entries: each entry meets the same upstream gradient."""
    return Gate(local, lambda local, upstream, x, axes, **_: (np.expand_dims(upstream, axes) * local[0],))


def _share_win(x, best, axes):
    """1 where x is the best along its axes; equal winners share it."""
    won = x == np.expand_dims(best, axes)
    return won / won.sum(axes, keepdims=True)


def _add_up_copies(upstream, x, broadcast_dimensions, **_):
    """Sums the upstream gradients of all copies of an entry."""
    lengths = dict(zip(broadcast_dimensions, x.shape, strict=True))
    return _sum_onto(x.reshape([lengths.get(axis, 1) for axis in range(upstream.ndim)]), upstream).reshape(x.shape)


def _fill_slice(upstream, x, start_indices, limit_indices, strides=None):
    """Zeros of x's shape with the upstream gradient in the slice."""
    whole, strides = np.zeros_like(x), strides or (None,) * x.ndim
    whole[tuple(map(slice, start_indices, limit_indices, strides))] = upstream
    return whole


def _swap_matrices(local, upstream, x, y, dimension_numbers, **_):
    """`z = x y` gives `df/dx = df/dz y^T` and `df/dy = x^T df/dz`: one einsum each, for any axes."""
    (x_summed, y_summed), (x_batch, y_batch) = dimension_numbers
    letters = iter(string.ascii_letters)
    xs = [next(letters) for _ in range(x.ndim)]
    ys = [next(letters) for _ in range(y.ndim)]
    for i, j in zip((*x_summed, *x_batch), (*y_summed, *y_batch), strict=True):
        ys[j] = xs[i]
    free = [xs[i] for i in range(x.ndim) if i not in (*x_summed, *x_batch)]
    free += [ys[j] for j in range(y.ndim) if j not in (*y_summed, *y_batch)]
    out, xs, ys = "".join([xs[i] for i in x_batch] + free), "".join(xs), "".join(ys)
    wide = lambda array: array.astype(np.promote_types(array.dtype, np.float32))  # einsum has no bfloat16
    of_x = np.einsum(f"{out},{ys}->{xs}", wide(upstream), wide(local[0])) if local[0] is not None else None
    of_y = np.einsum(f"{xs},{out}->{ys}", wide(local[1]), wide(upstream)) if local[1] is not None else None
    return of_x, of_y


def _split_tie(x, y):
    """1/2 where x and y are equal."""
    return (x == y) / 2


GATES: dict[str, Gate] = {
    # out = gate(x, y): dout/dx, dout/dy
    "add": Gate(lambda out, x, y: (1, 1)),  # distributes
    "sub": Gate(lambda out, x, y: (1, -1)),
    "mul": Gate(lambda out, x, y: (y, x)),  # swaps
    "div": Gate(lambda out, x, y: (1 / y, -out / y)),
    "max": Gate(lambda out, x, y: ((x > y) + _split_tie(x, y), (y > x) + _split_tie(x, y))),  # routes; equals share
    "min": Gate(lambda out, x, y: ((x < y) + _split_tie(x, y), (y < x) + _split_tie(x, y))),
    "pow": Gate(lambda out, x, y: (np.where(y == 0, 0, y * x ** (y - 1)), out * np.log(np.where(x == 0, 1, x)))),
    # out = gate(x): dout/dx
    "neg": Gate(lambda out, x: (-1,)),
    "integer_pow": Gate(lambda out, x, y: (y * x ** (y - 1) if y else 0,)),  # y belongs to the gate
    "square": Gate(lambda out, x: (2 * x,)),
    "sqrt": Gate(lambda out, x: (0.5 / out,)),
    "rsqrt": Gate(lambda out, x: (-0.5 * out / x,)),
    "abs": Gate(lambda out, x: (np.where(x == 0, 1, np.sign(x)),)),
    "exp": Gate(lambda out, x: (out,)),
    "expm1": Gate(lambda out, x: (out + 1,)),
    "log": Gate(lambda out, x: (1 / x,)),
    "log1p": Gate(lambda out, x: (1 / (1 + x),)),
    "sin": Gate(lambda out, x: (np.cos(x),)),
    "cos": Gate(lambda out, x: (-np.sin(x),)),
    "tan": Gate(lambda out, x: (1 + out**2,)),
    "tanh": Gate(lambda out, x: ((1 - out) * (1 + out),)),
    "logistic": Gate(lambda out, x: (out * (1 - out),)),
    "relu": Gate(lambda out, x: (x > 0,), _route_entries),
    "sign": _block(),
    "floor": _block(),
    "ceil": _block(),
    "round": _block(),
    "stop_gradient": _block(),
    # out = cases[which]
    "select_n": Gate(lambda out, which, *cases: (None, *(which == k for k in range(len(cases)))), _route_entries),
    # sums of products: x and y swap, as in mul
    "dot_general": Gate(lambda out, x, y, **_: (y, x), _swap_matrices),
    # many entries become one
    "reduce_sum": _reduce(lambda out, x, **_: (np.ones_like(x),)),  # distributes
    "reduce_max": _reduce(lambda out, x, axes, **_: (_share_win(x, out, axes),)),  # routes
    "reduce_min": _reduce(lambda out, x, axes, **_: (_share_win(x, out, axes),)),
    # entries move
    "copy": _move(lambda upstream, x: upstream),
    "convert_element_type": _move(lambda upstream, x, **_: upstream),
    "reshape": _move(lambda upstream, x, **_: upstream.reshape(x.shape)),
    "squeeze": _move(lambda upstream, x, **_: upstream.reshape(x.shape)),
    "transpose": _move(lambda upstream, x, permutation: upstream.transpose(np.argsort(permutation))),
    "broadcast_in_dim": _move(_add_up_copies),
    "slice": _move(_fill_slice),
    "concatenate": Gate(
        lambda out, *xs, **_: (1,) * len(xs),
        lambda local, upstream, *xs, dimension: np.split(
            upstream, np.cumsum([x.shape[dimension] for x in xs[:-1]]), dimension
        ),
    ),
    "stack": Gate(
        lambda out, *xs, **_: (1,) * len(xs),
        lambda local, upstream, *xs, axis: [upstream.take(k, axis) for k in range(len(xs))],
    ),
}
