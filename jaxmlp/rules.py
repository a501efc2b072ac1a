"""What carries an error signal down a layer: `W^T` is backpropagation, and a rule may do otherwise.

A rule is a record of pure functions. `backprop` is one; those that are functions here take options and return one, the
same for equal options; `clipped`, `normalised`, `surrogate` and `dropped` change any other rule. Below, l is the hidden
layer that an error arrives at, and it comes from layer l+1.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import activations, initializers, validate
from jaxmlp.activations import Activation, Elementwise
from jaxmlp.initializers import Initializer
from jaxmlp.network import MLP, Params


class Down(NamedTuple):
    """All that a rule may look at when it carries one example's `delta^(l+1)` down to layer l."""

    W: Float[Array, "o i"]  # W^(l+1)
    delta: Float[Array, " o"]  # delta^(l+1)
    delta_out: Float[Array, " k"]  # delta^K
    f: Activation  # f_l
    z: Float[Array, " i"]  # z^l
    state: Any  # this layer's entry of the rule's state
    product: Callable[[Array, Array], Array] = jnp.matmul  # the network's: see `MLP.product`


class Step(NamedTuple):
    """All that a rule's state may learn from at layer l in one step of training; `W` is that before the step."""

    W: Float[Array, "o i"]  # W^(l+1)
    grad: Float[Array, "o i"]  # the gradient, by this rule, that the optimiser was given for it
    update: Float[Array, "o i"]  # what the optimiser adds to it
    state: Any  # this layer's entry of the rule's state


def through_activation(down: Down, error: Float[Array, " i"]) -> Float[Array, " i"]:
    """`delta^l = f_l'(z^l) * error`."""
    return down.f.pull(down.z, error)


class Rule(NamedTuple):
    """`carry(down)` gives the error at `a^l`, `(n_l,)`; `pull(down, error)` makes it `delta^l`, `f_l'(z^l)` times it.

    `init(net, key)` gives the rule's state, one pytree for each hidden layer; a stateless rule keeps the default.
    `learn(step)` gives a layer's state after a step of training; without it the state stays as it is.
    """

    name: str
    carry: Callable[[Down], Array]
    init: Callable[[MLP, PRNGKeyArray], tuple[Any, ...]] | None = None
    pull: Callable[[Down, Array], Array] = through_activation
    learn: Callable[[Step], Any] | None = None
    linear: bool = False  # whether deltas are linear in delta^K, which lets a mean be taken before the recursion

    def start(self, net: MLP, key: PRNGKeyArray, dtype: Any = None) -> tuple[Any, ...]:
        """The state before the first step, its floating-point arrays of `dtype` (JAX's default float)."""
        if self.init is None:
            return (None,) * (net.depth - 1)
        dtype = validate.float_dtype(dtype)
        cast = lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        return jax.tree.map(cast, self.init(net, validate.key(key)))

    def learned(self, state: tuple[Any, ...], params: Params, grads: Params, updates: Params) -> tuple[Any, ...]:
        """The state after a step that adds `updates` to `params`."""
        if self.learn is None:
            return state
        above = zip(params[1:], grads[1:], updates[1:], state, strict=True)
        return tuple(self.learn(Step(layer.W, grad.W, update.W, own)) for layer, grad, update, own in above)


def checked(rule: Rule) -> Rule:
    """`rule`, if it is one."""
    if not isinstance(rule, Rule):
        hint = "; a rule with options is made by a call, such as rules.clipped(1.0)" if callable(rule) else ""
        raise ValueError(f"rule is {rule!r}, expected a Rule such as rules.backprop{hint}")
    return rule


