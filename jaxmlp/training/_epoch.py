"""One epoch as a pure function of the state: its steps, then validation, patience and divergence; and the start.

Source: notes 004, "Stochastic Gradient Descent (SGD)", for keeping the weights that are best on the validation set.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxmlp import optimizers
from jaxmlp._forward import batch_losses, mean, network_inputs
from jaxmlp.initializers import Initializer
from jaxmlp.metrics import classes
from jaxmlp.network import Params, init
from jaxmlp.norms import widen
from jaxmlp.training import probe
from jaxmlp.training.monitors import monitors
from jaxmlp.training.regularization import Regularization
from jaxmlp.training.sampling import Batch, draw, gather, place
from jaxmlp.training.sharding import DATA, along, everywhere, place_state
from jaxmlp.training.state import (
    FIRST_EXAMPLES,
    Average,
    Best,
    Data,
    Plan,
    Run,
    TrainState,
    split_key,
)
from jaxmlp.training.step import Sums, descend

DIVERGED = 1000  # times the first cost: it has risen by 999 times the mean |loss| of the start
EVALUATED_AT_ONCE = 4096  # examples of the validation set whose activations are in memory together
COLUMNS = ("cost", "accuracy", "penalty", "validation_cost", "validation_accuracy",
           "delta_norm", "dead", "saturated", "update_ratio", "noise_scale")  # fmt: skip

Metrics = dict[str, Array]  # names among COLUMNS


def start(
    plan: Plan,
    params: Params,
    data: Data,
    key: PRNGKeyArray,
    hyper: dict[str, Any] | None = None,
    patience: int | Int[Array, ""] = -1,
    rule_state: tuple[Any, ...] | None = None,
    regularisation: Regularization | None = None,
    average: float | Float[Array, ""] | None = None,
) -> TrainState:
    """The state before the first epoch.

    Args:
        params: the initial weights, which are copied, so that an epoch may take the state's memory.
        key: for all that training draws.
        hyper: the arguments of the plan's optimizer, where that is a factory.
        patience: the number of epochs without a better validation score that ends the run; -1: no number does.
        rule_state: the rule's state; drawn unless given.
        regularisation: the strengths.
        average: the decay of an average of the weights.
    """
    strengths = Regularization() if regularisation is None else regularisation
    run = Run(key, params, hyper=hyper, regularization=strengths, patience=patience, average=average,
              rule_state=rule_state)  # fmt: skip
    return begin(plan, run, data)


def begin(plan: Plan, run: Run, data: Data, initial: str | Initializer = "he") -> TrainState:
    """The state of `run` before the first epoch; `initial` draws the weights where the run has none."""
    # Copied: the caller's arrays are never donated.
    copied = run.params, run.rule_state, run.regularization
    params, rule_state, regularization = jax.tree.map(lambda array: jnp.array(array, copy=True), copied)
    if params is None:
        assert run.weights_key is not None
        as_they_come = plan.preprocess is None and jnp.issubdtype(data.X.dtype, jnp.floating)
        params = init(plan.net, run.weights_key, initial, dtype=data.X.dtype if as_they_come else None)
    if run.scale is not None:
        params = tuple(layer._replace(W=run.scale.astype(layer.W.dtype) * layer.W) for layer in params)
    hyper = {} if run.hyper is None else run.hyper
    key, rule_key = split_key(run.key)
    if rule_state is None:
        rule_state = plan.rule.start(plan.net, rule_key, params[0].W.dtype)
    every = max(1, data.X.shape[0] // FIRST_EXAMPLES)
    X, Y = network_inputs(data.X[::every], plan.preprocess, params[0].W.dtype), data.Y[::every]
    # A start that is nearly perfect gives no scale for a cost; weights of 0 give that of the data.
    losses, _ = batch_losses(plan.net, params, X, Y)
    z, loss = 0 * params[-1].b, plan.net.loss  # not zeros: XLA 0.10.2 now and then gives NaN for constants
    of_zeros = jax.vmap(lambda y: loss.value(plan.net.output, z, loss.target(y, z)))(Y)
    # fmax: a loss may have no value where all weights are 0
    first_cost, first_scale = jax.tree.map(jnp.fmax, _mean_and_scale(losses), _mean_and_scale(of_zeros))
    worst = jnp.full((), jnp.finfo(first_cost.dtype).max, first_cost.dtype)
    best = Best(jax.tree.map(jnp.copy, params), worst, jnp.zeros((), jnp.int32))
    state = TrainState(
        params=params,
        opt_state=None,
        rule_state=rule_state,
        key=key if run.own_key is None else run.own_key,
        epoch=jnp.zeros((), jnp.int32),
        hyper=hyper,
        regularization=regularization,
        first_cost=first_cost,
        first_scale=first_scale,
        patience=jnp.asarray(run.patience, jnp.int32),
        stopped=jnp.zeros((), bool),
        diverged=jnp.zeros((), bool),
        best=None if data.X_dev is None else best,
        average=None if run.average is None else Average.start(params, run.average),
    )
    probe.check_readout(plan, state, data)
    optimizers.check(plan.net, plan.optimizer, hyper, params)
    return place_state(plan, state._replace(opt_state=plan.transformation(hyper).init(params)))


def _mean_and_scale(losses: Float[Array, " m"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The mean loss, and the mean of its absolute value."""
    losses = widen(losses)
    return losses.mean(), jnp.abs(losses).mean()


