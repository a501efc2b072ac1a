"""The quadratic model of a batch's cost along two directions, which gives their coefficients."""

from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmlp.curvature import ggn_forms
from jaxmlp.network import MLP, Params
from jaxmlp.norms import widen
from jaxmlp.programs import compiled
from jaxmlp.trace import Trace


class QuadraticModel(NamedTuple):
    """`M(c) = b . c + c . Q c / 2`, the change of the cost by the step `sum_i c_i v_i`."""

    b: Float[Array, " n"]  # g . v_i
    Q: Float[Array, "n n"]  # v_i . (G + damping I) v_j

    def __call__(self, c: Float[Array, " n"]) -> Float[Array, ""]:
        return self.b @ c + c @ self.Q @ c / 2

    def minimize(self) -> Float[Array, " n"]:
        """The coefficients of the least M for two directions; of one, where the other is 0 or parallel to it."""
        diagonal = jnp.diag(self.Q)
        scale = jnp.where(diagonal > 0, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)), 0)  # to a diagonal of 1
        b, r = scale * self.b, scale[0] * scale[1] * self.Q[0, 1]
        rest = 1 - r**2
        apart = rest > jnp.sqrt(jnp.finfo(rest.dtype).eps)
        both = jnp.stack([b[0] - r * b[1], b[1] - r * b[0]]) / jnp.where(apart, rest, 1)
        alone = jnp.where(diagonal[0] > 0, jnp.stack([b[0], 0 * b[1]]), jnp.stack([0 * b[0], b[1]]))
        return -scale * jnp.where(apart & (diagonal > 0).all(), both, alone)


@compiled("net")
def model_cost(
    net: MLP,
    params: Params,
    trace: Trace,
    weights: Float[Array, " m"] | None,
    directions: tuple[Params, ...],
    grads: Params,
    damping: Float[Array, ""],
) -> QuadraticModel:
    """The model with the exact Gauss-Newton matrix of the trace's batch.

    Source: Martens and Grosse 2015, sections 6.4 and 7.
    """
    b = jnp.stack([inner(grads, v) for v in directions])
    lengths = jnp.stack([jnp.stack([inner(v, w) for w in directions]) for v in directions])
    return QuadraticModel(b, ggn_forms(net, params, trace, directions, weights).astype(b.dtype) + damping * lengths)


def inner(v: Any, w: Any) -> Float[Array, ""]:
    """The inner product of two trees, in at least float32."""
    return reduce(jnp.add, jax.tree.leaves(jax.tree.map(lambda a, b: jnp.vdot(widen(a), widen(b)), v, w)))
