"""Large weights saturate units, and saturated units learn slowly: measured layer by layer.

Row 14 of the notes' systems (notes 004, "large w: large values for activations"; 002, "If w is large z is big"). Three
hidden layers of tanh units learn digits. Their weights have variance `1/n` and are multiplied by s. A unit counts as
saturated for an example where `f'` is below 0.05. From s = 1 to s = 100, expect more than 90% of the last two hidden
layers to saturate. Expect `|f'|` and `|delta|` of the last one to fall by more than a factor of 10, and `|delta|` of a
saturated unit to be less than a tenth of the other units'. Expect a cost more than 3 times higher after as many steps.

Not every gradient shrinks. The large weights that saturate units also carry delta down, so the first layer's gradient
grows. Relative to the weights, which counts for learning, it shrinks too.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments import datasets
from experiments._descent import descend
from experiments.output import Output
from jaxmlp import plotting


@dataclass(frozen=True)
class Settings:
    scales: tuple[float, ...] = (1, 3, 10, 30, 100)  # scales s; the run compares the first with the last
    examples: int = 500  # digits of 14 x 14 pixels, the full batch
    hidden: int = 50  # units of each of three hidden layers
    steps: int = 300  # full-batch steps
    learning_rate: float = 0.1
    key: int = 0
    quick: bool = False  # 200 examples, 150 steps, the first and the last scale


SATURATED = 0.05


def run(settings: Settings, out: Output) -> dict[str, float]:
    if len(settings.scales) < 2 or min(settings.scales) <= 0 or min(settings.examples, settings.steps) < 1:
        raise ValueError(
            f"settings are {settings}, expected at least two scales above 0, and at least 1 example and step"
        )
    scales, m, steps = settings.scales, settings.examples, settings.steps
    if settings.quick:
        scales, m, steps = (scales[0], scales[-1]), 200, 150
    X, Y = _digits(m)
    net = jm.MLP((X.shape[1], *[settings.hidden] * 3, 10), "tanh", "softmax", "cross_entropy")
    start = jm.init(net, jax.random.key(settings.key), weights="lecun")
    optimizer = optax.sgd(settings.learning_rate)

    @jax.jit
    def measure(scale):
        params = (*(layer._replace(W=scale * layer.W) for layer in start[:-1]), start[-1])
        trace = jm.backprop(net, params, X, Y)
        trained, costs = descend(net, optimizer, steps, params, X, Y)
        norm = lambda layers: jnp.stack([jnp.linalg.norm(layer.W) for layer in layers])
        moved = norm(jax.tree.map(jnp.subtract, trained, params)) / norm(params)
        return trace, norm(jm.mean_gradient(trace)), moved, costs

    measured = {scale: jax.tree.map(np.asarray, measure(jnp.float32(scale))) for scale in scales}
    rows = {scale: _layers(net, *each[:3]) for scale, each in measured.items()}
    out.say(f"{net}; hidden weights times s; moved: norm of the change of W in {steps} steps over the norm of W")
    out.table("each hidden layer at the start", [
        {"s": f"{scale:g}", "layer": str(l)}
        | {name: f"{value:.1%}" if name == "saturated" else f"{value:.2g}" for name, value in row.items()}
        for scale, layers in rows.items() for l, row in enumerate(layers, start=1)
    ])  # fmt: skip
    costs = {scale: each[3] for scale, each in measured.items()}
    out.table(f"cost of {m} digits, full-batch steps at rate {settings.learning_rate:g}", [
        {"s": f"{scale:g}", "at the start": f"{cost[0]:.3f}", f"after {steps} steps": f"{cost[-1]:.3f}"}
        for scale, cost in costs.items()
    ])  # fmt: skip
    out.numbers("costs", {"step": range(steps), **{f"scale {scale:g}": cost for scale, cost in costs.items()}})
    out.picture("saturation", _picture(rows, costs))
    out.close()
    first, last = rows[scales[0]], rows[scales[-1]]
    return {"saturated": min(row["saturated"] for row in last[1:]), "saturated, first": first[-1]["saturated"],
            "f'": first[-1]["|f'|"] / last[-1]["|f'|"], "delta": first[-1]["|delta|"] / last[-1]["|delta|"],
            "within": max(row["saturated: |delta| over others'"] for row in last),
            "moved": first[-1]["moved"] / last[-1]["moved"],
            "cost": float(costs[scales[-1]][-1] / costs[scales[0]][-1])}  # fmt: skip


def _digits(m: int) -> tuple[jax.Array, jax.Array]:
    """The first digits of MNIST; four pixels are averaged to one, and the mean is subtracted."""
    pictures = datasets.load("mnist")
    datasets.check_amount("examples", m, len(pictures.X))
    X = pictures.X[:m].reshape(m, 14, 2, 14, 2).mean((2, 4)).reshape(m, 196) / 255
    return jnp.asarray(X - X.mean(0), jnp.float32), jnp.asarray(pictures.Y[:m])


def _layers(net, trace, gradients, moved) -> list[dict[str, float]]:
    rows = []
    for l, f in enumerate(net.hidden):
        df, delta = np.abs(f.df(trace.pre_activations[l])), np.abs(trace.deltas[l])
        saturated = df < SATURATED
        within = delta[saturated].mean() / delta[~saturated].mean() if saturated.any() else np.nan
        rows.append({"saturated": float(saturated.mean()), "|f'|": float(df.mean()), "|delta|": float(delta.mean()),
                     "saturated: |delta| over others'": float(within), "|grad W|": float(gradients[l]),
                     "moved": float(moved[l])})  # fmt: skip
    return rows


def _picture(rows, costs):
    figure, axes = plotting.figure(1, 4, size=(3.6, 3.6))
    scales = list(rows)
    shown = (("saturated", "share of saturated units (%)", 100), ("|f'|", "mean $|f'(z)|$", 1),
             ("moved", "change of $W$ in training, over its norm", 1))  # fmt: skip
    for ax, (name, label, unit) in zip(axes, shown, strict=False):
        for l, (color, marker) in enumerate(zip(plotting.PALETTE[:3], "osD", strict=True)):
            ax.plot(
                scales, [unit * rows[s][l][name] for s in scales], marker + "-", color=color, label=f"layer {l + 1}"
            )
        ax.set(xlabel="scale $s$ of the hidden weights", ylabel=label, xscale="log")
        if unit == 1:
            ax.set_yscale("log")
    for (scale, cost), color in zip(costs.items(), plotting.PALETTE, strict=False):
        axes[3].semilogy(cost, color=color, label=f"s = {scale:g}")
    axes[3].set(xlabel="full-batch step", ylabel="cost (mean loss)")
    for ax in axes:
        ax.grid(alpha=0.3)
    for ax in (axes[0], axes[3]):
        ax.legend(fontsize="small")
    return figure
