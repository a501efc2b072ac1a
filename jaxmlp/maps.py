"""Maps from traces to traces, and the powers and eigenvectors of Kronecker factors that they are made of.

A map has a matrix `A` for the inputs `a~ = (a, 1)` and a matrix `G` for the error signals of each layer, in the form of
`KroneckerFactors`. It makes each pair `(G delta, A a~)`, so a gradient `delta a~^T` becomes `G delta a~^T A^T`. The
readouts of such a trace are what second-order methods need: with `G^-1` and `A^-1` the mean gradient is K-FAC's step,
in the factors' eigenvectors the second moment is EK-FAC's, and with `G^-1/2` and `A^-1/2` the Gram matrix holds the
inner products `g^T F^-1 g'`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmlp import validate
from jaxmlp.doors import takes_trace
from jaxmlp.inverse import invert
from jaxmlp.network import Layer, Params
from jaxmlp.norms import widen
from jaxmlp.programs import compiled
from jaxmlp.readouts import KroneckerFactors
from jaxmlp.trace import Trace
from jaxmlp.validate import Given

Factors = tuple[KroneckerFactors, ...]


@takes_trace
def transform(trace: Trace, M: Factors) -> Trace:
    """The trace of the pairs `(M.G delta, M.A a~)`, with the last entry of each `M.A a~` among its `constants`.

    Args:
        M: a map for each layer, such as of `factor_power`: A `(p, i+1)` and G `(q, o)`, with p and q as you like.
    Raises:
        ValueError: where a matrix does not fit the trace.
    Example:
        >>> trace = jm.backprop(net, params, X, Y)
        >>> M = jm.factor_power(jm.kronecker_factors(trace), -1, damping=1e-3)
        >>> jm.mean_gradient(jm.transform(trace, M))[0].W.shape  # the direction of K-FAC
        (64, 784)

    Source: Martens and Grosse 2015 for K-FAC; George et al. 2018 for EK-FAC.
    """
    M = _check(M, [(delta.shape[-1], a.shape[-1]) for delta, a in zip(trace.deltas, trace.inputs, strict=True)])
    deltas, inputs, constants = [], [], []
    for l, (A, G) in enumerate(M):
        a, delta = trace.inputs[l], trace.deltas[l]
        constant = jnp.ones_like(a[:, 0]) if trace.constants is None else trace.constants[l]
        deltas.append(delta @ G.T)
        # (a, 1) is never joined: products of odd widths, and copies, are slower.
        inputs.append(a @ A[:-1, :-1].T + constant[:, None] * A[None, :-1, -1])
        constants.append(a @ A[-1, :-1] + constant * A[-1, -1])
    return trace._replace(deltas=tuple(deltas), inputs=tuple(inputs), constants=tuple(constants))


def transform_gradient(M: Factors, grads: Params) -> Params:
    """`M.G [W b] M.A^T`, the gradient that `mean_gradient` reads from a transformed trace."""
    made = []
    for (A, G), (W, b) in zip(M, grads, strict=True):
        GW, Gb = G @ widen(W), G @ widen(b)
        made.append(Layer(
            (GW @ A[:-1, :-1].T + jnp.outer(Gb, A[:-1, -1])).astype(W.dtype),
            (GW @ A[-1, :-1] + Gb * A[-1, -1]).astype(b.dtype),
        ))  # fmt: skip
    return tuple(made)


def factor_power(factors: Factors, power: float, damping: float | Float[Given, ""] = 0.0) -> Factors:
    """`(A + pi sqrt(damping) I)^power` and `(G + sqrt(damping) / pi I)^power`, a map for each layer.

    `pi^2 = (tr A / dim A) / (tr G / dim G)` divides the damping, so that `G (x) A` gains about `damping I`.

    Args:
        factors: of `kronecker_factors`.
        power: -1 for K-FAC's step, -1/2 to whiten the gradients; any other number.
        damping: at least 0; may be traced.
    Returns:
        The powers, in the form of the factors.
    Raises:
        ValueError: where a number does not fit. A singular factor without damping has no inverse, and gives infinities.
    Example:
        >>> factors = jm.kronecker_factors(jm.backprop(net, params, X, Y))
        >>> jm.factor_power(factors, -1, damping=1e-3)[0].A.shape
        (785, 785)

    Source: Martens and Grosse 2015, section 6.3.
    """
    power = validate.number(power, "power")
    return _raise_factors(tuple(factors), power, validate.numbers(damping, "damping", least=0))


@compiled("power")  # one program, where an inverse alone is of a hundred operations
def _raise_factors(factors: Factors, power: float, damping: Float[Array, ""]) -> Factors:
    return tuple(
        KroneckerFactors(
            *(_matrix_power(widen(x), power, c).astype(x.dtype) for x, c in zip(layer, split, strict=True))
        )
        for layer in factors
        for split in [split_damping(layer, damping)]
    )


def split_damping(factors: KroneckerFactors, damping: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """What a layer's A and G gain on their diagonals, `pi sqrt(damping)` and `sqrt(damping) / pi`."""
    of_A, of_G = (jnp.trace(widen(x)) / x.shape[0] for x in factors)
    some = (of_A > 0) & (of_G > 0)
    pi = jnp.where(some, jnp.sqrt(jnp.where(some, of_A, 1) / jnp.where(some, of_G, 1)), 1)
    root = jnp.sqrt(damping.astype(pi.dtype))
    return pi * root, root / pi


def factor_eigenvectors(factors: Factors) -> Factors:
    """The map into the eigenvectors of each factor, one a row: there A and G are diagonal.

    Example:
        >>> trace = jm.backprop(net, params, X, Y)
        >>> U = jm.factor_eigenvectors(jm.kronecker_factors(trace))
        >>> jm.second_moment(jm.transform(trace, U))[1].W.shape  # EK-FAC's eigenvalues
        (10, 64)

    Source: George et al. 2018, "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis".
    """
    rows = lambda x: jnp.linalg.eigh(widen(x))[1].T.astype(x.dtype)
    return tuple(KroneckerFactors(rows(A), rows(G)) for A, G in factors)


def _matrix_power(x: Float[Array, "n n"], power: float, damping: Float[Array, ""]) -> Float[Array, "n n"]:
    """`(x + damping I)^power` of a symmetric x without negative eigenvalues."""
    wide = widen(x)
    if power == -1:  # several times cheaper than eigenvectors
        return invert(wide + damping * jnp.eye(x.shape[0], dtype=wide.dtype)).astype(x.dtype)
    values, vectors = jnp.linalg.eigh(wide)
    return ((vectors * (jnp.maximum(values, 0) + damping)[None] ** power) @ vectors.T).astype(x.dtype)


def _check(M: Factors, widths: list[tuple[int, int]]) -> Factors:
    """The map, if each matrix fits the layer's `(o, i)`."""
    if not isinstance(M, tuple | list) or len(M) != len(widths):
        raise ValueError(f"M is {type(M).__name__}, expected KroneckerFactors(A, G) for each of {len(widths)} layers")
    for l, ((A, G), (o, i)) in enumerate(zip(M, widths, strict=True), start=1):
        for name, matrix, n in (("A", A, i + 1), ("G", G, o)):
            if matrix.ndim != 2 or matrix.shape[1] != n:
                raise ValueError(f"M: {name} of layer {l} has shape {matrix.shape}, expected {n} columns")
    return tuple(M)
