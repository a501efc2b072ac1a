"""The limit of an epoch on this machine: its matrix products alone, or its bytes at the speed of a copy."""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments._benchmark.problem import Problem

MEMORY = 1 << 28  # bytes: more than any cache holds
SMALLEST = 1 << 17  # bytes: a pass over fewer is too short to time


class Products:
    """The products of an epoch's steps and nothing else, in one compiled program: `Z = A W^T`, `D W`, `D^T A`.

    A step takes one batch through the layers, forward and back, as if every activation were the identity. XLA must
    assume that a barrier changes its arguments. So it leaves no product out, moves none out of the loop, and merges
    none with another. (It would transpose the last `D W` for `D^T A`, and that takes three times as long.)
    """

    def __init__(self, problem: Problem) -> None:
        self.inputs = (jnp.asarray(problem.X[: problem.batch_size]), [jnp.asarray(W) for W, _ in problem.weights])
        barrier: Callable = jax.lax.optimization_barrier

        def step(carry, _):
            X, Ws, _ = carry
            A = [X]
            for W in Ws:
                A.append(barrier(A[-1] @ W.T))
            D, grads = A.pop(), []
            for W, a in zip(Ws[:0:-1], A[:0:-1], strict=True):
                grads.append(D.T @ a)
                D = barrier(D @ W)
            return barrier((X, Ws, [D.T @ X, *grads[::-1]])), None

        def epoch(X, Ws):
            carry = X, Ws, jax.tree.map(jnp.zeros_like, Ws)
            return jax.lax.scan(step, carry, None, length=problem.steps)[0][2]

        self.run = jax.jit(epoch).lower(*self.inputs).compile()

    def __call__(self) -> None:
        jax.block_until_ready(self.run(*self.inputs))


def step_bytes(problem: Problem) -> int:
    """The float32 bytes that one step must move, even when XLA fuses its parts perfectly.

    The forward pass reads the weights, the backward pass reads those above the first layer, and the update reads and
    writes them all. Gathering reads and writes the batch. Activations and error signals are written and read once.
    The gradient does not count: at batch 1 it is never written.
    """
    weights = sum(3 * (W.size + b.size) for W, b in problem.weights) + sum(W.size for W, _ in problem.weights[1:])
    widths = problem.net.sizes
    return 4 * (weights + problem.batch_size * (2 * widths[0] + 4 * sum(widths[1:])))


def bandwidth(problem: Problem) -> float:
    """Bytes read and written in a second by a pass over about as many bytes as the weights have.

    Weights that fit into a cache are measured at the speed of that cache.
    """
    return measure_copy_speed(1 << max(SMALLEST, 4 * sum(W.size for W, _ in problem.weights) - 1).bit_length())


@functools.cache
def measure_copy_speed(size: int) -> float:
    """Bytes read and written in a second by a jitted loop over `size` bytes: the best of five runs."""
    turns = max(2, MEMORY // size)
    go = jax.jit(lambda a: jax.lax.fori_loop(0, turns, lambda _, a: a + 1, a), donate_argnums=0)
    a, seconds = go(jnp.zeros(size // 4)), []
    for _ in range(5):
        began = time.perf_counter()
        a = jax.block_until_ready(go(a))
        seconds.append(time.perf_counter() - began)
    return 2 * size * turns / min(seconds)


def bytes_seconds(problem: Problem) -> float:
    """The seconds of an epoch that moves its bytes at that speed and does nothing else."""
    return problem.steps * step_bytes(problem) / bandwidth(problem)


def limit_seconds(products: np.ndarray, problem: Problem) -> np.ndarray:
    """The limit of each round: the seconds of the products or of the bytes, whichever are more."""
    return np.maximum(products, bytes_seconds(problem))
