"""One step of training, and a scan of them: batch, gradient by hand, penalties, optimizer, rule, average."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import optimizers
from jaxmlp._backward import gradient_pass, trace_of
from jaxmlp._forward import batch_losses, mean, network_inputs
from jaxmlp.metrics import classes
from jaxmlp.network import MLP, Params
from jaxmlp.norms import widen
from jaxmlp.optimizers import Objective
from jaxmlp.trace import Trace
from jaxmlp.training.regularization import Regularization
from jaxmlp.training.sampling import AUGMENT, DROPOUT, NOISE, OPTIMIZER, READOUT, Batch
from jaxmlp.training.state import Plan, TrainState
from jaxmlp.validate import Examples

LARGE = 2**18  # weights, a megabyte in float32

Sums = dict[str, Array]


def descend(
    plan: Plan,
    state: TrainState,
    entries: Any,
    batch_of: Callable[[Any], Batch],
    own_key: PRNGKeyArray | None = None,
    done: Array | int = 0,
) -> tuple[TrainState, Sums]:
    """A step on the batch of each entry: the state after them, and sums over the examples for the metrics.

    `own_key`: what the readout of a population's member draws by, where its batches are those of all.
    `done`: the number of the epoch's steps before these.
    """
    optimizer, regularization = plan.transformation(state.hyper), state.regularization
    # The state's key is the member's own, and in a population stays the same.
    optimizer_key = jax.random.fold_in(jax.random.fold_in(state.key, OPTIMIZER), state.epoch)

    def step(carry, numbered):
        number, entry = numbered
        params, opt_state, rule_state, average = carry
        batch = batch_of(entry)
        examples = prepare(plan, regularization, batch, params[0].W.dtype)
        scale = _scale(batch)
        key = batch.key
        if own_key is not None and key is not None:
            key = jax.random.fold_in(key, jax.random.bits(own_key, (), jnp.uint32))

        def gradient(params):
            trace, grads = by_hand(plan, params, rule_state, examples, key)
            if scale is not None:
                grads = jax.tree.map(lambda g: jnp.asarray(scale, g.dtype) * g, grads)
            return trace, regularization.gradient(params, grads)

        trace, grads = gradient(params)
        objective = Objective(
            value=_total(regularization, params, mean(trace.losses, examples.weights), scale),
            value_fn=lambda p: whole_cost(plan, regularization, p, examples, scale),
            grad_fn=lambda p: gradient(p)[1],
            trace=trace,
            weights=examples.weights,
            key=jax.random.fold_in(optimizer_key, done + number),
            net=plan.net,
            plain=plan.readout is None and scale is None and not regularization.penalties,
        )
        updates, opt_state = optimizers.update(optimizer, grads, opt_state, params, objective)
        rule_state = plan.rule.learned(rule_state, params, grads, updates)
        params = regularization.project(optax.apply_updates(params, updates))  # pyright: ignore[reportArgumentType]
        average = average if average is None else average.after(params)
        return (params, opt_state, rule_state, average), _sums(plan, batch, trace.losses, trace.output)

    carry = (state.params, state.opt_state, state.rule_state, state.average)
    leaves = jax.tree.leaves(entries)
    if not leaves or plan.steps == 1:
        carry, sums = step(carry, (0, jax.tree.map(lambda array: array[0], entries)))
    else:
        numbered = jnp.arange(leaves[0].shape[0]), entries
        carry, sums = jax.lax.scan(step, carry, numbered, unroll=2 if _is_large(plan.net) else 1)
    params, opt_state, rule_state, average = carry
    state = state._replace(params=params, opt_state=opt_state, rule_state=rule_state, average=average)
    return state, {name: s.sum() for name, s in sums.items()}


def _is_large(net: MLP) -> bool:
    """Whether a matrix that backpropagation reads, any but the first, is larger than a core's cache.

    XLA copies such a matrix in each iteration to keep the old value. Unrolled by two, it uses a second buffer instead.
    """
    return max((n_out * n_in for n_out, n_in in net.shapes[1:]), default=0) >= LARGE


def prepare(plan: Plan, regularization: Regularization, batch: Batch, dtype: Any) -> Examples:
    """A batch as the gradient takes it: network inputs, smoothed labels, weights, dropout masks."""
    own = lambda use: None if batch.key is None else jax.random.fold_in(batch.key, use)
    X, m = batch.X, batch.X.shape[0]
    if plan.augment is not None:
        X = jax.vmap(plan.augment)(jax.random.split(own(AUGMENT), m), X)  # pyright: ignore[reportArgumentType]
    X = network_inputs(X, plan.preprocess, dtype)
    return Examples(
        X=regularization.add_noise(own(NOISE), X),
        Y=regularization.smooth(plan.net, batch.Y, dtype),
        weights=None if batch.weights is None else batch.weights.astype(dtype),
        masks=regularization.draw_masks(plan.net, own(DROPOUT), m, dtype),
    )


def by_hand(
    plan: Plan, params: Params, rule_state: tuple[Any, ...], examples: Examples, key: PRNGKeyArray | None
) -> tuple[Trace, Params]:
    """The trace of a batch's hand-written pass, and the gradient read from it."""
    if plan.readout is None:
        return gradient_pass(plan.net, params, examples, plan.rule, rule_state)
    X, Y, weights, masks = examples
    trace = trace_of(plan.net, params, X, Y, masks, plan.rule, rule_state)
    assert key is not None
    return trace, plan.readout(trace, weights, jax.random.fold_in(key, READOUT))


def _scale(batch: Batch) -> Float[Array, ""] | None:
    """Makes `sum w g / sum w` the gradient `sum w g / count`; None where they are the same."""
    if batch.count is None or batch.weights is None:
        return None
    return widen(batch.weights).sum() / batch.count


def whole_cost(
    plan: Plan, regularization: Regularization, params: Params, examples: Examples, scale: Any = None
) -> Float[Array, ""]:
    """The cost with its penalties, for optimizers that search along a line."""
    X, Y, weights, masks = examples
    losses, _ = batch_losses(plan.net, params, X, Y, masks)
    return _total(regularization, params, mean(losses, weights), scale)


def _total(regularization: Regularization, params: Params, cost: Float[Array, ""], scale: Any) -> Float[Array, ""]:
    return (cost if scale is None else scale.astype(cost.dtype) * cost) + regularization.cost(params)


def _sums(plan: Plan, batch: Batch, losses: Float[Array, " b"], Y_hat: Float[Array, "b k"]) -> Sums:
    losses = widen(losses)
    weights = jnp.ones_like(losses) if batch.weights is None else batch.weights.astype(losses.dtype)
    sums = {"weight": weights.sum(), "cost": weights @ losses}
    if plan.accuracy:
        sums["accuracy"] = weights @ (classes(Y_hat) == classes(batch.Y)).astype(losses.dtype)
    return sums
