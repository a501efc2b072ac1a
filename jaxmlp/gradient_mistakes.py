"""Names the mistake behind a wrong gradient: makes each classic mistake on purpose and compares the two gradients."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp import readouts
from jaxmlp._backward import backprop, backward, value_and_grad
from jaxmlp._forward import forward
from jaxmlp.network import MLP, Layer, Params
from jaxmlp.programs import compiled

CLOSE = 1e-3  # a mistake is recognized if its gradient is this near, relative to the norm


Problem = tuple[MLP, Params, Any, Any, Any, Any]  # the network, its parameters, X, Y, weights and masks
Wrong = dict[str, int]  # the names of the wrong arrays, such as `W^1`, with their layers


def name_mistakes(
    net, params, X, Y, weights, masks, grads: Params, expected: Params, wrong: Wrong | None = None
) -> tuple[str, ...]:
    """Sentences on how `grads` differs from `expected`: shape or transpose, factor or sign, missing f', stale layer.

    Args:
        net, params, X, Y, weights, masks: the network and its batch.
        grads: the gradient to explain, in NumPy arrays.
        expected: the right gradient.
        wrong: the wrong arrays by name, with their layers; those that differ by more than 0.1% unless given.
    Returns:
        One sentence for each mistake found; none where no array is wrong, or all agree to 0.1%.
    Example:
        >>> right = jm.value_and_grad(net, params, X, Y)[1]
        >>> doubled = jax.tree.map(lambda g: 2 * np.asarray(g), right)
        >>> jm.gradient_mistakes.name_mistakes(net, params, X, Y, None, None, doubled, right)
        ('a constant factor of 2, in every array',)
    """
    expected = jax.tree.map(np.asarray, expected)
    found = _find_wrong(grads, expected)
    wrong = found if wrong is None else wrong
    if not found or not wrong:
        return ()
    pairs = {name: pair for name, *pair in _pair_arrays(grads, expected) if name in wrong}
    for find in (_find_transposes, _find_shapes, _find_zeros_and_infinities):
        if sentences := find(pairs):
            return sentences
    right = [replace(f, df=_Slope(f.f)) for f in net.hidden]
    problem = (MLP(net.sizes, right, net.output, net.loss), params, X, Y, weights, masks)
    for guess in (_guess_factor, _guess_missing_derivative, _guess_updated_layer, _guess_factors_by_array):
        if sentences := guess(problem, grads, expected, wrong):
            return sentences
    return _locate_by_elimination(net, wrong)


@dataclass(frozen=True)
class _Slope:
    """`f'` by autodiff: a user's own may be the mistake. Equal for one f, so that two reports share their programs."""

    f: Callable[[Any], Any]

    def __call__(self, z):
        return jax.vjp(self.f, z)[1](jnp.ones_like(z))[0]


def _pair_arrays(grads: Params, expected: Params) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Each array's name, such as `W^1`, and the array in both gradients."""
    names = [f"{array}^{l}" for l in range(1, len(grads) + 1) for array in ("W", "b")]
    return list(zip(names, jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True))


def _is_near(a, b) -> bool:
    """Whether two arrays of one shape agree to 0.1%."""
    return bool(np.linalg.norm(a - b) <= CLOSE * max(np.linalg.norm(a), np.linalg.norm(b)))


def _are_near(grads: Params, others: Params) -> bool:
    """Whether two gradients agree to 0.1% in every array."""
    return all(_is_near(g, np.asarray(o)) for g, o in zip(jax.tree.leaves(grads), jax.tree.leaves(others), strict=True))


def _find_wrong(grads: Params, expected: Params) -> Wrong:
    """The wrong arrays by name, with their layers."""
    pairs = _pair_arrays(grads, expected)
    return {name: int(name[2:]) for name, g, e in pairs if g.shape != e.shape or not _is_near(g, e)}


