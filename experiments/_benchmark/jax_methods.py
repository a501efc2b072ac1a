"""The newer quantities by other libraries on JAX: jax_privacy, neural-tangents, and `jax.jacrev` alone."""
# pyright: reportMissingImports=false

import jax
import jax.numpy as jnp
import optax

from experiments._benchmark.methods import Contestant
from jaxmlp.network import Params


def scores(params, x):
    """The outputs of the ReLU network; of one example or of a batch."""
    *hidden, (W, b) = params
    for V, c in hidden:
        x = jax.nn.relu(x @ V.T + c)
    return x @ W.T + b


def jax_privacy(params: Params, X: jax.Array, Y: jax.Array, max_norm: float, at_a_time: int | None) -> Contestant:
    """`clipped_grad` of the loss of one example, `at_a_time` examples after each other."""
    import jax_privacy

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(scores(params, x), y)

    clip = jax.jit(jax_privacy.clipped_grad(
        loss, l2_clip_norm=max_norm, normalize_by=len(X), batch_argnums=(1, 2), keep_batch_dim=False,
        microbatch_size=at_a_time,
    ))  # fmt: skip
    return Contestant(lambda: jax.block_until_ready(clip(params, X, Y)))


def jacobian_contraction(params: Params, X: jax.Array) -> Contestant:
    """Jacobians by `jax.jacrev` of each example, and their inner products."""

    @jax.jit
    def kernel(params, X):
        J = jax.vmap(jax.jacrev(scores), (None, 0))(params, X)
        flat = jnp.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(J)], axis=2)
        return jnp.einsum("mkp,ncp->mnkc", flat, flat)

    return Contestant(lambda: jax.block_until_ready(kernel(params, X)))


def neural_tangents(params: Params, X: jax.Array) -> Contestant:
    """`empirical_ntk_fn`, which chooses one of its three ways for each primitive."""
    try:
        import neural_tangents as nt
    except ImportError:  # 0.6.5, the last one, imports names that JAX 0.6 removed
        raise ImportError("neural-tangents is not installed, or older than this JAX") from None
    kernel = jax.jit(nt.empirical_ntk_fn(scores_of, trace_axes=(), vmap_axes=0))
    return Contestant(lambda: jax.block_until_ready(kernel(X, None, params)))


def scores_of(params, X):
    """`scores`, in the order of neural-tangents' arguments."""
    return scores(params, X)
