"""Which examples a step sees: the order of an epoch, drawn from its key, and the gathering of one batch.

Sources: notes 002, "Mini Batch Gradient Descent"; 004, "Stochastic Gradient Descent (SGD)", for draws with replacement.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from jaxmlp.training.state import Data, Plan


class Batch(NamedTuple):
    """One step's examples; of a stream, a row of them with one entry a step."""

    X: Num[Array, "*b"]
    Y: Num[Array, "*b"]
    weights: Float[Array, "*b"] | None = None  # None: all count alike
    count: Float[Array, ""] | int | None = None  # divides `sum w g`; None: the sum of the weights does
    key: PRNGKeyArray | None = None  # for what the step draws


class Drawn(NamedTuple):
    """What decides a step's batch, one entry a step; None where nothing needs to be said."""

    index: Int[Array, "n b"] | None = None  # the examples; None: all of them
    counted: Bool[Array, "n b"] | None = None  # which of them count: the others fill up a ragged batch
    key: PRNGKeyArray | None = None


def draws(plan: Plan, data: Data, key: PRNGKeyArray, random: bool) -> Drawn:
    """The batches of one epoch; `random`: with a key for each step."""
    m, shape = data.X.shape[0], (plan.steps, plan.batch_size)
    order_key, step_key = jax.random.split(key) if random else (key, None)
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


def gather(plan: Plan, data: Data, drawn: Drawn) -> Batch:
    """The batch that one entry of `draws` stands for."""
    index, counted = drawn.index, drawn.counted
    if plan.sampling == "poisson":
        assert drawn.key is not None
        index, counted = _toss(drawn.key, data.X.shape[0], plan.batch_size)
    if index is None:
        return Batch(data.X, data.Y, data.weights, None if data.weights is None else data.X.shape[0], drawn.key)
    take = lambda array: array.at[index].get(mode="promise_in_bounds")
    weights, count = None if counted is None else counted.astype(jnp.float32), None
    if data.weights is not None:
        weights = take(data.weights)
        count = index.shape[0]
        if counted is not None:
            weights, count = jnp.where(counted, weights, 0), jnp.maximum(counted.sum(), 1).astype(weights.dtype)
    return Batch(take(data.X), take(data.Y), weights, count, drawn.key)


def _toss(key: PRNGKeyArray, m: int, batch_size: int) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """Each of m examples with probability `batch_size / m`, padded to a size that 10 deviations do not exceed."""
    q = batch_size / m
    size = min(m, math.ceil(batch_size + 10 * math.sqrt(batch_size * (1 - q)) + 10))
    chosen = jax.random.bernoulli(jax.random.fold_in(key, 0), q, (m,))
    index = jnp.nonzero(chosen, size=size, fill_value=0)[0]
    return index, jnp.arange(size) < chosen.sum()
