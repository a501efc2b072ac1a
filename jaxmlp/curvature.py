"""Curvature of the cost: products with its Hessian and Gauss-Newton matrix, their diagonal, blocks and eigenvalues.

The recursion again, from other starts. It is linear in its start, so a column of a square root of the loss's Hessian
gives a column of the Gauss-Newton matrix's; and its derivative along a direction `v` in the weights (the R-operator:
`R{x} = d/dt x(params + t v)` at t = 0) gives Hessian products. Where loss and output are canonical,
`delta^K = y_hat - y`, so the loss's Hessian in `z^K` is the output's Jacobian J itself, and the Gauss-Newton matrix
splits at z; else it splits at y_hat, with `J^T diag(d2L/dy_hat^2) J`. Letters: m, n example, i in, o out, k, c output.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Num, PRNGKeyArray
from scipy.sparse.linalg import LinearOperator, eigsh

from jaxmlp import validate
from jaxmlp._backward import backward, output_delta
from jaxmlp._forward import Tape, batch, forward, network_input
from jaxmlp.network import MLP, Layer, Params
from jaxmlp.readouts import _mean_of_products
from jaxmlp.validate import Given, Preprocess

Start = Callable[[MLP, Tape, Array], Float[Array, "c k"]]


def unit_rows(net: MLP, tape: Tape, y: Array) -> Float[Array, "c k"]:
    """A start for each output c: row c is `J(z)^T e_c`, so the recursion gives the Jacobian of `y_hat_c`."""
    z = tape.pre_activations[-1]
    return jax.vmap(lambda e: net.output.pull(z, e))(jnp.eye(z.shape[0], dtype=z.dtype))


def hessian_root(net: MLP, tape: Tape, y: Array) -> Float[Array, "c k"]:
    """Rows `r_c` with `sum_c r_c r_c^T = d2L/dz^2`, or its Gauss-Newton part `J^T diag(d2L/dy_hat^2) J`.

    For softmax with cross-entropy `r_c = sqrt(p_c) (e_c - p)`; for a pair that is not canonical
    `r_c = J^T e_c sqrt(d2L/dy_hat_c^2)`, which is NaN where a loss is not convex. Source: Dangel et al. 2020.
    """
    if _canonical(net):
        return net.loss.root(tape.output)  # pyright: ignore[reportOptionalCall]
    curvature = _loss_curvature(net)(tape.output, net.loss.target(y, tape.output))
    return jnp.sqrt(curvature)[:, None] * unit_rows(net, tape, y)


def ggn_diagonal(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Num[Given, "m ..."],
    *,
    weights: Float[Given, " m"] | None = None,
    preprocess: Preprocess | None = None,
) -> Params:
    """The exact diagonal of the cost's Gauss-Newton matrix, `sum_c (delta_c^2)^T (a^2) / m`, with params' structure.

    `delta_c` starts from row c of `hessian_root`. Source: Dangel et al. 2020.
    """
    X, Y, weights, _ = batch(net, params, X, Y, weights, None, preprocess)
    return _ggn_diagonal(net, params, X, Y, weights, preprocess)


@partial(jax.jit, static_argnames=("net", "preprocess"))
def _ggn_diagonal(net, params, X, Y, weights, preprocess):
    inputs, columns = _columns(net, params, X, Y, preprocess, hessian_root)
    squares = tuple(jnp.sum(delta**2, axis=1) for delta in columns)
    return _mean_of_products(squares, tuple(a**2 for a in inputs), weights)


def ggn_blocks(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Num[Given, "m ..."],
    *,
    weights: Float[Given, " m"] | None = None,
    preprocess: Preprocess | None = None,
) -> tuple[Float[Array, "n n"], ...]:
    """Each layer's block of the Gauss-Newton matrix, over the entries of W by rows and then b: `n = o (i + 1)`.

    Exact, and as large as it says: for small layers.
    """
    X, Y, weights, _ = batch(net, params, X, Y, weights, None, preprocess)
    return _ggn_blocks(net, params, X, Y, weights, preprocess)


@partial(jax.jit, static_argnames=("net", "preprocess"))
def _ggn_blocks(net, params, X, Y, weights, preprocess):
    inputs, columns = _columns(net, params, X, Y, preprocess, hessian_root)
    m = X.shape[0]
    share = jnp.full(m, 1 / m, inputs[0].dtype) if weights is None else weights / weights.sum()
    blocks = []
    for delta, a in zip(columns, inputs, strict=True):
        W = jnp.einsum("mco,mi->mcoi", delta, a).reshape(*delta.shape[:2], -1)
        rows = jnp.concatenate([W, delta], axis=2)
        blocks.append(jnp.einsum("m,mcn,mcp->np", share, rows, rows))
    return tuple(blocks)


def output_jacobian(
    net: MLP, params: Params, X: Num[Given, "m ..."], *, preprocess: Preprocess | None = None
) -> Params:
    """The Jacobian of the outputs in the weights, `W (m, k, o, i)` and `b (m, k, o)`: one recursion for each output."""
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
    """The empirical neural tangent kernel, `(m, n, k, k)`: inner products of the outputs' gradients in the weights.

    `sum_l (delta_k . delta'_c) (a . a' + 1)`, without forming a Jacobian. `X2` defaults to `X1`. Jacot et al. 2018.
    """
    dtype = validate.params(net, params)
    one = _output_columns(net, params, validate.inputs(net, X1, dtype, preprocess, "X1"), preprocess)
    two = one if X2 is None else _output_columns(
        net, params, validate.inputs(net, X2, dtype, preprocess, "X2"), preprocess
    )  # fmt: skip
    kernel = [
        jnp.einsum("mko,nco->mnkc", delta, delta_) * (jnp.einsum("mi,ni->mn", a, a_) + 1)[:, :, None, None]
        for a, delta, a_, delta_ in zip(*one, *two, strict=True)
    ]
    return sum(kernel[1:], kernel[0])


@partial(jax.jit, static_argnames=("net", "preprocess"))
def _output_columns(net, params, X, preprocess):
    return _columns(net, params, X, jnp.zeros(X.shape[0], int), preprocess, unit_rows)


def _columns(net, params, X, Y, preprocess, start: Start):
    """`a^(l-1) (m, i)` of each example, and its `delta^l (m, c, o)` from each row of the start."""

    def example(x, y):
        _, tape = forward(net, params, network_input(params, x, preprocess))
        return tape.inputs, jax.vmap(partial(backward, net, params, tape))(start(net, tape, y))

    return jax.vmap(example)(X, Y)


def ggnvp(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Num[Given, "m ..."],
    v: Params,
    *,
    weights: Float[Given, " m"] | None = None,
    preprocess: Preprocess | None = None,
) -> Params:
    """The Gauss-Newton matrix of the cost times `v`: a tangent forward, the loss's Hessian at the output, and back.

    `v` and the product have the structure of `params`. Source: Schraudolph 2002.
    """
    X, Y, weights, v = _checked(net, params, X, Y, v, weights, preprocess)
    return _ggnvp(net, params, X, Y, v, weights, preprocess)


@partial(jax.jit, static_argnames=("net", "preprocess"))
def _ggnvp(net, params, X, Y, v, weights, preprocess):
    def example(x, y):
        _, tape = forward(net, params, network_input(params, x, preprocess))
        _, dz = _tangent(net, params, tape, v)
        return tape.inputs, backward(net, params, tape, _output_curvature(net, tape, y, dz[-1]))

    inputs, deltas = jax.vmap(example)(X, Y)
    return _mean_of_products(deltas, inputs, weights)


def hvp(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Num[Given, "m ..."],
    v: Params,
    *,
    weights: Float[Given, " m"] | None = None,
    preprocess: Preprocess | None = None,
) -> Params:
    """The Hessian of the cost times `v`, by the R-operator: `R{delta a^T} = R{delta} a^T + delta R{a}^T`.

    At each layer `R{delta} = f''(z) R{z} e + f'(z) R{e}` with `e = W^T delta`. `v` and the product have the structure
    of `params`. Activations without `d2f` raise ValueError. Source: Pearlmutter 1994.
    """
    X, Y, weights, v = _checked(net, params, X, Y, v, weights, preprocess)
    for f in (*net.hidden, *(() if _canonical(net) else (net.output,))):
        f.pull_derivative(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1))  # says so where d2f is missing
    return _hvp(net, params, X, Y, v, weights, preprocess)


@partial(jax.jit, static_argnames=("net", "preprocess"))
def _hvp(net, params, X, Y, v, weights, preprocess):
    def example(x, y):
        _, tape = forward(net, params, network_input(params, x, preprocess))
        da, dz = _tangent(net, params, tape, v)
        deltas, ddeltas = _r_backward(net, params, tape, y, v, dz)
        return tape.inputs, da, deltas, ddeltas

    a, da, delta, ddelta = jax.vmap(example)(X, Y)
    moving_delta, moving_a = _mean_of_products(ddelta, a, weights), _mean_of_products(delta, da, weights)
    return tuple(p._replace(W=p.W + q.W) for p, q in zip(moving_delta, moving_a, strict=True))


def _tangent(net: MLP, params: Params, tape: Tape, v: Params):
    """`R{a^0} .. R{a^(K-1)}` and `R{z^1} .. R{z^K}`: `R{z} = V a + W R{a} + v_b`, `R{a} = J(z) R{z}`.

    J is symmetric, for softmax too, so `pull` is the product with J as well.
    """
    da, inputs, pre_activations = jnp.zeros_like(tape.inputs[0]), [], []
    layers = zip(params, v, net.activations, tape.inputs, tape.pre_activations, strict=True)
    for (W, _), (V, vb), f, a, z in layers:
        dz = V @ a + W @ da + vb
        inputs.append(da)
        pre_activations.append(dz)
        da = f.pull(z, dz)
    return tuple(inputs), tuple(pre_activations)


def _r_backward(net: MLP, params: Params, tape: Tape, y: Array, v: Params, dz: tuple[Array, ...]):
    """The recursion and its derivative side by side: `delta^1 .. delta^K` and `R{delta^1} .. R{delta^K}`."""
    deltas, ddeltas = [output_delta(net, tape, y)], [_output_curvature(net, tape, y, dz[-1])]
    if not _canonical(net):  # the part that Gauss-Newton leaves out: the output bends
        error = net.loss.df(tape.output, net.loss.target(y, tape.output))
        ddeltas = [ddeltas[0] + net.output.pull_derivative(tape.pre_activations[-1], error, dz[-1])]
    for l in reversed(range(net.depth - 1)):
        W, V, z, f = params[l + 1].W, v[l + 1].W, tape.pre_activations[l], net.hidden[l]
        e, de = W.T @ deltas[0], V.T @ deltas[0] + W.T @ ddeltas[0]
        deltas.insert(0, f.pull(z, e))
        ddeltas.insert(0, f.pull_derivative(z, e, dz[l]) + f.pull(z, de))
    return tuple(deltas), tuple(ddeltas)


def _output_curvature(net: MLP, tape: Tape, y: Array, dz: Float[Array, " k"]) -> Float[Array, " k"]:
    """The loss's Hessian in `z^K` times dz: `J dz` for a canonical pair, else `J^T diag(d2L/dy_hat^2) J dz`."""
    z = tape.pre_activations[-1]
    if _canonical(net):
        return net.output.pull(z, dz)
    curvature = _loss_curvature(net)(tape.output, net.loss.target(y, tape.output))
    return net.output.pull(z, curvature * net.output.pull(z, dz))


