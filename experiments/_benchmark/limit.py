"""The limit of an epoch on this machine: its matrix products alone, or its bytes at the speed of a copy."""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments._benchmark.problem import Problem

MEMORY = 1 << 28  # bytes: more than any cache holds
SMALLEST = 1 << 17  # bytes: a pass over fewer is over before it can be timed


class Products:
    """The products of an epoch's steps and nothing else, in one compiled program: `Z = A W^T`, `D W`, `D^T A`.

    A step takes the layers in turn, forward and back, as if every activation were the identity, on one batch. For all
    that XLA knows a barrier changes what passes it: no product is left out, done once for all steps, or merged with
    another (the last `D W` would be taken transposed for `D^T A`, which takes three times as long).
    """

    def __init__(self, problem: Problem) -> None:
        self.inputs = (jnp.asarray(problem.X[: problem.batch_size]), [jnp.asarray(W) for W, _ in problem.weights])
        apart: Callable = jax.lax.optimization_barrier

        def step(carry, _):
            X, Ws, _ = carry
            A = [X]
            for W in Ws:
                A.append(apart(A[-1] @ W.T))
            D, grads = A.pop(), []
            for W, a in zip(Ws[:0:-1], A[:0:-1], strict=True):
                grads.append(D.T @ a)
                D = apart(D @ W)
            return apart((X, Ws, [D.T @ X, *grads[::-1]])), None

        def epoch(X, Ws):
            carry = X, Ws, jax.tree.map(jnp.zeros_like, Ws)
            return jax.lax.scan(step, carry, None, length=problem.steps)[0][2]

        self.run = jax.jit(epoch).lower(*self.inputs).compile()

    def __call__(self) -> None:
        jax.block_until_ready(self.run(*self.inputs))


def step_bytes(problem: Problem) -> int:
    """What one step must move, in float32, however well its parts are fused.

    Weights are read by the forward pass, read and written by the update, and above the first layer read by the
    backward pass; the batch is read and written where it is gathered; activations and error signals are written and
    read. The gradient itself is not counted: at batch 1 it is never written.
    """
    weights = sum(3 * (W.size + b.size) for W, b in problem.weights) + sum(W.size for W, _ in problem.weights[1:])
    widths = problem.net.sizes
    return 4 * (weights + problem.batch_size * (2 * widths[0] + 4 * sum(widths[1:])))


def bandwidth(problem: Problem) -> float:
    """Bytes in a second, those read and those written, of a pass over as many bytes as the weights are.

    Where these fit into a cache its speed counts, not the main memory's.
    """
    return passed(1 << max(SMALLEST, 4 * sum(W.size for W, _ in problem.weights) - 1).bit_length())


@functools.cache
def passed(size: int) -> float:
    """Bytes in a second where a jitted loop reads `size` bytes and writes them, over and over: the best of a few."""
    turns = max(2, MEMORY // size)
    go = jax.jit(lambda a: jax.lax.fori_loop(0, turns, lambda _, a: a + 1, a), donate_argnums=0)
    a, seconds = go(jnp.zeros(size // 4)), []
    for _ in range(5):
        began = time.perf_counter()
        a = jax.block_until_ready(go(a))
        seconds.append(time.perf_counter() - began)
    return 2 * size * turns / min(seconds)


def bytes_seconds(problem: Problem) -> float:
    """An epoch's bytes at that speed."""
    return problem.steps * step_bytes(problem) / bandwidth(problem)


def limit(products: np.ndarray, problem: Problem) -> np.ndarray:
    """Round by round, the more of the two."""
    return np.maximum(products, bytes_seconds(problem))
