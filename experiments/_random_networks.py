"""Random networks, and their gradients by complex steps in NumPy's extended precision: nothing of jaxmlp is in them.

The derivative of the cost in a parameter is the imaginary part of the cost at `parameter + i h` over h. No difference
is taken, so nothing cancels: h is 1e-100. One forward pass holds all parameters' steps, along the first axis.
Source: Squire and Trapp 1998, "Using complex variables to estimate derivatives of real functions".
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

import jaxmlp as jm
from jaxmlp import activations, losses

Complex = Any  # an array of NumPy's clongdouble, whose parts pyright does not know
STEP = np.longdouble("1e-100")
EPS = 2.0**-52
HIDDEN = tuple(name for name in activations.NAMED if name != "softmax")
MOST_HIDDEN = 6


@dataclass(frozen=True)
class Problem:
    """A network, its parameters and a batch, all in NumPy's float64; `rows` are the labels as rows."""

    net: jm.MLP
    params: tuple[Any, ...]
    X: np.ndarray
    Y: np.ndarray
    rows: np.ndarray
    weights: np.ndarray | None
    masks: tuple[np.ndarray, ...] | None


def list_pairs() -> list[tuple[str, str]]:
    """Every named output with every named loss that takes it."""
    pairs = []
    for output in activations.NAMED:
        for loss in losses.NAMED:
            try:
                jm.MLP((2, 2), output=output, loss=loss)
                pairs.append((output, loss))
            except ValueError:
                continue
    return pairs


def draw(rng: np.random.Generator, pair: tuple[str, str], widest: int) -> Problem:
    """A network with this output and loss, and up to `widest` examples.

    In half of them one layer's weights are 10 to 10,000 times as large.
    """
    output, loss = pair
    depth = 1 + int(rng.integers(0, MOST_HIDDEN + 1))
    sizes = rng.integers(1, widest + 1, depth + 1)
    sizes[-1] = max(sizes[-1], 2) if output == "softmax" else sizes[-1]
    net = jm.MLP(tuple(map(int, sizes)), tuple(map(str, rng.choice(HIDDEN, depth - 1))), output, loss)
    large = {int(rng.integers(depth)): 10 ** rng.uniform(1, 4)} if rng.random() < 0.5 else {}
    params = tuple(
        jm.Layer(rng.normal(size=(o, i)) / np.sqrt(i) * large.get(l, 1), rng.normal(size=o) / 2 * large.get(l, 1))  # pyright: ignore[reportArgumentType]
        for l, (o, i) in enumerate(net.shapes)
    )
    m, k = int(rng.integers(1, widest + 1)), net.sizes[-1]
    X, classes = rng.normal(size=(m, net.sizes[0])), rng.integers(0, k, m)
    hard = rng.random() < 0.5
    if loss == "squared_error":
        rows = rng.normal(size=(m, k))
    elif loss == "binary_cross_entropy":
        rows = rng.integers(0, 2, (m, k)).astype(float) if hard else rng.random((m, k))
    else:
        rows = np.eye(k)[classes] if hard else rng.dirichlet(np.ones(k), m)
    weights = rng.uniform(0.1, 2, m) if rng.random() < 0.3 else None
    masks = tuple((rng.random((m, n)) < 0.8) / 0.8 for n in net.sizes[:-1]) if rng.random() < 0.3 else None
    return Problem(net, params, X, classes if loss == "cross_entropy" and hard else rows, rows, weights, masks)


def differentiate(problem: Problem) -> tuple[float, list[np.ndarray]]:
    """The cost and its gradient, one array for each W and b, by complex steps."""
    leaves = [np.asarray(leaf, np.longdouble) for leaf in jax.tree.leaves(problem.params)]
    count, moved, done = sum(leaf.size for leaf in leaves), [], 0
    for leaf in leaves:
        steps = np.zeros((count, leaf.size), np.clongdouble)
        steps[np.arange(done, done + leaf.size), np.arange(leaf.size)] = 1j * STEP
        moved.append(leaf[None] + steps.reshape(count, *leaf.shape))
        done += leaf.size
    J = _cost(problem, moved)
    gradient = np.split(np.asarray(J.imag / STEP, np.float64), np.cumsum([leaf.size for leaf in leaves])[:-1])
    return float(J[0].real), [g.reshape(leaf.shape) for g, leaf in zip(gradient, leaves, strict=True)]


