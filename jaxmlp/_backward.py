"""The backward pass, by hand: where error signals start, how they come down, and the trace they leave."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray

from jaxmlp import readouts, rules, validate
from jaxmlp._forward import Masks, Tape, batch, forward, mean, network_input, output_loss
from jaxmlp.network import MLP, Params
from jaxmlp.readouts import Trace
from jaxmlp.rules import Down, Rule
from jaxmlp.validate import Given, Preprocess

Deltas = tuple[Float[Array, " o"], ...]


def output_delta(net: MLP, tape: Tape, y: Num[Array, "..."]) -> Float[Array, " k"]:
    """The start: `delta^K = dL/dz^K` of one example's loss, `y_hat - y` for the canonical pairs."""
    return net.loss.delta(net.output, tape.pre_activations[-1], tape.output, net.loss.target(y, tape.output))


def sample_labels(net: MLP, Y_hat: Float[Array, "m k"], key: PRNGKeyArray) -> Num[Array, "m *k"]:
    """Labels drawn from the model's own distribution at its outputs, such as `trace.output`.

    The gradients of a trace of these, not of the true labels, have the Fisher as their second moment: squared error
    draws from N(y_hat, 1), binary cross-entropy from Bernoulli(y_hat), cross-entropy (of softmax) classes.
    """
    if net.loss.sample is None or (net.loss.targets == "distribution" and net.output != net.loss.canonical):
        raise ValueError(f"{net} gives no distribution to sample from, expected a loss with `sample` and its outputs")
    return jax.vmap(net.loss.sample)(jax.random.split(validate.key(key), Y_hat.shape[0]), Y_hat)


def backward(
    net: MLP,
    params: Params,
    tape: Tape,
    delta_out: Float[Array, " k"],
    rule: Rule = rules.backprop,
    rule_state: tuple[Any, ...] | None = None,
) -> Deltas:
    """The recursion: `delta^l = f_l'(z^l) * (W^(l+1)^T delta^(l+1))` for `l = K-1 .. 1`, from `delta^K = delta_out`.

    One example's `(delta^1, .., delta^K)`, `delta^l` of shape `(n_l,)`. It is linear in `delta_out` (for a
    linear rule), which may be any vector `(n_K,)`. Source: notes 000, "Visualization of back-prop"; 001, "Back
    propagation rules".
    """
    state = (None,) * (net.depth - 1) if rule_state is None else rule_state
    deltas = [delta_out]
    for l in reversed(range(net.depth - 1)):
        W, f, z = params[l + 1].W, net.hidden[l], tape.pre_activations[l]
        down = Down(W, deltas[0], delta_out, f, z, state[l], net.product)
        error = rule.carry(down)
        if tape.masks is not None:
            error = tape.masks[l + 1] * error
        deltas.insert(0, rule.pull(down, error))
    return tuple(deltas)


def backprop(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Num[Given, "m ..."],
    *,
    masks: Masks | None = None,
    preprocess: Preprocess | None = None,
    rule: Rule = rules.backprop,
    rule_state: tuple[Any, ...] | None = None,
) -> Trace:
    """Forward, start and recursion for each example of a batch: its trace, and no gradient.

    `masks` are dropout masks, `(m, n_l)` for the inputs and each hidden layer; `preprocess` is applied to each example;
    `rule` is what carries deltas down, with `rule_state` if it has one.
    """
    X, Y, _, masks = batch(net, params, X, Y, None, masks, preprocess)
    rule_state = rules.checked_state(net, rule, rule_state)
    return _backprop(net, params, X, Y, masks, preprocess, rule, rule_state)


@partial(jax.jit, static_argnames=("net", "preprocess", "rule"))
def _backprop(net, params, X, Y, masks, preprocess, rule, rule_state, share=None):
    """`share`, each example's or one for all, scales the start and with it all that is linear in it."""

    def example(x, y, masks, share):
        y_hat, tape = forward(net, params, network_input(params, x, preprocess), masks)
        delta_out = output_delta(net, tape, y)
        delta_out = delta_out if share is None else share * delta_out
        deltas = backward(net, params, tape, delta_out, rule, rule_state)
        return Trace(tape.inputs, tape.pre_activations, deltas, y_hat, output_loss(net, tape, y))

    each = 0 if share is not None and jnp.ndim(share) else None
    return jax.vmap(example, in_axes=(0, 0, 0, each))(X, Y, masks, share)


def gradient_pass(
    net, params, X, Y, weights, masks, preprocess, rule, rule_state
) -> tuple[Float[Array, " m"], Float[Array, "m k"], Params]:
    """The losses and outputs of a batch, and its mean gradient, `sum_m w g / sum_m w`.

    A linear rule's recursion is linear in its start, so the mean is taken there, where it costs nothing.
    """
    share = 1 / X.shape[0] if weights is None else readouts.shares(weights)
    trace = _backprop(net, params, X, Y, masks, preprocess, rule, rule_state, share if rule.linear else None)
    deltas = trace.deltas
    if not rule.linear:
        each = share if weights is None else share[:, None]
        deltas = tuple(each * delta for delta in deltas)  # the smaller of the product's factors
    return trace.losses, trace.output, readouts.sum_of_products(deltas, trace.inputs, net.products)


def value_and_grad(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Num[Given, "m ..."],
    *,
    weights: Float[Given, " m"] | None = None,
    masks: Masks | None = None,
    preprocess: Preprocess | None = None,
    rule: Rule = rules.backprop,
    rule_state: tuple[Any, ...] | None = None,
) -> tuple[Float[Array, ""], Params]:
    """`J = sum_m w L / sum_m w` and its gradient, by hand: `jax.value_and_grad(cost)`, with params' structure.

    With another `rule` the second is what that rule takes for the gradient.
    """
    X, Y, weights, masks = batch(net, params, X, Y, weights, masks, preprocess)
    rule_state = rules.checked_state(net, rule, rule_state)
    return _value_and_grad(net, params, X, Y, weights, masks, preprocess, rule, rule_state)


@partial(jax.jit, static_argnames=("net", "preprocess", "rule"))
def _value_and_grad(net, params, X, Y, weights, masks, preprocess, rule, rule_state):
    losses, _, grads = gradient_pass(net, params, X, Y, weights, masks, preprocess, rule, rule_state)
    return mean(losses, weights), grads
