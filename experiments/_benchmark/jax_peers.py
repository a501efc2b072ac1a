"""Equinox and Flax with optax, in the loop of their documentation: a jitted step for each batch."""
# pyright: reportMissingImports=false

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments._benchmark.problem import Problem


class Loop:
    """An epoch in Python: batches sliced from a NumPy permutation, and a compiled step on each."""

    def __init__(self, problem: Problem, carry: Any, step: Callable, weights_of: Callable) -> None:
        self.problem, self.carry, self.step, self.weights_of = problem, carry, step, weights_of
        self.random = np.random.default_rng(0)

    def __call__(self) -> None:
        X, Y, b = self.problem.X, self.problem.Y, self.problem.batch_size
        order = self.random.permutation(len(X))
        for first in range(0, len(X), b):
            index = order[first : first + b]
            self.carry = self.step(*self.carry, X[index], Y[index])
        jax.block_until_ready(self.carry)

    def weights(self) -> list[tuple[Any, Any]]:
        """`(W, b)` of each layer."""
        return self.weights_of(self.carry[0])


def equinox(problem: Problem) -> Loop:
    """A module of `eqx.nn.Linear`, `eqx.filter_jit` and `eqx.filter_value_and_grad`."""
    import equinox as eqx

    class Network(eqx.Module):
        layers: list

        def __call__(self, x):
            for layer in self.layers[:-1]:
                x = jax.nn.relu(layer(x))
            return self.layers[-1](x)

    layers = []
    for W, b in problem.weights:
        linear = eqx.nn.Linear(W.shape[1], W.shape[0], key=jax.random.key(0))
        layers.append(eqx.tree_at(lambda l: (l.weight, l.bias), linear, (jnp.asarray(W), jnp.asarray(b))))
    model, optimizer = Network(layers), optax.sgd(problem.rate)

    def cost(model, X, Y):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(X), Y).mean()

    @eqx.filter_jit
    def step(model, opt_state, X, Y):
        _, grads = eqx.filter_value_and_grad(cost)(model, X, Y)
        updates, opt_state = optimizer.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), opt_state

    carry = model, optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    return Loop(problem, carry, step, lambda model: [(layer.weight, layer.bias) for layer in model.layers])


def flax(problem: Problem) -> Loop:
    """Flax's linen and `TrainState` under `jax.jit`; at 784-64-10, batch 32, Flax's nnx takes three times as long."""
    from flax import linen
    from flax.training.train_state import TrainState

    dtype = jnp.bfloat16 if problem.net.products == "bfloat16" else jnp.float32

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x):
            for width in problem.net.sizes[1:-1]:
                x = linen.relu(linen.Dense(width, dtype=dtype)(drop(x)))
            return linen.Dense(problem.net.sizes[-1], dtype=dtype)(drop(x)).astype(jnp.float32)

    def drop(x):
        return x if problem.keep is None else linen.Dropout(1 - problem.keep, deterministic=False)(x)

    params = {f"Dense_{l}": {"kernel": jnp.asarray(W.T), "bias": jnp.asarray(b)}
              for l, (W, b) in enumerate(problem.weights)}  # fmt: skip
    state = TrainState.create(apply_fn=Network().apply, params=params, tx=optax.sgd(problem.rate))

    @jax.jit
    def step(state, X, Y):
        rngs = None if problem.keep is None else {"dropout": jax.random.fold_in(jax.random.key(0), state.step)}

        def cost(params):
            scores = state.apply_fn({"params": params}, X, rngs=rngs)
            return optax.softmax_cross_entropy_with_integer_labels(scores, Y).mean()

        return (state.apply_gradients(grads=jax.grad(cost)(state.params)),)

    read = lambda state: [(layer["kernel"].T, layer["bias"]) for _, layer in sorted(state.params.items())]
    return Loop(problem, (state,), step, read)
