"""One example through the network, the tape it leaves, and the cost, which is plain JAX."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, Shaped

from jaxmlp import norms, validate
from jaxmlp.doors import takes_network
from jaxmlp.network import MLP, Params
from jaxmlp.programs import compiled
from jaxmlp.validate import Given, Preprocess

# Dropout: a mask (n_l,) of 0 and 1/keep for the inputs and one for each hidden layer; a batch's are (m, n_l).
Masks = tuple[Float[Array, "*m _"], ...]


class Tape(NamedTuple):
    """The values of one forward pass that the backward pass needs; entry l-1 of a tuple belongs to layer `l = 1..K`."""

    inputs: tuple[Float[Array, " i"], ...]  # a^0 .. a^(K-1), masked: each multiplies W^l
    pre_activations: tuple[Float[Array, " o"], ...]  # z^1 .. z^K
    output: Float[Array, " k"]  # a^K = y_hat
    masks: Masks | None = None


def propagate(
    net: MLP, params: Params, x: Float[Array, " i"], masks: Masks | None = None
) -> tuple[Float[Array, " k"], Tape]:
    """`z^l = W^l a^(l-1) + b^l`, `a^l = f_l(z^l)`, from `a^0 = x`: `forward` without its checks."""
    a, inputs, pre_activations = x, [], []
    for l, (layer, f) in enumerate(zip(params, net.activations, strict=True)):
        a = a if masks is None else (masks[l] * a).astype(a.dtype)
        z = net.product(layer.W, a) + layer.b
        inputs.append(a)
        pre_activations.append(z)
        a = f(z)
    return a, Tape(tuple(inputs), tuple(pre_activations), a, masks)


def forward(
    net: MLP, params: Params, x: Float[Array, " i"], masks: Masks | None = None
) -> tuple[Float[Array, " k"], Tape]:
    """One example's `y_hat` and its tape: `z^l = W^l a^(l-1) + b^l`, `a^l = f_l(z^l)` for `l = 1..K`, `a^0 = x`.

    Args:
        x: one example `(n_0,)` of the parameters' dtype.
        masks: dropout masks `(n_l,)` that multiply `a^0 .. a^(K-1)`.
    Returns:
        `y_hat (n_K,)`, and the `Tape` that `output_loss`, `output_delta` and `backward` read.
    Raises:
        ValueError: where shapes or dtypes do not fit.
    Example:
        >>> y_hat, tape = jm.forward(net, params, X[0])
        >>> [z.shape for z in tape.pre_activations]
        [(64,), (10,)]

    Source: notes 000, "Dry Implementation"; 001, "Multi-layer Neural nets".
    """
    x = validate.example(net, x, validate.params(net, params))
    masks = None if masks is None else validate.masks(net, masks, ())
    return propagate(net, params, x, masks)


@takes_network
def output_loss(net: MLP, tape: Tape, y: Num[Given, "..."]) -> Float[Array, ""]:
    """`L(y_hat, y)` of one example, from `z^K` in log space where the loss has logarithms: see `Loss.value`.

    Args:
        y: one label: an integer class, a row `(n_K,)`, or a number for a single output.
    Example:
        >>> y_hat, tape = jm.forward(net, params, X[0])
        >>> loss = jm.output_loss(net, tape, Y[0])
        >>> bool(jnp.allclose(loss, -jnp.log(y_hat[Y[0]])))
        True
    """
    return net.loss.value(net.output, tape.pre_activations[-1], net.loss.target(y, tape.output))


@takes_network
def tail_loss(
    net: MLP, params: Params, layer: int, z: Float[Array, " o"], y: Num[Given, "..."], masks: Masks | None = None
) -> Float[Array, ""]:
    """The loss of one example as a function of `z^layer`: its gradient in z is `delta^layer`.

    `l_t(o_t) = l_(t+1)(o_(t+1)) = ... = loss`.

    Args:
        layer: 1 to K.
        z: the layer's pre-activations `(n_layer,)`.
        y: one label.
        masks: the example's dropout masks.
    Raises:
        ValueError: where the layer, a shape or the label does not fit.
    Example:
        >>> y_hat, tape = jm.forward(net, params, X[0])
        >>> deltas = jm.backward(net, params, tape, jm.output_delta(net, tape, Y[0]))
        >>> by_autodiff = jax.grad(lambda z: jm.tail_loss(net, params, 1, z, Y[0]))(tape.pre_activations[0])
        >>> bool(jnp.allclose(deltas[0], by_autodiff, atol=1e-6))
        True

    Source: notes 004, the loss as a composition.
    """
    if not 1 <= layer <= net.depth:
        raise ValueError(f"layer is {layer}, expected 1 to {net.depth}")
    validate.params(net, params)
    if jnp.shape(z) != (net.sizes[layer],):
        raise ValueError(f"z has shape {jnp.shape(z)}, expected ({net.sizes[layer]},) at layer {layer}")
    y = validate.targets(net, y, None, name="y")
    for l in range(layer, net.depth):
        a = net.hidden[l - 1](z)
        a = a if masks is None else (masks[l] * a).astype(a.dtype)
        z = net.product(params[l].W, a) + params[l].b
    return net.loss.value(net.output, z, net.loss.target(y, z))


def predict(
    net: MLP, params: Params, X: Num[Given, "m ..."], *, preprocess: Preprocess | None = None
) -> Float[Array, "m k"]:
    """`y_hat` for each example of a batch.

    Args:
        X: the examples, `(m, n_0)` of the parameters' dtype, or `(m, ...)` for `preprocess`.
        preprocess: a function of one example that gives the network's input, such as `jm.data.scale_pixels`.
    Returns:
        `(m, n_K)`.
    Raises:
        ValueError: where shapes or dtypes do not fit, or X is not finite.
    Example:
        >>> jm.predict(net, params, X).shape
        (20, 10)
    """
    X = validate.inputs(net, X, validate.params(net, params), preprocess)
    return _predict(net, params, X, preprocess)


@compiled("net", "preprocess")
def _predict(net, params, X, preprocess):
    X = network_inputs(X, preprocess, params[0].W.dtype)
    return jax.vmap(lambda x: propagate(net, params, x)[0])(X)


def cost(
    net: MLP,
    params: Params,
    X: Num[Given, "m ..."],
    Y: Shaped[Given, "m ..."],
    *,
    weights: Float[Given, " m"] | None = None,
    masks: Masks | None = None,
    preprocess: Preprocess | None = None,
) -> Float[Array, ""]:
    """The mean loss without penalties, `J = sum_m w L / sum_m w`, in plain JAX, so `jax.grad` differentiates it.

    Args:
        X: the examples, `(m, n_0)` of the parameters' dtype, or `(m, ...)` for `preprocess`.
        Y: the labels, `(m, n_K)`; integer classes `(m,)` for cross-entropy, `(m,)` for a single output.
        weights: a weight of at least 0 for each example, `(m,)`; ones unless given.
        masks: dropout masks, `(m, n_l)` for the inputs and each hidden layer: see `dropout_masks`.
        preprocess: a function of one example that gives the network's input, such as `jm.data.scale_pixels`.
    Raises:
        ValueError: where shapes, dtypes or values do not fit.
    Example:
        >>> grads = jax.grad(lambda p: jm.cost(net, p, X, Y))(params)
        >>> grads[0].W.shape
        (64, 784)
    """
    examples = validate.examples(net, params, X, Y, weights, masks, preprocess)
    return _cost(net, params, examples, preprocess)


@compiled("net", "preprocess")
def _cost(net, params, examples, preprocess):
    X, Y, weights, masks = examples
    losses, _ = batch_losses(net, params, network_inputs(X, preprocess, params[0].W.dtype), Y, masks)
    return mean(losses, weights)


def batch_losses(
    net: MLP, params: Params, X: Float[Array, "m i"], Y: Num[Array, "m ..."], masks: Masks | None = None
) -> tuple[Float[Array, " m"], Float[Array, "m k"]]:
    """Each example's loss and output. Nothing is checked; `X` are network inputs."""

    def example(x, y, masks):
        y_hat, tape = propagate(net, params, x, masks)
        return output_loss(net, tape, y), y_hat

    return jax.vmap(example)(X, Y, masks)


def network_inputs(X: Num[Array, "m ..."], preprocess: Preprocess | None, dtype: jnp.dtype) -> Float[Array, "m i"]:
    """A batch as the network takes it: each example preprocessed, in the parameters' dtype."""
    return X if preprocess is None else jax.vmap(lambda x: preprocess(x).astype(dtype))(X)


def mean(values: Float[Array, "m *rest"], weights: Float[Array, " m"] | None) -> Float[Array, "*rest"]:
    """The mean over examples, `sum_m w v / sum_m w`, its sums in at least float32."""
    if weights is None:
        return norms.widen(values).mean(0).astype(values.dtype)
    weights = norms.widen(weights)
    total = weights.sum()
    mean = jnp.tensordot(weights, norms.widen(values), 1) / jnp.where(total == 0, 1, total)  # 0 for padding alone
    return mean.astype(values.dtype)
