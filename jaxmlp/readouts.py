"""Gradient quantities from a trace: each a contraction over its pairs `(delta, a)`.

Letters: m example, i in, o out. One example's gradient of layer l is `delta^l a^(l-1)^T` for W and `delta^l` for b, so
its squared norm is `||delta||^2 (||a||^2 + 1)`, and no readout but `per_example_gradients` ever forms one. Under `jit`,
what a readout does not ask for is not computed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import validate
from jaxmlp.network import Layer, Params, rounded_product


class Trace(NamedTuple):
    """A batch's pairs `(delta, a)`, from which every gradient quantity is a readout; entry l-1 belongs to layer l.

    `deltas` belong to the unreduced loss of each example: only what says "mean" divides.
    """

    inputs: tuple[Float[Array, "m i"], ...]  # a^0 .. a^(K-1)
    pre_activations: tuple[Float[Array, "m o"], ...]  # z^1 .. z^K
    deltas: tuple[Float[Array, "m o"], ...]  # delta^1 .. delta^K
    output: Float[Array, "m k"]  # y_hat
    losses: Float[Array, " m"]


def mean_gradient(trace: Trace, weights: Float[Array, " m"] | None = None) -> Params:
    """`grad_W^l = sum_m w delta^l a^(l-1)^T / sum_m w`, `grad_b^l = sum_m w delta^l / sum_m w`.

    `weights (m,)` default to ones. Source: notes 000, "Backpropagation in this network"; 002, the factor `1/m`.
    """
    return _mean_of_products(trace.deltas, trace.inputs, weights)


def per_example_gradients(trace: Trace) -> Params:
    """Each example's gradient, `W (m, o, i)` and `b (m, o)`: m times the memory of the weights."""
    return tuple(
        Layer(W=jnp.einsum("mo,mi->moi", delta, a), b=delta)
        for delta, a in zip(trace.deltas, trace.inputs, strict=True)
    )


def delta_norms(trace: Trace) -> Float[Array, "m K"]:
    """`||delta^l||` of each example, a column for each layer."""
    return jnp.stack([jnp.linalg.norm(delta, axis=1) for delta in trace.deltas], axis=1)


def layer_norms(trace: Trace) -> Float[Array, "m K"]:
    """The norm of each example's gradient of each layer, `||delta|| sqrt(||a||^2 + 1)`: W and b together."""
    return jnp.sqrt(_squared_norms(trace))


def per_example_norms(trace: Trace) -> Float[Array, " m"]:
    """The norm of each example's whole gradient, `sqrt(sum_l ||delta^l||^2 (||a^(l-1)||^2 + 1))`. Goodfellow 2015."""
    return jnp.sqrt(_squared_norms(trace).sum(1))


def clipped_gradient(
    trace: Trace, max_norm: float | Float[Array, ""], weights: Float[Array, " m"] | None = None
) -> Params:
    """The mean of the examples' gradients, each scaled down to norm `max_norm` where it is longer.

    `sum_m w c g / sum_m w`, `c = min(1, max_norm / ||g||)`. No example's gradient is formed: c scales delta
    (Goodfellow 2015; Li et al. 2022, "ghost clipping", here with one backward pass).
    """
    scale = _clip_factors(trace, max_norm)
    return _mean_of_products(tuple(scale * delta for delta in trace.deltas), trace.inputs, weights)


