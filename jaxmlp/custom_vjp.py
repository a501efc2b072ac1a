"""The network as one JAX function whose backward pass is the hand-written one: for anyone's `jax.grad`."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from jaxmlp import readouts, rules, validate
from jaxmlp._backward import backward
from jaxmlp._forward import Tape, forward
from jaxmlp.network import MLP, Params
from jaxmlp.rules import Rule


@functools.cache
def as_function(net: MLP, rule: Rule = rules.backprop) -> Callable[..., Array]:
    """`f(params, x) -> y_hat`, x `(n_0,)` or `(.., n_0)`; `f(params, x, rule_state)` for a rule with a state.

    Its derivative in `params` and `x` is the recursion, started at `delta^K = J(z^K)^T g` for a cotangent g of `y_hat`,
    so that it works inside `jax.grad`, `jit`, `vmap`, `checkpoint` and another network. What leaves the network is
    `W^1^T delta^1` under any rule. A batch is cheapest as leading axes of x: a `vmap` outside forms a gradient for each
    example. A rule that is not linear, such as `clipped`, meets
    cotangents as the loss around the function scales them, by 1/m for a mean. Forward mode (`jax.jvp`) is not
    defined. Raises ValueError when the rule's state is differentiated: `y_hat` does not depend on it, and a rule's
    use of it is no derivative.
    """
    rules.checked(rule)

    # net and rule are static; all that is traced comes as an argument.
    @jax.custom_vjp
    def run(params: Params, X: Array, state: Any) -> Array:
        return _forward(net, params, X)[0]

    def save(params, X, state):
        if any(leaf.perturbed for leaf in jax.tree.leaves(state)):
            raise ValueError(
                f"rule_state of {rule.name!r} is differentiated: a rule has no gradient in its state; "
                "differentiate in params and x only, or pass jax.lax.stop_gradient(rule_state)"
            )
        params, X, state = jax.tree.map(lambda leaf: leaf.value, (params, X, state))
        Y_hat, tape = _forward(net, params, X)
        return Y_hat, (params, tape, state)

    def pull(saved, cotangent):
        params, tape, state = saved
        if isinstance(cotangent, SymbolicZero):
            cotangent = jnp.zeros_like(tape.output)
        return *_pull(net, rule, params, tape, state, cotangent), None

    run.defvjp(save, pull, symbolic_zeros=True)

    def function(
        params: Params, x: Float[Array, "*lead i"], rule_state: tuple[Any, ...] | None = None
    ) -> Float[Array, "*lead k"]:
        validate.params(net, params)
        x = validate.array(x, "x")
        if x.ndim == 0 or x.shape[-1] != net.sizes[0]:
            raise ValueError(f"x has shape {x.shape}, expected (.., {net.sizes[0]})")
        lead = x.shape[:-1]
        X = x.reshape(math.prod(lead), net.sizes[0])
        return run(params, X, rules.checked_state(net, rule, rule_state)).reshape(*lead, net.sizes[-1])

    return function


@functools.partial(jax.jit, static_argnames="net")
def _forward(net: MLP, params: Params, X: Float[Array, "m i"]) -> tuple[Float[Array, "m k"], Tape]:
    return jax.vmap(lambda x: forward(net, params, x))(X)


@functools.partial(jax.jit, static_argnames=("net", "rule"))
def _pull(net: MLP, rule: Rule, params: Params, tape: Tape, state: Any, cotangent: Float[Array, "m k"]):
    """The cotangents of `params`, summed over the examples, and of each example."""

    def example(tape, g):
        return backward(net, params, tape, net.output.pull(tape.pre_activations[-1], g), rule, state)

    deltas = jax.vmap(example)(tape, cotangent)
    return readouts.sum_of_products(deltas, tape.inputs, net.products), deltas[0] @ params[0].W
