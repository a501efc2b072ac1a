"""A rule: the record of pure functions that carries an error signal down a layer. `rules` holds the named ones.

Below, l is the hidden layer that an error arrives at; the error comes from layer l+1.
"""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import validate
from jaxmlp.activations import Activation
from jaxmlp.doors import article
from jaxmlp.network import MLP, Params
from jaxmlp.pickling import refer_to_named


class Down(NamedTuple):
    """All that a rule may read when it carries one example's `delta^(l+1)` down to layer l."""

    W: Float[Array, "o i"]  # W^(l+1)
    delta: Float[Array, " o"]  # delta^(l+1)
    delta_out: Float[Array, " k"]  # delta^K
    f: Activation  # f_l
    z: Float[Array, " i"]  # z^l
    state: Any  # this layer's entry of the rule's state
    product: Callable[[Array, Array], Array] = jnp.matmul  # the network's: see `MLP.product`


class Step(NamedTuple):
    """All that a rule's state may learn from at layer l in one step of training."""

    W: Float[Array, "o i"]  # W^(l+1) before the step
    grad: Float[Array, "o i"]  # its gradient by this rule, as the optimizer got it
    update: Float[Array, "o i"]  # the optimizer's update, which is added to W
    state: Any  # this layer's entry of the rule's state


def through_activation(down: Down, error: Float[Array, " i"]) -> Float[Array, " i"]:
    """`delta^l = f_l'(z^l) * error`."""
    return down.f.pull(down.z, error)


class Rule(NamedTuple):
    """Pure functions that carry an error signal down a layer: `delta^l = pull(down, carry(down))`.

    A rule is static under `jit`; its state is an argument.

    Args:
        name: printed by reports and errors, and kept in checkpoints.
        carry: `carry(down)` gives the error at `a^l`, `(n_l,)`, from a `Down`.
        init: `init(net, key)` gives the state, one pytree for each hidden layer; None for a rule without a state.
        pull: `pull(down, error)` makes the error `delta^l`; it multiplies by `f_l'(z^l)` unless given.
        learn: `learn(step)` gives a layer's state after a step of training, from a `Step`; None keeps the state.
        linear: whether deltas are linear in `delta^K`. The mean over a batch is then taken before the recursion.
    Example:
        >>> sign = jm.Rule("sign", carry=lambda down: jnp.sign(down.W).T @ down.delta)
        >>> J, grads = jm.value_and_grad(net, params, X, Y, rule=sign)
    """

    name: str
    carry: Callable[[Down], Array]
    init: Callable[[MLP, PRNGKeyArray], tuple[Any, ...]] | None = None
    pull: Callable[[Down, Array], Array] = through_activation
    learn: Callable[[Step], Any] | None = None
    linear: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "Rule":
        return self

    def __reduce__(self):
        return refer_to_named(self) or (Rule, tuple(self))

    def start(self, net: MLP, key: PRNGKeyArray, dtype: Any = None) -> tuple[Any, ...]:
        """The state before the first step, its floating-point arrays of `dtype` (JAX's default float).

        Example:
            >>> B = jm.rules.feedback_alignment().start(net, key)
            >>> [matrix.shape for matrix in B]
            [(10, 64)]
        """
        if self.init is None:
            return (None,) * (net.depth - 1)
        dtype = validate.float_dtype(dtype)
        state = self.init(net, validate.key(key))
        if not hasattr(state, "__len__") or len(state) != net.depth - 1:
            got = f"{len(state)} entries" if hasattr(state, "__len__") else article(type(state).__name__)
            raise ValueError(f"init of rule {self.name!r} gives {got}, expected {net.depth - 1}, one a hidden layer")
        cast = lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        return jax.tree.map(cast, state)

    def update_state(self, state: tuple[Any, ...], params: Params, grads: Params, updates: Params) -> tuple[Any, ...]:
        """The state after a step that adds `updates` to `params`."""
        if self.learn is None:
            return state
        above = zip(params[1:], grads[1:], updates[1:], state, strict=True)
        return tuple(self.learn(Step(layer.W, grad.W, update.W, own)) for layer, grad, update, own in above)

    learned = update_state


def check(rule: Any) -> Rule:
    """`rule`, if it is a `Rule`."""
    if not isinstance(rule, Rule):
        hint = "; a rule with options is made by a call, such as rules.clipped(1.0)" if callable(rule) else ""
        raise ValueError(f"rule is {rule!r}, expected a Rule such as rules.backprop{hint}")
    return rule


def check_state(net: MLP, rule: Rule, state: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """`state`, if it has the shapes of this rule's state in `net`; None becomes the state of a stateless rule."""
    check(rule)
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


_states: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # by the rule's `init`, then by the network


def _example_state(net: MLP, rule: Rule) -> tuple[Any, ...]:
    if rule.init is None:
        return (None,) * (net.depth - 1)
    of_rule = _states.setdefault(rule.init, weakref.WeakKeyDictionary())
    if net not in of_rule:
        of_rule[net] = jax.eval_shape(lambda: rule.start(net, jax.random.key(0)))
    return of_rule[net]


def _shapes(state: Any) -> Any:
    each = tuple(state) if isinstance(state, tuple | list) else state
    return jax.tree.map(jnp.shape, each)
