"""The network as one JAX function whose derivative is the hand-written backward pass: for anyone's `jax.grad`."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from jaxmlp import rules, validate
from jaxmlp._backward import recur
from jaxmlp._forward import Tape, propagate
from jaxmlp.doors import takes_network
from jaxmlp.network import MLP, Params
from jaxmlp.programs import compiled
from jaxmlp.rule import Rule
from jaxmlp.trace import narrow, sum_of_products


@takes_network
@functools.lru_cache(maxsize=64)
def as_function(net: MLP, rule: Rule = rules.backprop) -> Callable[..., Array]:
    """`f(params, x) -> y_hat`, a function whose derivative in `params` and `x` is the hand-written recursion.

    The recursion starts at `delta^K = J(z^K)^T g` for a cotangent g of `y_hat`, so f works inside `jax.grad`, `jit`,
    `vmap`, `checkpoint` and another network. The cotangent of x is `W^1^T delta^1` under any rule.

    Args:
        rule: the map that carries delta down a layer. A rule that is not linear, such as `clipped`, sees cotangents
            already scaled by the outer loss, by 1/m for a mean.
    Returns:
        f, the same object for the same arguments. It takes x `(n_0,)` or `(.., n_0)`, and `f(params, x, rule_state)`
        for a rule with a state. Give a batch as leading axes of x: a `vmap` around f forms a gradient for each example.
        Forward mode (`jax.jvp`) is not defined.
    Raises:
        ValueError: by f, where shapes do not fit or the rule's state is differentiated: `y_hat` does not depend on it.
    Example:
        >>> f = jm.as_function(net)
        >>> grads = jax.grad(lambda p: -jnp.log(f(p, X)[:, 0]).mean())(params)
        >>> grads[0].W.shape
        (64, 784)
    """
    rules.check(rule)

    # Traced values come as arguments: a custom_vjp that closes over one returns silent zeros.
    @jax.custom_vjp
    def run(params: Params, X: Array, state: Any) -> Array:
        return _propagate(net, params, X)[0]

    def save(params, X, state):
        if any(leaf.perturbed for leaf in jax.tree.leaves(state)):
            raise ValueError(
                f"rule_state of {rule.name!r} is differentiated, but a rule has no gradient in its state; "
                "differentiate in params and x only, or pass jax.lax.stop_gradient(rule_state)"
            )
        params, X, state = jax.tree.map(lambda leaf: leaf.value, (params, X, state))
        Y_hat, tape = _propagate(net, params, X)
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
        return run(params, X, rules.check_state(net, rule, rule_state)).reshape(*lead, net.sizes[-1])

    return function


@compiled("net")
def _propagate(net: MLP, params: Params, X: Float[Array, "m i"]) -> tuple[Float[Array, "m k"], Tape]:
    return jax.vmap(lambda x: propagate(net, params, x))(X)


@compiled("net", "rule")
def _pull(net: MLP, rule: Rule, params: Params, tape: Tape, state: Any, cotangent: Float[Array, "m k"]):
    """The cotangent of `params`, summed over the examples, and the cotangent of each example."""

    def example(tape, g):
        return recur(net, params, tape, net.output.pull(tape.pre_activations[-1], g), rule, state)

    deltas = jax.vmap(example)(tape, cotangent)
    grads = sum_of_products(deltas, tape.inputs, net.products)
    return narrow(grads, cotangent.dtype), deltas[0] @ params[0].W
