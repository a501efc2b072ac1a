"""The state before the first epoch."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxmlp.forward import cost
from jaxmlp.network import Params
from jaxmlp.training.sharding import laid_out
from jaxmlp.training.state import Average, Best, Data, Plan, Regularisation, TrainState

FIRST_EXAMPLES = 1024  # about how many examples the first cost, by which divergence is judged, is taken over


def start(
    plan: Plan,
    params: Params,
    data: Data,
    key: PRNGKeyArray,
    hyper: dict[str, Any] | None = None,
    patience: int | Int[Array, ""] = -1,
    rule_state: tuple[Any, ...] | None = None,
    regularisation: Regularisation | None = None,
    average: float | Float[Array, ""] | None = None,
) -> TrainState:
    """The state before the first epoch; `rule_state`, unless given, is drawn. `average` is the decay of one."""
    # Copied: the caller's arrays are never donated.
    params, rule_state = jax.tree.map(lambda array: jnp.array(array, copy=True), (params, rule_state))
    hyper = {} if hyper is None else hyper
    key, rule_key = jax.random.split(key)
    every = max(1, data.X.shape[0] // FIRST_EXAMPLES)
    at = lambda params: cost(plan.net, params, data.X[::every], data.Y[::every], preprocess=plan.preprocess)
    # A start that is all but perfect already is no scale for a cost; weights of 0 give the scale of the data.
    # (0 * W, not zeros: XLA 0.10.2 on a CPU now and then gives NaN for a network of constants.)
    first_cost = jnp.maximum(at(params), at(jax.tree.map(lambda array: 0 * array, params)))
    if rule_state is None:
        rule_state = plan.rule.start(plan.net, rule_key, params[0].W.dtype)
    best = Best(jax.tree.map(jnp.copy, params), jnp.full((), jnp.inf, first_cost.dtype), jnp.zeros((), jnp.int32))
    state = TrainState(
        params=params,
        opt_state=plan.transformation(hyper).init(params),
        rule_state=rule_state,
        key=key,
        epoch=jnp.zeros((), jnp.int32),
        hyper=hyper,
        regularisation=Regularisation() if regularisation is None else regularisation,
        first_cost=first_cost,
        patience=jnp.asarray(patience, jnp.int32),
        stopped=jnp.zeros((), bool),
        diverged=jnp.zeros((), bool),
        best=None if data.X_dev is None else best,
        average=None if average is None else _average(params, average),
    )
    return laid_out(plan, state)


def _average(params: Params, decay: Any) -> Average:
    dtype = params[0].W.dtype
    return Average(jnp.asarray(decay, dtype), jax.tree.map(jnp.zeros_like, params), jnp.zeros((), dtype))