def _find_shapes(pairs) -> tuple[str, ...]:
    """Arrays of a wrong shape."""
    return tuple(
        f"another shape: {name} has {g.shape}, expected {e.shape}"
        for name, (g, e) in pairs.items()
        if g.shape != e.shape
    )


def _find_zeros_and_infinities(pairs) -> tuple[str, ...]:
    """Arrays that are not finite, and arrays that are all 0 by mistake."""
    found = []
    for name, (g, e) in pairs.items():
        if not np.isfinite(g).all():
            found.append(f"not finite: {name}")
        elif not g.any() and e.any():
            found.append(f"all zero: {name}")
    return tuple(found)


def _find_transposes(pairs) -> tuple[str, ...]:
    """Wrong arrays whose transpose is right."""
    found = []
    for name, (g, e) in pairs.items():
        agrees = g.shape == e.shape and _is_near(g, e)
        if not agrees and g.shape == e.T.shape and _is_near(g, e.T):
            found.append(f"transpose: {name} is the transpose of the gradient (a delta^T for delta a^T)")
    return tuple(found)


def _find_factor(g, e) -> float | None:
    """The c with `g = c e`; None if there is no such c."""
    c = float(np.vdot(g, e) / max(float(np.vdot(e, e)), np.finfo(float).tiny))
    return c if c != 0 and np.any(e) and np.linalg.norm(g - c * e) <= CLOSE * np.linalg.norm(g) else None


def _describe_factor(c: float, m: int) -> str:
    """The factor c in words; a factor of m or 1/m has a cause."""
    sign = "sign: the opposite one" if c < 0 else ""
    if abs(abs(c) - 1) < CLOSE:
        return sign
    times = f"a constant factor of {abs(c):.6g}"
    if abs(abs(c) / m - 1) < CLOSE:
        times += f", the number of examples: the mean's 1/m is missing (m = {m})"
    elif abs(abs(c) * m - 1) < CLOSE:
        times += f": 1/m is taken twice (m = {m})"
    return f"{sign}, and {times}" if sign else times


def _guess_factor(problem: Problem, grads, expected, wrong):
    """Every array is the right one times one constant."""
    flat, reference = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (grads, expected))
    c = _find_factor(flat, reference)
    if c is None or flat.size < 2 or not (sentence := _describe_factor(c, problem[2].shape[0])):
        return ()
    each = [(e.any(), _is_near(g, c * e)) for _, g, e in _pair_arrays(grads, expected)]
    return (
        (f"{sentence}, in every array",) if all(near for _, near in each) and sum(any_ for any_, _ in each) > 1 else ()
    )


def _guess_factors_by_array(problem: Problem, grads, expected, wrong):
    """Each wrong array is the right one times a constant. A single number needs another array with its constant."""
    factors = {name: (_find_factor(g, e), g.size) for name, g, e in _pair_arrays(grads, expected) if name in wrong}
    found = []
    for name, (c, size) in factors.items():
        others = [other for rest, (other, _) in factors.items() if rest != name and other is not None]
        if c is None or (size == 1 and not any(abs(c - other) <= CLOSE * abs(c) for other in others)):
            return ()
        if not (sentence := _describe_factor(c, problem[2].shape[0])):
            return ()
        found.append(f"{sentence}, in {name}")
    return tuple(found)


def _guess_missing_derivative(problem: Problem, grads, expected, wrong):
    """One hidden layer, all of them, or the output leaves out f'."""
    net, params, X, Y, weights, masks = problem
    linear = lambda f: replace(f, df=jnp.ones_like)
    explains = lambda made: _are_near(grads, made) and not _are_near(expected, made)
    layers: list[tuple[int, ...]] = [(l,) for l in range(net.depth - 1)]
    layers += [tuple(range(net.depth - 1))] if net.depth > 2 else []
    for chosen in layers:
        hidden = [linear(f) if l in chosen else f for l, f in enumerate(net.hidden)]
        broken = MLP(net.sizes, hidden, net.output, net.loss)
        if explains(value_and_grad(broken, params, X, Y, weights=weights, masks=masks)[1]):
            where = ", ".join(str(l + 1) for l in chosen)
            return (f"a missing f': delta is not multiplied by f'(z) at layer {where}",)
    if net.output != net.loss.canonical and explains(_omit_output_derivative(*problem)):
        return (f"a missing f': delta^{net.depth} is dL/dy_hat, not multiplied by the output's derivative",)
    return ()


