"""Large batches in bounded memory: the trace of a chunk at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, Shaped

from jaxmlp import norms, rules, validate
from jaxmlp._backward import check_start, trace_of
from jaxmlp._forward import Masks, network_inputs
from jaxmlp.network import MLP, Params
from jaxmlp.programs import compiled
from jaxmlp.rule import Rule
from jaxmlp.starts import Start, output_delta
from jaxmlp.validate import Examples, Given, Preprocess


def in_chunks(
    readout: Callable[..., Any],
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Shaped[Given, "m ..."],
    size: int,
    *,
    weights: Float[Given, " m"] | None = None,
    masks: Masks | None = None,
    preprocess: Preprocess | None = None,
    rule: Rule = rules.backprop,
    rule_state: tuple[Any, ...] | None = None,
    start: Start = output_delta,
) -> Any:
    """`readout(backprop(...))` of a whole batch in the memory of `size` examples, for readouts that are means.

    The result is the mean of the chunks' readouts, each weighted by its share of the examples or of their weights.

    Args:
        readout: a function of a trace, such as `mean_gradient`, `second_moment`, `kronecker_factors` or
            `lambda trace, weights=None: jm.clipped_gradient(trace, 1.0, weights)`. With `weights` given, it gets its
            chunk's as `weights=`. Another function object compiles again.
        X: the examples, `(m, n_0)` of the parameters' dtype, or `(m, ...)` for `preprocess`.
        Y: the labels, as in `backprop`.
        size: examples in a chunk; the last chunk may hold fewer.
        weights: a weight of at least 0 for each example, `(m,)`; ones unless given.
        masks, preprocess, rule, rule_state, start: as in `backprop`.
    Raises:
        ValueError: where an argument does not fit, or the readout's shape depends on the number of examples.
    Example:
        >>> grads = jm.in_chunks(jm.mean_gradient, net, params, X, Y, size=8)
        >>> whole = jm.mean_gradient(jm.backprop(net, params, X, Y))
        >>> bool(jnp.allclose(grads[0].W, whole[0].W, atol=1e-6))
        True
    """
    examples = validate.examples(net, params, X, Y, weights, masks, preprocess)
    check_start(net, params, start, examples.Y)
    size = validate.whole(size, "size")
    rule_state = rules.check_state(net, rule, rule_state)
    return _in_chunks(readout, net, params, examples, size, preprocess, rule, rule_state, start)


@compiled("readout", "net", "size", "preprocess", "rule", "start")
def _in_chunks(readout, net, params, examples, size, preprocess, rule, rule_state, start):
    return mean_of_chunks(readout, net, params, examples, size, preprocess, rule, rule_state, start)


def mean_of_chunks(
    readout: Callable[..., Any],
    net: MLP,
    params: Params,
    examples: Examples,
    size: int,
    preprocess: Preprocess | None,
    rule: Rule = rules.backprop,
    rule_state: Any = None,
    start: Start = output_delta,
) -> Any:
    """`in_chunks` without its checks, for a readout that may close over traced arrays: inside a compiled function."""
    size = min(size, examples.X.shape[0])

    def part(chunk: Examples) -> tuple[Any, Array]:
        X, Y, weights, masks = chunk
        X = network_inputs(X, preprocess, params[0].W.dtype)
        trace = trace_of(net, params, X, Y, masks, rule, rule_state, None, start)
        if weights is None:
            return readout(trace), norms.widen(jnp.ones((), trace.losses.dtype)) * X.shape[0]
        return readout(trace, weights=weights), norms.widen(weights).sum()

    def add(total, chunk):  # in at least float32
        mean, count = part(chunk)
        return jax.tree.map(lambda t, r: t + count * norms.widen(r), total, (mean, jnp.ones_like(count))), None

    whole, rest = divmod(examples.X.shape[0], size)
    chunks = jax.tree.map(lambda a: a[: whole * size].reshape(whole, size, *a.shape[1:]), examples)
    like = jax.eval_shape(lambda c: part(jax.tree.map(lambda a: a[0], c)), chunks)
    alone = jax.eval_shape(lambda c: part(jax.tree.map(lambda a: a[0, :1], c)), chunks)
    if jax.tree.map(jnp.shape, like) != jax.tree.map(jnp.shape, alone):
        raise ValueError("readout gives a shape that depends on the number of examples, expected a mean over them")
    total, _ = jax.lax.scan(add, jax.tree.map(lambda s: norms.widen(jnp.zeros(s.shape, s.dtype)), like), chunks)
    if rest:
        total, _ = add(total, jax.tree.map(lambda a: a[whole * size :], examples))
    total, count = total
    count = jnp.where(count == 0, 1, count)  # 0 for padding alone, as in any mean
    return jax.tree.map(lambda t, s: (t / count).astype(s.dtype), total, like[0])


def map_chunks(function: Callable[[Any], Any], batch: Any, size: int) -> Any:
    """`function(batch)` in the memory of `size` entries, for a function of each entry along the first axis alone.

    Inside a compiled function. The last chunk is filled up with zeros, whose results are dropped.
    """
    n = jax.tree.leaves(batch)[0].shape[0]
    size = min(size, n)
    count = -(-n // size)
    fill = lambda a: jnp.pad(a, [(0, count * size - n)] + [(0, 0)] * (a.ndim - 1))
    chunks = jax.tree.map(lambda a: fill(a).reshape(count, size, *a.shape[1:]), batch)
    made = jax.lax.map(function, chunks)
    return jax.tree.map(lambda a: a.reshape(count * size, *a.shape[2:])[:n], made)
