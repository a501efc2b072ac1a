"""The backward pass, by hand: the start of an error signal, its recursion down the layers, and the trace it leaves."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, PRNGKeyArray, Shaped

from jaxmlp import norms, readouts, rules, validate
from jaxmlp._forward import Masks, Tape, mean, network_inputs, output_loss, propagate
from jaxmlp.doors import takes_network
from jaxmlp.network import MLP, Params
from jaxmlp.programs import compiled
from jaxmlp.readouts import Trace
from jaxmlp.rule import Down, Rule
from jaxmlp.validate import Examples, Given, Preprocess

Deltas = tuple[Float[Array, " o"], ...]


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


def recur(
    net: MLP, params: Params, tape: Tape, delta_out: Array, rule: Rule = rules.backprop, rule_state: Any = None
) -> Deltas:
    """`delta^l = f_l'(z^l) * (W^(l+1)^T delta^(l+1))`, from `delta^K = delta_out`: `backward` without its checks."""
    deltas = [delta_out]  # delta^K = dL/dz^K
    for l in reversed(range(net.depth - 1)):
        W, f, z = params[l + 1].W, net.hidden[l], tape.pre_activations[l]
        state = None if rule_state is None else rule_state[l]
        down = Down(W, deltas[0], delta_out, f, z, state, net.product)
        error = rule.carry(down)  # dL/da^l
        if tape.masks is not None:
            error = tape.masks[l + 1] * error
        deltas.insert(0, rule.pull(down, error).astype(z.dtype))  # f_l'(z^l) * error
    return tuple(deltas)


def backward(
    net: MLP,
    params: Params,
    tape: Tape,
    delta_out: Float[Array, " k"],
    rule: Rule = rules.backprop,
    rule_state: tuple[Any, ...] | None = None,
) -> Deltas:
    """The recursion: `delta^l = f_l'(z^l) * (W^(l+1)^T delta^(l+1))` for `l = K-1 .. 1`, from `delta^K = delta_out`.

    For a linear rule, the default among them, the result is linear in `delta_out`.

    Args:
        tape: of `forward`, for one example.
        delta_out: any start `(n_K,)`; the loss's own is `output_delta`.
        rule: the map that carries delta down a layer; `W^T` unless given.
        rule_state: the rule's state, for a rule that has one: see `Rule.start`.
    Returns:
        `(delta^1, .., delta^K)`, `delta^l` of shape `(n_l,)`.
    Raises:
        ValueError: where shapes or dtypes do not fit.
    Example:
        >>> y_hat, tape = jm.forward(net, params, X[0])
        >>> deltas = jm.backward(net, params, tape, jm.output_delta(net, tape, Y[0]))
        >>> [delta.shape for delta in deltas]
        [(64,), (10,)]

    Source: notes 000, "Visualization of back-prop"; 001, "Back propagation rules".
    """
    validate.params(net, params)
    if jnp.shape(delta_out) != net.sizes[-1:]:
        raise ValueError(f"delta_out has shape {jnp.shape(delta_out)}, expected {net.sizes[-1:]}")
    return recur(net, params, tape, delta_out, rule, rules.check_state(net, rule, rule_state))


# Jitted inside other jitted functions, too: XLA then rounds a step alike, whatever else its program reads from a trace.
@compiled("net", "rule")
def trace_of(
    net: MLP,
    params: Params,
    X: Float[Array, "m i"],
    Y: Num[Array, "m ..."],
    masks: Masks | None,
    rule: Rule,
    rule_state: Any,
    share: Any = None,
) -> Trace:
    """Forward, start and recursion for each example. Nothing is checked; `X` are network inputs.

    `share`, one number or one for each example `(m,)`, scales the start, and a linear rule's deltas with it.
    """

    def example(x, y, masks, share):
        y_hat, tape = propagate(net, params, x, masks)
        delta_out = output_delta(net, tape, y)
        delta_out = delta_out if share is None else share * delta_out
        deltas = recur(net, params, tape, delta_out, rule, rule_state)
        return Trace(tape.inputs, tape.pre_activations, deltas, y_hat, output_loss(net, tape, y))

    each = 0 if share is not None and jnp.ndim(share) else None
    return jax.vmap(example, in_axes=(0, 0, 0, each))(X, Y, masks, share)


def gradient_pass(
    net: MLP, params: Params, examples: Examples, rule: Rule, rule_state: Any
) -> tuple[Float[Array, " m"], Float[Array, "m k"], Params]:
    """The losses and outputs of a batch, and its mean gradient `sum_m w g / sum_m w`.

    Nothing is checked; `examples.X` are network inputs. A linear rule's recursion is linear in its start, so the mean
    is taken there, where it costs nothing.
    """
    X, Y, weights, masks = examples
    share = 1 / X.shape[0] if weights is None else readouts.shares(weights)
    early = rule.linear and not norms.is_narrow(X.dtype)  # a share of a large batch is no number of a narrow dtype
    trace = trace_of(net, params, X, Y, masks, rule, rule_state, share if early else None)
    deltas = trace.deltas
    if not early:
        each = share if weights is None else share[:, None]  # pyright: ignore[reportIndexIssue]
        deltas = tuple(each * norms.widen(delta) for delta in deltas)  # the product's smaller factor
    grads = readouts.sum_of_products(deltas, trace.inputs, net.products)
    return trace.losses, trace.output, readouts.narrow(grads, X.dtype)


def backprop(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Shaped[Given, "m ..."],
    *,
    masks: Masks | None = None,
    preprocess: Preprocess | None = None,
    rule: Rule = rules.backprop,
    rule_state: tuple[Any, ...] | None = None,
) -> Trace:
    """The trace of a batch: forward, start and recursion for each example. No gradient is formed.

    Args:
        X: the examples, `(m, n_0)` of the parameters' dtype, or `(m, ...)` for `preprocess`.
        Y: the labels, `(m, n_K)`; integer classes `(m,)` for cross-entropy, `(m,)` for a single output.
        masks: dropout masks, `(m, n_l)` for the inputs and each hidden layer: see `dropout_masks`.
        preprocess: a function of one example that gives the network's input, such as `jm.data.scale_pixels`.
        rule: the map that carries delta down a layer; `W^T` unless given.
        rule_state: the rule's state, for a rule that has one: see `Rule.start`.
    Returns:
        A `Trace`: the pairs `(delta, a)` of every layer and example. Every gradient quantity is a readout of it.
    Raises:
        ValueError: where shapes, dtypes or values do not fit.
    Example:
        >>> trace = jm.backprop(net, params, X, Y)
        >>> trace.deltas[0].shape, trace.inputs[0].shape
        ((20, 64), (20, 784))
        >>> jm.per_example_norms(trace).shape
        (20,)
    """
    examples = validate.examples(net, params, X, Y, None, masks, preprocess)
    return _backprop(net, params, examples, preprocess, rule, rules.check_state(net, rule, rule_state))


@compiled("net", "preprocess", "rule")
def _backprop(net, params, examples, preprocess, rule, rule_state):
    X = network_inputs(examples.X, preprocess, params[0].W.dtype)
    return trace_of(net, params, X, examples.Y, examples.masks, rule, rule_state)


def value_and_grad(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Shaped[Given, "m ..."],
    *,
    weights: Float[Given, " m"] | None = None,
    masks: Masks | None = None,
    preprocess: Preprocess | None = None,
    rule: Rule = rules.backprop,
    rule_state: tuple[Any, ...] | None = None,
) -> tuple[Float[Array, ""], Params]:
    """`J = sum_m w L / sum_m w` and its gradient by hand, as `jax.value_and_grad` of `cost` gives them.

    Args:
        X: the examples, `(m, n_0)` of the parameters' dtype, or `(m, ...)` for `preprocess`.
        Y: the labels, `(m, n_K)`; integer classes `(m,)` for cross-entropy, `(m,)` for a single output.
        weights: a weight of at least 0 for each example, `(m,)`; ones unless given.
        masks: dropout masks, `(m, n_l)` for the inputs and each hidden layer: see `dropout_masks`.
        preprocess: a function of one example that gives the network's input, such as `jm.data.scale_pixels`.
        rule: the map that carries delta down a layer. Another rule than the default gives its own "gradient".
        rule_state: the rule's state, for a rule that has one: see `Rule.start`.
    Returns:
        J and the gradient, in the structure of `params`.
    Raises:
        ValueError: where shapes, dtypes or values do not fit.
    Example:
        >>> J, grads = jm.value_and_grad(net, params, X, Y)
        >>> bool(jnp.allclose(grads[0].W, jax.grad(lambda p: jm.cost(net, p, X, Y))(params)[0].W, atol=1e-6))
        True

    Source: notes 000, "Backpropagation in this network"; 002, the factor `1/m`.
    """
    examples = validate.examples(net, params, X, Y, weights, masks, preprocess)
    return _value_and_grad(net, params, examples, preprocess, rule, rules.check_state(net, rule, rule_state))


@compiled("net", "preprocess", "rule")
def _value_and_grad(net, params, examples, preprocess, rule, rule_state):
    examples = examples._replace(X=network_inputs(examples.X, preprocess, params[0].W.dtype))
    losses, _, grads = gradient_pass(net, params, examples, rule, rule_state)
    return mean(losses, examples.weights), grads
