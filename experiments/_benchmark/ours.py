"""Our epoch as `fit` compiles it, and the same epoch with its gradient by `jax.grad`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxmlp as jm
from experiments._benchmark.problem import Problem
from jaxmlp import rules, training
from jaxmlp.data import scale_pixels
from jaxmlp.training import step
from jaxmlp.training.regularization import Regularization


@contextmanager
def gradient_by(function: Callable) -> Iterator[None]:
    """Puts `function` in the place of `training.step.by_hand` for every epoch that is traced in the meantime."""
    by_hand = step.by_hand
    step.by_hand = function
    try:
        yield
    finally:
        step.by_hand = by_hand


def by_autodiff(plan, params, rule_state, examples, key):
    """The results of `training.step.by_hand`, with the gradient by `jax.value_and_grad` of the same forward pass."""
    weights = examples.weights

    def mean_loss(params):
        def example(x, y, masks):
            y_hat, tape = jm.forward(plan.net, params, x, masks)
            return jm.Trace(tape.inputs, tape.pre_activations, (), y_hat, jm.output_loss(plan.net, tape, y))

        trace = jax.vmap(example)(examples.X, examples.Y, examples.masks)
        losses = trace.losses
        return losses.mean() if weights is None else weights @ losses / weights.sum(), trace

    (_, trace), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
    return trace, grads


class Epoch:
    """A compiled epoch; each call goes on from the weights of the last one."""

    def __init__(
        self,
        problem: Problem,
        gradient: Callable = step.by_hand,
        as_bytes: bool = False,
        rule: rules.Rule = rules.backprop,
        optimizer: optax.GradientTransformation | None = None,
    ) -> None:
        optimizer = optax.sgd(problem.rate) if optimizer is None else optimizer
        plan = training.Plan(problem.net, optimizer, problem.batch_size, problem.steps,
                             preprocess=scale_pixels if as_bytes else None, rule=rule, accuracy=True)  # fmt: skip
        X, pixels, Y = problem.on_device
        self.data = training.Data(pixels if as_bytes else X, Y)
        strengths = None if problem.keep is None else Regularization(keep=jnp.asarray(problem.keep, jnp.float32))
        self.state = training.start(plan, problem.params, self.data, jax.random.key(1), regularisation=strengths)
        began = time.perf_counter()
        epoch = jax.jit(partial(training.epoch, plan), donate_argnums=0)
        with gradient_by(gradient):
            self.run = epoch.lower(self.state, self.data).compile()
        self.compile_seconds = time.perf_counter() - began

    def __call__(self) -> None:
        self.state, metrics = self.run(self.state, self.data)
        jax.block_until_ready((self.state, metrics))

    def weights(self) -> list[tuple[Any, Any]]:
        """`(W, b)` of each layer."""
        return [(layer.W, layer.b) for layer in self.state.params]


as_bytes = partial(Epoch, as_bytes=True)
by_jax_grad = partial(Epoch, gradient=by_autodiff)
