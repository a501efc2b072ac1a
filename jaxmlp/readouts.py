"""Gradient quantities from a trace: each a contraction over its pairs `(delta, a)`.

Letters: m, n example, i in, o out, c, k row. One example's gradient of layer l is `delta^l a^(l-1)^T` for W and
`delta^l` for b, so its squared norm is `||delta||^2 (||a||^2 + 1)`. Only `per_example_gradients` forms an example's
gradient. Under `jit`, XLA leaves out the parts of a trace that no readout uses.

A start with rows gives an example several error signals, `delta (m, c, o)`. What means over the examples sums over the
rows, too; what belongs to an example has an axis c after the examples'. A mapped trace carries the constant that the
bias multiplies (`Trace.constants`), which is 1 in the formulas here.

Sums and norms are taken in at least float32, whatever the parameters' dtype. Results in the structure of the parameters
come back in their dtype; norms, Gram matrices and the noise scale stay in float32.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmlp import norms, validate
from jaxmlp.doors import check_trace, takes_trace
from jaxmlp.network import Layer, Params
from jaxmlp.norms import Squares, widen
from jaxmlp.products import symmetric_product
from jaxmlp.trace import Trace as Trace
from jaxmlp.trace import (
    check_weights,
    like_rows,
    mean_of_products,
    narrow,
    shares_of,
    squares,
    with_constant,
)


@takes_trace
def mean_gradient(trace: Trace, weights: Float[Array, " m"] | None = None) -> Params:
    """`grad_W^l = sum_m w delta^l a^(l-1)^T / sum_m w`, `grad_b^l = sum_m w delta^l / sum_m w`.

    Args:
        weights: a weight of at least 0 for each example, `(m,)`; ones unless given.
    Returns:
        The gradient of the cost, in the structure of the parameters.
    Example:
        >>> trace = jm.backprop(net, params, X, Y)
        >>> jm.mean_gradient(trace)[0].W.shape
        (64, 784)

    Source: notes 000, "Backpropagation in this network"; 002, the factor `1/m`.
    """
    grads = mean_of_products(trace.deltas, trace.inputs, check_weights(trace, weights), trace.constants)
    return narrow(grads, trace.losses.dtype)


@takes_trace
def per_example_gradients(trace: Trace) -> Params:
    """Each example's gradient: m times the memory of the parameters.

    Returns:
        For each layer `W (m, n_out, n_in)` and `b (m, n_out)`; with rows `(m, c, n_out, n_in)` and `(m, c, n_out)`.
    Example:
        >>> jm.per_example_gradients(jm.backprop(net, params, X, Y))[1].W.shape
        (20, 10, 64)
    """
    constants = (None,) * len(trace.deltas) if trace.constants is None else trace.constants
    return tuple(
        Layer(
            W=jnp.einsum("m...o,mi->m...oi", delta, a),
            b=delta if constant is None else jnp.einsum("m...o,m->m...o", delta, constant),
        )
        for delta, a, constant in zip(trace.deltas, trace.inputs, constants, strict=True)
    )


@takes_trace
def delta_norms(trace: Trace) -> Float[Array, "m *c K"]:
    """`||delta^l||` of each example, a column for each layer."""
    return jnp.stack([norms.norm(delta) for delta in trace.deltas], axis=-1)


@takes_trace
def layer_norms(trace: Trace) -> Float[Array, "m *c K"]:
    """The norm of each example's gradient of each layer, `||delta|| sqrt(||a||^2 + 1)`: W and b together."""
    return norms.root(_squared_norms(trace))


@takes_trace
def per_example_norms(trace: Trace) -> Float[Array, "m *c"]:
    """The norm of each example's whole gradient, `sqrt(sum_l ||delta^l||^2 (||a^(l-1)||^2 + 1))`.

    Example:
        >>> jm.per_example_norms(jm.backprop(net, params, X, Y)).shape
        (20,)

    Source: Goodfellow 2015, "Efficient per-example gradient computations".
    """
    return norms.root(norms.total(_squared_norms(trace)))


@takes_trace
def second_moment(trace: Trace, weights: Float[Array, " m"] | None = None) -> Params:
    """The mean of the examples' squared gradients, entry by entry: `(delta^2)^T (a^2) / m`.

    Args:
        weights: a weight of at least 0 for each example, `(m,)`; ones unless given.
    Example:
        >>> jm.second_moment(jm.backprop(net, params, X, Y))[0].W.shape
        (64, 784)

    Source: Dangel et al. 2020.
    """
    weights = check_weights(trace, weights)
    weights = jnp.ones_like(trace.losses) if weights is None else weights  # scales delta^2, not the larger product
    constants = None if trace.constants is None else squares(trace.constants)
    moment = mean_of_products(squares(trace.deltas), squares(trace.inputs), weights, constants)
    return narrow(moment, trace.losses.dtype)


