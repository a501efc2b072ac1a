"""One step of training, and a scan of them: batch, gradient by hand, penalties, optimizer, rule, average."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp._backward import gradient_pass, trace_of
from jaxmlp._forward import batch_losses, mean, network_inputs
from jaxmlp.metrics import classes
from jaxmlp.network import MLP, Params
from jaxmlp.training.regularization import Regularization
from jaxmlp.training.sampling import AUGMENT, DROPOUT, NOISE, READOUT, Batch
from jaxmlp.training.state import Plan, TrainState
from jaxmlp.validate import Examples

LARGE = 2**18  # weights, a megabyte in float32

Sums = dict[str, Array]


def descend(plan: Plan, state: TrainState, entries: Any, batch_of: Callable[[Any], Batch]) -> tuple[TrainState, Sums]:
    """A step on the batch of each entry: the state after them, and sums over the examples for the metrics."""
    optimizer, regularization = plan.transformation(state.hyper), state.regularization

    def step(carry, entry):
        params, opt_state, rule_state, average = carry
        batch = batch_of(entry)
        examples = prepare(plan, regularization, batch, params[0].W.dtype)
        losses, Y_hat, grads = by_hand(plan, params, rule_state, examples, batch.key)
        if batch.count is not None:
            assert batch.weights is not None
            scale = batch.weights.sum() / batch.count  # to sum w g / count, from sum w g / sum w
            grads = jax.tree.map(lambda g: scale * g, grads)
        grads = regularization.gradient(params, grads)
        updates, opt_state = optimizer.update(
            grads, opt_state, params, value=mean(losses, examples.weights), grad=grads,
            value_fn=lambda p: _whole_cost(plan, regularization, p, examples),
        )  # fmt: skip
        rule_state = plan.rule.learned(rule_state, params, grads, updates)  # pyright: ignore[reportArgumentType]
        params = regularization.project(optax.apply_updates(params, updates))  # pyright: ignore[reportArgumentType]
        average = average if average is None else average.after(params)
        return (params, opt_state, rule_state, average), _sums(plan, batch, losses, Y_hat)

    carry = (state.params, state.opt_state, state.rule_state, state.average)
    if len(jax.tree.leaves(entries)) == 0 or plan.steps == 1:
        carry, sums = step(carry, jax.tree.map(lambda array: array[0], entries))
    else:
        carry, sums = jax.lax.scan(step, carry, entries, unroll=2 if _is_large(plan.net) else 1)
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


def by_hand(plan: Plan, params: Params, rule_state: tuple[Any, ...], examples: Examples, key: PRNGKeyArray | None):
    """The losses and outputs of a batch, and the gradient, read from the trace of the hand-written pass."""
    if plan.readout is None:
        return gradient_pass(plan.net, params, examples, plan.rule, rule_state)
    X, Y, weights, masks = examples
    trace = trace_of(plan.net, params, X, Y, masks, plan.rule, rule_state)
    assert key is not None
    return trace.losses, trace.output, plan.readout(trace, weights, jax.random.fold_in(key, READOUT))


def _whole_cost(plan: Plan, regularization: Regularization, params: Params, examples: Examples) -> Float[Array, ""]:
    """The cost with its penalties, for optimizers that search along a line."""
    X, Y, weights, masks = examples
    losses, _ = batch_losses(plan.net, params, X, Y, masks)
    return mean(losses, weights) + regularization.cost(params)


def _sums(plan: Plan, batch: Batch, losses: Float[Array, " b"], Y_hat: Float[Array, "b k"]) -> Sums:
    weights = jnp.ones_like(losses) if batch.weights is None else batch.weights.astype(losses.dtype)
    sums = {"weight": weights.sum(), "cost": weights @ losses}
    if plan.accuracy:
        sums["accuracy"] = weights @ (classes(Y_hat) == classes(batch.Y)).astype(losses.dtype)
    return sums
