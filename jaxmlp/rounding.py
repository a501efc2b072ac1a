"""How far rounding alone may move a gradient: the floor of the checker's relative errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp import readouts
from jaxmlp._backward import backward, output_delta
from jaxmlp._forward import forward
from jaxmlp.programs import compiled
from jaxmlp.rule import Rule

MAGNITUDE = Rule("magnitude", carry=lambda down: jnp.abs(down.W).T @ down.delta)


def bound_rounding(net, params, X, Y, weights, masks) -> tuple[Any, list[float]]:
    """For each gradient and each delta, 8 roundings of the norm it would have if no terms canceled.

    The recursion runs with `|W|` and `|a|`. Its start is `|y_hat| + |y|` where `delta^K = y_hat - y` cancels.
    """
    unit = 8 * float(jnp.finfo(net.products or params[0].W.dtype).eps)
    size = lambda array: unit * float(np.linalg.norm(array))
    grads, deltas = _compute_magnitudes(net, params, X, Y, weights, masks)
    return jax.tree.map(size, grads), [size(delta) for delta in deltas]


@compiled("net")
def _compute_magnitudes(net, params, X, Y, weights, masks):
    """The gradients and the deltas of all examples where no terms cancel."""

    def example(x, y, masks):
        y_hat, tape = forward(net, params, x, masks)
        delta = jnp.abs(output_delta(net, tape, y))
        if net.output == net.loss.canonical:
            delta = jnp.abs(y_hat) + jnp.abs(net.loss.target(y, y_hat))
        deltas = backward(net, params, tape, delta, MAGNITUDE)
        return readouts.Trace(tape.inputs, tape.pre_activations, deltas, y_hat, jnp.zeros(()))

    trace = jax.tree.map(jnp.abs, jax.vmap(example)(X, Y, masks))
    return readouts.mean_gradient(trace, weights), trace.deltas
