"""Which examples a step sees: the order of an epoch, drawn from its key, and the gathering of one batch.

Sources: notes 002, "Mini Batch Gradient Descent"; 004, "Stochastic Gradient Descent (SGD)", for draws with replacement.
"""

import math
from functools import partial
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

    index: Int[Array, "n *s b"] | None = None  # the examples, of each share its own; None: all of them
    counted: Bool[Array, "n *s b"] | None = None  # which of them count: the others fill up a ragged batch
    key: PRNGKeyArray | None = None


def draws(plan: Plan, data: Data, key: PRNGKeyArray, random: bool) -> Drawn:
    """The batches of one epoch; `random`: with a key for each step."""
    order_key, step_key = jax.random.split(key) if random else (key, None)
    keys = None if step_key is None else jax.random.split(step_key, plan.steps)
    if plan.sampling == "poisson":
        return Drawn(key=jax.random.split(order_key, plan.steps) if keys is None else keys)
    if plan.sampling == "shuffle" and plan.batch_size == data.X.shape[0]:
        return Drawn(key=keys)
    if plan.shares == 1:
        return Drawn(*_order(plan, data.X.shape[0], plan.batch_size, order_key), keys)
    m, b = data.X.shape[0] // plan.shares, plan.batch_size // plan.shares
    of_shares = jax.vmap(lambda key: _order(plan, m, b, key))(jax.random.split(order_key, plan.shares))
    index, counted = jax.tree.map(lambda array: jnp.moveaxis(array, 1, 0), of_shares)
    return Drawn(index, counted, keys)


def _order(plan: Plan, m: int, b: int, key: PRNGKeyArray) -> tuple[Int[Array, "n b"], Bool[Array, "n b"] | None]:
    """Which of m examples are in each batch of b, and which of these count."""
    shape = (plan.steps, b)
    if plan.sampling == "replacement":
        return jax.random.randint(key, shape, 0, m), None
    missing = plan.steps * b - m
    index = jnp.pad(permutation(key, m), (0, missing)).reshape(shape)
    counted = (jnp.arange(m + missing) < m).reshape(shape)
    return index, counted if missing else None


def gather(plan: Plan, data: Data, drawn: Drawn) -> Batch:
    """The batch that one entry of `draws` stands for."""
    index, counted = drawn.index, drawn.counted
    if plan.sampling == "poisson":
        assert drawn.key is not None
        index, counted = _toss(plan, drawn.key, data.X.shape[0])
    if index is None:
        return Batch(data.X, data.Y, data.weights, None if data.weights is None else data.X.shape[0], drawn.key)
    take = lambda array: array.at[index].get(mode="promise_in_bounds")
    if plan.shares > 1:
        take = partial(_take_of_shares, index)
        counted = None if counted is None else counted.reshape(-1)
    weights, count = None if counted is None else counted.astype(jnp.float32), None
    if data.weights is not None:
        weights = take(data.weights)
        count = index.size
        if counted is not None:
            weights, count = jnp.where(counted, weights, 0), jnp.maximum(counted.sum(), 1).astype(weights.dtype)
    return Batch(take(data.X), take(data.Y), weights, count, drawn.key)


def _take_of_shares(index: Int[Array, "s b"], array: Num[Array, "m ..."]) -> Num[Array, "sb ..."]:
    """Of each share its own examples: where the shares are on different devices, nothing passes between these."""
    shares = array.reshape(len(index), -1, *array.shape[1:])
    taken = jax.vmap(lambda share, i: share.at[i].get(mode="promise_in_bounds"))(shares, index)
    return taken.reshape(-1, *array.shape[1:])


def _toss(plan: Plan, key: PRNGKeyArray, m: int) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """Each of m examples with probability `batch_size / m`, padded to a size that 10 deviations do not exceed."""
    b, devices = plan.batch_size, 1 if plan.mesh is None else plan.mesh.size
    size = min(m, math.ceil(b + 10 * math.sqrt(b * (1 - b / m)) + 10))
    size = devices * math.ceil(size / devices)  # which a mesh divides
    chosen = jax.random.bernoulli(jax.random.fold_in(key, 0), b / m, (m,))
    index = jnp.nonzero(chosen, size=size, fill_value=0)[0]
    return index, jnp.arange(size) < chosen.sum()


def permutation(key: PRNGKeyArray, m: int) -> Int[Array, " m"]:
    """The numbers 0 .. m - 1 in random order."""
    # XLA's sort of several arrays calls a comparison for each pair; on a CPU that of one array is a plain sort.
    return jax.lax.platform_dependent(key, cpu=lambda key: _packed(key, m), default=lambda key: _by_jax(key, m))


def _by_jax(key: PRNGKeyArray, m: int) -> Int[Array, " m"]:
    return jax.random.permutation(key, jnp.arange(m, dtype=jnp.int32))


def _packed(key: PRNGKeyArray, m: int) -> Int[Array, " m"]:
    """Sorts by 32 random bits, as often as jax.random does; bits and place are the halves of one number."""
    order = jnp.arange(m, dtype=jnp.int32)
    for _ in range(math.ceil(3 * math.log(m) / math.log(2**32 - 1))):
        key, own = jax.random.split(key)
        bits = jax.random.bits(own, (m,), jnp.uint32)
        with jax.enable_x64(True):
            words = (bits.astype(jnp.uint64) << jnp.uint64(32)) | jnp.arange(m, dtype=jnp.uint64)
            place = jax.lax.sort(words, is_stable=False).astype(jnp.uint32)
        order = order.at[place].get(mode="promise_in_bounds")
    return order
