"""One step of training, and a scan of them: batch, gradient by hand, penalties, the optimiser, what follows it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxmlp._backward import backprop, gradient_pass
from jaxmlp._forward import Masks, cost, mean, network_input
from jaxmlp.metrics import classes
from jaxmlp.network import MLP, Params
from jaxmlp.training.regularization import dropout_masks
from jaxmlp.training.sampling import Batch
from jaxmlp.training.sharding import divided
from jaxmlp.training.state import Plan, Regularisation, TrainState

POISSON, READOUT, AUGMENT, NOISE, DROPOUT = range(5)  # what is folded into a step's key

LARGE = 2**18  # weights, a megabyte in float32

Sums = dict[str, Array]


class Problem(NamedTuple):
    """A batch as the gradient takes it: inputs, targets, weights and masks."""

    X: Float[Array, "b i"]
    Y: Array
    weights: Float[Array, " b"] | None
    masks: Masks | None
    key: Any


def steps(plan: Plan, state: TrainState, batches: Any, batch_of: Callable[[Any], Batch], gradient=None):
    """Descends along `batches`, one entry a step, each made a batch by `batch_of`: the state, and sums for the metrics.

    `gradient` may stand in for `by_hand`, to compare.
    """
    optimizer, regularisation = plan.transformation(state.hyper), state.regularisation

    def step(carry, entry):
        params, opt_state, rule_state, average = carry
        batch = divided(plan.mesh, batch_of(entry))
        problem = prepared(plan, regularisation, params, batch)
        losses, y_hat, grads = (gradient or by_hand)(plan, params, rule_state, problem)
        if batch.count is not None:
            assert batch.weights is not None
            scale = batch.weights.sum() / batch.count  # to sum w g / count, from sum w g / sum w
            grads = jax.tree.map(lambda g: scale * g, grads)
        for penalty in regularisation.penalties:
            grads = penalty.gradient(params, grads)
        updates, opt_state = optimizer.update(
            grads, opt_state, params, value=mean(losses, problem.weights), grad=grads,
            value_fn=lambda p: _whole_cost(plan, regularisation, p, problem),
        )  # fmt: skip
        rule_state = plan.rule.learned(rule_state, params, grads, updates)  # pyright: ignore[reportArgumentType]
        params = optax.apply_updates(params, updates)
        for penalty in regularisation.penalties:
            params = penalty.project(params)  # pyright: ignore[reportArgumentType]
        average = average if average is None else average.after(params)
        return (params, opt_state, rule_state, average), _sums(plan, batch, losses, y_hat)

    carry = (state.params, state.opt_state, state.rule_state, state.average)
    if len(jax.tree.leaves(batches)) == 0 or plan.steps == 1:
        carry, sums = step(carry, jax.tree.map(lambda array: array[0], batches))
    else:
        carry, sums = jax.lax.scan(step, carry, batches, unroll=2 if _read_twice(plan.net) else 1)
    params, opt_state, rule_state, average = carry
    state = state._replace(params=params, opt_state=opt_state, rule_state=rule_state, average=average)
    return state, {name: s.sum() for name, s in sums.items()}


def _read_twice(net: MLP) -> bool:
    """Whether a matrix that backpropagation reads again, thus not the first, is larger than a core's cache.

    In a loop of single steps XLA copies such a matrix at every step, lest it be updated before it is read; of two steps
    in one turn of the loop the first writes beside it, and nothing is copied.
    """
    return max((n_out * n_in for n_out, n_in in net.shapes[1:]), default=0) >= LARGE


def _sums(plan: Plan, batch: Batch, losses: Float[Array, " b"], y_hat: Float[Array, "b k"]) -> Sums:
    weights = jnp.ones_like(losses) if batch.weights is None else batch.weights.astype(losses.dtype)
    sums = {"weight": weights.sum(), "cost": weights @ losses}
    if plan.accuracy:
        sums["accuracy"] = weights @ (classes(y_hat) == classes(batch.Y)).astype(losses.dtype)
    return sums


def prepared(plan: Plan, regularisation: Regularisation, params: Params, batch: Batch) -> Problem:
    """Augmented, preprocessed, noisy inputs, smoothed labels, and masks."""
    X, Y, m, dtype = batch.X, batch.Y, batch.X.shape[0], params[0].W.dtype
    own = lambda use: jax.random.fold_in(batch.key, use)  # pyright: ignore[reportArgumentType]
    if plan.augment is not None:
        X = jax.vmap(plan.augment)(jax.random.split(own(AUGMENT), m), X)
    X = jax.vmap(lambda x: network_input(params, x, plan.preprocess))(X)
    if regularisation.input_noise is not None:
        X = X + regularisation.input_noise.astype(dtype) * jax.random.normal(own(NOISE), X.shape, dtype)
    if regularisation.label_smoothing is not None:
        Y = smoothed(plan.net, Y, regularisation.label_smoothing.astype(dtype))
    masks = regularisation.keep
    if masks is not None:
        masks = dropout_masks(plan.net, own(DROPOUT), masks, m, dtype)
    weights = None if batch.weights is None else batch.weights.astype(dtype)
    return Problem(X, Y, weights, masks, batch.key)


def smoothed(net: MLP, Y: Array, share: Float[Array, ""]) -> Float[Array, "b k"]:
    """`(1 - s) y + s / k`, k the number of classes (2 for a single output). Szegedy et al. 2016."""
    k = net.sizes[-1]
    if net.loss.takes_classes(Y, ndim=1):
        Y = jax.nn.one_hot(Y, k, dtype=share.dtype)
    return (1 - share) * Y.astype(share.dtype) + share / (k if net.loss.targets == "distribution" else 2)


def by_hand(plan: Plan, params: Params, rule_state: tuple[Any, ...], problem: Problem):
    """The losses and outputs of a batch, and the gradient read from the trace of the hand-written pass."""
    X, Y, weights, masks, key = problem
    if plan.readout is None:
        return gradient_pass(plan.net, params, X, Y, weights, masks, None, plan.rule, rule_state)
    trace = backprop(plan.net, params, X, Y, masks=masks, rule=plan.rule, rule_state=rule_state)
    return trace.losses, trace.output, plan.readout(trace, weights, jax.random.fold_in(key, READOUT))


def _whole_cost(plan: Plan, regularisation: Regularisation, params: Params, problem: Problem) -> Float[Array, ""]:
    """For optimisers that search a line."""
    X, Y, weights, masks, _ = problem
    penalty = sum(penalty.cost(params) for penalty in regularisation.penalties)
    return cost(plan.net, params, X, Y, weights=weights, masks=masks) + penalty
