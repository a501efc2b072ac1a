"""Large batches in bounded memory: the trace of a chunk at a time."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jaxmlp import rules, validate
from jaxmlp._backward import backprop
from jaxmlp._forward import Masks, batch
from jaxmlp.network import MLP, Params
from jaxmlp.rules import Rule
from jaxmlp.validate import Given, Preprocess


def in_chunks(
    readout: Callable[..., Any],
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Num[Given, "m ..."],
    size: int,
    *,
    weights: Float[Given, " m"] | None = None,
    masks: Masks | None = None,
    preprocess: Preprocess | None = None,
    rule: Rule = rules.backprop,
    rule_state: tuple[Any, ...] | None = None,
) -> Any:
    """`readout(backprop(...))` of a whole batch, with the memory of `size` examples, the last chunk the smaller.

    For readouts that are means over the examples, such as `mean_gradient`, `second_moment`, `kronecker_factors` or
    `lambda trace, weights=None: jm.clipped_gradient(trace, 1.0, weights)`: each chunk's counts by its share of the
    examples, or of their weights, which are then passed to the readout. Compiled for the readout as an object.
    """
    X, Y, weights, masks = batch(net, params, X, Y, weights, masks, preprocess)
    size = min(validate.whole(size, "size"), X.shape[0])
    return _in_chunks(readout, net, params, (X, Y, weights, masks), size, preprocess, rule, rule_state)


@partial(jax.jit, static_argnames=("readout", "net", "size", "preprocess", "rule"))
def _in_chunks(readout, net, params, examples, size, preprocess, rule, rule_state):
    def part(chunk) -> tuple[Any, Array]:
        X, Y, weights, masks = chunk
        trace = backprop(
            net, params, X, Y, masks=masks, preprocess=preprocess, rule=rule, rule_state=rule_state
        )  # fmt: skip
        if weights is None:
            return readout(trace), jnp.asarray(X.shape[0], trace.losses.dtype)
        return readout(trace, weights=weights), weights.sum()

    def add(total, chunk):
        mean, count = part(chunk)
        return jax.tree.map(lambda t, r: t + count * r, total, (mean, jnp.ones_like(count))), None

    whole, rest = divmod(examples[0].shape[0], size)
    chunks = jax.tree.map(lambda a: a[: whole * size].reshape(whole, size, *a.shape[1:]), examples)
    like = jax.eval_shape(lambda c: part(jax.tree.map(lambda a: a[0], c)), chunks)
    alone = jax.eval_shape(lambda c: part(jax.tree.map(lambda a: a[0, :1], c)), chunks)
    if jax.tree.map(jnp.shape, like) != jax.tree.map(jnp.shape, alone):
        raise ValueError("readout gives a shape that depends on the number of examples, expected a mean over them")
    total, _ = jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like), chunks)
    if rest:
        total, _ = add(total, jax.tree.map(lambda a: a[whole * size :], examples))
    total, count = total
    return jax.tree.map(lambda t: t / count, total)
