"""Forward and backward flow on the graph of a small network, and one gradient path by path.

Rows 29 and 4 of the notes' systems (note 000, "Visualization of back-prop"; 003, softmax with cross-entropy, where the
second of 4 classes is true). Every path from a weight to the loss has a product of factors, and the weight's gradient
is the sum of these products. Expect this sum, the product of the layers' Jacobians, and the softmax Jacobian
`a_i (1[i=j] - a_j)` to equal the library's results to 1e-12 in float64.
"""

import itertools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlp as jm
from experiments.output import Output
from jaxmlp import plotting
from jaxmlp.check import error


@dataclass(frozen=True)
class Settings:
    sizes: tuple[int, ...] = (3, 4, 4)  # widths: inputs, hidden layers, classes
    hidden: str = "tanh"  # activation of the hidden layers
    label: int = 2  # the true class, counted from 1
    weight: tuple[int, int] = (3, 2)  # indices of a weight of the first layer: w_32 joins input 2 to unit 3
    key: int = 3  # key of the weights and the input
    quick: bool = False  # nothing here is slow


@dataclass(frozen=True)
class Flow:
    """One example's pass through a network, forward and back, as NumPy arrays."""

    net: jm.MLP
    W: list[np.ndarray]
    z: list[np.ndarray]  # z^1 .. z^K
    a: list[np.ndarray]  # a^0 .. a^K
    deltas: list[np.ndarray]  # delta^1 .. delta^K
    y: np.ndarray  # one-hot
    loss: float

    @property
    def gradients(self) -> list[np.ndarray]:
        """`dL/dW^l = delta^l a^(l-1)^T`."""
        return [np.outer(delta, a) for delta, a in zip(self.deltas, self.a, strict=False)]


def run(settings: Settings, out: Output) -> dict[str, float]:
    _check(settings)
    with jax.enable_x64(True):
        flow = _flow(settings)
        jacobian = np.asarray(flow.net.output.df(jnp.asarray(flow.z[-1])))
        slopes = [np.asarray(f.df(jnp.asarray(z))) for f, z in zip(flow.net.hidden, flow.z, strict=False)]
    out.say(f"{flow.net}, class {settings.label} is true, loss -log a = {flow.loss:.6f}")
    out.table("forward and back: activations and error signals", _units(flow))
    a = flow.a[-1]
    out.table("softmax Jacobian da_i / dz_j = a_i (1[i=j] - a_j)", [
        {"": f"a_{i}", **{f"z_{j}": f"{jacobian[i - 1, j - 1]:.6f}" for j in range(1, len(a) + 1)}}
        for i in range(1, len(a) + 1)
    ])  # fmt: skip
    formula = [[a[i] * ((i == j) - a[j]) for j in range(len(a))] for i in range(len(a))]
    chained = _by_jacobians(flow, slopes, jacobian)
    differences = {
        "jacobian": error(jacobian, np.asarray(formula)),
        "deltas": max(error(c, d) for c, d in zip(chained, flow.deltas, strict=True)),
        "paths": _by_paths(settings, flow, slopes, jacobian, out),
    }
    out.say(f"dL/da times the layers' Jacobians differs from the recursion's deltas by {differences['deltas']:.1e}\n"
            f"the softmax Jacobian differs from a_i (1[i=j] - a_j) by {differences['jacobian']:.1e}")  # fmt: skip
    out.picture("flow", _picture(settings, flow))
    out.close()
    return differences


def _check(settings: Settings) -> None:
    if len(settings.sizes) < 3 or math.prod(settings.sizes[2:]) > 1000:
        raise ValueError(f"sizes is {settings.sizes}, expected a hidden layer and at most 1,000 paths from a weight")
    inputs, units, classes = settings.sizes[0], settings.sizes[1], settings.sizes[-1]
    unit, source = settings.weight
    if not (1 <= unit <= units and 1 <= source <= inputs):
        raise ValueError(f"weight is {settings.weight}, expected a unit from 1 to {units}, an input from 1 to {inputs}")
    if not 1 <= settings.label <= classes:
        raise ValueError(f"label is {settings.label}, expected a class from 1 to {classes}")


def _flow(settings: Settings) -> Flow:
    net = jm.MLP(settings.sizes, settings.hidden, "softmax", "cross_entropy")
    keys = jax.random.split(jax.random.key(settings.key))
    params = jm.init(net, keys[0], weights="lecun", biases="small_normal")
    x, y = jax.random.normal(keys[1], settings.sizes[:1]), jax.nn.one_hot(settings.label - 1, settings.sizes[-1])
    y_hat, tape = jm.forward(net, params, x)
    deltas = jm.backward(net, params, tape, jm.output_delta(net, tape, y))
    as_arrays = lambda values: [np.asarray(value) for value in values]
    return Flow(net, as_arrays(layer.W for layer in params), as_arrays(tape.pre_activations),
                as_arrays((*tape.inputs, y_hat)), as_arrays(deltas), np.asarray(y),
                float(jm.output_loss(net, tape, y)))  # fmt: skip


def _units(flow: Flow) -> list[dict[str, str]]:
    rows = [{"unit": f"x_{i}", "z": "", "a": f"{x:.6f}", "delta = dL/dz": ""} for i, x in enumerate(flow.a[0], 1)]
    for l, layer in enumerate(zip(flow.z, flow.a[1:], flow.deltas, strict=True), start=1):
        for unit, (z, a, delta) in enumerate(zip(*layer, strict=True), start=1):
            rows.append({"unit": f"layer {l}, unit {unit}", "z": f"{z:.6f}", "a": f"{a:.6f}",
                         "delta = dL/dz": f"{delta:.6f}"})  # fmt: skip
    return rows


