"""One example through the network, the tape it leaves, and the cost, which is plain JAX."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jaxmlp import validate
from jaxmlp.network import MLP, Params
from jaxmlp.validate import Given, Preprocess

# One mask (n_l,) for the inputs and one for each hidden layer, 0 or 1/keep; with a leading (m,) for a batch.
Masks = tuple[Float[Array, "*m n"], ...]


class Tape(NamedTuple):
    """What one forward pass leaves for the backward pass; entry l-1 of a tuple belongs to layer `l = 1..K`."""

    inputs: tuple[Float[Array, " i"], ...]  # a^0 .. a^(K-1), what each W^l was multiplied with (masked)
    pre_activations: tuple[Float[Array, " o"], ...]  # z^1 .. z^K
    output: Float[Array, " k"]  # a^K = y_hat
    masks: Masks | None = None


def forward(
    net: MLP, params: Params, x: Float[Array, " i"], masks: Masks | None = None
) -> tuple[Float[Array, " k"], Tape]:
    """`z^l = W^l a^(l-1) + b^l`, `a^l = f_l(z^l)` for `l = 1..K`: one example's `y_hat` and its tape.

    `masks`, if given, multiply `a^0 .. a^(K-1)`. Raises ValueError where shapes or dtypes do not fit. Source: notes
    000, "Dry Implementation"; 001, "Multi-layer Neural nets".
    """
    x = validate.example(net, x, validate.params(net, params))
    if masks is not None:
        masks = validate.masks(net, masks, ())
    a, inputs, pre_activations = x, [], []
    for l, (layer, f) in enumerate(zip(params, net.activations, strict=True)):
        a = a if masks is None else masks[l] * a
        z = net.product(layer.W, a) + layer.b
        inputs.append(a)
        pre_activations.append(z)
        a = f.f(z)
    return a, Tape(tuple(inputs), tuple(pre_activations), a, masks)


def output_loss(net: MLP, tape: Tape, y: Num[Array, "..."]) -> Float[Array, ""]:
    """`L(y_hat, y)` of one example, from `z^K` in log space for a canonical pair."""
    return net.loss.value(net.output, tape.pre_activations[-1], net.loss.target(y, tape.output))


def tail_loss(
    net: MLP, params: Params, layer: int, z: Float[Array, " o"], y: Num[Array, "..."], masks: Masks | None = None
) -> Float[Array, ""]:
    """The rest of the network as a loss of `z^layer`, `layer = 1..K`: its gradient in z is `delta^layer`.

    `l_t(o_t) = l_(t+1)(o_(t+1)) = ... = loss`. Source: notes 004, the loss as a composition.
    """
    if not 1 <= layer <= net.depth:
        raise ValueError(f"layer is {layer}, expected 1 to {net.depth}")
    validate.params(net, params)
    if jnp.shape(z) != (net.sizes[layer],):
        raise ValueError(f"z has shape {jnp.shape(z)}, expected ({net.sizes[layer]},) at layer {layer}")
    y = validate.targets(net, y, None, name="y")
    for l in range(layer, net.depth):
        a = net.hidden[l - 1].f(z)
        a = a if masks is None else masks[l] * a
        z = net.product(params[l].W, a) + params[l].b
    return net.loss.value(net.output, z, net.loss.target(y, z))


def predict(
    net: MLP, params: Params, X: Num[Given, "m ..."], *, preprocess: Preprocess | None = None
) -> Float[Array, "m k"]:
    """`y_hat` for each example of a batch. `preprocess` turns one example into the network's input."""
    X = validate.inputs(net, X, validate.params(net, params), preprocess)
    return _predict(net, params, X, preprocess)


@partial(jax.jit, static_argnames=("net", "preprocess"))
def _predict(net, params, X, preprocess):
    return jax.vmap(lambda x: forward(net, params, network_input(params, x, preprocess))[0])(X)


def cost(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Num[Given, "m ..."],
    *,
    weights: Float[Given, " m"] | None = None,
    masks: Masks | None = None,
    preprocess: Preprocess | None = None,
) -> Float[Array, ""]:
    """`J = sum_m w L / sum_m w`, the mean loss, without penalty: what `jax.grad` differentiates.

    `weights (m,)` default to ones; `masks` are dropout masks for the batch; `preprocess` is applied to each example.
    """
    X, Y, weights, masks = batch(net, params, X, Y, weights, masks, preprocess)
    return _cost(net, params, X, Y, weights, masks, preprocess)


@partial(jax.jit, static_argnames=("net", "preprocess"))
def _cost(net, params, X, Y, weights, masks, preprocess):
    def loss(x, y, masks):
        _, tape = forward(net, params, network_input(params, x, preprocess), masks)
        return output_loss(net, tape, y)

    return mean(jax.vmap(loss)(X, Y, masks), weights)


def batch(net: MLP, params: Params, X, Y, weights, masks, preprocess):
    """The arguments of a batch, checked and as JAX arrays."""
    dtype = validate.params(net, params)
    X = validate.inputs(net, X, dtype, preprocess)
    Y = validate.targets(net, Y, X.shape[0])
    if weights is not None:
        weights = validate.example_weights(weights, X.shape[0], dtype)
    if masks is not None:
        masks = validate.masks(net, masks, X.shape[:1])
    return X, Y, weights, masks


def network_input(params: Params, x: Num[Array, "..."], preprocess: Preprocess | None) -> Float[Array, " i"]:
    """One example as the network takes it: preprocessed, in the parameters' dtype."""
    return x if preprocess is None else preprocess(x).astype(params[0].W.dtype)


def mean(values: Float[Array, "m *rest"], weights: Float[Array, " m"] | None) -> Float[Array, "*rest"]:
    """The mean over examples, `sum_m w v / sum_m w`."""
    if weights is None:
        return values.mean(0)
    total = weights.sum()
    return jnp.tensordot(weights, values, 1) / jnp.where(total == 0, 1, total)  # all padding: 0
