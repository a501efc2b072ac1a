"""Layers, notation and shapes: a 4-3-3 network in numbers, and the notes' statements as checks.

Rows 1 and 3 of the notes' systems (notes 000, the 4-3-3 network in both notations; 001, "What does w_48^[5]
represent?", the 7 x 7 matrix, and the written-out 2-2-1 case). Expect every statement of the last table to hold to the
last digits of float64.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlp as jm
from experiments.output import Output
from jaxmlp import plotting
from jaxmlp.network import Params


@dataclass(frozen=True)
class Settings:
    examples: int = 5  # examples of the batch
    seed: int = 0
    quick: bool = False  # nothing here is slow


TIMES = "\N{MULTIPLICATION SIGN}"
NOTES = jm.MLP((4, 3, 3), hidden="sigmoid", output="sigmoid")  # note 000
DEEP = jm.MLP((5, 7, 7, 7, 8, 6, 1), hidden="tanh")  # a layer of 7 after 7, and 8 units before 6, as in note 001
CLOSED = jm.MLP((2, 2, 1), hidden="tanh", output="sigmoid")  # note 001, two activations psi


def run(settings: Settings, out: Output) -> dict[str, float]:
    if settings.examples < 2:
        raise ValueError(f"examples is {settings.examples}, expected at least 2 to make a batch")
    with jax.enable_x64(True):
        rng = np.random.default_rng(settings.seed)
        params, X = _draw(NOTES, rng), jnp.asarray(rng.normal(size=(settings.examples, NOTES.sizes[0])))
        _, tape = jm.forward(NOTES, params, X[0])
        out.table(f"{NOTES}: shapes for one example and for a batch of {settings.examples}", _shapes(params, tape, X))
        for l, layer in enumerate(params, start=1):
            out.table(f"layer {l}: W a + b = z, f(z) = a, with numbers", _numbers(layer, tape, l))
        differences = _orientations(params, X) | _deep(rng) | _closed_formulas(rng)
        out.table("the notes' statements, and the error of each", [
            {"statement": name, "largest difference": f"{difference:.1e}"} for name, difference in differences.items()
        ])  # fmt: skip
    out.picture("blocks", _picture(params, tape))
    out.close()
    return differences


def _draw(net, rng) -> Params:
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape) / shape[-1] ** 0.5)
    return tuple(jm.Layer(draw(*shape), draw(shape[0], 1)[:, 0]) for shape in net.shapes)


def _shapes(params, tape, X) -> list[dict[str, str]]:
    trace = jm.backprop(NOTES, params, X, np.zeros((len(X), NOTES.sizes[-1])))
    shape = lambda array: str(tuple(np.shape(array)))
    return [
        {"layer": str(l + 1), "W": shape(layer.W), "b": shape(layer.b), "a in": shape(tape.inputs[l]),
         "z, a out": shape(tape.pre_activations[l]), "delta": shape(trace.deltas[l][0]),
         "batch: a in": shape(trace.inputs[l]), "batch: z, delta": shape(trace.deltas[l])}
        for l, layer in enumerate(params)
    ]  # fmt: skip


def _numbers(layer, tape, l: int) -> list[dict[str, str]]:
    a_out = tape.output if l == NOTES.depth else tape.inputs[l]
    number = lambda value: f"{value:+.3f}"
    columns = len(tape.inputs[l - 1])
    rows = []
    for i in range(max(columns, len(layer.b))):
        inside = i < len(layer.b)
        row = {"unit": str(i + 1)}
        row |= {f"W[., {k + 1}]": number(layer.W[i, k]) if inside else "" for k in range(columns)}
        row["a in"] = number(tape.inputs[l - 1][i]) if i < columns else ""
        after = {"b": layer.b, "z": tape.pre_activations[l - 1], "a out": a_out}
        rows.append(row | {name: number(column[i]) if inside else "" for name, column in after.items()})
    return rows


def _orientations(params, X) -> dict[str, float]:
    """Row 1: `f(W x + b)` with W (out, in), `f(W^T x + b)` with W (in, out), and a batch against single examples."""
    f = NOTES.output.f
    x, stored = X[0], [(layer.W.T, layer.b) for layer in params]  # W (in, out): starts are rows, ends are columns
    for W, b in stored:
        x = f(W.T @ x + b)
    singles = jnp.stack([jm.forward(NOTES, params, x)[0] for x in X])
    return {
        "f(W x + b) = f(W^T x + b), W stored the other way": _difference(jm.forward(NOTES, params, X[0])[0], x),
        "a batch = its examples stacked": _difference(jm.predict(NOTES, params, X), singles),
    }


@jax.jit
def _passes(params, x):
    """The tape and the deltas, and the tape with 1 more in `w_48^[5]`."""
    y_hat, tape = jm.forward(DEEP, params, x)
    moved = params[4]._replace(W=params[4].W.at[3, 7].add(1.0))
    return tape, jm.backward(DEEP, params, tape, y_hat), jm.forward(DEEP, (*params[:4], moved, *params[5:]), x)[1]


def _deep(rng) -> dict[str, float]:
    """Row 3: the units that `w_48^[5]` joins, the 7 x 7 matrix, and the number of entries of `delta^k`."""
    params = _draw(DEEP, rng)
    tape, deltas, moved = _passes(params, jnp.linspace(-1, 1, DEEP.sizes[0]))
    expected = np.zeros(DEEP.sizes[5])
    expected[3] = tape.inputs[4][7]  # a_8^4, at unit 4 of layer 5
    return {
        "1 more in w_48^[5] adds unit 8 of layer 4 to unit 4 of layer 5, nothing else":
            _difference(moved.pre_activations[4] - tape.pre_activations[4], expected),
        "a layer of 7 after 7 has a 7 x 7 W": float(params[2].W.shape != (7, 7)),
        "delta^k has as many entries as W^k has rows":
            float(sum(abs(len(d) - len(layer.W)) for d, layer in zip(deltas, params, strict=True))),
    }  # fmt: skip


def _closed_formulas(rng) -> dict[str, float]:
    """Row 3: note 001's formulas of the 2-2-1 network, entry by entry, against the recursion."""
    params = _draw(CLOSED, rng)
    x, y = np.asarray([0.7, -1.3]), np.asarray([1.0])
    (W1, b1), (W2, b2) = (tuple(map(np.asarray, layer)) for layer in params)
    z1 = [W1[i, 0] * x[0] + W1[i, 1] * x[1] + b1[i] for i in range(2)]
    a1 = [np.tanh(z) for z in z1]
    a2 = 1 / (1 + np.exp(-(W2[0, 0] * a1[0] + W2[0, 1] * a1[1] + b2[0])))
    phi2 = -(y[0] - a2) * a2 * (1 - a2)
    phi1 = [W2[0, i] * phi2 * (1 - a1[i] ** 2) for i in range(2)]
    closed = ([[phi1[i] * x[k] for k in range(2)] for i in range(2)], phi1, [[phi2 * a1[0], phi2 * a1[1]]], [phi2])
    _, by_hand = jm.value_and_grad(CLOSED, params, x[None], y[None])
    pairs = zip(closed, jax.tree.leaves(by_hand), strict=True)
    return {"2-2-1: the written-out gradients = the recursion": max(_difference(a, b) for a, b in pairs)}


