"""The mean curvature of a data set's loss, in chunks: Kronecker factors, squares along given directions, dense.

Each is a readout of the traces of one start. The start and the labels decide which curvature it is.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import validate
from jaxmlp._forward import predict
from jaxmlp.chunks import mean_of_chunks
from jaxmlp.maps import Factors, transform
from jaxmlp.methods.kfac import Curvature
from jaxmlp.network import MLP, Layer, Params
from jaxmlp.programs import compiled
from jaxmlp.readouts import kronecker_factors, per_example_gradients, second_moment
from jaxmlp.starts import Start, hessian_root, output_delta, sample_labels
from jaxmlp.trace import Trace, shares_of
from jaxmlp.validate import Examples, Preprocess

MOST = 20_000  # directions of a dense matrix: 1.6 GB in float32


def choose_source(
    net: MLP, params: Params, examples: Examples, curvature: Curvature, key: PRNGKeyArray | None, preprocess: Any
) -> tuple[Examples, Start]:
    """The examples and the start whose error signals' second moments are the curvature."""
    if curvature != "fisher":
        return examples, hessian_root if curvature == "gauss_newton" else output_delta
    labels = sample_labels(net, predict(net, params, examples.X, preprocess=preprocess), validate.key(key))
    return examples._replace(Y=labels), output_delta


@compiled("net", "preprocess", "start", "size")
def mean_factors(
    net: MLP, params: Params, examples: Examples, preprocess: Preprocess | None, start: Start, size: int
) -> Factors:
    """The Kronecker factors of each layer."""
    return mean_of_chunks(kronecker_factors, net, params, examples, size, preprocess, start=start)


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
        return tuple(map(join, second_moment(trace if maps is None else transform(trace, maps), weights)))

    return mean_of_chunks(readout, net, params, examples, size, preprocess, start=start)


@compiled("net", "preprocess", "start", "size", "layers")
def mean_dense(
    net: MLP,
    params: Params,
    examples: Examples,
    maps: Factors | None,
    preprocess: Preprocess | None,
    start: Start,
    size: int,
    layers: int | None = None,
) -> Float[Array, "n n"]:
    """The whole matrix, over the entries of `flatten_gradients`; of the last `layers` alone where they are given."""

    def readout(trace: Trace, weights: Any = None) -> Array:
        share = shares_of(trace, weights)
        rows = flatten_gradients(trace if maps is None else transform(trace, maps), layers)
        rows = rows.reshape(len(share), -1, rows.shape[-1]).astype(share.dtype)
        return jnp.einsum("m,mcn,mcp->np", share, rows, rows)

    return mean_of_chunks(readout, net, params, examples, size, preprocess, start=start)


def flatten_gradients(trace: Trace, layers: int | None = None) -> Float[Array, "m *c n"]:
    """Each example's gradient as one row: W by rows and then b, layer after layer; of the last `layers` or all."""
    first = 0 if layers is None else len(trace.deltas) - layers
    each = jax.tree.leaves(per_example_gradients(trace)[first:])
    lead = trace.deltas[-1].shape[:-1]
    return jnp.concatenate([leaf.reshape(*lead, -1) for leaf in each], axis=-1)


def join(layer: Layer) -> Float[Array, "*m o i"]:
    """`[W b]`."""
    return jnp.concatenate([layer.W, layer.b[..., None]], axis=-1)


def split(joined: Float[Array, "*m o i"]) -> Layer:
    """W and b of `[W b]`."""
    return Layer(joined[..., :-1], joined[..., -1])


def check_size(n: int, argument: str, given: str) -> None:
    """Refuses a dense matrix that fits into no memory."""
    if n > MOST:
        raise ValueError(f"{argument} is {given!r}, which needs a matrix of width {n:,}, expected at most {MOST:,}")
