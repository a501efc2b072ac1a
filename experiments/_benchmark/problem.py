"""What every peer is given: a network's size, initial weights, pictures, and how an epoch goes through them."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlp as jm
from experiments.datasets import Pictures

EPOCH_SECONDS = 0.11  # about how long ours is to take on two cores
STEPS, LONGEST = 40, 2.0  # at least so many steps, where they take no more seconds: what ours does once an epoch (it
# looks for divergence, and keeps the weights before it) takes as long as half a step of the widest network, and the
# 468 steps of a whole epoch of MNIST at batch 128 would take 10 s a round, and the peers 20
STEP_SECONDS, OPERATIONS, WEIGHTS = 8e-6, 4e11, 5e9  # the least time of a step, and what is done in a second at most


@dataclass(frozen=True)
class Problem:
    """An epoch of plain SGD on the cross-entropy of a ReLU network: every example once, in a new order, no penalty."""

    net: jm.MLP
    weights: tuple[tuple[np.ndarray, np.ndarray], ...]  # (W, b) of each layer
    X: np.ndarray  # (m, i) float32 from 0 to 1
    pixels: np.ndarray  # the same as bytes
    Y: np.ndarray  # (m,) int32
    batch_size: int
    rate: float = 0.01

    @cached_property
    def on_device(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`X`, `pixels`, `Y`: one copy for all, for where an array lies in memory may cost a tenth of an epoch."""
        return jnp.asarray(self.X), jnp.asarray(self.pixels), jnp.asarray(self.Y)

    @property
    def steps(self) -> int:
        """In an epoch; all batches are equally large."""
        return len(self.X) // self.batch_size


def widths(name: str) -> tuple[int, ...]:
    """`784-64-10` is (784, 64, 10)."""
    parts = name.split("-")
    if len(parts) < 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"networks has {name!r}, expected widths such as 784-64-10")
    sizes = tuple(map(int, parts))
    if (sizes[0], sizes[-1]) != (784, 10):
        raise ValueError(f"networks has {name!r}, expected 784 inputs and 10 outputs, as MNIST has")
    return sizes


def steps_for(sizes: tuple[int, ...], batch_size: int, available: int = 60_000) -> int:
    """How many steps make an epoch that is long enough to be timed: the same on every machine."""
    weights = sum(i * o for i, o in pairwise(sizes))
    step = max(STEP_SECONDS, 6 * batch_size * weights / OPERATIONS, weights / WEIGHTS)
    return max(1, min(available // batch_size, max(2, round(EPOCH_SECONDS / step), min(STEPS, round(LONGEST / step)))))


def posed(sizes: tuple[int, ...], batch_size: int, pictures: Pictures, rate: float, steps: int = 0) -> Problem:
    """The problem of one network and batch size; of so many steps if they are given."""
    net = jm.MLP(sizes, "relu", "softmax", "cross_entropy")
    m = batch_size * (steps or steps_for(sizes, batch_size, len(pictures.X)))
    weights = tuple((np.asarray(W), np.asarray(b)) for W, b in jm.init(net, jax.random.key(0)))
    pixels = np.ascontiguousarray(pictures.X[:m].reshape(m, -1))
    return Problem(net, weights, (pixels / np.float32(255)).astype(np.float32), pixels, pictures.Y[:m], batch_size,
                   rate)  # fmt: skip
