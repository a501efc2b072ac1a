"""Full-batch descent as one scan, for experiments that watch every step or run many descents at once."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Num

import jaxmlp as jm
from jaxmlp.network import Params


@partial(jax.jit, static_argnames=("net", "optimizer", "steps"))
def descend(
    net: jm.MLP,
    optimizer: optax.GradientTransformation,
    steps: int,
    params: Params,
    X: Float[Array, "m i"],
    Y: Num[Array, "m *k"],
) -> tuple[Params, Float[Array, " steps"]]:
    """The parameters after `steps` steps of the optimizer along the hand-written gradient, and the cost before each."""

    def step(carry, _):
        params, state = carry
        J, grads = jm.value_and_grad(net, params, X, Y)
        updates, state = optimizer.update(grads, state, params)
        return (jax.tree.map(jnp.add, params, updates), state), J

    (params, _), costs = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    return params, costs