def _cost(problem: Problem, leaves: list[Complex]) -> Complex:
    net, z = problem.net, None
    a = np.asarray(problem.X, np.clongdouble)[None]
    for l, (W, b) in enumerate(zip(leaves[::2], leaves[1::2], strict=True)):
        a = a if problem.masks is None else problem.masks[l][None] * a
        z = np.sum(W[:, None] * a[:, :, None], axis=-1) + b[:, None]
        a = z if l == net.depth - 1 else _apply(net.hidden[l].name, z)
    each = _loss(net.output.name, net.loss.name, z, np.asarray(problem.rows, np.longdouble)[None])
    w = np.ones(len(problem.X)) if problem.weights is None else problem.weights
    return each @ np.asarray(w, np.longdouble) / np.sum(w, dtype=np.longdouble)


def _apply(name: str, z: Complex) -> Complex:
    """An activation by its textbook formula; branches look at the real part."""
    positive = z.real > 0
    small = np.exp(np.where(positive, -z, z))  # at most 1
    a = np.where(positive, 1, small) / (1 + small)
    tanh = lambda z: (
        np.where(z.real > 0, 1, -1) * (lambda e: (1 - e) / (1 + e))(np.exp(np.where(z.real > 0, -2, 2) * z))
    )
    if name == "softmax":
        e = np.exp(z - z.real.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)
    return {
        "identity": lambda: z,
        "sigmoid": lambda: a,
        "tanh": lambda: tanh(z),
        "relu": lambda: np.where(positive, z, 0),
        "leaky_relu": lambda: np.where(positive, z, z / 100),
        "elu": lambda: np.where(positive, z, np.exp(np.where(positive, 0, z)) - 1),
        "softplus": lambda: np.where(positive, z, 0) + np.log(1 + small),
        "gelu": lambda: z / 2 * (1 + tanh(np.sqrt(2 / np.longdouble(np.pi)) * (z + np.longdouble("0.044715") * z**3))),
        "silu": lambda: z * a,
        "step": lambda: (z.real >= 0).astype(z.dtype),
        "sign": lambda: np.sign(z.real).astype(z.dtype),
    }[name]()


def _loss(output: str, loss: str, z: Complex, y: np.ndarray) -> Complex:
    if loss == "squared_error":
        return np.sum((_apply(output, z) - y) ** 2, axis=-1) / 2
    if output == "sigmoid":
        log_a, log_rest = -_apply("softplus", -z), -_apply("softplus", z)
    else:
        log_sum = lambda z: (top := z.real.max(-1, keepdims=True)) + np.log(np.exp(z - top).sum(-1, keepdims=True))
        whole = log_sum(z)
        log_a = z - whole
        log_rest = np.concatenate([log_sum(np.delete(z, i, axis=-1)) for i in range(z.shape[-1])], axis=-1) - whole
    terms = y * log_a + ((1 - y) * log_rest if loss == "binary_cross_entropy" else 0)
    return -np.sum(terms, axis=-1)


def bound_rounding(problem: Problem) -> list[float]:
    """For each W and b, 8 roundings of the norm its gradient would have if nothing canceled and no unit saturated."""
    net, a, inputs = problem.net, problem.X, []
    for l, (W, b) in enumerate(problem.params):
        a = a if problem.masks is None else problem.masks[l] * a
        inputs.append(np.abs(a) + (l > 0))  # gelu's tail is the rounding of a 1
        z = (a @ W.T + b).astype(np.clongdouble)
        a = np.asarray(_apply(net.activations[l].name, z).real, np.float64)
    delta, bounds = np.abs(a) + np.abs(problem.rows) + 1, []
    w = np.ones(len(a)) if problem.weights is None else problem.weights
    for l in reversed(range(net.depth)):
        share = (w / w.sum())[:, None] * delta
        bounds = [8 * EPS * np.linalg.norm(share.T @ inputs[l]), 8 * EPS * np.linalg.norm(share.sum(0)), *bounds]
        if l:
            delta = 1.2 * (delta @ np.abs(problem.params[l].W))  # 1.2 is above every f'
            delta = delta if problem.masks is None else problem.masks[l] * delta
    return [float(bound) for bound in bounds]


def measure_sensitivity(problem: Problem, gradient: list[np.ndarray], draws: int = 8) -> list[float]:
    """For each W and b, how far its gradient moves when every weight and bias changes by some of its last bits.

    A unit that stands on a kink, or a slope that large terms of z leave uncertain, moves it beyond all rounding.
    """
    rng, most = np.random.default_rng(0), [0.0] * len(gradient)
    change = lambda array: array * (1 + 16 * EPS * rng.choice([-1, 1], array.shape))
    for _ in range(draws):
        moved = differentiate(replace(problem, params=jax.tree.map(change, problem.params)))[1]
        most = [max(m, float(np.linalg.norm(a - b))) for m, a, b in zip(most, moved, gradient, strict=True)]
    return most
