"""What training is made of: the static `Plan`, the `Data` on the device, and the `TrainState` that an epoch maps on.

All that changes is in the state, so resuming is saving it, and a population is a `vmap` over it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from jaxmlp import rules
from jaxmlp.forward import cost
from jaxmlp.network import MLP, Params
from jaxmlp.readouts import Trace
from jaxmlp.rules import Rule
from jaxmlp.validate import Preprocess

Optimizer = optax.GradientTransformation | Callable[..., optax.GradientTransformation]
Sampling = Literal["shuffle", "replacement", "poisson"]
Readout = Callable[[Trace, Float[Array, " m"] | None, PRNGKeyArray], Params]

FIRST_EXAMPLES = 1024  # about how many examples the first cost, by which divergence is judged, is taken over


@dataclass(frozen=True)
class Plan:
    """All that is compiled in: two runs with equal plans share one program."""

    net: MLP
    optimizer: Optimizer  # an optax transformation, or a factory that takes the state's `hyper`
    batch_size: int
    steps: int  # optimiser steps in one epoch
    sampling: Sampling = "shuffle"  # every example once an epoch; drawn with replacement; or each with its own coin
    preprocess: Preprocess | None = None
    rule: Rule = rules.backprop
    readout: Readout | None = None  # (trace, weights, key) -> the gradient to descend; None: mean_gradient
    accuracy: bool = False  # whether classes are predicted
    best_by: Literal["cost", "accuracy"] = "cost"

    def transformation(self, hyper: dict[str, Any]) -> optax.GradientTransformationExtraArgs:
        """The optimiser with these hyperparameters."""
        made = self.optimizer if isinstance(self.optimizer, optax.GradientTransformation) else self.optimizer(**hyper)
        return optax.with_extra_args_support(made)


class Data(NamedTuple):
    """Training examples with their weights, and validation examples; None where there are none."""

    X: Num[Array, "m ..."]
    Y: Num[Array, "m ..."]
    weights: Float[Array, " m"] | None = None  # of mean 1: a batch divides by the number of its examples
    X_dev: Num[Array, "d ..."] | None = None
    Y_dev: Num[Array, "d ..."] | None = None


class Best(NamedTuple):
    """The weights that were best on the validation examples, so far."""

    params: Params
    score: Float[Array, ""]  # lower is better: the cost, or minus the accuracy
    epoch: Int[Array, ""]  # 1 is the first


class TrainState(NamedTuple):
    """Everything that training changes."""

    params: Params
    opt_state: Any
    rule_state: tuple[Any, ...]
    key: PRNGKeyArray
    epoch: Int[Array, ""]  # how many are done
    hyper: dict[str, Any]  # the optimiser factory's arguments
    first_cost: Float[Array, ""]  # at the start or with all weights 0, whichever is more
    patience: Int[Array, ""]  # how many epochs without a better validation score end the run; -1: none do
    stopped: Array  # bool: an epoch changes nothing any more
    diverged: Array  # bool: and params are the last good ones
    best: Best | None  # None without validation


def start(
    plan: Plan,
    params: Params,
    data: Data,
    key: PRNGKeyArray,
    hyper: dict[str, Any] | None = None,
    patience: int | Int[Array, ""] = -1,
    rule_state: tuple[Any, ...] | None = None,
) -> TrainState:
    """The state before the first epoch; `rule_state`, unless given, is drawn."""
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
    return TrainState(
        params=params,
        opt_state=plan.transformation(hyper).init(params),
        rule_state=rule_state,
        key=key,
        epoch=jnp.zeros((), jnp.int32),
        hyper=hyper,
        first_cost=first_cost,
        patience=jnp.asarray(patience, jnp.int32),
        stopped=jnp.zeros((), bool),
        diverged=jnp.zeros((), bool),
        best=None if data.X_dev is None else best,
    )
