"""Cross-validation: each example is held out once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import validate


def folds(key: PRNGKeyArray, m: int, k: int) -> Float[Array, "k m"]:
    """Weights of the examples for k-fold cross-validation: row i is 0 on fold i and 1 elsewhere.

    `1 - folds` selects the examples held out. Folds are drawn at random; their sizes differ by at most 1. A sweep
    trains one member on each row:
    `jm.sweep(net, (X, Y), weights=W, validation=(X, Y, 1 - W), keys=key, ...)`.

    Args:
        key: the same key gives the same folds.
        m: the number of examples.
        k: the number of folds, 2 to m.
    Returns:
        Weights of 0 and 1, `(k, m)`.
    Raises:
        ValueError: where k is below 2 or above m.
    Example:
        >>> W = jm.data.folds(key, 20, 5)
        >>> W.shape, W.sum(1).tolist(), bool(((1 - W).sum(0) == 1).all())
        ((5, 20), [16.0, 16.0, 16.0, 16.0, 16.0], True)

    Source: Stone 1974, "Cross-validatory choice and assessment of statistical predictions".
    """
    m, k = validate.whole(m, "m"), validate.whole(k, "k", least=2)
    if k > m:
        raise ValueError(f"k is {k}, expected at most m, which is {m}")
    fold = jax.random.permutation(validate.key(key), jnp.arange(m) % k)
    return (fold[None] != jnp.arange(k)[:, None]).astype(float)
