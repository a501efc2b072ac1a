"""Which examples a step sees: an epoch's order, drawn from its key, and the gathering of one batch.

Sources: notes 002, "Mini Batch Gradient Descent"; 004, "Stochastic Gradient Descent (SGD)", for draws with replacement.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray

from jaxmlp import norms
from jaxmlp.training import processes
from jaxmlp.training.sharding import DATA, along, length
from jaxmlp.training.state import Data, Plan

FULL_BATCH_UP_TO, MINI_BATCH = 2000, 64  # notes 002, "Choosing Batches"

POISSON, READOUT, AUGMENT, NOISE, DROPOUT, OPTIMIZER = range(6)  # folded into a key, a number for each use of it


class Batch(NamedTuple):
    """One step's examples; in a part of a stream, a row of batches with one entry a step."""

    X: Num[Array, "*b"]
    Y: Num[Array, "*b"]
    weights: Float[Array, "*b"] | None = None  # None: all count alike
    count: Float[Array, ""] | int | None = None  # divides `sum w g`; None: the sum of the weights does
    key: PRNGKeyArray | None = None  # for what the step draws


class Drawn(NamedTuple):
    """What decides a step's batch, one entry a step; a field is None where it decides nothing."""

    index: Int[Array, "n *s b"] | None = None  # the examples, of each share its own; None: all of them
    counted: Bool[Array, "n *s b"] | None = None  # which of them count: the others fill up a ragged batch
    key: PRNGKeyArray | None = None


def choose_batch_size(given: int | None, m: int, sampling: str) -> int:
    """The batch size that is given; by default all of a small set."""
    if given is None:
        return 1 if sampling == "replacement" else m if m <= FULL_BATCH_UP_TO else MINI_BATCH
    if given > m:
        raise ValueError(f"batch_size is {given}, but there are {m} examples; expected at most {m}")
    return given


def choose_shares(given: int | None, mesh: Mesh | None, m: int, sampling: str) -> int:
    """The number of shares in which m examples, this process's own, are shuffled; by default the least that works."""
    several, devices = processes.count(mesh), length(mesh, DATA)
    if devices % several:
        raise ValueError(f"mesh's data axis has {devices} devices, expected a multiple of the {several} processes")
    shares = (1 if several == 1 else devices) if given is None else given
    if shares > 1 and sampling == "poisson":
        raise ValueError(f"shares is {shares}, expected 1 with sampling='poisson', which draws all examples jointly")
    if shares > 1 and shares % devices:
        raise ValueError(f"shares is {shares}, expected a multiple of the {devices} devices of mesh's data axis")
    if m * several % shares:
        raise ValueError(
            f"data has {m * several} examples, expected a multiple of its {shares} shares: leave some out, such as "
            f"the last {m * several % shares}"
        )
    return shares


def check_divides(batch_size: int, mesh: Mesh | None, shares: int, sampling: str) -> None:
    """Refuses a batch whose examples neither shares nor devices divide."""
    devices = length(mesh, DATA)
    if batch_size % shares:
        raise ValueError(f"batch_size is {batch_size}, expected a multiple of the {shares} shares")
    if batch_size % devices and sampling != "poisson":  # Poisson batches are filled up
        raise ValueError(
            f"batch_size is {batch_size}, expected a multiple of the {devices} devices of mesh's data axis"
        )


def count_steps(plan: Plan, m: int, epochs: int | None, steps: int | None, validate_every: int | None) -> list[int]:
    """The number of optimizer steps of each epoch, or of each stretch between validations."""
    if plan.sampling != "replacement":
        if epochs is None or steps is not None or validate_every is not None:
            raise ValueError(
                f"epochs is {epochs}, steps is {steps}, validate_every is {validate_every}; expected epochs alone "
                f"with sampling={plan.sampling!r} (steps go with sampling='replacement')"
            )
        return [math.ceil(m / plan.batch_size)] * epochs
    if steps is None or epochs is not None:
        raise ValueError(f"steps is {steps}, epochs is {epochs}; expected steps with sampling='replacement'")
    every = min(steps, math.ceil(m / plan.batch_size)) if validate_every is None else validate_every
    whole, rest = divmod(steps, every)
    return [every] * whole + ([rest] if rest else [])


def check_reached(reached: list[int], at: list[int], unit: str, folder: Any) -> None:
    """Refuses a call for fewer epochs than the run has done, or with validations at other steps."""
    if len(reached) > len(at) and reached[: len(at)] == at:
        raise ValueError(
            f"{unit}s is {at[-1]}, but the run in checkpoints={str(folder)!r} has done {reached[-1]}; expected at "
            "least as many, or another folder"
        )
    if reached != at[: len(reached)]:
        raise ValueError(
            f"validate_every sets {unit}s {', '.join(map(str, at[:3]))}, .., but the run in checkpoints="
            f"{str(folder)!r} was validated at {', '.join(map(str, reached[-3:]))}; expected the same steps, or "
            "another folder"
        )


