"""The quadratic model of a batch's cost along a few directions, which gives their coefficients."""

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
        """The coefficients of the least M; 0 for a direction of 0, and the shortest where two are parallel."""
        diagonal = jnp.diag(self.Q)
        scale = jnp.where(diagonal > 0, 1 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1)), 0)
        return -scale * (jnp.linalg.pinv(scale[:, None] * self.Q * scale[None], hermitian=True) @ (scale * self.b))


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
