"""Matrix products: rounded to fewer bits where a network asks for it, written out as sums where they are tiny."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# XLA fuses a sum with the operations around it, and calling a matrix product of so few numbers takes longer than
# computing it: many networks for XOR step in two thirds of the time. An outer product, the gradient of a batch of one,
# is such a sum of one term; XLA never writes it to memory but adds it to the update.
TINY = 64

# The bits of the exponent and of the fraction that the factors are rounded to.
PRODUCTS = {"bfloat16": (8, 7), "tensorfloat32": (8, 10)}


def rounded_product(A: Array, B: Array, products: str | None) -> Array:
    """`A @ B`, its factors rounded to `products` (a name of `PRODUCTS`) unless None, its sums in A's dtype."""
    sizes = (A.size, B.size)
    known = all(isinstance(size, int) for size in sizes)  # jax.export has batches whose size is a symbol
    if products is None and known and (max(sizes) <= TINY or B.shape[0] == 1):
        term = lambda k: jnp.outer(A[:, k], B[k]) if A.ndim == B.ndim == 2 else A[..., k] * B[k]
        return sum(map(term, range(1, B.shape[0])), term(0))
    if products is None:
        return A @ B
    if products == "bfloat16":
        accelerated = lambda A, B: jnp.matmul(A.astype(products), B.astype(products), preferred_element_type=A.dtype)
    else:
        accelerated = lambda A, B: jnp.matmul(A, B, precision=products)
    # XLA's products on a CPU take no rounded factors. The factors alone are rounded there, which saves no time.
    rounded = lambda X: jax.lax.reduce_precision(X, *PRODUCTS[products])
    return jax.lax.platform_dependent(A, B, cpu=lambda A, B: rounded(A) @ rounded(B), default=accelerated)


def symmetric_product(x: Float[Array, "m i"], y: Float[Array, "m i"]) -> Float[Array, "i i"]:
    """`x^T y` where it is symmetric: the block below the diagonal mirrors the one above, which saves a quarter."""
    half = x.shape[1] // 2
    if half < 128:
        return jnp.einsum("mi,mj->ij", x, y)
    above = x[:, :half].T @ y[:, half:]
    first, last = (jnp.einsum("mi,mj->ij", x[:, part], y[:, part]) for part in (slice(half), slice(half, None)))
    return jnp.block([[first, above], [above.T, last]])