def _canonical(net: MLP) -> bool:
    return net.output == net.loss.canonical


def _loss_curvature(net: MLP):
    if net.loss.d2f is None:
        raise ValueError(f"loss {net.loss.name!r} has no d2f, its second derivative, expected one for curvature")
    return net.loss.d2f


def _checked(net, params, X, Y, v, weights, preprocess):
    X, Y, weights, _ = batch(net, params, X, Y, weights, None, preprocess)
    try:
        dtype = validate.params(net, v)
    except ValueError as error:
        raise ValueError(f"v: {error}") from None
    if dtype != params[0].W.dtype:
        raise ValueError(f"v has dtype {dtype}, the parameters {params[0].W.dtype}; convert one of them")
    return X, Y, weights, tuple(Layer(*layer) for layer in v)


def hessian_trace(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Num[Given, "m ..."],
    key: PRNGKeyArray,
    samples: int = 100,
    **options,
) -> Float[Array, ""]:
    """Hutchinson's estimate of the trace of the Hessian: the mean of `v . H v` over vectors of random signs.

    Unbiased; its variance is `2 (||H||_F^2 - sum_i H_ii^2) / samples`. `options` are those of `hvp`.
    Source: Hutchinson 1990.
    """
    flat, unravel = ravel_pytree(params)
    samples = validate.whole(samples, "samples")

    def sample(key):
        v = jax.random.rademacher(key, flat.shape, flat.dtype)
        return v @ ravel_pytree(hvp(net, params, X, Y, unravel(v), **options))[0]

    return jax.lax.map(sample, jax.random.split(validate.key(key), samples)).mean()


