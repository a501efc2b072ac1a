"""The mean curvature of a data set's loss, in chunks: Kronecker factors, squares along given directions, dense.

Each is a readout of the traces of one start. The start and the labels decide which curvature it is. All
are in at least float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import validate
from jaxmlp._forward import predict
from jaxmlp.chunks import mean_of_chunks
from jaxmlp.maps import Factors, transform
from jaxmlp.methods.kfac import Curvature, choose_start
from jaxmlp.network import MLP, Params
from jaxmlp.norms import widen
from jaxmlp.programs import compiled
from jaxmlp.readouts import kronecker_factors, per_example_gradients, second_moment
from jaxmlp.starts import Start, sample_labels
from jaxmlp.trace import Trace, join, shares_of, with_constant
from jaxmlp.validate import Examples, Preprocess

MOST = 20_000  # directions of a dense matrix: 1.6 GB in float32


def choose_source(
    net: MLP, params: Params, examples: Examples, curvature: Curvature, key: PRNGKeyArray | None, preprocess: Any
) -> tuple[Examples, Start]:
    """The examples and the start whose error signals' second moments are the curvature."""
    if curvature != "fisher":
        return examples, choose_start(curvature)
    labels = sample_labels(net, predict(net, params, examples.X, preprocess=preprocess), validate.key(key))
    return examples._replace(Y=labels), choose_start(curvature)


@compiled("net", "preprocess", "start", "size")
def mean_factors(
    net: MLP, params: Params, examples: Examples, preprocess: Preprocess | None, start: Start, size: int
) -> Factors:
    """The Kronecker factors of each layer."""

    def readout(trace: Trace, weights: Any = None) -> Factors:
        return kronecker_factors(jax.tree.map(widen, trace), weights)

    return mean_of_chunks(readout, net, params, examples, size, preprocess, start=start)


@compiled("net", "preprocess", "start", "size")
def mean_squares(
    net: MLP,
    params: Params,
    examples: Examples,
    maps: Factors | None,
    preprocess: Preprocess | None,
    start: Start,
    size: int,
) -> tuple[Float[Array, "o i"], ...]:
    """The second moment of each layer's gradient `[W b]`, along the directions of `maps`."""

    def readout(trace: Trace, weights: Any = None) -> tuple[Array, ...]:
        trace = jax.tree.map(widen, trace)
        return tuple(map(join, second_moment(trace if maps is None else transform(trace, maps), weights)))

    return mean_of_chunks(readout, net, params, examples, size, preprocess, start=start)


@compiled("net", "preprocess", "start", "size")
def mean_dense(
    net: MLP,
    params: Params,
    examples: Examples,
    maps: Factors | None,
    preprocess: Preprocess | None,
    start: Start,
    size: int,
) -> Float[Array, "n n"]:
    """The whole matrix, over the entries of `flatten_gradients`."""

    def readout(trace: Trace, weights: Any = None) -> Array:
        trace, share = jax.tree.map(widen, trace), shares_of(trace, weights)
        rows = flatten_gradients(trace if maps is None else transform(trace, maps))
        rows = rows.reshape(len(share), -1, rows.shape[-1]).astype(share.dtype)
        return jnp.einsum("m,mcn,mcp->np", share, rows, rows)

    return mean_of_chunks(readout, net, params, examples, size, preprocess, start=start)


@compiled("net", "preprocess", "start", "size")
def mean_last_block(
    net: MLP, params: Params, examples: Examples, preprocess: Preprocess | None, start: Start, size: int
) -> Float[Array, "n n"]:
    """The last layer's block over W by rows and then b, `mean (delta delta^T) (x) (a~ a~^T)`; no row is formed."""
    o, i = net.shapes[-1]
    place = np.arange(o * (i + 1)).reshape(o, i + 1)
    order = np.concatenate([place[:, :-1].ravel(), place[:, -1]])

    def readout(trace: Trace, weights: Any = None) -> Array:
        delta, a = widen(trace.deltas[-1]), with_constant(trace, net.depth - 1)
        delta = delta if delta.ndim == 3 else delta[:, None]
        of_outputs = jnp.einsum("m,mco,mcp->omp", shares_of(trace, weights), delta, delta)
        of_one = lambda scale: jnp.einsum("mpi,mj->ipj", scale[:, :, None] * a[:, None, :], a)
        block = jax.lax.map(of_one, of_outputs).reshape(len(order), len(order))
        return block[order][:, order]

    return mean_of_chunks(readout, net, params, examples, size, preprocess, start=start)


def flatten_gradients(trace: Trace) -> Float[Array, "m *c n"]:
    """Each example's gradient as one row: W by rows and then b, layer after layer."""
    each = jax.tree.leaves(per_example_gradients(trace))
    lead = trace.deltas[-1].shape[:-1]
    return jnp.concatenate([leaf.reshape(*lead, -1) for leaf in each], axis=-1)


def check_size(n: int, argument: str, given: str) -> None:
    """Refuses a dense matrix that fits into no memory."""
    if n > MOST:
        raise ValueError(f"{argument} is {given!r}, which needs a matrix of width {n:,}, expected at most {MOST:,}")
