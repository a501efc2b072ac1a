"""The trace and the largest eigenvalues of the cost's Hessian, by products with it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Num, PRNGKeyArray, Shaped

from jaxmlp import norms, validate
from jaxmlp.curvature import hvp
from jaxmlp.network import MLP, Params
from jaxmlp.validate import Given


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
        Hv = ravel_pytree(hvp(net, params, X, Y, unravel(v), **options))[0]
        return norms.widen(v) @ norms.widen(Hv)

    return jax.lax.map(sample, jax.random.split(validate.key(key), samples)).mean().astype(flat.dtype)


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
