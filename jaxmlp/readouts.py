"""Gradient quantities from a trace: each a contraction over its pairs `(delta, a)`.

Letters: m example, i in, o out. One example's gradient of layer l is `delta^l a^(l-1)^T` for W and `delta^l` for b.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmlp.network import Layer, Params


class Trace(NamedTuple):
    """A batch's pairs `(delta, a)`, from which every gradient quantity is a readout; entry l-1 belongs to layer l.

    `deltas` belong to the unreduced loss of each example: only what says "mean" divides.
    """

    inputs: tuple[Float[Array, "m i"], ...]  # a^0 .. a^(K-1)
    pre_activations: tuple[Float[Array, "m o"], ...]  # z^1 .. z^K
    deltas: tuple[Float[Array, "m o"], ...]  # delta^1 .. delta^K
    output: Float[Array, "m k"]  # y_hat
    losses: Float[Array, " m"]


def mean_gradient(trace: Trace, weights: Float[Array, " m"] | None = None) -> Params:
    """`grad_W^l = sum_m w delta^l a^(l-1)^T / sum_m w`, `grad_b^l = sum_m w delta^l / sum_m w`.

    `weights (m,)` default to ones. Source: notes 000, "Backpropagation in this network"; 002, the factor `1/m`.
    """
    if weights is None:
        # Divided last, 1/m becomes part of whatever scales the gradient next, such as the learning rate.
        m = trace.losses.shape[0]
        return jax.tree.map(lambda total: total / m, _sum(trace.deltas, trace.inputs))
    share = (weights / weights.sum())[:, None]
    return _sum(tuple(share * delta for delta in trace.deltas), trace.inputs)


def _sum(deltas: tuple[Array, ...], inputs: tuple[Array, ...]) -> Params:
    """`sum_m delta a^T` and `sum_m delta`, layer by layer."""
    return tuple(
        Layer(W=jnp.einsum("mo,mi->oi", delta, a), b=delta.sum(0)) for delta, a in zip(deltas, inputs, strict=True)
    )
