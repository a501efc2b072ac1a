"""Pictures. matplotlib is imported only when one is drawn: the extra `experiments` brings it.

Each function returns a `matplotlib.figure.Figure`. The colours are told apart by colour-blind readers too: Okabe and
Ito's palette for lines, viridis and a blue-orange scale for surfaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmlp._forward import predict
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


def curves(histories: Any) -> Figure:
    """Cost and, where there is one, accuracy against the epoch, in training and validation.

    `histories`: one history of `fit`, several in a sequence, or a mapping from names to histories.
    """
    if isinstance(histories, Mapping) and "cost" in histories:
        histories = [histories]  # one history alone
    named = dict(histories) if isinstance(histories, Mapping) else {f"run {i}": h for i, h in enumerate(histories, 1)}
    if not named:
        raise ValueError("histories is empty, expected at least one history of fit")
    first = next(iter(named.values()))
    quantities = [q for q in ("cost", "accuracy") if q in first]
    made, axes = figure(1, len(quantities), squeeze=False)
    for ax, quantity in zip(axes[0], quantities, strict=True):
        for (name, history), colour in zip(named.items(), PALETTE * (1 + len(named) // len(PALETTE)), strict=False):
            scale = 100 if quantity == "accuracy" else 1
            x = history["epoch" if "epoch" in history else "step"]
            mark = "." if len(x) < 30 else ""
            ax.plot(x, scale * history[quantity], "-" + mark, color=colour, label=f"{name}, training")
            if f"validation_{quantity}" in history:
                ax.plot(
                    x, scale * history[f"validation_{quantity}"], "--" + mark, color=colour, label=f"{name}, validation"
                )
        ax.set_xlabel("epoch" if "epoch" in first else "step")
        ax.set_ylabel("accuracy (%)" if quantity == "accuracy" else "cost (mean loss)")
        ax.xaxis.get_major_locator().set_params(integer=True)
        if quantity == "cost":
            ax.set_yscale("log")
        ax.grid(alpha=0.3)
    if len(named) <= 4:
        axes[0][-1].legend(fontsize="small")
    else:
        made.legend(*axes[0][-1].get_legend_handles_labels(), loc="outside right", fontsize="small")  # pyright: ignore
    return made


WATCHED = {  # a column of monitors, its label, whether its axis is logarithmic
    "delta_norm": ("norm of delta, mean over examples", True),
    "update_ratio": ("norm of update / norm of weights", True),
    "dead": ("dead units (%)", False),
    "saturated": ("saturated activations (%)", False),
    "noise_scale": ("noise scale (examples)", True),
}


def monitors(history: Mapping[str, np.ndarray]) -> Figure:
    """What `fit(monitor=True)` watched, against the epoch: a line for each layer."""
    found = [name for name in WATCHED if name in history and history[name][0].size]
    if not found:
        raise ValueError("history has no columns of monitors, expected one of fit with monitor=True")
    made, axes = figure(-(-len(found) // 3), min(3, len(found)), size=(4, 3.2), squeeze=False)
    x_name = "epoch" if "epoch" in history else "step"
    for ax, name in zip(axes.flat, found, strict=False):
        label, logarithmic = WATCHED[name]
        values = np.asarray(history[name]).reshape(len(history[name]), -1) * (1 if logarithmic else 100)
        colours = PALETTE * (1 + values.shape[1] // len(PALETTE))
        for layer, (column, colour) in enumerate(zip(values.T, colours, strict=False), start=1):
            positive = np.where(column > 0, column, np.nan) if logarithmic else column
            ax.plot(history[x_name], positive, color=colour, label=f"layer {layer}")
        ax.set(xlabel=x_name, ylabel=label, yscale="log" if logarithmic else "linear")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    for ax in axes.flat[len(found) :]:
        ax.axis("off")
    made.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right", fontsize="small")  # pyright: ignore
    return made


def confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """The confusion matrix: rows are true classes, coloured by the share of the row, with the counts written in."""
    if counts.shape != (len(classes),) * 2:
        raise ValueError(f"counts has shape {counts.shape}, expected {len(classes)} rows and columns, as classes")
    longest = max(map(len, classes))
    made, ax = figure(size=(3 + 0.5 * len(classes) + 0.06 * longest, 2 + 0.5 * len(classes) + 0.06 * longest))
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    from matplotlib.colors import PowerNorm

    norm = PowerNorm(0.3, 0, 100)  # so that the few confusions are seen beside the many right ones
    made.colorbar(ax.imshow(share, cmap="viridis", norm=norm), ax=ax, label="share of the true class (%)")
    for (row, column), count in np.ndenumerate(counts):
        ax.text(column, row, str(count), ha="center", va="center", fontsize=7,
                color="black" if norm(share[row, column]) > 0.6 else "white")  # fmt: skip
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


def pictures(X: np.ndarray, titles: Sequence[str], columns: int = 8) -> Figure:
    """Grey pictures `(m, height, width)` in a grid, each under its title."""
    rows = -(-len(X) // columns)
    made, axes = figure(rows, columns, size=(1.3, 1.5), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for picture, title, ax in zip(X, titles, axes.flat, strict=False):
        ax.imshow(picture, cmap="gray_r")
        ax.set_title(title, fontsize=7)
    return made


def decision_boundary(net: MLP, params: Params, X: np.ndarray, Y: np.ndarray) -> Figure:
    """Over the plane of two inputs the output (the second of two), its boundary at 1/2, and the examples."""
    if net.sizes[0] != 2 or net.sizes[-1] > 2:
        raise ValueError(f"net is {net}, expected 2 inputs and 1 or 2 outputs")
    made, ax = figure(size=(4.6, 3.8))
    low, high = X.min(0) - 0.5 * np.ptp(X, 0), X.max(0) + 0.5 * np.ptp(X, 0)
    across, up = np.meshgrid(np.linspace(low[0], high[0], 200), np.linspace(low[1], high[1], 200))
    points = np.stack([across.ravel(), up.ravel()], axis=1).astype(np.asarray(params[0].W).dtype)
    surface = np.asarray(predict(net, params, points))[:, -1].reshape(across.shape)
    image = ax.pcolormesh(across, up, surface, cmap=DIVERGING, vmin=0, vmax=1, shading="auto", rasterized=True)
    made.colorbar(image, ax=ax, label="output $\\hat y$")
    ax.contour(across, up, surface, levels=[0.5], colors="black")
    for value, marker, colour in ((0, "o", ORANGE), (1, "s", PURPLE)):
        chosen = X[np.ravel(Y) == value]
        ax.scatter(
            *chosen.T,
            marker=marker,
            s=80 if len(X) < 50 else 12,
            color=colour,
            edgecolor="black",
            label=f"y = {value}",
            zorder=3,
        )
    ax.set(xlabel="$x_1$", ylabel="$x_2$")
    ax.legend(loc="upper right", fontsize="small")
    return made
