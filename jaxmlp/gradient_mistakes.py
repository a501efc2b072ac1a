"""What a wrong gradient looks like: each classic mistake is made on purpose and compared with what came."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp import readouts
from jaxmlp._backward import backprop, backward, value_and_grad
from jaxmlp._forward import forward
from jaxmlp.network import MLP, Layer, Params

CLOSE = 1e-3  # a mistake is recognised when the gradient it makes is this near, relative to its norm


def looks_like(net, params, X, Y, weights, masks, grads: Params, expected: Params) -> tuple[str, ...]:
    """Sentences on how `grads` differs from `expected`: shape or transpose, factor or sign, missing f', stale layer."""
    expected = jax.tree.map(np.asarray, expected)
    wrong = _wrong(grads, expected)
    if not wrong:
        return ()
    shapes = _transposes(grads, expected)
    if shapes or jax.tree.map(np.shape, grads) != jax.tree.map(np.shape, expected):
        return tuple(shapes) or _shapes(grads, expected)
    if found := _empty_or_broken(grads, expected):
        return found
    problem = (net, params, X, Y, weights, masks)
    for guess in (_factor, _missing_derivative, _already_updated, _factors_by_array):
        if sentences := guess(problem, grads, expected):
            return sentences
    return _by_elimination(net, wrong)


def _names(grads: Params) -> list[str]:
    return [f"{array}^{l}" for l in range(1, len(grads) + 1) for array in ("W", "b")]


def _near(a, b) -> bool:
    return bool(np.linalg.norm(a - b) <= CLOSE * max(np.linalg.norm(a), np.linalg.norm(b)))


def _all_near(grads: Params, others: Params) -> bool:
    return all(_near(g, np.asarray(o)) for g, o in zip(jax.tree.leaves(grads), jax.tree.leaves(others), strict=True))


def _wrong(grads: Params, expected: Params) -> dict[str, int]:
    """The arrays that are off, with their layer."""
    pairs = zip(_names(grads), jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True)
    return {name: int(name[2:]) for name, g, e in pairs if g.shape != e.shape or not _near(g, e)}


def _shapes(grads, expected) -> tuple[str, ...]:
    pairs = zip(_names(grads), jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True)
    return tuple(f"another shape: {name} has {g.shape}, expected {e.shape}" for name, g, e in pairs
                 if g.shape != e.shape)  # fmt: skip