@compiled("net")
def _omit_output_derivative(net, params, X, Y, weights, masks) -> Params:
    """The gradient with the start `dL/dy_hat`."""

    def example(x, y, masks):
        y_hat, tape = forward(net, params, x, masks)
        deltas = backward(net, params, tape, net.loss.df(y_hat, net.loss.target(y, y_hat)))
        return readouts.Trace(tape.inputs, tape.pre_activations, deltas, y_hat, jnp.zeros(()))

    return readouts.mean_gradient(jax.vmap(example)(X, Y, masks), weights)


def _guess_updated_layer(problem: Problem, grads, expected, wrong):
    """`delta^l` came down through `W^(l+1) - eta grad`: the layer above was updated first, at some rate eta."""
    net, params, X, Y, weights, masks = problem
    layer = max(wrong.values())  # all layers above it agree
    if layer == net.depth or net.sizes[layer] * X.shape[0] == 1:  # one number is a multiple of any other
        return ()
    moved = _carry_down(net, layer, params, X, Y, weights, masks, jnp.asarray(expected[layer].W))
    change, direction = (
        np.concatenate([np.ravel(x.W), np.ravel(x.b)])
        for x in (Layer(*(e - g for e, g in zip(expected[layer - 1], grads[layer - 1], strict=True))), moved)
    )
    eta = _find_factor(change, direction)
    if eta is None or eta <= 0 or change.size < 3:
        return ()
    return (f"a stale layer: delta^{layer} came down through a W^{layer + 1} that had already been updated (with rate "
            f"{eta:.4g}), not the one of the forward pass",)  # fmt: skip


@compiled("net", "layer")
def _carry_down(net, layer, params, X, Y, weights, masks, G) -> Layer:
    """The gradient of a layer whose `delta^l` came down through G, the update of `W^(l+1)`."""
    trace = backprop(net, params, X, Y, masks=masks)

    def carry(pre_activation, delta, mask):
        error = G.T @ delta if mask is None else mask * (G.T @ delta)
        return net.hidden[layer - 1].pull(pre_activation, error)

    mask = None if masks is None else masks[layer]
    delta = jax.vmap(carry)(trace.pre_activations[layer - 1], trace.deltas[layer], mask)
    return readouts.mean_gradient(trace._replace(inputs=(trace.inputs[layer - 1],), deltas=(delta,)), weights)[0]


def _locate_by_elimination(net: MLP, wrong: Wrong) -> tuple[str, ...]:
    """The place where an unknown mistake enters."""
    layer = max(wrong.values())
    if f"W^{layer}" not in wrong:
        return (f"b^{layer} alone: W^{layer} is right, so delta^{layer} is, and b's gradient is its mean",)
    if f"b^{layer}" not in wrong:
        return (f"a stale layer: b^{layer} is right, so delta^{layer} is; W^{layer} is not, so the input it was "
                f"multiplied with is not a^{layer - 1}, or a penalty was added",)  # fmt: skip
    if layer > 1 and set(wrong.values()) == {layer}:
        return (f"W^{layer} and b^{layer} alone: the layers below are right, so delta^{layer} is; its product with "
                f"a^{layer - 1} and its mean are not",)  # fmt: skip
    if layer == net.depth:
        return (f"the start: delta^{layer} is not the loss's derivative in z^{layer}",)
    return (f"a stale layer: all above layer {layer} agree, so delta^{layer} was not carried down through "
            f"W^{layer + 1} and f'(z^{layer}) of this forward pass, or f' is not f's derivative",)  # fmt: skip
