"""Vanishing and exploding gradients: the norm of delta down a deep network, by activation and scale.

Row 15 of the notes' systems (notes 002, "Vanishing / Exploding Gradients"; 000). The weights have variance `c / n`.
Each layer multiplies the norm of delta by `sqrt(c E[f'(z)^2])`, and 30 layers by a power of it. Expect the mean factor
of each network to be within 0.05 of the factor at infinite width. That factor is 1 for identity with c = 1 and ReLU
with c = 2, `1 / sqrt(2)` for ReLU with c = 1, and `sqrt(2)` for identity with c = 2. It is below 0.3 for sigmoid units
with c = 1, as their `f'` is at most 1/4, and above 1.1, exploding, for tanh with c = 4.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlp as jm
from experiments._mean_field import factors, variances
from experiments.output import Output
from jaxmlp import activations, plotting


@dataclass(frozen=True)
class Settings:
    width: int = 256  # width of each layer
    depth: int = 30  # hidden layers
    starts: int = 5  # random starts; the table has their mean
    examples: int = 8  # examples through each of them
    seed: int = 0
    quick: bool = False  # 12 hidden layers, 3 starts


HIDDEN = ("identity", "sigmoid", "tanh", "relu")
SCALES = {0.5: "1/(2n)", 1.0: "1/n", 2.0: "2/n", 4.0: "4/n"}


def run(settings: Settings, out: Output) -> dict[str, float]:
    if min(settings.starts, settings.examples) < 1 or min(settings.width, settings.depth) < 2:
        raise ValueError(
            f"settings are {settings}, expected at least 1 start and example, and a width and depth of at least 2"
        )
    depth, starts = (12, 3) if settings.quick else (settings.depth, settings.starts)
    with jax.enable_x64(True):  # in float32 the squares of vanishing norms are 0
        norms = _norms(settings, depth, starts)
    limits = {each: _limit(*each, depth) for each in norms}
    # The output layer has another shape, so the factors start from the last hidden layer.
    factor = {each: float((d[0] / d[-1]) ** (1 / (depth - 1))) for each, d in norms.items()}
    expected = {each: float(limit[0] ** (1 / (depth - 1))) for each, limit in limits.items()}
    out.table(f"{depth} hidden layers of width {settings.width}: the factor of the norm of delta", [
        {"hidden units": f, "variance": SCALES[c], "each layer": f"{factor[f, c]:.3f}",
         "infinite width": f"{expected[f, c]:.3f}", f"from {depth} to 1": f"{norms[f, c][0] / norms[f, c][-1]:.1e}",
         "": _word(factor[f, c])}
        for f, c in norms
    ])  # fmt: skip
    out.numbers("norms", {"layer": range(1, depth + 1), **{f"{f}, {SCALES[c]}": d for (f, c), d in norms.items()}})
    out.picture("norms", _picture(norms, limits, depth))
    out.close()
    apart = max(abs(factor[each] - expected[each]) for each in norms)
    return {"apart": apart} | {f"{f}, {SCALES[c]}": value for (f, c), value in factor.items()}


def _word(factor: float) -> str:
    return "vanishes" if factor < 0.9 else "explodes" if factor > 1.1 else "stays"


def _norms(settings: Settings, depth: int, starts: int) -> dict[tuple[str, float], np.ndarray]:
    """`||delta^l||` of the hidden layers, the root of its mean square over examples and starts."""
    rng = np.random.default_rng(settings.seed)
    n = settings.width
    sizes = (n,) * (depth + 1) + (10,)
    nets = {f: jm.MLP(sizes, f, "softmax", "cross_entropy") for f in HIDDEN}
    squares = {(f, c): np.zeros(depth) for f in HIDDEN for c in SCALES}
    for _ in range(starts):
        X = jnp.asarray(rng.normal(size=(settings.examples, n)))
        Y = jnp.asarray(rng.integers(10, size=settings.examples))
        draw = lambda shape: jnp.asarray(rng.normal(size=shape) / math.sqrt(shape[1]))
        start = [jm.Layer(draw(shape), jnp.zeros(shape[0])) for shape in nets["relu"].shapes]
        for f, c in squares:
            hidden = [layer._replace(W=math.sqrt(c) * layer.W) for layer in start[:-1]]
            trace = jm.backprop(nets[f], (*hidden, start[-1]), X, Y)
            squares[f, c] += np.mean(np.asarray(jm.delta_norms(trace))[:, :-1] ** 2, axis=0) / starts
    return {each: np.sqrt(square) for each, square in squares.items()}


def _limit(f: str, c: float, depth: int) -> np.ndarray:
    """`||delta^l||` over that of the last hidden layer, at infinite width."""
    activation = activations.NAMED[f]
    each = factors(activation, c, variances(activation, c, first=c, depth=depth)[:-1])
    return np.sqrt(np.append(np.cumprod(each[::-1])[::-1], 1.0))


def _picture(norms, limits, depth: int):
    figure, axes = plotting.figure(1, len(HIDDEN), size=(3.4, 3.6), sharey=True)
    layer = np.arange(1, depth + 1)
    for f, ax in zip(HIDDEN, axes, strict=True):
        for (c, name), color, marker in zip(SCALES.items(), plotting.PALETTE, "osD^", strict=False):
            d = norms[f, c]
            ax.semilogy(layer, d / d[-1], marker, color=color, markersize=3.5, markevery=2, label=name)
            ax.semilogy(layer, limits[f, c], "-", color=color, linewidth=0.8)
        ax.set(xlabel="layer $l$", title=f, ylim=(1e-24, 1e12))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("$||\\delta^l||$ over the last hidden layer's\n(lines: infinite width)")
    axes[0].legend(fontsize="small", title="variance of the weights", title_fontsize="small", loc="lower right")
    return figure