def checked_state(net: MLP, rule: Rule, state: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """`state`, if it is one that `rule` can have in `net`; None is that of a stateless rule."""
    checked(rule)
    if state is None:
        if rule.init is not None:
            raise ValueError(
                f"rule_state is None, but rule {rule.name!r} has a state; make it with rule.start(net, key)"
            )
        return (None,) * (net.depth - 1)
    expected = _shapes(_example_state(net, rule))
    if _shapes(state) != expected:
        raise ValueError(f"rule_state has shapes {_shapes(state)}, expected {expected} for rule {rule.name!r}")
    return tuple(state)


@functools.cache
def _example_state(net: MLP, rule: Rule) -> tuple[Any, ...]:
    return jax.eval_shape(lambda: rule.start(net, jax.random.key(0)))


def _shapes(state: Any) -> Any:
    each = tuple(state) if isinstance(state, tuple | list) else state
    return jax.tree.map(jnp.shape, each)


Factory = TypeVar("Factory", bound=Callable[..., Rule])


def _same_for_equal_options(factory: Factory) -> Factory:
    """A rule is static under `jit`: another object would compile again."""
    signature, made = inspect.signature(factory), functools.cache(factory)

    @functools.wraps(factory)
    def rule(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        try:
            hash(bound.args)
        except TypeError:
            raise ValueError(f"{factory.__name__} got {bound.arguments}, expected numbers, names and rules") from None
        return made(*bound.args)

    return rule  # pyright: ignore[reportReturnType]


# The error at a^l is the sum over the units above it, sum_o delta_o W_oi: notes 000, "Backpropagation in this network".
# W^T delta is written as the row delta W: XLA calls a matrix product for it at any batch size, where the other order,
# at batch 1, becomes a loop down the columns of W, twenty times slower.
backprop = Rule("backprop", carry=lambda down: down.product(down.delta, down.W), linear=True)


@_same_for_equal_options
def feedback_alignment(weights: str | Initializer = "he") -> Rule:
    """`error = B_l^T delta^(l+1)`, `B_l` fixed, random, of `W^(l+1)`'s shape and drawn as `init` draws weights.

    W learns to agree with B. Source: Lillicrap et al. 2016, "Random synaptic feedback weights support error
    backpropagation for deep learning".
    """
    carry = lambda down: down.product(down.delta, down.state)
    return Rule("feedback_alignment", carry, _matrices(weights, direct=False), linear=True)


@_same_for_equal_options
def direct_feedback_alignment(weights: str | Initializer = "he") -> Rule:
    """`error = B_l^T delta^K`, `B_l` fixed, random, `(n_K, n_l)`: the output's error straight to each layer.

    Source: Nokland 2016, "Direct feedback alignment provides learning in deep neural networks".
    """
    carry = lambda down: down.product(down.delta_out, down.state)
    return Rule("direct_feedback_alignment", carry, _matrices(weights, direct=True), linear=True)


@_same_for_equal_options
def sign_symmetric(magnitudes: str | Initializer | None = None) -> Rule:
    """`error = sign(W^(l+1))^T delta^(l+1)`; with `magnitudes`, `(sign(W) * |B|)^T delta`, B fixed, random, drawn so.

    Without magnitudes an error grows by about `sqrt(n_(l+1))` a layer. Source: Liao et al. 2016, "How important is
    weight symmetry in backpropagation?", its uniform and its fixed random magnitude sign-concordant feedbacks.
    """
    if magnitudes is None:
        return Rule("sign_symmetric", carry=lambda down: down.product(down.delta, jnp.sign(down.W)), linear=True)
    carry = lambda down: down.product(down.delta, jnp.sign(down.W) * jnp.abs(down.state))
    return Rule("sign_symmetric_magnitudes", carry, _matrices(magnitudes, direct=False), linear=True)


@_same_for_equal_options
def kolen_pollack(decay: float = 1e-3, weights: str | Initializer = "he") -> Rule:
    """Feedback alignment whose B learns as W does: `W += D - decay W`, `B += D - decay B`, so that `W - B` dies out.

    D is the step that both share. A rule does not touch W: the optimiser decays it, and its update `U = D - decay W`
    makes `B += U + decay (W - B)`; `optax.chain(optax.sgd(rate), optax.add_decayed_weights(-decay))` is such a one.
    Source: Kolen and Pollack 1994; Akrout et al. 2019, "Deep learning without weight transport".
    """
    decay = validate.number(decay, "decay", above=0, at_most=1)
    learn = lambda step: step.state + step.update + decay * (step.W - step.state)
    return feedback_alignment(weights)._replace(name=f"kolen_pollack({decay:g})", learn=learn)


def _matrices(weights: str | Initializer, direct: bool) -> Callable[[MLP, PRNGKeyArray], tuple[Array, ...]]:
    """One `B_l` for each hidden layer, of `W^(l+1)`'s shape or, `direct`, `(n_K, n_l)`."""

    def init(net: MLP, key: PRNGKeyArray) -> tuple[Array, ...]:
        keys, dtype = jax.random.split(key, net.depth - 1), validate.float_dtype(None)
        shapes = [(net.sizes[-1] if direct else n_out, n_in) for n_out, n_in in net.shapes[1:]]
        return tuple(
            initializers.draw(weights, k, n_in, n_out, dtype, "weights")
            for k, (n_out, n_in) in zip(keys, shapes, strict=True)
        )

    return init


@_same_for_equal_options
def clipped(max_norm: float, rule: Rule = backprop) -> Rule:
    """`delta^l * min(1, max_norm / ||delta^l||)` at each hidden layer, for each example.

    Source: Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", there for a whole gradient.
    """
    max_norm = validate.number(max_norm, "max_norm", above=0)

    def pull(down: Down, error: Array) -> Array:
        delta = rule.pull(down, error)
        return delta * (max_norm / jnp.maximum(jnp.linalg.norm(delta), max_norm))

    return rule._replace(name=f"clipped({max_norm:g}, {rule.name})", pull=pull, linear=False)


@_same_for_equal_options
def normalised(rule: Rule = backprop) -> Rule:
    """`delta^l ||delta^K|| / ||delta^l||` at each hidden layer, for each example, so that none vanishes; 0 stays 0."""

    def pull(down: Down, error: Array) -> Array:
        delta = rule.pull(down, error)
        norm = jnp.linalg.norm(delta)
        return delta * (jnp.linalg.norm(down.delta_out) / jnp.where(norm == 0, 1, norm))

    return rule._replace(name=f"normalised({rule.name})", pull=pull, linear=False)


SURROGATES: dict[str, Elementwise] = {
    "rectangle": lambda z: (jnp.abs(z) <= 1).astype(z.dtype),  # straight-through: Hubara et al. 2016
    "triangle": lambda z: jnp.maximum(0, 1 - jnp.abs(z)),  # Bellec et al. 2018
    "fast_sigmoid": lambda z: 1 / (1 + jnp.abs(z)) ** 2,  # Zenke and Ganguli 2018
}


@_same_for_equal_options
def surrogate(derivative: str | Elementwise = "triangle", rule: Rule = backprop) -> Rule:
    """`delta^l = g(z^l) * error` where `f_l` is `step` or `sign`, whose own derivative is 0; g is `derivative`.

    It is one of SURROGATES' names, or a function of z; layers with another activation keep theirs. Source: Neftci et
    al. 2019, "Surrogate gradient learning in spiking neural networks".
    """
    g = validate.named(derivative, SURROGATES, Callable, "derivative")

    def pull(down: Down, error: Array) -> Array:
        flat = down.f in (activations.step, activations.sign)
        return g(down.z) * error if flat else rule.pull(down, error)

    name = derivative if isinstance(derivative, str) else getattr(derivative, "__name__", "a function")
    return rule._replace(name=f"surrogate({name}, {rule.name})", pull=pull)


class Dropped(NamedTuple):
    """A layer's state under `dropped`: the mask of this step, the key for the next, and the state of the other rule."""

    mask: Float[Array, " i"]  # 0 or 1/keep
    key: PRNGKeyArray
    inner: Any


@_same_for_equal_options
def dropped(keep: float, rule: Rule = backprop) -> Rule:
    """`mask_l * error`, each entry of the mask 1/keep with probability `keep`, else 0: right in the mean.

    A mask serves all examples of a step, and `learn` draws the next. Source: Srivastava et al. 2014, "Dropout", here
    for error signals alone.
    """
    keep = validate.number(keep, "keep", above=0, at_most=1)
    inside = lambda seen: seen._replace(state=seen.state.inner)

    def draw(key: PRNGKeyArray, n: int, dtype: Any, inner: Any) -> Dropped:
        key, now = jax.random.split(key)
        return Dropped(jax.random.bernoulli(now, keep, (n,)).astype(dtype) / keep, key, inner)

    def init(net: MLP, key: PRNGKeyArray) -> tuple[Dropped, ...]:
        key, inner_key = jax.random.split(key)
        parts = zip(jax.random.split(key, net.depth - 1), net.sizes[1:-1], rule.start(net, inner_key), strict=True)
        return tuple(draw(k, n, validate.float_dtype(None), inner) for k, n, inner in parts)

    def learn(step: Step) -> Dropped:
        mask, key, inner = step.state
        return draw(key, len(mask), mask.dtype, inner if rule.learn is None else rule.learn(inside(step)))

    return Rule(
        name=f"dropped({keep:g}, {rule.name})",
        carry=lambda down: down.state.mask * rule.carry(inside(down)),
        init=init,
        pull=lambda down, error: rule.pull(inside(down), error),
        learn=learn,
        linear=rule.linear,
    )
