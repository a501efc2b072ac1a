"""Rules by name: `W^T` is backpropagation, and another rule carries an error signal down a layer in another way.

`backprop` is a `Rule`. The functions here take options and return a rule, the same object for equal options;
`clipped`, `normalized`, `surrogate` and `dropped` change any other rule. Below, l is the hidden layer that an error
arrives at; the error comes from layer l+1.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import activations, initializers, norms, validate
from jaxmlp.activations import Elementwise
from jaxmlp.initializers import Initializer
from jaxmlp.network import MLP
from jaxmlp.rule import Down, Rule, Step
from jaxmlp.rule import check as check
from jaxmlp.rule import check_state as check_state
from jaxmlp.rule import through_activation as through_activation

Factory = TypeVar("Factory", bound=Callable[..., Rule])


def _cache_by_options(factory: Factory) -> Factory:
    """Equal options give the same object: a rule is static under `jit`, so another object would compile again."""
    signature, make = inspect.signature(factory), functools.lru_cache(maxsize=128)(factory)

    @functools.wraps(factory)
    def rule(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        try:
            hash(bound.args)
        except TypeError:
            raise ValueError(f"{factory.__name__} got {bound.arguments}, expected numbers, names and rules") from None
        return make(*bound.args)

    return rule  # pyright: ignore[reportReturnType]


# The error at a^l is the sum over the units above it, sum_o delta_o W_oi: notes 000, "Backpropagation in this network".
# W^T delta is written as the row delta W: XLA calls a matrix product for it at any batch size. The other order becomes
# a loop down the columns of W at batch 1, twenty times slower.
backprop = Rule("backprop", carry=lambda down: down.product(down.delta, down.W), linear=True)


@_cache_by_options
def feedback_alignment(weights: str | Initializer = "he") -> Rule:
    """`error = B_l^T delta^(l+1)` with a fixed random `B_l` of `W^(l+1)`'s shape. W learns to agree with B.

    Args:
        weights: how B is drawn; a name or an initializer, as in `init`.
    Example:
        >>> rule = jm.rules.feedback_alignment()
        >>> trace = jm.backprop(net, params, X, Y, rule=rule, rule_state=rule.start(net, key))
        >>> angles = jm.alignment(trace, jm.backprop(net, params, X, Y))
        >>> bool(angles[0] > 45), bool(angles[1] < 0.1)
        (True, True)

    Source: Lillicrap et al. 2016, "Random synaptic feedback weights support error backpropagation for deep learning".
    """
    carry = lambda down: down.product(down.delta, down.state)
    return Rule("feedback_alignment", carry, _draw_matrices(weights, direct=False), linear=True)


@_cache_by_options
def direct_feedback_alignment(weights: str | Initializer = "he") -> Rule:
    """`error = B_l^T delta^K` with a fixed random `B_l (n_K, n_l)`: the output's error goes straight to each layer.

    Args:
        weights: how B is drawn; a name or an initializer, as in `init`.

    Source: Nokland 2016, "Direct feedback alignment provides learning in deep neural networks".
    """
    carry = lambda down: down.product(down.delta_out, down.state)
    return Rule("direct_feedback_alignment", carry, _draw_matrices(weights, direct=True), linear=True)


@_cache_by_options
def sign_symmetric(magnitudes: str | Initializer | None = None) -> Rule:
    """`error = sign(W^(l+1))^T delta^(l+1)`; with `magnitudes`, `(sign(W) * |B|)^T delta` with a fixed random B.

    Without magnitudes an error grows by about `sqrt(n_(l+1))` a layer.

    Args:
        magnitudes: how B is drawn; a name or an initializer, as in `init`.

    Source: Liao et al. 2016, "How important is weight symmetry in backpropagation?", its uniform and its fixed random
    magnitude sign-concordant feedbacks.
    """
    if magnitudes is None:
        return Rule("sign_symmetric", carry=lambda down: down.product(down.delta, jnp.sign(down.W)), linear=True)
    carry = lambda down: down.product(down.delta, jnp.sign(down.W) * jnp.abs(down.state))
    return Rule("sign_symmetric_magnitudes", carry, _draw_matrices(magnitudes, direct=False), linear=True)


@_cache_by_options
def kolen_pollack(decay: float = 1e-3, weights: str | Initializer = "he") -> Rule:
    """Feedback alignment whose B learns as W does: `W += D - decay W`, `B += D - decay B`, so `W - B` dies out.

    D is the step that both share. The optimizer decays W, and its update `U = D - decay W` gives
    `B += U + decay (W - B)`. `optax.chain(optax.sgd(rate), optax.add_decayed_weights(-decay))` is such an optimizer.

    Args:
        decay: in (0, 1], the optimizer's decay for each step.
        weights: how the first B is drawn; a name or an initializer, as in `init`.

    Source: Kolen and Pollack 1994; Akrout et al. 2019, "Deep learning without weight transport".
    """
    decay = validate.number(decay, "decay", above=0, at_most=1)
    learn = lambda step: step.state + step.update + decay * (step.W - step.state)
    return feedback_alignment(weights)._replace(name=f"kolen_pollack({decay:g})", learn=learn)


def _draw_matrices(weights: str | Initializer, direct: bool) -> Callable[[MLP, PRNGKeyArray], tuple[Array, ...]]:
    """Draws a `B_l` for each hidden layer, of `W^(l+1)`'s shape or, `direct`, `(n_K, n_l)`."""

    def init(net: MLP, key: PRNGKeyArray) -> tuple[Array, ...]:
        keys, dtype = jax.random.split(key, net.depth - 1), validate.float_dtype(None)
        shapes = [(net.sizes[-1] if direct else n_out, n_in) for n_out, n_in in net.shapes[1:]]
        return tuple(
            initializers.draw(weights, k, n_in, n_out, dtype, "weights")
            for k, (n_out, n_in) in zip(keys, shapes, strict=True)
        )

    return init