def hessian_eigenvalues(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Num[Given, "m ..."],
    k: int = 1,
    *,
    product: Callable[..., Params] = hvp,
    tolerance: float = 1e-4,
    **options,
) -> np.ndarray:
    """The k largest eigenvalues of the Hessian, the largest first, by ARPACK's Lanczos iteration on `hvp`.

    `product=ggnvp` gives the Gauss-Newton matrix's. `tolerance` is relative. `options` are those of the product.
    """
    flat, unravel = ravel_pytree(params)
    k, n = validate.whole(k, "k"), flat.size
    if k > n:
        raise ValueError(f"k is {k}, but there are {n} parameters; expected at most {n}")

    def times(v):
        v = unravel(jnp.asarray(np.ravel(v), flat.dtype))
        return np.asarray(ravel_pytree(product(net, params, X, Y, v, **options))[0])

    if n <= max(32, k):  # too small for Lanczos: the matrix itself
        return np.linalg.eigvalsh(np.stack([times(e) for e in np.eye(n)]))[::-1][:k]
    start = np.asarray(jax.random.normal(jax.random.key(0), (n,), flat.dtype))
    operator = LinearOperator((n, n), matvec=times, dtype=np.dtype(flat.dtype))  # pyright: ignore[reportCallIssue]
    found: Any = eigsh(operator, k, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)  # pyright: ignore[reportArgumentType]
    return np.sort(found)[::-1]
