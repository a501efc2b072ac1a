"""One epoch as a pure function of the state: a scan over mini-batches, then validation, patience and divergence.

Sources: notes 002, "Mini Batch Gradient Descent"; 004, "Stochastic Gradient Descent (SGD)", for draws with replacement
and for keeping the weights that are best on the validation set.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxmlp.backward import backprop, gradient_pass
from jaxmlp.forward import cost, forward, mean, network_input, output_loss
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

    def step(carry, drawn):
        params, opt_state, rule_state = carry
        X, Y, weights, count = _gather(plan, data, drawn)
        losses, y_hat, grads = gradient(plan, params, rule_state, X, Y, weights, drawn.key)
        if data.weights is not None and weights is not None and plan.readout is None:
            scale = weights.sum() / count  # to sum w g / count, from sum w g / sum w
            grads = jax.tree.map(lambda g: scale * g, grads)
        updates, opt_state = optimizer.update(
            grads, opt_state, params, value=mean(losses, weights), grad=grads,
            value_fn=lambda p: cost(plan.net, p, X, Y, weights=weights, preprocess=plan.preprocess),
        )  # fmt: skip
        rule_state = plan.rule.learned(rule_state, params, grads, updates)  # pyright: ignore[reportArgumentType]
        weights = jnp.ones_like(losses) if weights is None else weights
        sums = {"weight": weights.sum(), "cost": weights @ losses}
        if plan.accuracy:
            sums["accuracy"] = weights @ (classes(y_hat) == classes(Y)).astype(losses.dtype)
        return (optax.apply_updates(params, updates), opt_state, rule_state), sums

    carry, draws = (state.params, state.opt_state, state.rule_state), _draws(plan, data, key)
    if plan.steps == 1:
        carry, sums = step(carry, jax.tree.map(lambda array: array[0], draws))
    else:
        carry, sums = jax.lax.scan(step, carry, draws)
    params, opt_state, rule_state = carry
    total = sums.pop("weight").sum()
    total = jnp.where(total == 0, 1, total)  # Poisson's coins may leave a small set without any example
    state = state._replace(params=params, opt_state=opt_state, rule_state=rule_state)
    return state, {k: s.sum() / total for k, s in sums.items()}


class Drawn(NamedTuple):
    """What decides a step's batch, one entry a step; None where nothing needs to be said."""

    index: Int[Array, "n b"] | None = None  # the examples; None: all of them
    counted: Bool[Array, "n b"] | None = None  # which of them count: the others fill up a ragged batch
    key: PRNGKeyArray | None = None  # for what a step draws itself: Poisson's coins, a readout's noise


def _draws(plan: Plan, data: Data, key: PRNGKeyArray) -> Drawn:
    """The batches of one epoch."""
    m, shape = data.X.shape[0], (plan.steps, plan.batch_size)
    order_key, step_key = (key, None) if plan.readout is None else jax.random.split(key)
    keys = None if step_key is None else jax.random.split(step_key, plan.steps)
    if plan.sampling == "poisson":
        return Drawn(key=jax.random.split(order_key, plan.steps) if keys is None else keys)
    if plan.sampling == "replacement":
        return Drawn(jax.random.randint(order_key, shape, 0, m), key=keys)
    if plan.batch_size == m:
        return Drawn(key=keys)
    order = jax.random.permutation(order_key, m)
    missing = plan.steps * plan.batch_size - m
    counted = jnp.arange(m + missing) < m
    index = jnp.pad(order, (0, missing)).reshape(shape)
    return Drawn(index, counted.reshape(shape) if missing else None, keys)


def _gather(plan: Plan, data: Data, drawn: Drawn) -> tuple[Array, Array, Float[Array, " b"] | None, Array | int]:
    """One step's examples, their weights (None where all count alike), and how many they are."""
    index, counted = drawn.index, drawn.counted
    if plan.sampling == "poisson":
        assert drawn.key is not None
        index, counted = _toss(drawn.key, data.X.shape[0], plan.batch_size)
    if index is None:
        return data.X, data.Y, data.weights, data.X.shape[0]
    take = lambda array: array.at[index].get(mode="promise_in_bounds")
    weights = None if data.weights is None else take(data.weights)
    if counted is not None:
        weights = counted.astype(jnp.float32) if weights is None else jnp.where(counted, weights, 0)
    count = index.shape[0] if counted is None else jnp.maximum(counted.sum(), 1).astype(jnp.float32)
    return take(data.X), take(data.Y), weights, count


def _toss(key: PRNGKeyArray, m: int, batch_size: int) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """Each of m examples with probability `batch_size / m`, padded to a size that 10 deviations do not exceed."""
    q = batch_size / m
    size = min(m, math.ceil(batch_size + 10 * math.sqrt(batch_size * (1 - q)) + 10))
    chosen = jax.random.bernoulli(jax.random.fold_in(key, 0), q, (m,))
    index = jnp.nonzero(chosen, size=size, fill_value=0)[0]
    return index, jnp.arange(size) < chosen.sum()


def by_hand(plan: Plan, params: Params, rule_state: tuple[Any, ...], X, Y, weights, key):
    """The losses and outputs of a batch, and the gradient read from the trace of the hand-written pass."""
    if weights is not None:
        weights = weights.astype(params[0].W.dtype)
    if plan.readout is None:
        return gradient_pass(plan.net, params, X, Y, weights, None, plan.preprocess, plan.rule, rule_state)
    trace = backprop(
        plan.net, params, X, Y, preprocess=plan.preprocess, rule=plan.rule, rule_state=rule_state
    )  # fmt: skip
    return trace.losses, trace.output, plan.readout(trace, weights, jax.random.fold_in(key, 1))


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
