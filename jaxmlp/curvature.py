"""Products with the Hessian of the cost and with its Gauss-Newton matrix.

The R-operator `R{x} = d/dt x(params + t v)` at t = 0 is the derivative along a direction `v` in the parameters.
Applied to the recursion it gives Hessian products. The recursion from the loss's Hessian times `R{z^K}` gives
Gauss-Newton products.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, Shaped

from jaxmlp import norms, validate
from jaxmlp._backward import recur
from jaxmlp._forward import Tape, network_inputs, propagate
from jaxmlp.network import MLP, Layer, Params
from jaxmlp.programs import compiled
from jaxmlp.starts import hessian_root, is_canonical, loss_curvature, output_delta
from jaxmlp.trace import Trace, mean_of_products, narrow, shares_of
from jaxmlp.validate import Given, Preprocess


def ggnvp(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Shaped[Given, "m ..."],
    v: Params,
    *,
    weights: Float[Given, " m"] | None = None,
    preprocess: Preprocess | None = None,
) -> Params:
    """The Gauss-Newton matrix of the cost times `v`: a tangent forward, the loss's Hessian at the output, and back.

    Args:
        X: the examples, `(m, n_0)` of the parameters' dtype, or `(m, ...)` for `preprocess`.
        Y: the labels, as in `backprop`.
        v: a direction, in the structure of `params`.
        weights: a weight of at least 0 for each example, `(m,)`; ones unless given.
        preprocess: a function of one example that gives the network's input.
    Returns:
        The product, in the structure of `params`.
    Raises:
        ValueError: where an argument does not fit, or the loss has no `d2f`.
    Example:
        >>> v = jm.value_and_grad(net, params, X, Y)[1]
        >>> product = jm.ggnvp(net, params, X, Y, v)
        >>> bool(sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(v), jax.tree.leaves(product))) >= 0)
        True

    Source: Schraudolph 2002.
    """
    examples = validate.examples(net, params, X, Y, weights, None, preprocess)
    return _ggnvp(net, params, examples, _check_direction(net, params, v), preprocess)


@compiled("net", "preprocess")
def _ggnvp(net, params, examples, v, preprocess):
    def example(x, y):
        _, tape = propagate(net, params, x)
        _, dz = _tangent(net, params, tape, v)
        return tape.inputs, recur(net, params, tape, _output_curvature(net, tape, y, dz[-1]))

    inputs, deltas = jax.vmap(example)(network_inputs(examples.X, preprocess, params[0].W.dtype), examples.Y)
    return narrow(mean_of_products(deltas, inputs, examples.weights), inputs[0].dtype)


@compiled("net")
def ggn_forms(
    net: MLP,
    params: Params,
    trace: Trace,
    directions: tuple[Params, ...],
    weights: Float[Array, " m"] | None,
) -> Float[Array, "n n"]:
    """`v_i . G v_j` for n directions and the Gauss-Newton matrix of a trace's batch: tangents forward, and no way back.

    Nothing is checked. The trace's dropout masks hold for the tangents, too.
    """

    def example(tape, y):
        dz = [_tangent(net, params, tape, v)[1][-1] for v in directions]
        curved = [_output_curvature(net, tape, y, d) for d in dz]
        return jnp.stack([jnp.stack([norms.widen(d) @ norms.widen(c) for c in curved]) for d in dz])

    return jnp.tensordot(shares_of(trace, weights), jax.vmap(example)(trace.tape, trace.labels), 1)


def hvp(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Shaped[Given, "m ..."],
    v: Params,
    *,
    weights: Float[Given, " m"] | None = None,
    preprocess: Preprocess | None = None,
) -> Params:
    """The Hessian of the cost times `v`, by the R-operator: `R{delta a^T} = R{delta} a^T + delta R{a}^T`.

    At each layer `R{delta} = f''(z) R{z} e + f'(z) R{e}` with `e = W^T delta`.

    Args:
        X, Y, v, weights, preprocess: as in `ggnvp`.
    Returns:
        The product, in the structure of `params`.
    Raises:
        ValueError: where an argument does not fit, or an activation or the loss has no `d2f`.
    Example:
        >>> smooth = jm.MLP((784, 8, 10), hidden="tanh", output="softmax", loss="cross_entropy")
        >>> v = jm.init(smooth, key)
        >>> jm.hvp(smooth, v, X, Y, v)[0].W.shape
        (8, 784)

    Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian".
    """
    examples = validate.examples(net, params, X, Y, weights, None, preprocess)
    v = _check_direction(net, params, v)
    for f in net.hidden if is_canonical(net) else net.activations:
        f.pull_derivative(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1))  # raises where d2f is missing
    return _hvp(net, params, examples, v, preprocess)


@compiled("net", "preprocess")
def _hvp(net, params, examples, v, preprocess):
    def example(x, y):
        _, tape = propagate(net, params, x)
        da, dz = _tangent(net, params, tape, v)
        deltas, ddeltas = _r_backward(net, params, tape, y, v, dz)
        return tape.inputs, da, deltas, ddeltas

    X = network_inputs(examples.X, preprocess, params[0].W.dtype)
    a, da, delta, ddelta = jax.vmap(example)(X, examples.Y)
    moving_delta = mean_of_products(ddelta, a, examples.weights)
    moving_a = mean_of_products(delta, da, examples.weights)
    products = tuple(p._replace(W=p.W + q.W) for p, q in zip(moving_delta, moving_a, strict=True))
    return narrow(products, X.dtype)


def _tangent(net: MLP, params: Params, tape: Tape, v: Params):
    """`R{a^0} .. R{a^(K-1)}` and `R{z^1} .. R{z^K}`: `R{z} = V a + W R{a} + v_b`, `R{a} = J(z) R{z}`.

    J is symmetric, for softmax too, so `pull` is the product with J as well.
    """
    da, inputs, pre_activations = jnp.zeros_like(tape.inputs[0]), [], []
    layers = zip(params, v, net.activations, tape.inputs, tape.pre_activations, strict=True)
    for l, ((W, _), (V, vb), f, a, z) in enumerate(layers):
        da = da if tape.masks is None else tape.masks[l] * da
        dz = (V @ a + vb) if l == 0 else (V @ a + W @ da + vb)  # the inputs do not move
        inputs.append(da)
        pre_activations.append(dz)
        da = f.pull(z, dz)
    return tuple(inputs), tuple(pre_activations)


def _r_backward(net: MLP, params: Params, tape: Tape, y: Array, v: Params, dz: tuple[Array, ...]):
    """The recursion and its derivative side by side: `delta^1 .. delta^K` and `R{delta^1} .. R{delta^K}`."""
    deltas, ddeltas = [output_delta(net, tape, y)], [_output_hessian(net, tape, y, dz[-1])]
    for l in reversed(range(net.depth - 1)):
        W, V, z, f = params[l + 1].W, v[l + 1].W, tape.pre_activations[l], net.hidden[l]
        e, de = W.T @ deltas[0], V.T @ deltas[0] + W.T @ ddeltas[0]
        deltas.insert(0, f.pull(z, e))
        ddeltas.insert(0, f.pull_derivative(z, e, dz[l]) + f.pull(z, de))
    return tuple(deltas), tuple(ddeltas)


def _output_hessian(net: MLP, tape: Tape, y: Array, dz: Float[Array, " k"]) -> Float[Array, " k"]:
    """The loss's Hessian in `z^K` times dz: with a pair that is not canonical, also the output's own curvature."""
    if is_canonical(net):
        return _output_curvature(net, tape, y, dz)
    z, target = tape.pre_activations[-1], net.loss.target(y, tape.output)
    if net.loss.of_log_odds and net.output.log_odds:
        odds, loss = net.output.log_odds, net.loss.of_log_odds
        o, J = odds.f(z), odds.jacobian(z)
        through_odds = J.T @ (loss.d2f(o, target) * (J @ dz))
        return through_odds + odds.pull_derivative(z, loss.df(o, target), dz)
    error = net.loss.df(tape.output, target)
    return _output_curvature(net, tape, y, dz) + net.output.pull_derivative(z, error, dz)


def _output_curvature(net: MLP, tape: Tape, y: Array, dz: Float[Array, " k"]) -> Float[Array, " k"]:
    """The Gauss-Newton part of that: `J dz` for a canonical pair, else `J^T diag(d2L/dy_hat^2) J dz`."""
    z = tape.pre_activations[-1]
    if is_canonical(net):
        return net.output.pull(z, dz)
    if net.loss.of_log_odds and net.output.log_odds:
        R = hessian_root(net, tape, y)
        return R.T @ (R @ dz)
    return net.output.pull(z, loss_curvature(net, tape, y) * net.output.pull(z, dz))


def _check_direction(net: MLP, params: Params, v: Any) -> Params:
    """`v`, if it has the structure and dtype of the parameters."""
    try:
        dtype = validate.params(net, v)
    except ValueError as error:
        raise ValueError(f"v: {error}") from None
    if dtype != (expected := validate.params(net, params)):
        raise ValueError(f"v has dtype {dtype}, the parameters {expected}; convert one of them")
    return tuple(Layer(*layer) for layer in v)
