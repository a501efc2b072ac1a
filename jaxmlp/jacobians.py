"""Parts of the Gauss-Newton matrix, the Jacobian and the tangent kernel: each a start and a readout of its trace.

Letters: m, n example, i in, o out, k, c output.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Num, Shaped

from jaxmlp import rules, validate
from jaxmlp._backward import trace_of
from jaxmlp._forward import network_inputs
from jaxmlp.network import MLP, Params
from jaxmlp.programs import compiled
from jaxmlp.readouts import gradient_gram, per_example_gradients, second_moment
from jaxmlp.starts import Start, hessian_root, unit_rows
from jaxmlp.trace import Trace, narrow, shares_of
from jaxmlp.validate import Given, Preprocess


def ggn_diagonal(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Shaped[Given, "m ..."],
    *,
    weights: Float[Given, " m"] | None = None,
    preprocess: Preprocess | None = None,
) -> Params:
    """The exact diagonal of the cost's Gauss-Newton matrix, `sum_c (delta_c^2)^T (a^2) / m`, with params' structure.

    `delta_c` starts from row c of `hessian_root`.

    Args:
        X: the examples, `(m, n_0)` of the parameters' dtype, or `(m, ...)` for `preprocess`.
        Y: the labels, as in `backprop`.
        weights: a weight of at least 0 for each example, `(m,)`; ones unless given.
        preprocess: a function of one example that gives the network's input.
    Raises:
        ValueError: where an argument does not fit, or the loss has no `d2f`.
    Example:
        >>> jm.ggn_diagonal(net, params, X, Y)[0].W.shape
        (64, 784)

    Source: Dangel et al. 2020.
    """
    examples = validate.examples(net, params, X, Y, weights, None, preprocess)
    return _ggn_diagonal(net, params, examples, preprocess)


@compiled("net", "preprocess")
def _ggn_diagonal(net, params, examples, preprocess):
    trace = _trace_from(net, params, examples.X, examples.Y, preprocess, hessian_root)
    return second_moment(trace, examples.weights)


def ggn_blocks(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Shaped[Given, "m ..."],
    *,
    weights: Float[Given, " m"] | None = None,
    preprocess: Preprocess | None = None,
) -> tuple[Float[Array, "n n"], ...]:
    """Each layer's block of the Gauss-Newton matrix, over the entries of W by rows and then b: `n = o (i + 1)`.

    The blocks are exact, and large: for small layers.

    Args:
        X, Y, weights, preprocess: as in `ggn_diagonal`.
    Returns:
        `(n, n)` for each layer.
    Example:
        >>> small = jm.MLP((784, 2, 3), output="softmax", loss="cross_entropy")
        >>> blocks = jm.ggn_blocks(small, jm.init(small, key), X, jnp.minimum(Y, 2))
        >>> blocks[1].shape
        (9, 9)
    """
    examples = validate.examples(net, params, X, Y, weights, None, preprocess)
    return _ggn_blocks(net, params, examples, preprocess)


@compiled("net", "preprocess")
def _ggn_blocks(net, params, examples, preprocess):
    trace = _trace_from(net, params, examples.X, examples.Y, preprocess, hessian_root)
    share = shares_of(trace, examples.weights)
    blocks = []
    for W, b in per_example_gradients(trace):
        rows = jnp.concatenate([W.reshape(*b.shape[:2], -1), b], axis=2).astype(share.dtype)
        blocks.append(jnp.einsum("m,mcn,mcp->np", share, rows, rows))
    return narrow(tuple(blocks), trace.losses.dtype)


def output_jacobian(
    net: MLP, params: Params, X: Num[Given, "m ..."], *, preprocess: Preprocess | None = None
) -> Params:
    """The Jacobian of the outputs in the parameters, by one recursion for each output.

    Args:
        X: the examples, `(m, n_0)` of the parameters' dtype, or `(m, ...)` for `preprocess`.
        preprocess: a function of one example that gives the network's input.
    Returns:
        For each layer `W (m, n_K, n_out, n_in)` and `b (m, n_K, n_out)`.
    Example:
        >>> jm.output_jacobian(net, params, X[:2])[1].W.shape
        (2, 10, 10, 64)
    """
    X = validate.inputs(net, X, validate.params(net, params), preprocess)
    return _jacobian(net, params, X, preprocess)


@compiled("net", "preprocess")
def _jacobian(net, params, X, preprocess):
    return per_example_gradients(_trace_of_outputs(net, params, X, preprocess))


def ntk(
    net: MLP,
    params: Params,
    X1: Num[Given, "m ..."],
    X2: Num[Given, "n ..."] | None = None,
    *,
    preprocess: Preprocess | None = None,
) -> Float[Array, "m n k c"]:
    """The empirical neural tangent kernel: inner products of the outputs' gradients in the parameters.

    `sum_l (delta_k . delta'_c) (a . a' + 1)`, without forming a Jacobian.

    Args:
        X1: the examples of the rows, `(m, n_0)` of the parameters' dtype, or `(m, ...)` for `preprocess`.
        X2: the examples of the columns, `(n, ...)`; `X1` unless given.
        preprocess: a function of one example that gives the network's input.
    Returns:
        `(m, n, n_K, n_K)`.
    Example:
        >>> jm.ntk(net, params, X[:3], X[3:5]).shape
        (3, 2, 10, 10)

    Source: Jacot et al. 2018, "Neural tangent kernel".
    """
    dtype = validate.params(net, params)
    one = validate.inputs(net, X1, dtype, preprocess, "X1")
    two = None if X2 is None else validate.inputs(net, X2, dtype, preprocess, "X2")
    return _ntk(net, params, one, two, preprocess)


@compiled("net", "preprocess")
def _ntk(net, params, X1, X2, preprocess):
    one = _trace_of_outputs(net, params, X1, preprocess)
    two = None if X2 is None else _trace_of_outputs(net, params, X2, preprocess)
    return narrow(gradient_gram(one, two), params[0].W.dtype)


def _trace_of_outputs(net, params, X, preprocess) -> Trace:
    """The trace of the outputs' gradients; no label enters it."""
    Y = jnp.zeros((X.shape[0], net.sizes[-1]), params[0].W.dtype)
    return _trace_from(net, params, X, Y, preprocess, unit_rows)


def _trace_from(net, params, X, Y, preprocess, start: Start) -> Trace:
    X = network_inputs(X, preprocess, params[0].W.dtype)
    return trace_of(net, params, X, Y, None, rules.backprop, None, None, start)
