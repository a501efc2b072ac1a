"""Starts: the error signals of one example's outputs, from which the recursion goes down.

A start is a function `start(net, tape, y)`: one error signal `(n_K,)`, or rows `(c, n_K)`, several error signals of one
example. The loss's own is `output_delta`. Each row of a square root of the loss's Hessian gives a row of a square root
of the Gauss-Newton matrix. Where loss and output are canonical, `delta^K = y_hat - y`, so the loss's Hessian in `z^K`
is the output's Jacobian J itself, and the Gauss-Newton matrix splits at z; else it splits at y_hat, with
`J^T diag(d2L/dy_hat^2) J`. That product is taken through the output's log odds where it tells them: there no factor is
infinite.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

from jaxmlp import validate
from jaxmlp._forward import Tape
from jaxmlp.doors import takes_network
from jaxmlp.network import MLP
from jaxmlp.validate import Given

Start = Callable[[MLP, Tape, Array], Float[Array, "*c k"]]


@takes_network
def output_delta(net: MLP, tape: Tape, y: Num[Given, "..."]) -> Float[Array, " k"]:
    """The start: `delta^K = dL/dz^K` of one example's loss, `y_hat - y` for a canonical pair.

    Args:
        y: one label: an integer class, a row `(n_K,)`, or a number for a single output.
    Returns:
        `(n_K,)`.
    Example:
        >>> y_hat, tape = jm.forward(net, params, X[0])
        >>> delta_out = jm.output_delta(net, tape, Y[0])
        >>> bool(jnp.array_equal(delta_out, y_hat - jax.nn.one_hot(Y[0], 10)))
        True

    Source: notes 003, softmax with cross-entropy.
    """
    return net.loss.delta(net.output, tape.pre_activations[-1], tape.output, net.loss.target(y, tape.output))


@takes_network
def sample_labels(net: MLP, Y_hat: Float[Array, "m k"], key: PRNGKeyArray) -> Num[Array, "m *k"]:
    """Draws labels from the model's own distribution: the second moment of their gradients estimates the Fisher.

    Squared error draws from `N(y_hat, 1)`, binary cross-entropy from `Bernoulli(y_hat)`, cross-entropy of softmax a
    class.

    Args:
        Y_hat: the outputs, `(m, n_K)`, such as `trace.output`.
    Returns:
        Labels that `backprop` takes: `(m, n_K)`, or classes `(m,)`.
    Raises:
        ValueError: where the loss has no `sample`, or the outputs are no distribution.
    Example:
        >>> labels = jm.sample_labels(net, jm.predict(net, params, X), key)
        >>> fisher = jm.kronecker_factors(jm.backprop(net, params, X, labels))
        >>> fisher[0].A.shape, fisher[0].G.shape
        ((785, 785), (64, 64))
    """
    if net.loss.sample is None or (net.loss.targets == "distribution" and net.output != net.loss.canonical):
        raise ValueError(f"{net} gives no distribution, expected a loss with `sample` and its canonical output")
    return jax.vmap(net.loss.sample)(jax.random.split(validate.key(key), Y_hat.shape[0]), Y_hat)


def unit_rows(net: MLP, tape: Tape, y: Array) -> Float[Array, "c k"]:
    """Row c is `J(z)^T e_c`: the recursion then gives the Jacobian of output c."""
    z = tape.pre_activations[-1]
    return jax.vmap(lambda e: net.output.pull(z, e))(jnp.eye(z.shape[0], dtype=z.dtype))


def pre_activation_rows(net: MLP, tape: Tape, y: Array) -> Float[Array, "c k"]:
    """Row c is `e_c`: the recursion then gives the Jacobian of `z^K_c`."""
    z = tape.pre_activations[-1]
    return jnp.eye(z.shape[0], dtype=z.dtype)


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
        ValueError: where the loss has no `d2f`, or no `root` for its canonical output.
    Example:
        >>> y_hat, tape = jm.forward(net, params, X[0])
        >>> R = jm.hessian_root(net, tape, Y[0])
        >>> bool(jnp.allclose(R.T @ R, jnp.diag(y_hat) - jnp.outer(y_hat, y_hat), atol=1e-6))
        True

    Source: Dangel et al. 2020.
    """
    if is_canonical(net):
        if net.loss.root is None:
            raise ValueError(f"loss {net.loss.name!r} has no root, expected one for curvature at its canonical output")
        return net.loss.root(tape.output)
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