def epoch(plan: Plan, state: TrainState, data: Data, key: PRNGKeyArray | None = None) -> tuple[TrainState, Metrics]:
    """`plan.steps` optimizer steps and a validation.

    It is pure: `jit` it with a static plan, `vmap` it over states. A state that has stopped stays the same; a state
    that diverges keeps the weights of the epoch before.

    Args:
        data: the examples; `weights` of mean 1.
        key: replaces the key of the state. Members of a population that get one key share their batches; a readout
            still draws by each state's own.
    """
    own_key = None if key is None or plan.readout is None else state.key
    drawn = draw(plan, data, epoch_key(state) if key is None else key, needs_keys(plan, state))
    trained, sums = descend(plan, state, drawn, partial(gather, plan, data), own_key)
    return finish(plan, state, trained, sums, data)


def epoch_key(state: TrainState) -> PRNGKeyArray:
    """The key of the epoch that comes; `finish` puts the other half into the state."""
    return split_key(state.key)[1]


def needs_keys(plan: Plan, state: TrainState) -> bool:
    """Whether each step draws random numbers of its own."""
    return plan.readout is not None or plan.augment is not None or state.regularization.random


def descend_part(plan: Plan, state: TrainState, batches: Batch, done: Array) -> tuple[TrainState, Sums]:
    """A part of a streamed epoch: a step on each of `batches`, after `done` steps."""
    return descend(plan, state, batches, partial(place, plan.mesh), done=done)


def finish(plan: Plan, before: TrainState, trained: TrainState, sums: Sums, data: Data) -> tuple[TrainState, Metrics]:
    """The end of an epoch: metrics, validation, patience; and `before` again where the epoch diverged."""
    total = jnp.where(sums["weight"] == 0, 1, sums["weight"])  # Poisson's coins may leave a set without any example
    metrics = {name: s / total for name, s in sums.items() if name != "weight"}
    nothing: Any = sum((0 * array).sum() for array in jax.tree.leaves(trained.params))  # NaN: a weight is not finite
    rise = metrics["cost"] - before.first_cost
    good = (rise <= (DIVERGED - 1) * before.first_scale) | (before.first_scale == 0)
    good = good & jnp.isfinite(metrics["cost"] + nothing.astype(metrics["cost"].dtype))
    trained = trained._replace(key=split_key(before.key)[0], epoch=before.epoch + 1)
    if any(penalty.kind.value is not None for penalty in trained.regularization.penalties):
        metrics["penalty"] = trained.regularization.cost(trained.params)
    if plan.monitor:
        metrics |= monitors(plan, trained, data)
    if trained.best is not None:
        trained, scores = _validate(plan, trained, trained.best, data)
        metrics |= scores
    frozen = before._replace(stopped=before.stopped | ~good, diverged=before.diverged | (~good & ~before.stopped))
    after = _where(good & ~before.stopped, trained, frozen)
    return place_state(plan, after), everywhere(plan.mesh, metrics)


def evaluate(plan: Plan, params: Params, X: Array, Y: Array, weights: Float[Array, " d"] | None = None) -> Metrics:
    """Cost and, where classes are predicted, accuracy: means over the examples, by their weights."""

    def chunk(XY) -> tuple[Float[Array, " b"], Float[Array, "b k"]]:
        X, Y = along(plan.mesh, DATA, XY)
        return batch_losses(plan.net, params, network_inputs(X, plan.preprocess, params[0].W.dtype), Y)

    whole = X.shape[0] // EVALUATED_AT_ONCE * EVALUATED_AT_ONCE
    split = lambda a: a[:whole].reshape(-1, EVALUATED_AT_ONCE, *a.shape[1:])
    parts = [jax.tree.map(jnp.concatenate, jax.lax.map(chunk, (split(X), split(Y))))] if whole else []
    parts += [chunk((X[whole:], Y[whole:]))] if whole < X.shape[0] else []
    losses, Y_hat = jax.tree.map(lambda *each: jnp.concatenate(each), *parts)
    losses = widen(losses)
    weights = None if weights is None else weights.astype(losses.dtype)
    scores = {"cost": mean(losses, weights)}
    if plan.accuracy:
        scores["accuracy"] = mean((classes(Y_hat) == classes(Y)).astype(losses.dtype), weights)
    return scores


def _validate(plan: Plan, state: TrainState, best: Best, data: Data) -> tuple[TrainState, Metrics]:
    """Scores the weights on the validation set, keeps the best, and stops the run when its patience ends."""
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
    """`yes` or `no`; a `cond` compiles in a fifth of the time of a choice leaf by leaf."""
    return jax.lax.cond(condition, lambda: yes, lambda: no)
