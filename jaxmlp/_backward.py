"""The backward pass, by hand: the start of an error signal, its recursion down the layers, and the trace it leaves."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, Shaped

from jaxmlp import norms, rules, validate
from jaxmlp._forward import Masks, Tape, mean, network_inputs, output_loss, propagate
from jaxmlp.doors import check_trace
from jaxmlp.network import MLP, Params
from jaxmlp.programs import compiled
from jaxmlp.rule import Down, Rule
from jaxmlp.starts import Start, output_delta
from jaxmlp.trace import Trace, narrow, shares, sum_of_products
from jaxmlp.validate import Examples, Given, Preprocess

Deltas = tuple[Float[Array, " o"], ...]


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
@compiled("net", "rule", "start")
def trace_of(
    net: MLP,
    params: Params,
    X: Float[Array, "m i"],
    Y: Num[Array, "m ..."],
    masks: Masks | None,
    rule: Rule,
    rule_state: Any,
    share: Any = None,
    start: Start = output_delta,
) -> Trace:
    """Forward, start and recursion for each example. Nothing is checked; `X` are network inputs.

    `share`, one number or one for each example `(m,)`, scales the start, and a linear rule's deltas with it.
    """

    def example(x, y, masks, share):
        _, tape = propagate(net, params, x, masks)
        return _leave_trace(net, params, tape, y, share, start, rule, rule_state)

    each = 0 if share is not None and jnp.ndim(share) else None
    return jax.vmap(example, in_axes=(0, 0, 0, each))(X, Y, masks, share)


@compiled("net", "rule", "start")
def restart_of(
    net: MLP,
    params: Params,
    trace: Trace,
    Y: Num[Array, "m ..."],
    rule: Rule = rules.backprop,
    rule_state: Any = None,
    share: Any = None,
    start: Start = output_delta,
) -> Trace:
    """`restart` without its checks; `share` as in `trace_of`."""

    def example(tape, y, share):
        return _leave_trace(net, params, tape, y, share, start, rule, rule_state)

    each = 0 if share is not None and jnp.ndim(share) else None
    return jax.vmap(example, in_axes=(0, 0, each))(trace.tape, Y, share)


def _leave_trace(net, params, tape: Tape, y, share, start: Start, rule: Rule, rule_state: Any) -> Trace:
    """The start and the recursion of one example, from the tape of its forward pass."""
    delta_out = start(net, tape, y)
    delta_out = delta_out if share is None else share * delta_out
    down = partial(recur, net, params, tape, rule=rule, rule_state=rule_state)
    deltas = down(delta_out) if delta_out.ndim == 1 else jax.vmap(down)(delta_out)
    loss, row = output_loss(net, tape, y), net.loss.target(y, tape.output)
    return Trace(tape.inputs, tape.pre_activations, deltas, tape.output, loss, row, tape.masks)


def gradient_pass(net: MLP, params: Params, examples: Examples, rule: Rule, rule_state: Any) -> tuple[Trace, Params]:
    """The trace of a batch, and its mean gradient `sum_m w g / sum_m w`.

    Nothing is checked; `examples.X` are network inputs. A linear rule's recursion is linear in its start, so the mean
    is taken there, where it costs nothing. Of an example of weight 0 the trace's deltas are then 0.
    """
    X, Y, weights, masks = examples
    share = 1 / X.shape[0] if weights is None else shares(weights)
    early = rule.linear and not norms.is_narrow(X.dtype)  # a share of a large batch is no number of a narrow dtype
    trace = trace_of(net, params, X, Y, masks, rule, rule_state, share if early else None)
    each = share if weights is None else share[:, None]  # pyright: ignore[reportIndexIssue]
    if early:
        scaled = trace.deltas
        whole = tuple(delta / (each if weights is None else jnp.where(each == 0, 1, each)) for delta in scaled)
        trace = trace._replace(deltas=whole)  # computed only where somebody reads it
    else:
        scaled = tuple(each * norms.widen(delta) for delta in trace.deltas)  # the product's smaller factor
    grads = sum_of_products(scaled, trace.inputs, net.products)
    return trace, narrow(grads, X.dtype)


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
    start: Start = output_delta,
) -> Trace:
    """The trace of a batch: forward, start and recursion for each example. No gradient is formed.

    Args:
        X: the examples, `(m, n_0)` of the parameters' dtype, or `(m, ...)` for `preprocess`.
        Y: the labels, `(m, n_K)`; integer classes `(m,)` for cross-entropy, `(m,)` for a single output.
        masks: dropout masks, `(m, n_l)` for the inputs and each hidden layer: see `dropout_masks`.
        preprocess: a function of one example that gives the network's input, such as `jm.data.scale_pixels`.
        rule: the map that carries delta down a layer; `W^T` unless given.
        rule_state: the rule's state, for a rule that has one: see `Rule.start`.
        start: `start(net, tape, y)` gives an example's error signal at `z^K`, `(n_K,)`, or c of them as rows
            `(c, n_K)`, such as `hessian_root`; deltas are then `(m, c, o)`. The loss's own unless given.
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
        >>> of_hessian = jm.backprop(net, params, X, Y, start=jm.hessian_root)
        >>> jm.second_moment(of_hessian)[0].W.shape  # the Gauss-Newton matrix's diagonal
        (64, 784)
    """
    examples = validate.examples(net, params, X, Y, None, masks, preprocess)
    check_start(net, params, start, examples.Y)
    return _backprop(net, params, examples, preprocess, rule, rules.check_state(net, rule, rule_state), start)


@compiled("net", "preprocess", "rule", "start")
def _backprop(net, params, examples, preprocess, rule, rule_state, start):
    X = network_inputs(examples.X, preprocess, params[0].W.dtype)
    return trace_of(net, params, X, examples.Y, examples.masks, rule, rule_state, None, start)


def restart(
    net: MLP,
    params: Params,
    trace: Trace,
    Y: Shaped[Given, "m ..."] | None = None,
    *,
    rule: Rule = rules.backprop,
    rule_state: tuple[Any, ...] | None = None,
    start: Start = output_delta,
) -> Trace:
    """The trace of the same forward pass, dropout masks included, from another start or other labels.

    Args:
        params: the parameters that left the trace.
        trace: of `backprop`.
        Y: the labels, as in `backprop`; the trace's own unless given.
        rule, rule_state, start: as in `backprop`.
    Raises:
        ValueError: where an argument does not fit, or the trace is a mapped one.
    Example:
        >>> trace = jm.backprop(net, params, X, Y)
        >>> sampled = jm.restart(net, params, trace, jm.sample_labels(net, trace.output, key))
        >>> jm.kronecker_factors(sampled)[1].G.shape  # the Fisher's
        (10, 10)
    """
    validate.params(net, params)
    check_trace(trace)
    widths = tuple(a.shape[-1] for a in trace.inputs)
    if trace.constants is not None or widths != net.sizes[:-1]:
        kind = "a mapped trace" if trace.constants is not None else f"a trace of the widths {widths}"
        raise ValueError(f"trace is {kind}, expected one of backprop with {net}")
    if Y is None and trace.labels is None:
        raise ValueError("Y is None, and the trace has no labels; expected labels")
    Y = trace.labels if Y is None else validate.targets(net, Y, trace.losses.shape[0])
    check_start(net, params, start, Y)
    return restart_of(net, params, trace, Y, rule, rules.check_state(net, rule, rule_state), None, start)


def check_start(net: MLP, params: Params, start: Start, Y: Any) -> None:
    """Refuses a start that does not give `(n_K,)` or rows `(c, n_K)` in the parameters' dtype; it is only traced."""
    if start is output_delta:
        return
    if not callable(start):
        raise ValueError(f"start is {start!r}, expected a function of the network, a tape and a label")

    dtype = validate.params(net, params)

    def example(params, y):
        x = jnp.zeros(net.sizes[:1], dtype)
        return start(net, propagate(net, params, x)[1], y)

    made = jax.eval_shape(example, params, jax.eval_shape(lambda Y: Y[0], Y))
    k = net.sizes[-1]
    fits = getattr(made, "ndim", 0) in (1, 2) and made.shape[-1] == k and made.dtype == dtype
    if not fits:
        raise ValueError(f"start gives {made}, expected ({k},) or rows (c, {k}) of {dtype}")


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
    trace, grads = gradient_pass(net, params, examples, rule, rule_state)
    return mean(trace.losses, examples.weights), grads
