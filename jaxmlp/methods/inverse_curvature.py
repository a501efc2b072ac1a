"""The inverse of a training set's curvature on the gradients of test examples, by each method of influence."""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import rules
from jaxmlp._backward import trace_of
from jaxmlp._forward import network_inputs
from jaxmlp.maps import Factors, factor_eigenvectors, factor_power, transform
from jaxmlp.methods.curvature_blocks import (
    choose_source,
    flatten_gradients,
    mean_dense,
    mean_factors,
    mean_squares,
)
from jaxmlp.methods.kfac import Curvature
from jaxmlp.network import MLP, Params
from jaxmlp.norms import widen
from jaxmlp.programs import compiled
from jaxmlp.readouts import KroneckerFactors, per_example_gradients
from jaxmlp.trace import Trace, join
from jaxmlp.validate import Examples, Preprocess

Method = Literal["tracin", "kfac", "ekfac", "projected", "exact"]
SHARE = 0.1  # of the mean curvature: the damping of Grosse et al.


class Sides(NamedTuple):
    """A score of layer l is the product of a training example's mapped pairs and a test example's `queries`.

    The queries are pairs, too, or tensors `(n, o, i)`. `divide` holds what their products' entries are divided by, or
    `terms` the pairs `(r, o)` and `(r, i)` whose products' sum they are multiplied by.
    """

    maps: Factors | None
    queries: Trace | tuple[Float[Array, "n o i"], ...]
    divide: tuple[Float[Array, "o i"], ...] | None = None
    terms: tuple[tuple[Float[Array, "r o"], Float[Array, "r i"]], ...] | None = None


class How(NamedTuple):
    """A method with all that it takes."""

    method: Method
    damping: Array | None
    curvature: Curvature
    key: PRNGKeyArray | None
    size: int | None
    terms: int | None


def prepare(
    net: MLP, params: Params, training: Examples, tests: Examples, how: How, preprocess: Preprocess | None, chunk: int
) -> Sides:
    """What does not change from one chunk of training examples to the next."""
    queries = leave_trace(net, params, tests.X, tests.Y, preprocess)
    if how.method == "tracin":
        return Sides(None, queries)
    examples, start = choose_source(net, params, training, how.curvature, how.key, preprocess)
    if how.method in ("kfac", "ekfac"):
        factors = mean_factors(net, params, examples, preprocess, start, chunk)
        if how.method == "kfac":
            return Sides(None, transform(queries, _invert(factors, how.damping)))
        U = _find_eigenvectors(factors)
        moments = mean_squares(net, params, examples, U, preprocess, start, chunk)
        divide = tuple(s + _damping(how.damping, s.mean()) for s in moments)
        if how.terms is None:
            return Sides(U, transform(queries, U), divide)
        expand = lambda d, s: _expand(d, s, how.terms)
        return Sides(U, transform(queries, U), terms=tuple(map(expand, divide, moments)))
    maps = None if how.method == "exact" else draw_projections(net, how, params[0].W.dtype)
    H = mean_dense(net, params, examples, maps, preprocess, start, chunk)
    return Sides(maps, _solve(H, queries if maps is None else transform(queries, maps), how.damping))


@compiled("net", "preprocess")
def leave_trace(net, params, X, Y, preprocess):
    """The trace of the loss's own start, in at least float32."""
    X = network_inputs(X, preprocess, params[0].W.dtype)
    return jax.tree.map(widen, trace_of(net, params, X, Y, None, rules.backprop, None))


def _damping(given: Array | None, mean: Float[Array, ""]) -> Float[Array, ""]:
    """The damping of a layer whose curvature has this mean along its diagonal; of a layer without any, 1."""
    return jnp.where(mean > 0, SHARE * mean, 1) if given is None else given.astype(mean.dtype)


_find_eigenvectors = jax.jit(factor_eigenvectors)


@jax.jit
def _invert(factors: Factors, damping: Array | None) -> Factors:
    """The inverses, each layer damped for itself."""
    mean = lambda x: jnp.trace(widen(x)) / x.shape[0]
    of = lambda layer: _damping(damping, mean(layer.A) * mean(layer.G))
    return tuple(factor_power((layer,), -1, of(layer))[0] for layer in factors)


@partial(jax.jit, static_argnames="terms")
def _expand(divide: Float[Array, "o i"], moments: Float[Array, "o i"], terms: int) -> tuple[Array, Array]:
    """u `(r, o)` and v `(r, i)` whose `sum_r u_r v_r^T` is nearest to `1 / divide`, for gradients of these moments.

    An entry of the gradients has the square s, so an error of `1 / divide` there weighs as s, about the product of the
    moments' sums over rows and columns.
    """
    floor = lambda x: jnp.maximum(x, jnp.finfo(x.dtype).eps * jnp.max(x))
    rows, columns = floor(moments.sum(1)), floor(moments.sum(0))
    u, values, v = jnp.linalg.svd(rows[:, None] * columns[None] / divide, full_matrices=False)
    return (u[:, :terms] * values[None, :terms]).T / rows[None], v[:terms] / columns[None]


def draw_projections(net: MLP, how: How, dtype: Any) -> Factors:
    """Normal matrices with `E[M^T M] = I`, `(size, i+1)` and `(size, o)`; the identity where that is no less."""

    def draw(key: PRNGKeyArray, n: int) -> Array:
        assert how.size is not None
        if n <= how.size:
            return jnp.eye(n, dtype=dtype)
        return jax.random.normal(key, (how.size, n), dtype) * how.size**-0.5

    assert how.key is not None
    keys = [jax.random.split(key) for key in jax.random.split(how.key, net.depth)]
    return tuple(KroneckerFactors(draw(k[0], i + 1), draw(k[1], o)) for k, (o, i) in zip(keys, net.shapes, strict=True))


@jax.jit
def _solve(H: Float[Array, "p p"], queries: Trace, damping: Array | None) -> tuple[Float[Array, "n o i"], ...]:
    """`(H + damping I)^-1 g` of each test example, as each layer's `[W b]`."""
    like = jax.eval_shape(lambda t: jax.tree.map(lambda leaf: leaf[0], per_example_gradients(t)), queries)
    sizes = [sum(math.prod(leaf.shape) for leaf in layer) for layer in like]
    ends = np.cumsum(sizes)
    diagonal = jnp.diag(H)
    each = [_damping(damping, diagonal[end - n : end].mean()) for n, end in zip(sizes, ends, strict=True)]
    shift = jnp.concatenate([jnp.full(n, value) for n, value in zip(sizes, each, strict=True)])
    root = jax.scipy.linalg.cho_factor(H + jnp.diag(shift), lower=True)
    solved = jax.scipy.linalg.cho_solve(root, flatten_gradients(queries).astype(H.dtype).T).T
    unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, H.dtype), like))[1]
    return tuple(map(join, jax.vmap(unravel)(solved)))