def private_gradient(
    trace: Trace,
    max_norm: float | Float[Array, ""],
    noise_multiplier: float | Float[Array, ""],
    key: PRNGKeyArray,
    expected_batch_size: float | None = None,
    weights: Float[Array, " m"] | None = None,
) -> Params:
    """DP-SGD's gradient, `(sum_m w c g + noise) / expected_batch_size`, `c = min(1, max_norm / ||g||)`.

    The noise of each weight and bias is `N(0, (noise_multiplier max_norm)^2)`. `expected_batch_size` is `q` times the
    number of examples for Poisson sampling at rate q (m unless given); `weights`: 1 for examples, 0 for
    padding; more than 1 counts as 1.
    Source: Abadi et al. 2016, Algorithm 1.
    """
    scale = _clip_factors(trace, max_norm)
    if weights is not None:  # anything but 0 and 1 would let an example count for more than the noise covers
        weights = validate.example_weights(weights, trace.losses.shape[0], trace.losses.dtype)
        scale = jnp.minimum(weights, 1)[:, None] * scale
    total = sum_of_products(tuple(scale * delta for delta in trace.deltas), trace.inputs)
    leaves, structure = jax.tree.flatten(total)
    deviation = noise_multiplier * max_norm
    noisy = [
        leaf + deviation * jax.random.normal(leaf_key, leaf.shape, leaf.dtype)
        for leaf, leaf_key in zip(leaves, jax.random.split(key, len(leaves)), strict=True)
    ]
    expected = trace.losses.shape[0] if expected_batch_size is None else expected_batch_size
    validate.positive(expected, "expected_batch_size")
    validate.positive(noise_multiplier, "noise_multiplier", or_zero=True)
    return jax.tree.map(lambda g: g / expected, jax.tree.unflatten(structure, noisy))


def second_moment(trace: Trace, weights: Float[Array, " m"] | None = None) -> Params:
    """The mean of the examples' squared gradients, entry by entry: `(delta^2)^T (a^2) / m`. Dangel et al. 2020."""
    weights = jnp.ones_like(trace.losses) if weights is None else weights  # scales delta^2, not the larger product
    return _mean_of_products(_squares(trace.deltas), _squares(trace.inputs), weights)


def variance(trace: Trace, weights: Float[Array, " m"] | None = None) -> Params:
    """The variance of the examples' gradients, entry by entry: `E[g^2] - E[g]^2` (divided by m, not m - 1)."""
    difference = lambda moment, mean: jnp.maximum(moment - mean**2, 0)  # rounding may leave a negative
    return jax.tree.map(difference, second_moment(trace, weights), mean_gradient(trace, weights))


def noise_scale(trace: Trace) -> Float[Array, ""]:
    """The batch size at which noise and gradient are equally large, `tr(Sigma) / ||G||^2` (McCandlish et al. 2018).

    Sigma is the covariance of the examples' gradients and G the true gradient. Both are estimated without bias from
    the batch, with S the mean of the squared norms and N the squared norm of the mean:
    `tr(Sigma) = m (S - N) / (m - 1)`, `||G||^2 = (m N - S) / (m - 1)`, which noise can make negative.
    Raises ValueError for fewer than 2 examples.
    """
    m = trace.losses.shape[0]
    if m < 2:
        raise ValueError(f"trace holds {m} example, expected at least 2")
    S = _squared_norms(trace).sum(1).mean()
    N = sum(jnp.sum(g**2) for g in jax.tree.leaves(mean_gradient(trace)))
    return m * (S - N) / (m * N - S)


def gradient_gram(trace: Trace) -> Float[Array, "m n"]:
    """All inner products of the examples' gradients, `sum_l (delta delta^T) * (a a^T + 1)`, `(m, m)`."""
    grams = [
        jnp.einsum("mo,no->mn", delta, delta) * (jnp.einsum("mi,ni->mn", a, a) + 1)
        for delta, a in zip(trace.deltas, trace.inputs, strict=True)
    ]
    return sum(grams[1:], grams[0])


class KroneckerFactors(NamedTuple):
    """A layer's `A (i+1, i+1)` and `G (o, o)`: `G (x) A` stands for the second moment of its gradient `[W b]`."""

    A: Float[Array, "i i"]
    G: Float[Array, "o o"]


def kronecker_factors(trace: Trace, weights: Float[Array, " m"] | None = None) -> tuple[KroneckerFactors, ...]:
    """`A = E[a~ a~^T]`, `G = E[delta delta^T]` of each layer, `a~ = (a, 1)`: the bias is a weight on a constant 1.

    Deltas of labels sampled from the model (`sample_labels`) give the Fisher's factors, those of the true labels the
    empirical Fisher's. Source: Martens and Grosse 2015.
    """
    if weights is None:
        share, scale = None, 1 / trace.losses.shape[0]
    else:
        weights = validate.example_weights(weights, trace.losses.shape[0], trace.losses.dtype)
        share, scale = shares(weights)[:, None], 1.0

    def second(x: Array) -> Array:
        return scale * _symmetric(x if share is None else share * x, x)

    def homogeneous(a: Array) -> Array:
        edge = scale * jnp.sum(a if share is None else share * a, axis=0)
        return jnp.block([[second(a), edge[:, None]], [edge[None], jnp.ones((1, 1), a.dtype)]])

    pairs = zip(trace.inputs, trace.deltas, strict=True)
    return tuple(KroneckerFactors(A=homogeneous(a), G=second(delta)) for a, delta in pairs)