def _by_jacobians(flow: Flow, slopes, jacobian) -> list[np.ndarray]:
    """Each `delta^l` as `dL/da^K . da^K/dz^l`, where `da^K/dz^l = J W^K diag(f') .. diag(f')`."""
    dL_da = -flow.y / flow.a[-1]
    found = [dL_da @ jacobian]
    for slope, W in reversed(list(zip(slopes, flow.W[1:], strict=True))):
        jacobian = jacobian @ W @ np.diag(slope)
        found.insert(0, dL_da @ jacobian)
    return found


def _by_paths(settings: Settings, flow: Flow, slopes, jacobian, out: Output) -> float:
    """Reports every path of the chosen weight with its factors; the error of their sum against the recursion."""
    (unit, source), true = (index - 1 for index in settings.weight), settings.label - 1
    rows, total = [], 0.0
    for onward in itertools.product(*(range(n) for n in settings.sizes[2:])):
        path = (unit, *onward)
        factors = {f"dz^1/dw = x_{source + 1}": flow.a[0][source]}
        for l, (here, there) in enumerate(itertools.pairwise(path), start=1):
            factors[f"da^{l}/dz^{l} = f'"] = slopes[l - 1][here]
            factors[f"dz^{l + 1}/da^{l} = w"] = flow.W[l][there, here]
        factors[f"da_{true + 1}/dz^{len(path)}"] = jacobian[true, path[-1]]
        factors[f"dL/da_{true + 1} = -1/a"] = -1 / flow.a[-1][true]
        product = math.prod(factors.values())
        total += product
        name = " ".join(["w", *(f"z_{j + 1}^{l}" for l, j in enumerate(path, start=1)), f"a_{true + 1}", "L"])
        rows.append({"path": name} | {k: f"{v:.6f}" for k, v in factors.items()} | {"product": f"{product:.9f}"})
    entry = flow.gradients[0][unit, source]
    blank = dict.fromkeys(rows[0], "")
    rows += [blank | {"path": "sum over the paths", "product": f"{total:.9f}"},
             blank | {"path": "recursion: delta^1 x", "product": f"{entry:.9f}"}]  # fmt: skip
    out.table(f"dL/dw_{unit + 1}{source + 1}^1, path by path (the loss depends on the true class's a alone)", rows)
    return error(np.asarray(total), entry)


def _picture(settings: Settings, flow: Flow):
    figure, (left, right) = plotting.figure(1, 2, size=(6.6, 4.6))
    _panel(settings, figure, left, flow.W, [*flow.a, np.array([flow.loss])], "weight $w$")
    _panel(settings, figure, right, flow.gradients, [flow.a[0], *flow.deltas, np.ones(1)], "gradient $dL/dw$")
    left.set_title("forward, to the right: $a$ in units, $W$ on edges", fontsize="medium")
    right.set_title("backward, to the left: $\\delta$ in units ($x$ in inputs), $dL/dW$ on edges", fontsize="medium")
    return figure


def _panel(settings: Settings, figure, ax, edges, values, label) -> None:
    """Draws the network as a graph: `edges` give the lines' colors, `values` stand in the units.

    The paths of the chosen weight have black edges, and numbers up to the second layer.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    (unit, source), true = (index - 1 for index in settings.weight), settings.label - 1
    reach = max(np.abs(E).max() for E in edges)
    color = ScalarMappable(Normalize(-reach, reach), cmap=plotting.DIVERGING)
    widths = [*settings.sizes, 1]
    at = lambda l, j: (l, (widths[l] - 1) / 2 - j)
    for l, E in enumerate(edges):
        for (j, i), value in np.ndenumerate(E):
            chosen = (l == 0 and (j, i) == (unit, source)) or (l == 1 and i == unit) or l > 1
            ends = tuple(zip(at(l, i), at(l + 1, j), strict=True))
            ax.plot(*ends, color="black" if chosen else "0.8", linewidth=4.6 if chosen else 2.4, zorder=1 + chosen)
            ax.plot(*ends, color=color.to_rgba(value), linewidth=2.8 if chosen else 2, zorder=1 + chosen)
            if chosen and l < 2:
                x, y = np.asarray(ends) @ ((0.58, 0.42), (0.4, 0.6))[l]
                ax.text(x, y, f"{value:.3f}", fontsize=7, ha="center", va="center", zorder=4,
                        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"})  # fmt: skip
    for j in range(widths[-2]):
        ax.plot(*zip(at(len(edges), j), at(len(edges) + 1, 0), strict=True), color="black" if j == true else "0.8",
                linewidth=1.6, zorder=1)  # fmt: skip
    for l, units in enumerate(values):
        for j, value in enumerate(units):
            ax.scatter(*at(l, j), s=620, color="white", edgecolor="black", zorder=5)
            ax.text(*at(l, j), f"{value:.2f}", ha="center", va="center", fontsize=8, zorder=6)
    names = ["x", *(f"layer {l}" for l in range(1, len(edges))), "softmax", "loss"]
    for l, name in enumerate(names):
        ax.text(l, -max(widths) / 2 - 0.15, name, ha="center", fontsize=9)
    ax.set(xlim=(-0.35, len(widths) - 0.65), ylim=(-max(widths) / 2 - 0.35, max(widths) / 2))
    ax.axis("off")
    figure.colorbar(color, ax=ax, label=label, orientation="horizontal", shrink=0.7, pad=0.02)
