"""Numbers to watch while a network learns: readouts of one trace of at most 1,024 training examples an epoch.

Sources: notes 004, 002 (saturated units have small gradients); Glorot and Bengio 2010 for the pictures by layer;
McCandlish et al. 2018 for the noise scale.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxmlp import optimizers
from jaxmlp._backward import gradient_pass, trace_of
from jaxmlp._forward import network_inputs
from jaxmlp.activations import Activation
from jaxmlp.optimizers import Objective
from jaxmlp.readouts import Trace, delta_norms, mean_gradient
from jaxmlp.spread import noise_scale
from jaxmlp.training.sampling import OPTIMIZER
from jaxmlp.training.state import FIRST_EXAMPLES, Data, Plan, TrainState
from jaxmlp.training.step import whole_cost
from jaxmlp.validate import Examples

NEAR = 0.05  # a unit is saturated within this part of its range from either end


def monitors(plan: Plan, state: TrainState, data: Data) -> dict[str, Array]:
    """The monitors after an epoch.

    Returns:
        `delta_norm (K,)`: `||delta^l||`, the mean over the examples.
        `dead (K-1,)`: the share of a hidden layer's units whose `f'(z)` is 0 for every example.
        `saturated (K-1,)`: the share of a hidden layer's activations within 5% of an end of a range that has two.
        `update_ratio (K,)`: `||dW|| / ||W||` of the optimizer's next step.
        `noise_scale ()`: the batch size at which gradient and noise are equally large; NaN for fewer than 2 examples.
    """
    every = max(1, data.X.shape[0] // FIRST_EXAMPLES)
    X, Y = data.X[::every][:FIRST_EXAMPLES], data.Y[::every][:FIRST_EXAMPLES]
    X = network_inputs(X, plan.preprocess, state.params[0].W.dtype)
    trace = trace_of(plan.net, state.params, X, Y, None, plan.rule, state.rule_state)
    grads = state.regularization.gradient(state.params, mean_gradient(trace))
    hidden = list(zip(plan.net.hidden, trace.pre_activations, strict=False))
    return {
        "delta_norm": delta_norms(trace).mean(0),
        "dead": jnp.stack([dead(f, z).mean() for f, z in hidden]) if hidden else jnp.zeros(0),
        "saturated": jnp.stack([saturated(f, z).mean() for f, z in hidden]) if hidden else jnp.zeros(0),
        "update_ratio": _update_ratio(plan, state, grads, trace, Examples(X, Y)),
        "noise_scale": noise_scale(trace) if len(trace.losses) > 1 else jnp.full((), jnp.nan),
    }


def dead(f: Activation, z: Float[Array, "m o"]) -> Bool[Array, " o"]:
    """The units that pass no error down, whatever the example."""
    return (f.df(z) == 0).all(0)


def saturated(f: Activation, z: Float[Array, "m o"]) -> Bool[Array, "m o"]:
    """The activations near an end of their range; none where the range has no two ends."""
    low, high = f.range
    if not math.isfinite(high - low):
        return jnp.zeros(z.shape, bool)
    a, near = f.f(z), NEAR * (high - low)
    return (a < low + near) | (a > high - near)


def _update_ratio(plan: Plan, state: TrainState, grads, trace: Trace, examples: Examples) -> Float[Array, " K"]:
    strengths = state.regularization
    objective = Objective(
        trace.losses.mean() + strengths.cost(state.params),
        lambda p: whole_cost(plan, strengths, p, examples),
        lambda p: strengths.gradient(p, gradient_pass(plan.net, p, examples, plan.rule, state.rule_state)[1]),
        trace,
        None,
        jax.random.fold_in(state.key, OPTIMIZER),
        plan.net,
    )
    optimizer = plan.transformation(state.hyper)
    updates, _ = optimizers.update(optimizer, grads, state.opt_state, state.params, objective)
    size = lambda W: jnp.maximum(jnp.linalg.norm(W), jnp.finfo(W.dtype).tiny)
    return jnp.stack([jnp.linalg.norm(u.W) / size(p.W) for u, p in zip(updates, state.params, strict=True)])  # pyright: ignore[reportArgumentType]
