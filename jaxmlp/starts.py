"""Several starts for each example: the Gauss-Newton diagonal and blocks, the Jacobian, the tangent kernel.

A start with rows gives the recursion several error signals of one example. Each row of a square root of the loss's
Hessian gives a row of a square root of the Gauss-Newton matrix. Where loss and output are canonical,
`delta^K = y_hat - y`, so the loss's Hessian in `z^K` is the output's Jacobian J itself, and the Gauss-Newton matrix
splits at z; else it splits at y_hat, with `J^T diag(d2L/dy_hat^2) J`. That product is taken through the output's log
odds where it tells them: there no factor is infinite. Letters: m, n example, i in, o out, k, c output.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, Shaped

from jaxmlp import norms, readouts, validate
from jaxmlp._backward import recur
from jaxmlp._forward import Tape, network_inputs, propagate
from jaxmlp.doors import takes_network
from jaxmlp.network import MLP, Layer, Params
from jaxmlp.programs import compiled
from jaxmlp.validate import Given, Preprocess

Start = Callable[[MLP, Tape, Array], Float[Array, "c k"]]


def unit_rows(net: MLP, tape: Tape, y: Array) -> Float[Array, "c k"]:
    """Row c is `J(z)^T e_c`: the recursion then gives the Jacobian of output c."""
    z = tape.pre_activations[-1]
    return jax.vmap(lambda e: net.output.pull(z, e))(jnp.eye(z.shape[0], dtype=z.dtype))


@takes_network
def hessian_root(net: MLP, tape: Tape, y: Array) -> Float[Array, "c k"]:
    """Rows `r_c` with `sum_c r_c r_c^T = d2L/dz^2`, or its Gauss-Newton part `J^T diag(d2L/dy_hat^2) J`.

    For softmax with cross-entropy `r_c = sqrt(p_c) (e_c - p)`; for a pair that is not canonical
    `r_c = J^T e_c sqrt(d2L/dy_hat_c^2)`, which is NaN where a user's loss is not convex.

    Args:
        tape: of `forward`, for one example.
        y: its label.
    Returns:
        `(c, n_K)`.
    Raises:
        ValueError: where the loss has no `d2f`.
    Example:
        >>> y_hat, tape = jm.forward(net, params, X[0])
        >>> R = jm.hessian_root(net, tape, Y[0])
        >>> bool(jnp.allclose(R.T @ R, jnp.diag(y_hat) - jnp.outer(y_hat, y_hat), atol=1e-6))
        True

    Source: Dangel et al. 2020.
    """
    if is_canonical(net):
        return net.loss.root(tape.output)  # pyright: ignore[reportOptionalCall]
    if net.loss.of_log_odds and net.output.log_odds:
        z = tape.pre_activations[-1]
        o = net.output.log_odds.f(z)
        curvature = net.loss.of_log_odds.gauss_newton(o, net.loss.target(y, tape.output))
        return jnp.sqrt(curvature)[:, None] * net.output.log_odds.jacobian(z)
    return jnp.sqrt(loss_curvature(net, tape, y))[:, None] * unit_rows(net, tape, y)


def is_canonical(net: MLP) -> bool:
    """Whether the output is the loss's canonical one, for which `delta^K = y_hat - y`."""
    return net.output == net.loss.canonical


def loss_curvature(net: MLP, tape: Tape, y: Array) -> Float[Array, " k"]:
    """`d2L/dy_hat^2` for each output."""
    if net.loss.d2f is None:
        raise ValueError(f"loss {net.loss.name!r} has no d2f, expected one for curvature")
    return net.loss.d2f(tape.output, net.loss.target(y, tape.output)).astype(tape.output.dtype)


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
    inputs, columns = _columns(net, params, examples.X, examples.Y, preprocess, hessian_root)
    squares = tuple(jnp.sum(delta, axis=1) for delta in readouts.squares(columns))
    grads = readouts.mean_of_products(squares, readouts.squares(inputs), examples.weights)
    return readouts.narrow(grads, inputs[0].dtype)


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
    X, Y, weights, _ = examples
    inputs, columns = _columns(net, params, X, Y, preprocess, hessian_root)
    share = readouts.shares(jnp.ones(X.shape[0], inputs[0].dtype) if weights is None else weights)
    blocks = []
    for delta, a in zip(map(norms.widen, columns), map(norms.widen, inputs), strict=True):
        W = jnp.einsum("mco,mi->mcoi", delta, a).reshape(*delta.shape[:2], -1)
        rows = jnp.concatenate([W, delta], axis=2)
        blocks.append(jnp.einsum("m,mcn,mcp->np", share, rows, rows))
    return readouts.narrow(tuple(blocks), inputs[0].dtype)


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
    inputs, columns = _output_columns(net, params, X, preprocess)
    return tuple(
        Layer(W=jnp.einsum("mko,mi->mkoi", delta, a), b=delta) for delta, a in zip(columns, inputs, strict=True)
    )


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
    columns = lambda X, name: _output_columns(
        net, params, validate.inputs(net, X, dtype, preprocess, name), preprocess
    )  # fmt: skip
    one = columns(X1, "X1")
    two = one if X2 is None else columns(X2, "X2")
    kernel = [
        jnp.einsum("mko,nco->mnkc", delta, delta_) * (jnp.einsum("mi,ni->mn", a, a_) + 1)[:, :, None, None]
        for a, delta, a_, delta_ in zip(*one, *two, strict=True)
    ]
    return sum(kernel[1:], kernel[0])


@compiled("net", "preprocess")
def _output_columns(net, params, X, preprocess):
    return _columns(net, params, X, jnp.zeros(X.shape[0], int), preprocess, unit_rows)


def _columns(net, params, X, Y, preprocess, start: Start):
    """`a^(l-1) (m, i)` of each example, and its `delta^l (m, c, o)` from each row of the start."""

    def example(x, y):
        _, tape = propagate(net, params, x)
        return tape.inputs, jax.vmap(partial(recur, net, params, tape))(start(net, tape, y))

    return jax.vmap(example)(network_inputs(X, preprocess, params[0].W.dtype), Y)
