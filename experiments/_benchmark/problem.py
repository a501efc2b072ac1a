"""The task of every contestant: a network, its initial weights, the pictures, and the steps of an epoch."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlp as jm
from experiments.datasets import Pictures
from jaxmlp.network import Params

EPOCH_SECONDS, QUICK_SECONDS = 0.11, 0.02  # aims for an epoch of ours on two cores
# An epoch has at least STEPS steps, unless they take more than LONGEST seconds. Fewer would distort the ratios: once an
# epoch ours checks for divergence and keeps the earlier weights, which costs half a step of the widest network. A whole
# epoch of MNIST would take too long: at batch 128 its 468 steps take 10 s a round, and the peers' 20 s.
STEPS, LONGEST = 40, 2.0
STEP_SECONDS = 8e-6  # the shortest step
OPERATIONS, WEIGHTS = 4e11, 5e9  # floating-point operations, and weights moved, in a second at most


@dataclass(frozen=True)
class Problem:
    """An epoch of plain SGD on the cross-entropy of a ReLU network: every example once, in a new order, no penalty."""

    net: jm.MLP
    weights: tuple[tuple[np.ndarray, np.ndarray], ...]  # (W, b) of each layer
    X: np.ndarray  # (m, i) float32 from 0 to 1
    pixels: np.ndarray  # the same pictures as bytes
    Y: np.ndarray  # (m,) int32
    batch_size: int
    rate: float = 0.01
    keep: float | None = None  # dropout: the probability of keeping an input or a hidden unit

    @cached_property
    def on_device(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`X`, `pixels`, `Y`: one copy for all, because an array's place in memory can cost a tenth of an epoch."""
        return jnp.asarray(self.X), jnp.asarray(self.pixels), jnp.asarray(self.Y)

    @property
    def params(self) -> Params:
        """New arrays of the weights."""
        return tuple(jm.Layer(jnp.asarray(W), jnp.asarray(b)) for W, b in self.weights)

    @property
    def steps(self) -> int:
        """The steps of an epoch; all batches have the same size."""
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


def steps_for(sizes: tuple[int, ...], batch_size: int, available: int = 60_000, seconds: float = EPOCH_SECONDS) -> int:
    """The number of steps that make an epoch about this long; the same on every machine."""
    weights = sum(i * o for i, o in pairwise(sizes))
    step = max(STEP_SECONDS, 6 * batch_size * weights / OPERATIONS, weights / WEIGHTS)
    return max(1, min(available // batch_size, max(2, round(seconds / step), min(STEPS, round(LONGEST / step)))))


def make_problem(sizes: tuple[int, ...], batch_size: int, pictures: Pictures, rate: float, steps: int = 0) -> Problem:
    """The problem of one network and batch size, with `steps` steps or as many as `steps_for` says."""
    net = jm.MLP(sizes, "relu", "softmax", "cross_entropy")
    m = batch_size * (steps or steps_for(sizes, batch_size, len(pictures.X)))
    weights = tuple((np.asarray(W), np.asarray(b)) for W, b in jm.init(net, jax.random.key(0)))
    pixels = np.ascontiguousarray(pictures.X[:m].reshape(m, -1))
    return Problem(net, weights, (pixels / np.float32(255)).astype(np.float32), pixels, pictures.Y[:m], batch_size,
                   rate)  # fmt: skip