def _difference(a, b) -> float:
    return float(np.abs(np.asarray(a) - np.asarray(b)).max())


def _picture(params, tape):
    """Each layer as blocks: matrix times column plus column is a column, and f of it is the next column."""
    figure, axes = plotting.figure(NOTES.depth, 1, size=(8.4, 2.9))
    for l, (layer, ax) in enumerate(zip(params, axes, strict=True), start=1):
        a_out = tape.output if l == NOTES.depth else tape.inputs[l]
        column = lambda array: np.asarray(array)[:, None]
        blocks = [(f"$W^{l}$", np.asarray(layer.W), ""), (f"$a^{l - 1}$", column(tape.inputs[l - 1]), TIMES),
                  (f"$b^{l}$", column(layer.b), "+"), (f"$z^{l}$", column(tape.pre_activations[l - 1]), "="),
                  (f"$a^{l}$", column(a_out), "$f$ →")]  # fmt: skip
        left = 0.0
        for name, block, sign in blocks:
            left = _block(ax, left, name, block, sign)
        ax.set(xlim=(-0.2, left), ylim=(-2.5, 3.1), aspect="equal")
        ax.axis("off")
        ax.set_title(f"layer {l}: {NOTES.sizes[l - 1]} inputs, {NOTES.sizes[l]} units", fontsize="medium")
    return figure


def _block(ax, left: float, name: str, block: np.ndarray, sign: str) -> float:
    """Draws a sign and a block of cells, centered on y = 0; returns the place of the next block."""
    rows, columns = block.shape
    if sign:
        ax.text(left + 0.5, 0, sign, ha="center", va="center", fontsize=13)
        left += 1.1
    top = rows / 2
    ax.imshow(block, cmap=plotting.DIVERGING, vmin=-2, vmax=2, extent=(left, left + columns, -top, top))
    for (i, k), value in np.ndenumerate(block):
        ax.text(left + k + 0.5, top - i - 0.5, f"{value:.2f}", ha="center", va="center", fontsize=7.5,
                color="white" if abs(value) > 1.3 else "black")  # fmt: skip
    ax.text(left + columns / 2, top + 0.4, f"{name} ({rows}, {columns})" if columns > 1 else name, ha="center",
            va="bottom")  # fmt: skip
    if columns == 1:
        ax.text(left + 0.5, -top - 0.2, f"({rows},)", ha="center", va="top", fontsize=9)
    return left + columns + 0.15
