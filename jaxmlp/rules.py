"""What carries an error signal down a layer: `W^T` is backpropagation, and a rule may do otherwise."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp.network import MLP


class Down(NamedTuple):
    """All that a rule may look at when it carries one example's `delta^(l+1)` down to layer l."""

    W: Float[Array, "o i"]  # W^(l+1)
    delta: Float[Array, " o"]  # delta^(l+1)
    delta_out: Float[Array, " k"]  # delta^K
    state: Any  # this layer's entry of the rule's state


class Rule(NamedTuple):
    """`carry(down)` gives the error at `a^l`, `(n_l,)`; `delta^l` is `f_l'(z^l)` times it.

    `init(net, key)` gives the rule's state, one pytree for each hidden layer; a stateless rule keeps the default.
    """

    name: str
    carry: Callable[[Down], Array]
    init: Callable[[MLP, PRNGKeyArray], tuple[Any, ...]] | None = None

    def start(self, net: MLP, key: PRNGKeyArray) -> tuple[Any, ...]:
        """The state before the first step."""
        return (None,) * (net.depth - 1) if self.init is None else self.init(net, key)


# The error at a^l is the sum over the units above it, sum_o delta_o W_oi: notes 000, "Backpropagation in this network".
backprop = Rule("backprop", carry=lambda down: down.W.T @ down.delta)