def draw(plan: Plan, data: Data, key: PRNGKeyArray, random: bool) -> Drawn:
    """Draws the batches of one epoch; `random`: with a key for each step."""
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
    """The examples, out of m, in each batch of b, and which of these count."""
    shape = (plan.steps, b)
    if plan.sampling == "replacement":
        return jax.random.randint(key, shape, 0, m), None
    missing = plan.steps * b - m
    index = jnp.pad(permute(key, m), (0, missing)).reshape(shape)
    counted = (jnp.arange(m + missing) < m).reshape(shape)
    return index, counted if missing else None


def gather(plan: Plan, data: Data, drawn: Drawn) -> Batch:
    """The batch of one entry of `draw`, with its examples along the mesh's `data`."""
    index, counted = drawn.index, drawn.counted
    if plan.sampling == "poisson":
        assert drawn.key is not None
        index, counted = _toss(plan, drawn.key, data.X.shape[0])
    if index is None:
        count = None if data.weights is None else data.X.shape[0]
        return place(plan.mesh, Batch(data.X, data.Y, data.weights, count, drawn.key))
    take = lambda array: array.at[index].get(mode="promise_in_bounds")
    if plan.shares > 1:
        take = partial(_take_of_shares, index)
        counted = None if counted is None else counted.reshape(-1)
    weights, count = None if counted is None else counted.astype(jnp.float32), None
    if data.weights is not None:
        weights = take(data.weights)
        count = index.size
        if counted is not None:
            count = jnp.maximum(counted.sum(), 1).astype(norms.wide(weights.dtype))
            weights = jnp.where(counted, weights, 0)
    return place(plan.mesh, Batch(take(data.X), take(data.Y), weights, count, drawn.key))


def place(mesh: Mesh | None, batch: Batch) -> Batch:
    """The batch with its examples along the mesh's `data`."""
    if mesh is None:
        return batch
    X, Y, weights = along(mesh, DATA, (batch.X, batch.Y, batch.weights))
    return batch._replace(X=X, Y=Y, weights=weights)


def _take_of_shares(index: Int[Array, "s b"], array: Num[Array, "m ..."]) -> Num[Array, "sb ..."]:
    """Takes each share's examples from that share, so nothing passes between devices that hold different shares."""
    shares = array.reshape(len(index), -1, *array.shape[1:])
    taken = jax.vmap(lambda share, i: share.at[i].get(mode="promise_in_bounds"))(shares, index)
    return taken.reshape(-1, *array.shape[1:])


def _toss(plan: Plan, key: PRNGKeyArray, m: int) -> tuple[Int[Array, " b"], Bool[Array, " b"]]:
    """Takes each of m examples with probability `batch_size / m`; pads to a size 10 deviations above the mean."""
    b, devices = plan.batch_size, 1 if plan.mesh is None else plan.mesh.size
    size = min(m, math.ceil(b + 10 * math.sqrt(b * (1 - b / m)) + 10))
    size = devices * math.ceil(size / devices)  # which a mesh divides
    chosen = jax.random.bernoulli(jax.random.fold_in(key, POISSON), b / m, (m,))
    index = jnp.nonzero(chosen, size=size, fill_value=0)[0]
    return index, jnp.arange(size) < chosen.sum()


def permute(key: PRNGKeyArray, m: int) -> Int[Array, " m"]:
    """The numbers 0 .. m - 1 in random order: `jax.random.permutation`, bit for bit, 4 times faster on a CPU."""
    # XLA's sort of several arrays calls a comparison for each pair; on a CPU the sort of one array is much faster.
    return jax.lax.platform_dependent(key, cpu=lambda key: _sort_words(key, m), default=lambda key: _sort_pairs(key, m))


def _sort_pairs(key: PRNGKeyArray, m: int) -> Int[Array, " m"]:
    return jax.random.permutation(key, jnp.arange(m, dtype=jnp.int32))


def _sort_words(key: PRNGKeyArray, m: int) -> Int[Array, " m"]:
    """Sorts by 32 random bits, as often as jax.random does; bits and place are the halves of one 64-bit word."""
    order = jnp.arange(m, dtype=jnp.int32)
    for _ in range(math.ceil(3 * math.log(m) / math.log(2**32 - 1))):
        key, own = jax.random.split(key)
        bits = jax.random.bits(own, (m,), jnp.uint32)
        with jax.enable_x64(True):
            words = (bits.astype(jnp.uint64) << jnp.uint64(32)) | jnp.arange(m, dtype=jnp.uint64)
            index = jax.lax.sort(words, is_stable=False).astype(jnp.uint32)
        order = order.at[index].get(mode="promise_in_bounds")
    return order