@takes_trace
def gradient_gram(trace: Trace, other: Trace | None = None) -> Float[Array, "m n *c"]:
    """All inner products of the examples' gradients, `sum_l (delta delta'^T) * (a a'^T + 1)`.

    Args:
        other: the trace of the columns, such as of test examples; the same unless given.
    Returns:
        `(m, n)`; rows of the traces' starts come behind: `(m, n, c, k)` where both have some.
    Raises:
        ValueError: where the traces have other widths.
    Example:
        >>> trace = jm.backprop(net, params, X, Y)
        >>> gram = jm.gradient_gram(trace)
        >>> bool(jnp.allclose(jnp.diag(gram), jm.per_example_norms(trace) ** 2, rtol=1e-4))
        True
    """
    other = trace if other is None else other
    check_trace(other)
    widths = lambda t: [(delta.shape[-1], a.shape[-1]) for delta, a in zip(t.deltas, t.inputs, strict=True)]
    if widths(trace) != widths(other):
        raise ValueError(f"other is {other!r}, expected the widths of {trace!r}")
    grams = layer_grams(trace, other)
    return sum(grams[1:], grams[0])


def layer_grams(trace: Trace, other: Trace) -> list[Float[Array, "m n *c"]]:
    """The inner products of each layer's gradients."""
    plain = trace.constants is None and other.constants is None
    grams = []
    for l, (delta, delta_) in enumerate(zip(trace.deltas, other.deltas, strict=True)):
        c, k = "c" * (delta.ndim - 2), "k" * (delta_.ndim - 2)
        a, a_ = (widen(t.inputs[l]) if plain else with_constant(t, l) for t in (trace, other))
        of_inputs = jnp.einsum("mi,ni->mn", a, a_)
        of_inputs = of_inputs + 1 if plain else of_inputs
        of_deltas = jnp.einsum(f"m{c}o,n{k}o->mn{c}{k}", widen(delta), widen(delta_))
        grams.append(of_deltas * of_inputs.reshape(of_inputs.shape + (1,) * len(c + k)))
    return grams


class KroneckerFactors(NamedTuple):
    """A layer's `A (i+1, i+1)` and `G (o, o)`: `G (x) A` approximates the second moment of its gradient `[W b]`.

    A map of `transform` has the same form.
    """

    A: Float[Array, "i i"]
    G: Float[Array, "o o"]


@takes_trace
def kronecker_factors(trace: Trace, weights: Float[Array, " m"] | None = None) -> tuple[KroneckerFactors, ...]:
    """`A = E[a~ a~^T]`, `G = E[delta delta^T]` of each layer, `a~ = (a, 1)`: the bias is a weight on a constant 1.

    The start decides what they approximate: `hessian_root` the Gauss-Newton matrix, labels drawn from the model
    (`sample_labels`) the Fisher, true labels the empirical Fisher.

    Args:
        weights: a weight of at least 0 for each example, `(m,)`; ones unless given.
    Returns:
        `KroneckerFactors(A, G)` for each layer.
    Example:
        >>> factors = jm.kronecker_factors(jm.backprop(net, params, X, Y))
        >>> factors[1].A.shape, factors[1].G.shape
        ((65, 65), (10, 10))

    Source: Martens and Grosse 2015.
    """
    weights = check_weights(trace, weights)
    share, scale = (None, 1 / trace.losses.shape[0]) if weights is None else (shares_of(trace, weights), 1.0)

    def second(x: Array) -> Array:  # (m, n) or, with rows, (m, c, n)
        weighted = x if share is None else share.reshape(-1, *(1,) * (x.ndim - 1)) * x
        return scale * symmetric_product(weighted.reshape(-1, x.shape[-1]), x.reshape(-1, x.shape[-1]))

    def homogeneous(a: Array) -> Array:
        edge = scale * jnp.sum(a if share is None else share[:, None] * a, axis=0)
        return jnp.block([[second(a), edge[:, None]], [edge[None], jnp.ones((1, 1), a.dtype)]])

    inputs = [homogeneous(widen(a)) for a in trace.inputs] if trace.constants is None else [
        second(with_constant(trace, l)) for l in range(len(trace.inputs))
    ]  # fmt: skip
    factors = tuple(KroneckerFactors(A, second(widen(delta))) for A, delta in zip(inputs, trace.deltas, strict=True))
    return narrow(factors, trace.losses.dtype)


def weight_jacobian(a: Float[Array, " i"], n_out: int) -> Float[Array, "o oi"]:
    """`B = I (x) a^T`, the Jacobian of `z = W a = B vec(W)` in the weights, `vec` by rows: the gradient is `B^T delta`.

    Args:
        a: the layer's input `(n_in,)`.
        n_out: the layer's width.
    Returns:
        `(n_out, n_out n_in)`.
    Example:
        >>> jm.weight_jacobian(jnp.ones(3), 2).shape
        (2, 6)

    Source: notes 004, "Forward Propagation".
    """
    a = validate.array(a, "a")
    return jnp.kron(jnp.eye(n_out, dtype=a.dtype), a[None])


def _squared_norms(trace: Trace) -> Squares:
    """`||delta||^2 (||a||^2 + 1)`, each `(m, K)` or, with rows, `(m, c, K)`."""
    if trace.constants is None:
        inputs = [norms.sum_squares(a, constant=True) for a in trace.inputs]
    else:
        inputs = [norms.sum_squares(with_constant(trace, l)) for l in range(len(trace.inputs))]
    pairs = [(norms.sum_squares(delta), a, delta) for delta, a in zip(trace.deltas, inputs, strict=True)]
    stack = lambda columns: jnp.stack(list(columns), axis=-1)
    return Squares(
        stack(d.value * like_rows(a.value, delta) for d, a, delta in pairs),
        stack(d.exponent + like_rows(a.exponent, delta) for d, a, delta in pairs),
    )
