"""Cross-validation: every example is held out once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import validate


def folds(key: PRNGKeyArray, m: int, k: int) -> Float[Array, "k m"]:
    """Weights `(k, m)` for training: row i is 0 on fold i and 1 elsewhere, `1 - folds` is what is held out.

    Folds are drawn at random and their sizes differ by at most 1. With `jm.sweep` a member is trained on each row:

        W = jm.data.folds(key, len(X), 5)
        jm.sweep(net, (X, Y), weights=W, validation=(X, Y, 1 - W), keys=key, ...)

    Source: Stone 1974, "Cross-validatory choice and assessment of statistical predictions".
    """
    m, k = validate.whole(m, "m"), validate.whole(k, "k", least=2)
    if k > m:
        raise ValueError(f"k is {k}, expected at most m, which is {m}")
    fold = jax.random.permutation(validate.key(key), jnp.arange(m) % k)
    return (fold[None] != jnp.arange(k)[:, None]).astype(float)
