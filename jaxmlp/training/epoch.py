"""One epoch as a pure function of the state: a scan over mini-batches, then validation, patience and divergence.

Sources: notes 002, "Mini Batch Gradient Descent"; 004, "Stochastic Gradient Descent (SGD)", for draws with replacement
and for keeping the weights that are best on the validation set.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxmlp import readouts
from jaxmlp.backward import backprop
from jaxmlp.forward import cost, forward, network_input, output_loss
from jaxmlp.metrics import classes
from jaxmlp.network import Params
from jaxmlp.training.state import Best, Data, Plan, TrainState

DIVERGED = 1000  # times the first cost
EVALUATED_AT_ONCE = 4096  # examples of the validation set whose activations are in memory together

Metrics = dict[str, Array]


def epoch(plan: Plan, state: TrainState, data: Data, gradient: Callable | None = None) -> tuple[TrainState, Metrics]:
    """`plan.steps` optimiser steps and a validation. Pure: `jit` it with a static plan, `vmap` it over states.

    A state that has stopped stays as it is, and one that diverges keeps the weights of the epoch before. `gradient`
    may stand in for `by_hand`, to compare.
    """
    key, epoch_key = jax.random.split(state.key)
    trained, metrics = _train(plan, state, data, epoch_key, gradient or by_hand)
    finite = [jnp.isfinite(array).all() for array in jax.tree.leaves(trained.params)]
    good = (metrics["cost"] <= DIVERGED * state.first_cost) | (state.first_cost == 0)
    good = good & jnp.isfinite(metrics["cost"]) & jnp.stack(finite).all()
    trained = trained._replace(key=key, epoch=state.epoch + 1)
    if trained.best is not None:
        trained, scores = _validate(plan, trained, trained.best, data)
        metrics |= scores
    frozen = state._replace(stopped=state.stopped | ~good, diverged=state.diverged | (~good & ~state.stopped))
    return _where(good & ~state.stopped, trained, frozen), metrics


def _train(plan: Plan, state: TrainState, data: Data, key: PRNGKeyArray, gradient) -> tuple[TrainState, Metrics]:
    """The steps of one epoch, each on its batch."""
    optimizer = plan.transformation(state.hyper)

    def step(carry, batch):
        params, opt_state = carry
        X, Y, weights = batch
        losses, y_hat, grads = gradient(plan, params, state.rule_state, X, Y, weights)
        value = losses.mean() if weights is None else weights @ losses / weights.sum()
        updates, opt_state = optimizer.update(
            grads, opt_state, params, value=value, grad=grads,
            value_fn=lambda p: cost(plan.net, p, X, Y, weights=weights, preprocess=plan.preprocess),
        )  # fmt: skip
        weights = jnp.ones_like(losses) if weights is None else weights
        sums = {"weight": weights.sum(), "cost": weights @ losses}
        if plan.accuracy:
            sums["accuracy"] = weights @ (classes(y_hat) == classes(Y)).astype(losses.dtype)
        return (optax.apply_updates(params, updates), opt_state), sums

    carry = (state.params, state.opt_state)
    if plan.batch_size == data.X.shape[0] and plan.sampling == "shuffle":  # the full batch: nothing to gather
        carry, sums = step(carry, (data.X, data.Y, data.weights))
    else:
        batches = _batches(plan, data, key)
        carry, sums = jax.lax.scan(lambda carry, drawn: step(carry, _gather(data, *drawn)), carry, batches)
    params, opt_state = carry
    total = sums.pop("weight").sum()
    return state._replace(params=params, opt_state=opt_state), {k: s.sum() / total for k, s in sums.items()}


def _batches(plan: Plan, data: Data, key: PRNGKeyArray) -> tuple[Int[Array, "n b"], Bool[Array, "n b"] | None]:
    """Which examples each step takes, and which of them count: the last, ragged batch is filled up with weight 0."""
    m, shape = data.X.shape[0], (plan.steps, plan.batch_size)
    if plan.sampling == "replacement":
        return jax.random.randint(key, shape, 0, m), None
    order = jax.random.permutation(key, m)
    missing = plan.steps * plan.batch_size - m
    if missing == 0:
        return order.reshape(shape), None
    counted = jnp.arange(m + missing) < m
    return jnp.pad(order, (0, missing)).reshape(shape), counted.reshape(shape)


def _gather(data: Data, index: Int[Array, " b"], counted: Bool[Array, " b"] | None):
    """One batch's examples and their weights; no weights where all count alike."""
    take = lambda array: array.at[index].get(mode="promise_in_bounds")
    weights = None if data.weights is None else take(data.weights)
    if counted is not None:
        weights = counted.astype(jnp.float32) if weights is None else jnp.where(counted, weights, 0)
    return take(data.X), take(data.Y), weights


def by_hand(plan: Plan, params: Params, rule_state: tuple[Any, ...], X, Y, weights):
    """The losses and outputs of a batch, and the mean gradient by the hand-written pass."""
    trace = backprop(
        plan.net, params, X, Y, preprocess=plan.preprocess, rule=plan.rule, rule_state=rule_state
    )  # fmt: skip
    if weights is not None:
        weights = weights.astype(trace.losses.dtype)
    return trace.losses, trace.output, readouts.mean_gradient(trace, weights)


def evaluate(plan: Plan, params: Params, X: Array, Y: Array) -> Metrics:
    """Cost and, where classes are predicted, accuracy."""

    def example(xy) -> tuple[Float[Array, ""], Float[Array, " k"]]:
        y_hat, tape = forward(plan.net, params, network_input(params, xy[0], plan.preprocess))
        return output_loss(plan.net, tape, xy[1]), y_hat

    losses, Y_hat = jax.lax.map(example, (X, Y), batch_size=EVALUATED_AT_ONCE)
    scores = {"cost": losses.mean()}
    if plan.accuracy:
        scores["accuracy"] = jnp.mean(classes(Y_hat) == classes(Y))
    return scores


def _validate(plan: Plan, state: TrainState, best: Best, data: Data) -> tuple[TrainState, Metrics]:
    """Scores the weights on the validation set, keeps the best, and stops when patience is at its end."""
    assert data.X_dev is not None and data.Y_dev is not None
    scores = evaluate(plan, state.params, data.X_dev, data.Y_dev)
    score = scores["cost"] if plan.best_by == "cost" else -scores["accuracy"]
    best = _where(score < best.score, Best(state.params, score.astype(best.score.dtype), state.epoch), best)
    waited = state.epoch - best.epoch
    stopped = (state.patience >= 0) & (waited >= state.patience)
    scores = {f"validation_{name}": value for name, value in scores.items()}
    return state._replace(best=best, stopped=stopped), scores


def _where(condition: Bool[Array, ""], yes: Any, no: Any) -> Any:
    """`yes` or `no`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jax.lax.select(condition, a, b) if a is not b else a, yes, no)
