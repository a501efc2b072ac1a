"""Pictures. matplotlib is imported only when one is drawn: the extra `experiments` brings it.

Each function returns a `matplotlib.figure.Figure`. The colours are told apart by colour-blind readers too: Okabe and
Ito's palette for lines, viridis and a blue-orange scale for surfaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmlp.forward import predict
from jaxmlp.network import MLP, Params

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
DIVERGING = "PuOr"


def figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (5, 3.6), **options: Any) -> tuple[Figure, Any]:
    """A figure with a grid of axes, `size` inches each, without the global state of pyplot."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    return made, made.subplots(rows, columns, **options)


def curves(histories: Mapping[str, Mapping[str, np.ndarray]] | Sequence[Mapping[str, np.ndarray]]) -> Figure:
    """Cost and, where there is one, accuracy against the epoch, in training and validation; one line a history."""
    named = dict(histories) if isinstance(histories, Mapping) else {f"run {i}": h for i, h in enumerate(histories, 1)}
    first = next(iter(named.values()))
    quantities = [q for q in ("cost", "accuracy") if q in first]
    made, axes = figure(1, len(quantities), squeeze=False)
    for ax, quantity in zip(axes[0], quantities, strict=True):
        for (name, history), colour in zip(named.items(), PALETTE * (1 + len(named) // len(PALETTE)), strict=False):
            scale = 100 if quantity == "accuracy" else 1
            x = history["epoch" if "epoch" in history else "step"]
            ax.plot(x, scale * history[quantity], color=colour, label=f"{name}, training")
            if f"validation_{quantity}" in history:
                ax.plot(x, scale * history[f"validation_{quantity}"], "--", color=colour, label=f"{name}, validation")
        ax.set_xlabel("epoch" if "epoch" in first else "step")
        ax.set_ylabel("accuracy (%)" if quantity == "accuracy" else "cost (mean loss)")
        ax.xaxis.get_major_locator().set_params(integer=True)
        if quantity == "cost":
            ax.set_yscale("log")
        ax.grid(alpha=0.3)
    axes[0][-1].legend(fontsize="small")
    return made


def confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """The confusion matrix: rows are true classes, coloured by the share of the row, with the counts written in."""
    made, ax = figure(size=(1.5 + 0.5 * len(classes), 1 + 0.5 * len(classes)))
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = ax.imshow(100 * share, cmap="viridis", vmin=0, vmax=100)
    made.colorbar(image, ax=ax, label="share of the true class (%)", shrink=0.8)
    for (row, column), count in np.ndenumerate(counts):
        ax.text(column, row, str(count), ha="center", va="center", fontsize=7,
                color="black" if share[row, column] > 0.6 else "white")  # fmt: skip
    ax.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
    ax.set_yticks(range(len(classes)), classes)
    ax.set(xlabel="predicted class", ylabel="true class")
    return made


def weights_as_images(W: np.ndarray, shape: tuple[int, int], limit: int = 64) -> Figure:
    """The incoming weights of each unit as a picture of the inputs' shape, on one scale around 0."""
    shown = np.asarray(W)[:limit]
    columns = min(8, len(shown))
    rows = -(-len(shown) // columns)
    made, axes = figure(rows, columns, size=(0.9, 0.9), squeeze=False)
    reach = float(np.percentile(np.abs(shown), 99.5))
    image = None
    for unit, ax in enumerate(axes.flat):
        ax.axis("off")
        if unit < len(shown):
            image = ax.imshow(shown[unit].reshape(shape), cmap=DIVERGING, vmin=-reach, vmax=reach)
            ax.set_title(str(unit), fontsize=6, pad=1)
    if image is not None:
        made.colorbar(image, ax=axes, label="weight", shrink=0.6)
    return made


def decision_boundary(net: MLP, params: Params, X: np.ndarray, Y: np.ndarray) -> Figure:
    """A two-input, one-output network's output over the plane, its boundary at 1/2, and the examples."""
    made, ax = figure(size=(4.6, 3.8))
    low, high = X.min(0) - 0.5 * np.ptp(X, 0), X.max(0) + 0.5 * np.ptp(X, 0)
    across, up = np.meshgrid(np.linspace(low[0], high[0], 200), np.linspace(low[1], high[1], 200))
    points = np.stack([across.ravel(), up.ravel()], axis=1).astype(np.asarray(params[0].W).dtype)
    surface = np.asarray(predict(net, params, points)).reshape(across.shape)
    image = ax.pcolormesh(across, up, surface, cmap=DIVERGING, vmin=0, vmax=1, shading="auto", rasterized=True)
    made.colorbar(image, ax=ax, label="output $\\hat y$")
    ax.contour(across, up, surface, levels=[0.5], colors="black")
    for value, marker, colour in ((0, "o", ORANGE), (1, "s", PURPLE)):
        chosen = X[np.ravel(Y) == value]
        ax.scatter(*chosen.T, marker=marker, s=80, color=colour, edgecolor="black", label=f"y = {value}", zorder=3)
    ax.set(xlabel="$x_1$", ylabel="$x_2$")
    ax.legend(loc="upper right", fontsize="small")
    return made
