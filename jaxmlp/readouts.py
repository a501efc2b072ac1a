"""Gradient quantities from a trace: each a contraction over its pairs `(delta, a)`.

Letters: m, n example, i in, o out. One example's gradient of layer l is `delta^l a^(l-1)^T` for W and `delta^l` for b,
so its squared norm is `||delta||^2 (||a||^2 + 1)`. Only `per_example_gradients` forms an example's gradient. Under
`jit`, XLA leaves out the parts of a trace that no readout uses.

Sums and norms are taken in at least float32, whatever the parameters' dtype. Results in the structure of the parameters
come back in their dtype; norms, Gram matrices and the noise scale stay in float32.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmlp import norms, validate
from jaxmlp.doors import takes_trace
from jaxmlp.network import Layer, Params
from jaxmlp.norms import Squares, widen
from jaxmlp.products import rounded_product


class Trace(NamedTuple):
    """A batch's pairs `(delta, a)`, from which every gradient quantity is a readout; entry l-1 belongs to layer l.

    `deltas` belong to the unreduced loss of each example: only a readout that says "mean" divides.
    """

    inputs: tuple[Float[Array, "m i"], ...]  # a^0 .. a^(K-1)
    pre_activations: tuple[Float[Array, "m o"], ...]  # z^1 .. z^K
    deltas: tuple[Float[Array, "m o"], ...]  # delta^1 .. delta^K
    output: Float[Array, "m k"]  # y_hat
    losses: Float[Array, " m"]

    def __repr__(self) -> str:
        """The widths and the dtype, without the arrays, which would fill pages."""
        *lead, k = self.output.shape
        widths = "-".join(str(a.shape[-1]) for a in self.inputs)
        return f"Trace({' x '.join(f'{n:,}' for n in lead)} examples of {widths}-{k}, {self.output.dtype})"


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
    grads = mean_of_products(trace.deltas, trace.inputs, check_weights(trace, weights))
    return narrow(grads, trace.losses.dtype)


@takes_trace
def per_example_gradients(trace: Trace) -> Params:
    """Each example's gradient: m times the memory of the parameters.

    Returns:
        For each layer `W (m, n_out, n_in)` and `b (m, n_out)`.
    Example:
        >>> jm.per_example_gradients(jm.backprop(net, params, X, Y))[1].W.shape
        (20, 10, 64)
    """
    return tuple(
        Layer(W=jnp.einsum("mo,mi->moi", delta, a), b=delta)
        for delta, a in zip(trace.deltas, trace.inputs, strict=True)
    )


@takes_trace
def delta_norms(trace: Trace) -> Float[Array, "m K"]:
    """`||delta^l||` of each example, a column for each layer."""
    return jnp.stack([norms.norm(delta) for delta in trace.deltas], axis=1)


@takes_trace
def layer_norms(trace: Trace) -> Float[Array, "m K"]:
    """The norm of each example's gradient of each layer, `||delta|| sqrt(||a||^2 + 1)`: W and b together."""
    return norms.root(_squared_norms(trace))


@takes_trace
def per_example_norms(trace: Trace) -> Float[Array, " m"]:
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
    return narrow(mean_of_products(squares(trace.deltas), squares(trace.inputs), weights), trace.losses.dtype)


@takes_trace
def gradient_gram(trace: Trace) -> Float[Array, "m n"]:
    """All inner products of the examples' gradients, `sum_l (delta delta^T) * (a a^T + 1)`.

    Returns:
        `(m, m)`.
    Example:
        >>> trace = jm.backprop(net, params, X, Y)
        >>> gram = jm.gradient_gram(trace)
        >>> bool(jnp.allclose(jnp.diag(gram), jm.per_example_norms(trace) ** 2, rtol=1e-4))
        True
    """
    pairs = [(widen(delta), widen(a)) for delta, a in zip(trace.deltas, trace.inputs, strict=True)]
    grams = [jnp.einsum("mo,no->mn", delta, delta) * (jnp.einsum("mi,ni->mn", a, a) + 1) for delta, a in pairs]
    return sum(grams[1:], grams[0])


class KroneckerFactors(NamedTuple):
    """A layer's `A (i+1, i+1)` and `G (o, o)`: `G (x) A` approximates the second moment of its gradient `[W b]`."""

    A: Float[Array, "i i"]
    G: Float[Array, "o o"]


