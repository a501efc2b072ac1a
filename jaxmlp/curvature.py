"""Products with the Hessian of the cost and with its Gauss-Newton matrix; the Hessian's trace and eigenvalues.

The R-operator `R{x} = d/dt x(params + t v)` at t = 0 is the derivative along a direction `v` in the parameters.
Applied to the recursion it gives Hessian products. The recursion from the loss's Hessian times `R{z^K}` gives
Gauss-Newton products.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Num, PRNGKeyArray, Shaped

from jaxmlp import norms, validate
from jaxmlp._backward import output_delta, recur
from jaxmlp._forward import Tape, network_inputs, propagate
from jaxmlp.network import MLP, Layer, Params
from jaxmlp.programs import compiled
from jaxmlp.readouts import mean_of_products, narrow
from jaxmlp.starts import hessian_root, is_canonical, loss_curvature
from jaxmlp.validate import Given, Preprocess


def ggnvp(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Shaped[Given, "m ..."],
    v: Params,
    *,
    weights: Float[Given, " m"] | None = None,
    preprocess: Preprocess | None = None,
) -> Params:
    """The Gauss-Newton matrix of the cost times `v`: a tangent forward, the loss's Hessian at the output, and back.

    Args:
        X: the examples, `(m, n_0)` of the parameters' dtype, or `(m, ...)` for `preprocess`.
        Y: the labels, as in `backprop`.
        v: a direction, in the structure of `params`.
        weights: a weight of at least 0 for each example, `(m,)`; ones unless given.
        preprocess: a function of one example that gives the network's input.
    Returns:
        The product, in the structure of `params`.
    Raises:
        ValueError: where an argument does not fit, or the loss has no `d2f`.
    Example:
        >>> v = jm.value_and_grad(net, params, X, Y)[1]
        >>> product = jm.ggnvp(net, params, X, Y, v)
        >>> bool(sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(v), jax.tree.leaves(product))) >= 0)
        True

    Source: Schraudolph 2002.
    """
    examples = validate.examples(net, params, X, Y, weights, None, preprocess)
    return _ggnvp(net, params, examples, _check_direction(net, params, v), preprocess)


@compiled("net", "preprocess")
def _ggnvp(net, params, examples, v, preprocess):
    def example(x, y):
        _, tape = propagate(net, params, x)
        _, dz = _tangent(net, params, tape, v)
        return tape.inputs, recur(net, params, tape, _output_curvature(net, tape, y, dz[-1]))

    inputs, deltas = jax.vmap(example)(network_inputs(examples.X, preprocess, params[0].W.dtype), examples.Y)
    return narrow(mean_of_products(deltas, inputs, examples.weights), inputs[0].dtype)


def hvp(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Shaped[Given, "m ..."],
    v: Params,
    *,
    weights: Float[Given, " m"] | None = None,
    preprocess: Preprocess | None = None,
) -> Params:
    """The Hessian of the cost times `v`, by the R-operator: `R{delta a^T} = R{delta} a^T + delta R{a}^T`.

    At each layer `R{delta} = f''(z) R{z} e + f'(z) R{e}` with `e = W^T delta`.

    Args:
        X, Y, v, weights, preprocess: as in `ggnvp`.
    Returns:
        The product, in the structure of `params`.
    Raises:
        ValueError: where an argument does not fit, or an activation or the loss has no `d2f`.
    Example:
        >>> smooth = jm.MLP((784, 8, 10), hidden="tanh", output="softmax", loss="cross_entropy")
        >>> v = jm.init(smooth, key)
        >>> jm.hvp(smooth, v, X, Y, v)[0].W.shape
        (8, 784)

    Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian".
    """
    examples = validate.examples(net, params, X, Y, weights, None, preprocess)
    v = _check_direction(net, params, v)
    for f in net.hidden if is_canonical(net) else net.activations:
        f.pull_derivative(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1))  # raises where d2f is missing
    return _hvp(net, params, examples, v, preprocess)


@compiled("net", "preprocess")
def _hvp(net, params, examples, v, preprocess):
    def example(x, y):
        _, tape = propagate(net, params, x)
        da, dz = _tangent(net, params, tape, v)
        deltas, ddeltas = _r_backward(net, params, tape, y, v, dz)
        return tape.inputs, da, deltas, ddeltas

    X = network_inputs(examples.X, preprocess, params[0].W.dtype)
    a, da, delta, ddelta = jax.vmap(example)(X, examples.Y)
    moving_delta = mean_of_products(ddelta, a, examples.weights)
    moving_a = mean_of_products(delta, da, examples.weights)
    products = tuple(p._replace(W=p.W + q.W) for p, q in zip(moving_delta, moving_a, strict=True))
    return narrow(products, X.dtype)


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
    deltas, ddeltas = [output_delta(net, tape, y)], [_output_hessian(net, tape, y, dz[-1])]
    for l in reversed(range(net.depth - 1)):
        W, V, z, f = params[l + 1].W, v[l + 1].W, tape.pre_activations[l], net.hidden[l]
        e, de = W.T @ deltas[0], V.T @ deltas[0] + W.T @ ddeltas[0]
        deltas.insert(0, f.pull(z, e))
        ddeltas.insert(0, f.pull_derivative(z, e, dz[l]) + f.pull(z, de))
    return tuple(deltas), tuple(ddeltas)


def _output_hessian(net: MLP, tape: Tape, y: Array, dz: Float[Array, " k"]) -> Float[Array, " k"]:
    """The loss's Hessian in `z^K` times dz: with a pair that is not canonical, also the output's own curvature."""
    if is_canonical(net):
        return _output_curvature(net, tape, y, dz)
    z, target = tape.pre_activations[-1], net.loss.target(y, tape.output)
    if net.loss.of_log_odds and net.output.log_odds:
        odds, loss = net.output.log_odds, net.loss.of_log_odds
        o, J = odds.f(z), odds.jacobian(z)
        through_odds = J.T @ (loss.d2f(o, target) * (J @ dz))
        return through_odds + odds.pull_derivative(z, loss.df(o, target), dz)
    error = net.loss.df(tape.output, target)
    return _output_curvature(net, tape, y, dz) + net.output.pull_derivative(z, error, dz)


def _output_curvature(net: MLP, tape: Tape, y: Array, dz: Float[Array, " k"]) -> Float[Array, " k"]:
    """The Gauss-Newton part of that: `J dz` for a canonical pair, else `J^T diag(d2L/dy_hat^2) J dz`."""
    z = tape.pre_activations[-1]
    if is_canonical(net):
        return net.output.pull(z, dz)
    if net.loss.of_log_odds and net.output.log_odds:
        R = hessian_root(net, tape, y)
        return R.T @ (R @ dz)
    return net.output.pull(z, loss_curvature(net, tape, y) * net.output.pull(z, dz))


def _check_direction(net: MLP, params: Params, v: Any) -> Params:
    """`v`, if it has the structure and dtype of the parameters."""
    try:
        dtype = validate.params(net, v)
    except ValueError as error:
        raise ValueError(f"v: {error}") from None
    if dtype != params[0].W.dtype:
        raise ValueError(f"v has dtype {dtype}, the parameters {params[0].W.dtype}; convert one of them")
    return tuple(Layer(*layer) for layer in v)


def hessian_trace(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Shaped[Given, "m ..."],
    key: PRNGKeyArray,
    samples: int = 100,
    **options,
) -> Float[Array, ""]:
    """Hutchinson's estimate of the trace of the Hessian: the mean of `v . H v` over vectors of random signs.

    It is unbiased, and its variance is `2 (||H||_F^2 - sum_i H_ii^2) / samples`.

    Args:
        X, Y: as in `hvp`.
        samples: the number of vectors.
        options: `weights` and `preprocess` of `hvp`.
    Example:
        >>> jm.hessian_trace(net, params, X, Y, key, samples=2).shape
        ()

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
    Y: Shaped[Given, "m ..."],
    k: int = 1,
    *,
    product: Callable[..., Params] = hvp,
    tolerance: float = 1e-4,
    **options,
) -> np.ndarray:
    """The k largest eigenvalues of the Hessian, the largest first, by ARPACK's Lanczos iteration on `hvp`.

    Args:
        X, Y: as in `hvp`.
        k: the number of eigenvalues.
        product: `hvp`, or `ggnvp` for the eigenvalues of the Gauss-Newton matrix.
        tolerance: the relative accuracy.
        options: `weights` and `preprocess` of the product.
    Returns:
        `(k,)`, in NumPy.
    Raises:
        ValueError: where an argument does not fit, such as a k above the number of parameters.
    Example:
        >>> xor = jm.MLP((2, 2, 1), hidden="tanh")
        >>> corners = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> jm.hessian_eigenvalues(xor, jm.init(xor, key), corners, jnp.array([0.0, 1.0, 1.0, 0.0]), k=2).shape
        (2,)

    Source: Lehoucq, Sorensen and Yang 1998, "ARPACK users' guide".
    """
    flat, unravel = ravel_pytree(params)
    k, n = validate.whole(k, "k"), flat.size
    if k > n:
        raise ValueError(f"k is {k}, but there are {n} parameters; expected at most {n}")

    def times(v):
        v = unravel(jnp.asarray(np.ravel(v), flat.dtype))
        made = np.asarray(norms.widen(ravel_pytree(product(net, params, X, Y, v, **options))[0]))
        if not np.isfinite(made).all():
            raise ValueError("the product with the matrix holds NaN or infinity, expected finite numbers")
        return made

    if n <= max(32, k + 1):  # too small for Lanczos: the matrix itself
        return np.linalg.eigvalsh(np.stack([times(e) for e in np.eye(n)]))[::-1][:k]
    return _iterate_lanczos(
        times, np.asarray(norms.widen(jax.random.normal(jax.random.key(0), (n,), flat.dtype))), k, tolerance
    )


def _iterate_lanczos(
    times: Callable[[np.ndarray], np.ndarray], start: np.ndarray, k: int, tolerance: float
) -> np.ndarray:
    """The k largest eigenvalues of the symmetric matrix whose product with v is `times(v)`, from a random vector."""
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh  # slow to import, and needed here alone

    if not times(start).any():  # a random vector is orthogonal to no eigenvector, so the matrix is 0
        return np.zeros(k, start.dtype)
    n = len(start)
    operator = LinearOperator((n, n), matvec=times, dtype=start.dtype)  # pyright: ignore[reportCallIssue]
    try:
        found: Any = eigsh(operator, k, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)  # pyright: ignore[reportArgumentType]
    except ArpackError as error:
        raise ValueError(
            f"Lanczos' iteration does not find the {k} largest of {n} eigenvalues at tolerance {tolerance:g}, expected "
            f"another k or a larger tolerance: {error}"
        ) from None
    return np.sort(found)[::-1]
