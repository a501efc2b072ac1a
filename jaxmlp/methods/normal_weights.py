"""Weights that are normal around their mean: eigenvectors of their precision, draws, and what the outputs become.

Along the rows of `vectors` the weights are independent: products of each layer's Kronecker factors' eigenvectors, the
weights' own axes (None), or the eigenvectors of a whole matrix.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxmlp._backward import trace_of
from jaxmlp._forward import network_inputs
from jaxmlp.activations import Softmax
from jaxmlp.chunks import map_chunks
from jaxmlp.maps import Factors, transform
from jaxmlp.methods.curvature_blocks import (
    flatten_gradients,
    mean_dense,
    mean_factors,
    mean_last_block,
    mean_squares,
)
from jaxmlp.norms import widen
from jaxmlp.programs import compiled
from jaxmlp.readouts import KroneckerFactors
from jaxmlp.rules import backprop
from jaxmlp.starts import hessian_root, unit_rows
from jaxmlp.trace import Trace, split, with_constant

Structure = Literal["kronecker", "diagonal", "last_layer", "full"]
CHUNK = 1024  # examples at a time


def find_curvature(net, params, examples, structure, preprocess) -> tuple[Any, tuple[Array, ...]]:
    """The eigenvectors and eigenvalues of the mean Gauss-Newton matrix."""
    if structure == "diagonal":
        return None, mean_squares(net, params, examples, None, preprocess, hessian_root, CHUNK)
    if structure == "kronecker":
        return _decompose(mean_factors(net, params, examples, preprocess, hessian_root, CHUNK))
    if structure == "last_layer":
        G = mean_last_block(net, params, examples, preprocess, hessian_root, CHUNK)
    else:
        G = mean_dense(net, params, examples, None, preprocess, hessian_root, CHUNK)
    values, columns = jnp.linalg.eigh(G)
    return columns.T, (values,)


@jax.jit
def _decompose(factors: Factors) -> tuple[Factors, tuple[Float[Array, "o i"], ...]]:
    """Eigenvectors, a row each, and products of eigenvalues; the bias, whose input is 1, is apart from the weights."""
    vectors, products = [], []
    for A, G in factors:
        of_A, in_A = jnp.linalg.eigh(widen(A[:-1, :-1]))
        of_G, in_G = jnp.linalg.eigh(widen(G))
        last = jnp.ones((1, 1), in_A.dtype)
        vectors.append(KroneckerFactors(jax.scipy.linalg.block_diag(in_A.T, last), in_G.T))
        products.append(jnp.outer(of_G, jnp.concatenate([of_A, last[0]])))
    return tuple(vectors), tuple(products)


@compiled("net", "structure", "preprocess", "start")
def linearize(net, structure, preprocess, start, params, vectors, eigenvalues, X):
    """The outputs (those that `start` differentiates) and their covariance `J precision^-1 J^T`, `(m, k, k)`."""

    def chunk(X):
        X = network_inputs(X, preprocess, params[0].W.dtype)
        Y = jnp.zeros((X.shape[0], net.sizes[-1]), X.dtype)  # enters no derivative of the outputs
        trace = jax.tree.map(widen, trace_of(net, params, X, Y, None, backprop, None, None, start))
        f = trace.output if start is unit_rows else trace.pre_activations[-1]
        return f, _covariance(structure, trace, vectors, eigenvalues)

    return map_chunks(chunk, X, CHUNK)


def _covariance(structure: Structure, trace: Trace, vectors: Any, eigenvalues: Any) -> Float[Array, "m k k"]:
    if structure in ("full", "last_layer"):
        if structure == "last_layer":
            trace = trace._replace(inputs=trace.inputs[-1:], deltas=trace.deltas[-1:])
        J = widen(flatten_gradients(trace)) @ vectors.T
        return jnp.einsum("mcp,p,mkp->mck", J, 1 / eigenvalues[0], J)
    trace = trace if vectors is None else transform(trace, vectors)
    parts = []
    for l, delta in enumerate(trace.deltas):
        scale = with_constant(trace, l) ** 2 @ (1 / eigenvalues[l]).T
        parts.append(jnp.einsum("mco,mo,mko->mck", widen(delta), scale, widen(delta)))
    return sum(parts[1:], parts[0])


@compiled("net", "samples")
def squash(net, samples, z, covariance, key):
    """The probabilities of normal `z^K`."""
    output = jax.vmap(net.output)
    if samples is None:
        variance = jnp.diagonal(covariance, axis1=1, axis2=2)
        if not isinstance(net.output, Softmax):
            return output(z / jnp.sqrt(1 + math.pi / 8 * variance))
        # Of differences of z: the data say nothing of a shift that all z share, and softmax ignores it.
        apart = variance[:, :, None] + variance[:, None] - 2 * covariance
        odds = (z[:, None] - z[:, :, None]) / jnp.sqrt(1 + math.pi / 8 * apart.clip(0))  # of class j to class k
        return output(-jax.nn.logsumexp(odds, axis=2))
    root = jnp.linalg.cholesky(covariance)

    def add(total, key):
        moved = z + jnp.einsum("mck,mk->mc", root, jax.random.normal(key, z.shape, root.dtype))
        return total + output(moved), None

    return jax.lax.scan(add, jnp.zeros_like(z), jax.random.split(key, samples))[0] / samples


@compiled("structure", "n")
def draw(structure, n, params, vectors, eigenvalues, key):
    keys = jax.random.split(key, len(eigenvalues))
    draws = [
        jax.random.normal(k, (n, *values.shape), values.dtype) / jnp.sqrt(values)[None]
        for k, values in zip(keys, eigenvalues, strict=True)
    ]
    if structure in ("full", "last_layer"):
        fixed, moved = (params[:-1], params[-1:]) if structure == "last_layer" else ((), params)
        unravel = ravel_pytree(jax.tree.map(lambda leaf: widen(jnp.zeros_like(leaf)), moved))[1]
        steps = (
            *jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape), leaf.dtype), fixed),
            *jax.vmap(unravel)(draws[0] @ vectors),
        )
    else:
        turned = draws if vectors is None else [
            jnp.einsum("po,npq,qi->noi", G, draw, A) for draw, (A, G) in zip(draws, vectors, strict=True)
        ]  # fmt: skip
        steps = tuple(map(split, turned))
    add = lambda step, mean: jnp.broadcast_to(mean[None] + step.astype(mean.dtype), (n, *mean.shape))
    return jax.tree.map(add, steps, params)
