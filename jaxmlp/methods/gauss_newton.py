"""Levenberg-Marquardt: damped Gauss-Newton steps for full or large batches, as an optax transformation.

With s the examples' shares of the mean, J the Jacobian of `z^K`, H the loss's Hessian in `z^K` and delta its gradient,
the step solves `(J^T s H J + damping I) step = -J^T s delta`. There are as many equations as weights, or, with
`step = -J^T sqrt(s) alpha`, as outputs of the batch: `(H K + damping I) alpha = sqrt(s) delta`, K the tangent kernel
`sqrt(s) J J^T sqrt(s)`. The fewer are solved. Sources: Marquardt 1963; Nielsen 1999, "Damping parameter in Marquardt's
method", for the damping; Cai et al. 2019, "Gram-Gauss-Newton method", for the equations of the kernel.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxmlp import losses, norms, rules, validate
from jaxmlp._backward import restart_of
from jaxmlp.doors import takes_network
from jaxmlp.methods.curvature_blocks import flatten_gradients
from jaxmlp.methods.quadratic_model import inner
from jaxmlp.network import MLP, Params
from jaxmlp.optimizers import Told, state_dtype
from jaxmlp.readouts import gradient_gram, mean_gradient, per_example_norms
from jaxmlp.starts import hessian_root, is_canonical, pre_activation_rows
from jaxmlp.trace import Trace, narrow, shares_of, sum_of_products
from jaxmlp.validate import Given

NOISE = 64  # roundings of the mean gradient; a penalty's gradient is larger


class GaussNewtonState(NamedTuple):
    """What Levenberg-Marquardt keeps between steps."""

    damping: Float[Array, ""]
    growth: Float[Array, ""]  # of the damping after the next step that is rejected


@takes_network
def gauss_newton(net: MLP, damping: float | Float[Given, ""] = 1e-2) -> optax.GradientTransformationExtraArgs:
    """Levenberg-Marquardt: `update = -(G + damping I)^-1 g`, or 0 where that step would raise the cost.

    G is the Gauss-Newton matrix of the batch, exact for every loss with `d2f`. The gain ratio r of a step is the fall
    of the cost over that of the quadratic model. After `r > 0` the damping is multiplied by
    `max(1/3, 1 - (2 r - 1)^3)`; else the step is rejected, and the damping grows by 2, then 4, 8, .. until one is
    accepted.

    A step costs the squares and a third of the cube of `min(weights, examples x outputs)`, and as much memory as its
    square. Penalties enter g and the cost, not G.

    Args:
        net: the network that is trained.
        damping: of the first step, above 0.
    Returns:
        An optax transformation. Its `update` takes `trace=`, `value=` and `value_fn=`, which `fit` and `sweep` hand
        over, and `weights=` of the examples. `functools.partial(jm.gauss_newton, net)` is a factory for `hyper`.
    Raises:
        ValueError: where an argument does not fit; and in training, where `update` lacks one, the network is another
            or the loss has no `d2f`.
    Example:
        >>> curve = jm.MLP((1, 10, 1), hidden="tanh")
        >>> x = jnp.linspace(-1, 1, 40)[:, None]
        >>> start = jm.init(curve, key, weights="lecun")
        >>> result = jm.fit(curve, start, (x, jnp.sin(5 * x)), optimizer=jm.gauss_newton(curve), epochs=30, key=key,
        ...                 progress=False)
        >>> bool(result.history["cost"][-1] < 0.01)
        True
    """
    damping = validate.scalar(damping, "damping", above=0)

    def init(params: Any) -> GaussNewtonState:
        dtype = state_dtype(params)
        return GaussNewtonState(jnp.array(damping, dtype), jnp.full((), 2, dtype))  # a copy: hyper may be donated, too

    def update(grads: Any, state: Any, params: Any = None, **given: Any) -> tuple[Any, Any]:
        told = Told.read("gauss_newton", net, params, given, ("params", "trace", "value", "value_fn"))
        solve = _solve_for_outputs if _has_fewer_outputs(net, told.trace) else _solve_for_weights
        step = solve(net, params, told.trace, told.weights, grads, state.damping)
        step = narrow(step, told.trace.losses.dtype)
        modelled = (state.damping * inner(step, step) - inner(grads, step)) / 2  # by the equations that step solves
        fall = (told.value - told.value_fn(optax.apply_updates(params, step))).astype(modelled.dtype)
        good = (fall > 0) & (modelled > 0)
        ratio = jnp.where(good, fall / jnp.where(good, modelled, 1), 0)
        shrink = jnp.maximum(1 / 3, 1 - (2 * ratio - 1) ** 3)
        damping = state.damping * jnp.where(good, shrink, state.growth)
        about = jnp.finfo(damping.dtype)
        damping = jnp.clip(damping, about.eps**2, 1 / about.eps)  # beyond these a step is Newton's, or nothing
        growth = jnp.where(good, 2, jnp.minimum(2 * state.growth, 1 / about.eps))
        some = told.counts  # else the step is none, and says nothing about the damping
        state = GaussNewtonState(jnp.where(some, damping, state.damping), jnp.where(some, growth, state.growth))
        return jax.tree.map(lambda s: jnp.where(good & some, s, 0), step), state

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _has_fewer_outputs(net: MLP, trace: Trace) -> bool:
    weights = sum(math.prod(shape) + shape[0] for shape in net.shapes)
    return trace.output.shape[0] * trace.output.shape[1] < weights


def _solve_for_weights(net: MLP, params: Params, trace: Trace, weights: Any, grads: Params, damping: Array) -> Params:
    """`-(B^T B + damping I)^-1 g`, B with a row for each row of the loss's Hessian's root and example."""
    rows = _restart(net, params, trace, weights, hessian_root)
    B = norms.widen(flatten_gradients(rows))
    B = B.reshape(-1, B.shape[-1])
    g, unravel = ravel_pytree(jax.tree.map(norms.widen, grads))
    return unravel(-_solve_positive(B.T @ B, damping, g))


def _solve_for_outputs(net: MLP, params: Params, trace: Trace, weights: Any, grads: Params, damping: Array) -> Params:
    """`-J^T sqrt(s) alpha - q / damping` with `(H K + damping I) alpha = sqrt(s) delta - H sqrt(s) J q / damping`.

    q is the part of g that is no example's: the penalties' gradient.
    """
    rows = _restart(net, params, trace, weights, pre_activation_rows)
    m, k = trace.output.shape
    K = gradient_gram(rows).transpose(0, 2, 1, 3).reshape(m * k, m * k)
    root = jnp.sqrt(shares_of(trace, weights))
    q = _penalty_gradient(trace, weights, grads)
    moved = sum(jnp.einsum("mco,mo->mc", norms.widen(delta), norms.widen(a @ v.W.T + v.b[None]))
                for delta, a, v in zip(rows.deltas, rows.inputs, q, strict=True))  # fmt: skip
    errors = root[:, None] * norms.widen(trace.deltas[-1])
    if is_canonical(net) and net.loss == losses.squared_error:  # H is the identity
        alpha = _solve_positive(K, damping, (errors - moved / damping).ravel())
    else:
        R = norms.widen(jax.vmap(lambda tape, y: hessian_root(net, tape, y))(trace.tape, trace.labels))
        H = jnp.einsum("mca,mcb->mab", R, R)
        HK = jnp.einsum("mab,mbn->man", H, K.reshape(m, k, m * k)).reshape(m * k, m * k)
        right = errors - jnp.einsum("mab,mb->ma", H, moved) / damping
        alpha = jnp.linalg.solve(HK + damping * jnp.eye(m * k, dtype=K.dtype), right.ravel())
    scaled = tuple(norms.widen(delta) * alpha.reshape(m, k, 1) for delta in rows.deltas)
    back = sum_of_products(scaled, rows.inputs)
    return jax.tree.map(lambda u, v: -u - v / damping, back, q)


def _restart(net: MLP, params: Params, trace: Trace, weights: Any, start) -> Trace:
    """The trace of another start, scaled by the roots of the examples' shares."""
    share = jnp.sqrt(shares_of(trace, weights)).astype(trace.losses.dtype)
    return restart_of(net, params, trace, trace.labels, rules.backprop, None, share, start)


def _penalty_gradient(trace: Trace, weights: Any, grads: Params) -> Params:
    """The gradient without the examples' mean, or 0 where only their rounding is left."""
    mean = mean_gradient(trace, weights)
    left = jax.tree.map(lambda g, r: norms.widen(g) - norms.widen(r), grads, mean)
    size = shares_of(trace, weights) @ norms.widen(per_example_norms(trace))
    some = jnp.sqrt(inner(left, left)) > NOISE * jnp.finfo(trace.losses.dtype).eps * size
    return jax.tree.map(lambda g: jnp.where(some, g, 0), left)


def _solve_positive(M: Float[Array, "n n"], damping: Array, right: Float[Array, " n"]) -> Float[Array, " n"]:
    """`(M + damping I)^-1 right` by Cholesky; NaN where rounding has left no positive matrix."""
    root = jax.scipy.linalg.cho_factor(M + damping * jnp.eye(M.shape[0], dtype=M.dtype), lower=True)
    return jax.scipy.linalg.cho_solve(root, right)