def _empty_or_broken(grads, expected) -> tuple[str, ...]:
    """Arrays that are not finite, or all 0 where they should not be."""
    found = []
    for name, g, e in zip(_names(grads), jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        if not np.isfinite(g).all():
            found.append(f"not finite: {name}")
        elif not g.any() and e.any():
            found.append(f"all zero: {name}")
    return tuple(found)


def _transposes(grads, expected) -> list[str]:
    found = []
    for name, g, e in zip(_names(grads), jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        agrees = g.shape == e.shape and _near(g, e)
        if not agrees and g.shape == e.T.shape and _near(g, e.T):
            found.append(f"transpose: {name} is the transpose of the gradient (a delta^T for delta a^T)")
    return found


def _scale(g, e) -> float | None:
    """The c with `g = c e`, if there is one."""
    c = float(np.vdot(g, e) / max(float(np.vdot(e, e)), np.finfo(float).tiny))
    return c if c != 0 and np.any(e) and np.linalg.norm(g - c * e) <= CLOSE * np.linalg.norm(g) else None


def _factor_words(c: float, m: int) -> str:
    sign = "sign: the opposite one" if c < 0 else ""
    if abs(abs(c) - 1) < CLOSE:
        return sign
    times = f"a constant factor of {abs(c):.6g}"
    if abs(abs(c) / m - 1) < CLOSE:
        times += f", the number of examples: the mean's 1/m is missing (m = {m})"
    elif abs(abs(c) * m - 1) < CLOSE:
        times += f": 1/m is taken twice (m = {m})"
    return f"{sign}, and {times}" if sign else times


def _factor(problem, grads, expected):
    flat, reference = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (grads, expected))
    c = _scale(flat, reference)
    return () if c is None else (f"{_factor_words(c, problem[2].shape[0])}, in every array",)


def _factors_by_array(problem, grads, expected):
    """Each wrong array is the right one times its own constant."""
    found = []
    for name, g, e in zip(_names(grads), jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        if not _near(g, e):
            c = _scale(g, e)
            if c is None or g.size == 1:  # any number is a multiple of any other
                return ()
            found.append(f"{_factor_words(c, problem[2].shape[0])}, in {name}")
    return tuple(found)


def _missing_derivative(problem, grads, expected):
    """f' left out at one layer, or at every one."""
    net, params, X, Y, weights, masks = problem
    linear = lambda f: replace(f, df=jnp.ones_like)
    layers: list[tuple[int, ...]] = [(l,) for l in range(net.depth - 1)]
    layers += [tuple(range(net.depth - 1))] if net.depth > 2 else []
    for chosen in layers:
        hidden = [linear(f) if l in chosen else f for l, f in enumerate(net.hidden)]
        broken = MLP(net.sizes, hidden, net.output, net.loss)
        if _all_near(grads, value_and_grad(broken, params, X, Y, weights=weights, masks=masks)[1]):
            where = ", ".join(str(l + 1) for l in chosen)
            return (f"a missing f': delta is not multiplied by f'(z) at layer {where}",)
    if net.output != net.loss.canonical and _all_near(grads, _without_output_derivative(*problem)):
        return (f"a missing f': delta^{net.depth} is dL/dy_hat, not multiplied by the output's derivative",)
    return ()


def _without_output_derivative(net, params, X, Y, weights, masks) -> Params:
    def example(x, y, masks):
        y_hat, tape = forward(net, params, x, masks)
        deltas = backward(net, params, tape, net.loss.df(y_hat, net.loss.target(y, y_hat)))
        return readouts.Trace(tape.inputs, tape.pre_activations, deltas, y_hat, jnp.zeros(()))

    return readouts.mean_gradient(jax.vmap(example)(X, Y, masks), weights)


def _already_updated(problem, grads, expected):
    """`delta^l` came down through `W^(l+1) - eta grad` for some eta: the layer above was updated before it was used."""
    net, params, X, Y, weights, masks = problem
    layer = max(_wrong(grads, expected).values())  # the topmost wrong one; all above it agree
    if layer == net.depth:
        return ()
    G = jnp.asarray(expected[layer].W)  # the update of W^(l+1)
    trace = backprop(net, params, X, Y, masks=masks)

    def carried(pre_activation, delta, mask):
        error = G.T @ delta if mask is None else mask * (G.T @ delta)
        return net.hidden[layer - 1].pull(pre_activation, error)

    mask = None if masks is None else masks[layer]
    delta = jax.vmap(carried)(trace.pre_activations[layer - 1], trace.deltas[layer], mask)
    moved = readouts.mean_gradient(
        trace._replace(inputs=(trace.inputs[layer - 1],), deltas=(delta,)), weights
    )[0]  # fmt: skip
    change, direction = (
        np.concatenate([np.ravel(x.W), np.ravel(x.b)])
        for x in (Layer(*(e - g for e, g in zip(expected[layer - 1], grads[layer - 1], strict=True))), moved)
    )
    eta = _scale(change, direction)
    if eta is None or eta <= 0 or change.size < 3:
        return ()
    return (f"a stale layer: delta^{layer} came down through a W^{layer + 1} that had already been updated (with rate "
            f"{eta:.4g}), not the one of the forward pass",)  # fmt: skip


def _by_elimination(net: MLP, wrong: dict[str, int]) -> tuple[str, ...]:
    """Where the error enters, when it is none of the mistakes known."""
    layer = max(wrong.values())
    if f"W^{layer}" not in wrong:
        return (f"b^{layer} alone: W^{layer} is right, so delta^{layer} is, and b's gradient is its mean",)
    if f"b^{layer}" not in wrong:
        return (f"a stale layer: b^{layer} is right, so delta^{layer} is; W^{layer} is not, so the input it was "
                f"multiplied with is not a^{layer - 1}, or a penalty was added",)  # fmt: skip
    if layer == net.depth:
        return (f"the start: delta^{layer} is not the loss's derivative in z^{layer}",)
    return (f"a stale layer: all above layer {layer} agree, so delta^{layer} was not carried down through "
            f"W^{layer + 1} and f'(z^{layer}) of this forward pass, or f' is not f's derivative",)  # fmt: skip