@_cache_by_options
def clipped(max_norm: float, rule: Rule = backprop) -> Rule:
    """`delta^l * min(1, max_norm / ||delta^l||)` at each hidden layer, for each example.

    Args:
        max_norm: above 0.
        rule: the rule that gives `delta^l`.
    Example:
        >>> trace = jm.backprop(net, params, X, Y, rule=jm.rules.clipped(0.1))
        >>> bool(jm.delta_norms(trace)[:, 0].max() < 0.1001)
        True

    Source: Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", there for a whole gradient.
    """
    max_norm = validate.number(max_norm, "max_norm", above=0)

    def pull(down: Down, error: Array) -> Array:
        delta = rule.pull(down, error)
        return (norms.widen(delta) * (max_norm / jnp.maximum(norms.norm(delta), max_norm))).astype(delta.dtype)

    return rule._replace(name=f"clipped({max_norm:g}, {rule.name})", pull=pull, linear=False)


@_cache_by_options
def normalized(rule: Rule = backprop) -> Rule:
    """`delta^l ||delta^K|| / ||delta^l||` at each hidden layer, for each example, so that none vanishes; 0 stays 0.

    Args:
        rule: the rule that gives `delta^l`.
    """

    def pull(down: Down, error: Array) -> Array:
        delta = rule.pull(down, error)
        norm = norms.norm(delta)
        scaled = norms.widen(delta) * (norms.norm(down.delta_out) / jnp.where(norm == 0, 1, norm))
        return scaled.astype(delta.dtype)

    # Checkpoints hold a rule's name, so this name keeps its first spelling.
    return rule._replace(name=f"normalised({rule.name})", pull=pull, linear=False)


normalised = normalized

SURROGATES: dict[str, Elementwise] = {
    "rectangle": lambda z: (jnp.abs(z) <= 1).astype(z.dtype),  # straight-through: Hubara et al. 2016
    "triangle": lambda z: jnp.maximum(0, 1 - jnp.abs(z)),  # Bellec et al. 2018
    "fast_sigmoid": lambda z: 1 / (1 + jnp.abs(z)) ** 2,  # Zenke and Ganguli 2018
}


@_cache_by_options
def surrogate(derivative: str | Elementwise = "triangle", rule: Rule = backprop) -> Rule:
    """`delta^l = g(z^l) * error` where `f_l` is `step` or `sign`, whose own derivative is 0.

    Layers with another activation keep their derivative.

    Args:
        derivative: g, a name of `SURROGATES` or a function of z.
        rule: the rule that gives the error.

    Source: Neftci et al. 2019, "Surrogate gradient learning in spiking neural networks".
    """
    g = validate.look_up(derivative, SURROGATES, Callable, "derivative")

    def pull(down: Down, error: Array) -> Array:
        flat = down.f in (activations.step, activations.sign)
        return rule.pull(down._replace(f=replace(down.f, df=g)) if flat else down, error)

    name = derivative if isinstance(derivative, str) else getattr(derivative, "__name__", "a function")
    return rule._replace(name=f"surrogate({name}, {rule.name})", pull=pull)


class Dropped(NamedTuple):
    """A layer's state under `dropped`: the mask of this step, the key for the next, and the state of the other rule."""

    mask: Float[Array, " i"]  # 0 or 1/keep
    key: PRNGKeyArray
    inner: Any


@_cache_by_options
def dropped(keep: float, rule: Rule = backprop) -> Rule:
    """`mask_l * error`, each entry of the mask 1/keep with probability `keep`, else 0: right in the mean.

    All examples of a step share a mask, and `learn` draws the next one.

    Args:
        keep: in (0, 1].
        rule: the rule that gives the error.

    Source: Srivastava et al. 2014, "Dropout", here for error signals alone.
    """
    keep = validate.number(keep, "keep", above=0, at_most=1)
    unwrap = lambda seen: seen._replace(state=seen.state.inner)

    def draw(key: PRNGKeyArray, n: int, dtype: Any, inner: Any) -> Dropped:
        key, now = jax.random.split(key)
        return Dropped(jax.random.bernoulli(now, keep, (n,)).astype(dtype) / keep, key, inner)

    def init(net: MLP, key: PRNGKeyArray) -> tuple[Dropped, ...]:
        key, inner_key = jax.random.split(key)
        parts = zip(jax.random.split(key, net.depth - 1), net.sizes[1:-1], rule.start(net, inner_key), strict=True)
        return tuple(draw(k, n, validate.float_dtype(None), inner) for k, n, inner in parts)

    def learn(step: Step) -> Dropped:
        mask, key, inner = step.state
        return draw(key, len(mask), mask.dtype, inner if rule.learn is None else rule.learn(unwrap(step)))

    return Rule(
        name=f"dropped({keep:g}, {rule.name})",
        carry=lambda down: down.state.mask * rule.carry(unwrap(down)),
        init=init,
        pull=lambda down, error: rule.pull(unwrap(down), error),
        learn=learn,
        linear=rule.linear,
    )
