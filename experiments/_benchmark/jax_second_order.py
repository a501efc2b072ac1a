"""K-FAC of kfac-jax, in the loop of its documentation: a compiled step for each batch."""
# pyright: reportMissingImports=false

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend import source_info_util

from experiments._benchmark.jax_peers import Loop
from experiments._benchmark.problem import Problem
from experiments._benchmark.second_order import DAMPING, DECAY, MOMENTUM, PERIOD, RATE


def evaluate(equation: Any, values: list) -> list:
    """An equation's results, in the place of a function of kfac-jax 0.0.8, which fails from JAX 0.9.2 on.

    JAX now gives the parameters as one dictionary; kfac-jax expects functions and a dictionary.
    """
    given = equation.primitive.get_bind_params(equation.params)
    with source_info_util.user_context(equation.source_info.traceback):
        results = equation.primitive.bind(*values, **given)
    return results if isinstance(results, list) else [results]


def kfac_jax(problem: Problem) -> Loop:
    """`kfac_jax.Optimizer` with a fixed damping, rate and momentum, which finds the layers by itself."""
    import kfac_jax
    from kfac_jax._src import tag_graph_matcher

    tag_graph_matcher.eval_jaxpr_eqn = evaluate

    def cost(params, batch):
        X, Y = batch
        *hidden, (W, b) = params
        for V, c in hidden:
            X = jax.nn.relu(X @ V + c)
        scores = X @ W + b
        kfac_jax.register_softmax_cross_entropy_loss(scores, Y)
        return optax.softmax_cross_entropy_with_integer_labels(scores, Y).mean()

    if jax.default_backend() != "cpu":  # as ours: a batch from the host would be copied to the chip in every step
        X, _, Y = problem.on_device
        on_device: Any = {"X": X, "Y": Y}
        problem = dataclasses.replace(problem, **on_device)
    optimizer = kfac_jax.Optimizer(
        jax.value_and_grad(cost), l2_reg=0.0, estimation_mode="fisher_gradients", num_burnin_steps=0,
        curvature_ema=DECAY, curvature_update_period=PERIOD, inverse_update_period=PERIOD,
    )  # fmt: skip
    fixed = {"learning_rate": RATE, "momentum": MOMENTUM, "damping": DAMPING}

    def step(params, state, key, X, Y):
        key, own = jax.random.split(key)
        params, state, _ = optimizer.step(params, state, own, batch=(X, Y), **fixed)
        return params, state, key

    params = [(jnp.asarray(W.T), jnp.asarray(b)) for W, b in problem.weights]
    first = problem.X[: problem.batch_size], problem.Y[: problem.batch_size]
    carry = params, optimizer.init(params, jax.random.key(0), first), jax.random.key(1)
    return Loop(problem, carry, step, lambda params: [(W.T, b) for W, b in params])
