"""One epoch as a pure function of the state: its steps, then validation, patience and divergence.

Source: notes 004, "Stochastic Gradient Descent (SGD)", for keeping the weights that are best on the validation set.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxmlp._forward import cost, forward, mean, network_input, output_loss
from jaxmlp.metrics import classes
from jaxmlp.network import Params
from jaxmlp.training.monitors import monitors
from jaxmlp.training.sampling import Batch, draws, gather
from jaxmlp.training.sharding import DATA, along, everywhere, laid_out
from jaxmlp.training.state import FIRST_EXAMPLES, Average, Best, Data, Plan, Regularisation, TrainState
from jaxmlp.training.step import Sums, steps

DIVERGED = 1000  # times the first cost
EVALUATED_AT_ONCE = 4096  # examples of the validation set whose activations are in memory together

Metrics = dict[str, Array]


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


def epoch(
    plan: Plan, state: TrainState, data: Data, gradient: Callable | None = None, key: PRNGKeyArray | None = None
) -> tuple[TrainState, Metrics]:
    """`plan.steps` optimiser steps and a validation. Pure: `jit` it with a static plan, `vmap` it over states.

    A state that has stopped stays as it is, and one that diverges keeps the weights of the epoch before. `gradient`
    may stand in for `by_hand`, to compare, and `key` for what the state's key gives: the members of a population that
    are given one key share their batches.
    """
    drawn = draws(plan, data, epoch_key(state) if key is None else key, needs_keys(plan, state))
    trained, sums = steps(plan, state, drawn, lambda entry: gather(plan, data, entry), gradient)
    return finish(plan, state, trained, sums, data)


def epoch_key(state: TrainState) -> PRNGKeyArray:
    """The key of the epoch that comes; `finish` puts the other half into the state."""
    return jax.random.split(state.key)[1]


def needs_keys(plan: Plan, state: TrainState) -> bool:
    """Whether each step draws random numbers of its own."""
    return plan.readout is not None or plan.augment is not None or state.regularisation.random


def some_steps(plan: Plan, state: TrainState, batches: Batch) -> tuple[TrainState, Sums]:
    """A part of a streamed epoch: a step on each of `batches`."""
    return steps(plan, state, batches, lambda batch: batch)


def finish(plan: Plan, before: TrainState, trained: TrainState, sums: Sums, data: Data) -> tuple[TrainState, Metrics]:
    """After an epoch's steps: metrics, validation, patience, and whether it counts at all."""
    total = jnp.where(sums["weight"] == 0, 1, sums["weight"])  # Poisson's coins may leave a set without any example
    metrics = {name: s / total for name, s in sums.items() if name != "weight"}
    finite = [jnp.isfinite(array).all() for array in jax.tree.leaves(trained.params)]
    good = (metrics["cost"] <= DIVERGED * before.first_cost) | (before.first_cost == 0)
    good = good & jnp.isfinite(metrics["cost"]) & jnp.stack(finite).all()
    trained = trained._replace(key=jax.random.split(before.key)[0], epoch=before.epoch + 1)
    penalties = [penalty for penalty in trained.regularisation.penalties if penalty.kind.value is not None]
    if penalties:
        metrics["penalty"] = jnp.stack([penalty.cost(trained.params) for penalty in penalties]).sum()
    if plan.monitor:
        metrics |= monitors(plan, trained, data)
    if trained.best is not None:
        trained, scores = _validate(plan, trained, trained.best, data)
        metrics |= scores
    frozen = before._replace(stopped=before.stopped | ~good, diverged=before.diverged | (~good & ~before.stopped))
    after = _where(good & ~before.stopped, trained, frozen)
    return laid_out(plan, after), everywhere(plan.mesh, metrics)


def evaluate(plan: Plan, params: Params, X: Array, Y: Array, weights: Float[Array, " d"] | None = None) -> Metrics:
    """Cost and, where classes are predicted, accuracy: means over the examples, by their weights."""

    def example(xy) -> tuple[Float[Array, ""], Float[Array, " k"]]:
        y_hat, tape = forward(plan.net, params, network_input(params, xy[0], plan.preprocess))
        return output_loss(plan.net, tape, xy[1]), y_hat

    def chunk(XY) -> tuple[Float[Array, " b"], Float[Array, "b k"]]:
        return jax.vmap(example)(along(plan.mesh, DATA, XY))

    whole = X.shape[0] // EVALUATED_AT_ONCE * EVALUATED_AT_ONCE
    split = lambda a: a[:whole].reshape(-1, EVALUATED_AT_ONCE, *a.shape[1:])
    parts = [jax.tree.map(jnp.concatenate, jax.lax.map(chunk, (split(X), split(Y))))] if whole else []
    parts += [chunk((X[whole:], Y[whole:]))] if whole < X.shape[0] else []
    losses, Y_hat = jax.tree.map(lambda *each: jnp.concatenate(each), *parts)
    scores = {"cost": mean(losses, weights)}
    if plan.accuracy:
        scores["accuracy"] = mean((classes(Y_hat) == classes(Y)).astype(losses.dtype), weights)
    return scores


def _validate(plan: Plan, state: TrainState, best: Best, data: Data) -> tuple[TrainState, Metrics]:
    """Scores the weights on the validation set, keeps the best, and stops when patience is at its end."""
    assert data.X_dev is not None and data.Y_dev is not None
    params = state.evaluated
    scores = evaluate(plan, params, data.X_dev, data.Y_dev, data.weights_dev)
    score = scores["cost"] if plan.best_by == "cost" else -scores["accuracy"]
    best = _where(score < best.score, Best(params, score.astype(best.score.dtype), state.epoch), best)
    waited = state.epoch - best.epoch
    stopped = (state.patience >= 0) & (waited >= state.patience)
    scores = {f"validation_{name}": value for name, value in scores.items()}
    return state._replace(best=best, stopped=stopped), scores


def _where(condition: Bool[Array, ""], yes: Any, no: Any) -> Any:
    """`yes` or `no`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jax.lax.select(condition, a, b) if a is not b else a, yes, no)