@takes_trace
def kronecker_factors(trace: Trace, weights: Float[Array, " m"] | None = None) -> tuple[KroneckerFactors, ...]:
    """`A = E[a~ a~^T]`, `G = E[delta delta^T]` of each layer, `a~ = (a, 1)`: the bias is a weight on a constant 1.

    Labels drawn from the model (`sample_labels`) give the Fisher's factors, true labels the empirical Fisher's.

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
    share, scale = (None, 1 / trace.losses.shape[0]) if weights is None else (shares(weights)[:, None], 1.0)

    def second(x: Array) -> Array:
        return scale * _symmetric(x if share is None else share * x, x)

    def homogeneous(a: Array) -> Array:
        edge = scale * jnp.sum(a if share is None else share * a, axis=0)
        return jnp.block([[second(a), edge[:, None]], [edge[None], jnp.ones((1, 1), a.dtype)]])

    pairs = [(widen(a), widen(delta)) for a, delta in zip(trace.inputs, trace.deltas, strict=True)]
    factors = tuple(KroneckerFactors(A=homogeneous(a), G=second(delta)) for a, delta in pairs)
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


def _symmetric(x: Float[Array, "m i"], y: Float[Array, "m i"]) -> Float[Array, "i i"]:
    """`x^T y` where it is symmetric: the block below the diagonal mirrors the one above, which saves a quarter."""
    half = x.shape[1] // 2
    if half < 128:
        return jnp.einsum("mi,mj->ij", x, y)
    above = x[:, :half].T @ y[:, half:]
    first, last = (jnp.einsum("mi,mj->ij", x[:, part], y[:, part]) for part in (slice(half), slice(half, None)))
    return jnp.block([[first, above], [above.T, last]])


def squares(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    """The arrays' squares, in at least float32."""
    return tuple(widen(array) ** 2 for array in arrays)


def narrow(tree: Any, dtype: jnp.dtype) -> Any:
    """The arrays of a result in the parameters' dtype."""
    return jax.tree.map(lambda array: array.astype(dtype), tree)


def _squared_norms(trace: Trace) -> Squares:
    """`||delta||^2 (||a||^2 + 1)`, each `(m, K)`."""
    deltas = [norms.sum_squares(delta) for delta in trace.deltas]
    inputs = [norms.sum_squares(a, constant=True) for a in trace.inputs]
    stack = lambda columns: jnp.stack(list(columns), axis=1)
    return Squares(
        stack(delta.value * a.value for delta, a in zip(deltas, inputs, strict=True)),
        stack(delta.exponent + a.exponent for delta, a in zip(deltas, inputs, strict=True)),
    )


def check_weights(trace: Trace, weights: Float[Array, " m"] | None) -> Float[Array, " m"] | None:
    """The weights of a trace's examples, in its dtype; None stays None."""
    losses = trace.losses
    return weights if weights is None else validate.example_weights(weights, losses.shape[0], losses.dtype)


def shares(weights: Float[Array, " m"]) -> Float[Array, " m"]:
    """Each example's part of a mean, `w / sum_m w`, in at least float32; 0 for a batch of padding alone."""
    weights = widen(weights)
    total = weights.sum()
    return weights / jnp.where(total == 0, 1, total)


def mean_of_products(
    deltas: tuple[Array, ...], inputs: tuple[Array, ...], weights: Float[Array, " m"] | None
) -> Params:
    """`sum_m w delta a^T / sum_m w` and `sum_m w delta / sum_m w`, layer by layer, in at least float32.

    Nothing is checked.
    """
    if weights is None:
        # Divided last, 1/m becomes part of the next scale of the gradient, such as the learning rate.
        return jax.tree.map(lambda total: total / deltas[0].shape[0], sum_of_products(deltas, inputs))
    share = shares(weights)[:, None]
    return sum_of_products(tuple(share * widen(delta) for delta in deltas), inputs)


def sum_of_products(deltas: tuple[Array, ...], inputs: tuple[Array, ...], products: str | None = None) -> Params:
    """`sum_m delta a^T` and `sum_m delta`, layer by layer, in at least float32.

    The bias is a weight on a constant 1, so its sum is a product with ones: XLA's sum over rows is slower on a CPU.
    `products` is that of `MLP`, for the larger product.
    """
    deltas, inputs = tuple(map(widen, deltas)), tuple(map(widen, inputs))
    ones = jnp.ones(deltas[0].shape[0], deltas[0].dtype)
    # The last layer first, as the deltas come: XLA then updates more of the weights while a core's cache holds them.
    from_last = [
        Layer(W=rounded_product(delta.T, a, products), b=rounded_product(ones, delta, None))
        for delta, a in zip(deltas[::-1], inputs[::-1], strict=True)
    ]
    return tuple(from_last[::-1])
