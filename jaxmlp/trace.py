"""The trace of a batch: its pairs `(delta, a)`, and sums of their products.

A start with rows gives an example several error signals, `delta (m, c, o)`. The bias is a weight on a constant, 1 for
the network's own pairs. Sums and means are taken in at least float32, whatever the parameters' dtype.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jaxmlp import validate
from jaxmlp._forward import Tape
from jaxmlp.network import Layer, Params
from jaxmlp.norms import widen
from jaxmlp.products import rounded_product


class Trace(NamedTuple):
    """A batch's pairs `(delta, a)`, from which every gradient quantity is a readout; entry l-1 belongs to layer l.

    `deltas` belong to the unreduced loss of each example: only a readout that says "mean" divides. A start with c rows
    makes them `(m, c, o)`.
    """

    inputs: tuple[Float[Array, "m i"], ...]  # a^0 .. a^(K-1)
    pre_activations: tuple[Float[Array, "m o"], ...]  # z^1 .. z^K
    deltas: tuple[Float[Array, "m *c o"], ...]  # delta^1 .. delta^K
    output: Float[Array, "m k"]  # y_hat
    losses: Float[Array, " m"]
    labels: Float[Array, "m k"] | None = None  # Y, as rows
    masks: tuple[Float[Array, "m _"], ...] | None = None  # dropout's
    constants: tuple[Float[Array, " m"], ...] | None = None  # what each bias multiplies; None: ones, as in the network

    @property
    def tape(self) -> Tape:
        """The forward pass's, for starts and tangents; of a trace that is not mapped."""
        return Tape(self.inputs, self.pre_activations, self.output, self.masks)

    def __repr__(self) -> str:
        """The widths and the dtype, without the arrays, which would fill pages."""
        *lead, k = self.output.shape
        widths = "-".join(str(a.shape[-1]) for a in self.inputs)
        rows = f" with {self.deltas[0].shape[1]} rows" if self.deltas[0].ndim == 3 else ""
        return f"Trace({' x '.join(f'{n:,}' for n in lead)} examples of {widths}-{k}{rows}, {self.output.dtype})"


def sum_rows(delta: Float[Array, "m *c o"]) -> Float[Array, "m o"]:
    """An example's error signal, the sum of its rows."""
    return delta if delta.ndim == 2 else delta.sum(1)


def like_rows(x: Num[Array, " m"], delta: Float[Array, "m *c o"]) -> Num[Array, "m *_"]:
    """A number for each example, with an axis for the rows of delta."""
    return x if delta.ndim == 2 else jnp.expand_dims(x, 1)


def with_constant(trace: Trace, l: int) -> Float[Array, "m i"]:
    """`a~ = (a, c)`, the inputs of layer l + 1 with what the bias multiplies, in at least float32."""
    a = widen(trace.inputs[l])
    constant = jnp.ones(a.shape[0], a.dtype) if trace.constants is None else widen(trace.constants[l])
    return jnp.concatenate([a, constant[:, None]], axis=1)


def join(layer: Layer) -> Float[Array, "*m o i"]:
    """`[W b]`."""
    return jnp.concatenate([layer.W, layer.b[..., None]], axis=-1)


def split(joined: Float[Array, "*m o i"]) -> Layer:
    """W and b of `[W b]`."""
    return Layer(joined[..., :-1], joined[..., -1])


def squares(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """The arrays' squares, in at least float32."""
    return tuple(widen(array) ** 2 for array in arrays)


def narrow(tree: Any, dtype: jnp.dtype) -> Any:
    """The arrays of a result in the parameters' dtype."""
    return jax.tree.map(lambda array: array.astype(dtype), tree)


def check_weights(trace: Trace, weights: Float[Array, " m"] | None, relative: bool = True) -> Float[Array, " m"] | None:
    """The weights of a trace's examples, in its dtype; None stays None."""
    m, dtype = trace.losses.shape[0], trace.losses.dtype
    return weights if weights is None else validate.example_weights(weights, m, dtype, relative=relative)


def shares(weights: Float[Array, " m"]) -> Float[Array, " m"]:
    """Each example's part of a mean, `w / sum_m w`, in at least float32; 0 for a batch of padding alone."""
    weights = widen(weights)
    total = weights.sum()
    return weights / jnp.where(total == 0, 1, total)


def shares_of(trace: Trace, weights: Float[Array, " m"] | None) -> Float[Array, " m"]:
    """Each example's part of a mean; equal parts unless there are weights."""
    return shares(jnp.ones_like(trace.losses) if weights is None else weights)


def mean_of_products(
    deltas: tuple[Array, ...],
    inputs: tuple[Array, ...],
    weights: Float[Array, " m"] | None,
    constants: tuple[Array, ...] | None = None,
) -> Params:
    """`sum_m w delta a^T / sum_m w` and `sum_m w c delta / sum_m w`, layer by layer, in at least float32.

    Nothing is checked. Rows are summed.
    """
    if weights is None:
        # Divided last, 1/m becomes part of the next scale of the gradient, such as the learning rate.
        total = sum_of_products(deltas, inputs, constants=constants)
        return jax.tree.map(lambda total: total / deltas[0].shape[0], total)
    share = shares(weights)[:, None]
    deltas = tuple(share * sum_rows(widen(delta)) for delta in deltas)
    return sum_of_products(deltas, inputs, constants=constants)


def sum_of_products(
    deltas: tuple[Array, ...],
    inputs: tuple[Array, ...],
    products: str | None = None,
    constants: tuple[Array, ...] | None = None,
) -> Params:
    """`sum_m delta a^T` and `sum_m c delta`, layer by layer, in at least float32; c is 1 unless given.

    The bias is a weight on a constant, so its sum is a product with ones: XLA's sum over rows is slower on a CPU.
    `products` is that of `MLP`, for the larger product.
    """
    deltas, inputs = tuple(sum_rows(widen(delta)) for delta in deltas), tuple(map(widen, inputs))
    ones = jnp.ones(deltas[0].shape[0], deltas[0].dtype)
    constants = (ones,) * len(deltas) if constants is None else tuple(map(widen, constants))
    # The last layer first, as the deltas come: XLA then updates more of the weights while a core's cache holds them.
    from_last = [
        Layer(W=rounded_product(delta.T, a, products), b=rounded_product(c, delta, None))
        for delta, a, c in zip(deltas[::-1], inputs[::-1], constants[::-1], strict=True)
    ]
    return tuple(from_last[::-1])