def weight_jacobian(a: Float[Array, " i"], n_out: int) -> Float[Array, "o oi"]:
    """`B = I (x) a^T`, the Jacobian of `z = W a = B vec(W)` in the weights, `vec` by rows: the gradient is `B^T delta`.

    Shape `(n_out, n_out n_in)`. Source: notes 004, "Forward Propagation".
    """
    return jnp.kron(jnp.eye(n_out, dtype=a.dtype), a[None])


def _symmetric(x: Float[Array, "m i"], y: Float[Array, "m i"]) -> Float[Array, "i i"]:
    """`x^T y` where it is symmetric: the block below the diagonal is the one above it, so a quarter is saved."""
    half = x.shape[1] // 2
    if half < 128:
        return jnp.einsum("mi,mj->ij", x, y)
    above = x[:, :half].T @ y[:, half:]
    first, last = (jnp.einsum("mi,mj->ij", x[:, part], y[:, part]) for part in (slice(half), slice(half, None)))
    return jnp.block([[first, above], [above.T, last]])


def _squares(arrays: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(array**2 for array in arrays)


def _squared_norms(trace: Trace) -> Float[Array, "m K"]:
    pairs = zip(trace.deltas, trace.inputs, strict=True)
    return jnp.stack([jnp.sum(delta**2, axis=1) * (jnp.sum(a**2, axis=1) + 1) for delta, a in pairs], axis=1)


def _clip_factors(trace: Trace, max_norm: float | Float[Array, ""]) -> Float[Array, "m 1"]:
    """`min(1, max_norm / ||g||)`, and 1 for a gradient of 0."""
    validate.positive(max_norm, "max_norm")
    norms = per_example_norms(trace)
    longer = norms > max_norm
    return jnp.where(longer, max_norm / jnp.where(longer, norms, 1), 1)[:, None]


def shares(weights: Float[Array, " m"]) -> Float[Array, " m"]:
    """Each example's part of a mean, `w / sum_m w`; 0 for a batch that is all padding."""
    total = weights.sum()
    return weights / jnp.where(total == 0, 1, total)


def _mean_of_products(
    deltas: tuple[Array, ...], inputs: tuple[Array, ...], weights: Float[Array, " m"] | None
) -> Params:
    """`sum_m w delta a^T / sum_m w` and `sum_m w delta / sum_m w`, layer by layer."""
    if weights is None:
        # Divided last, 1/m becomes part of whatever scales the gradient next, such as the learning rate.
        return jax.tree.map(lambda total: total / deltas[0].shape[0], sum_of_products(deltas, inputs))
    weights = validate.example_weights(weights, deltas[0].shape[0], deltas[0].dtype)
    share = shares(weights)[:, None]
    return sum_of_products(tuple(share * delta for delta in deltas), inputs)


def sum_of_products(deltas: tuple[Array, ...], inputs: tuple[Array, ...], products: str | None = None) -> Params:
    """`sum_m delta a^T` and `sum_m delta`, layer by layer.

    The bias is a weight on a constant 1, so its sum is a product with ones: XLA's sum over rows is slower on a CPU.
    `products` is that of `MLP`, for the larger product.
    """
    ones = jnp.ones(deltas[0].shape[0], deltas[0].dtype)
    # In the order in which the deltas come: XLA then updates more of the weights while they are in a core's cache.
    from_last = [
        Layer(W=rounded_product(delta.T, a, products), b=rounded_product(ones, delta, None))
        for delta, a in zip(deltas[::-1], inputs[::-1], strict=True)
    ]
    return tuple(from_last[::-1])
