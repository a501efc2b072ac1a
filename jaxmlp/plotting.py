"""Pictures of training, predictions and weights. Each function returns a `matplotlib.figure.Figure`.

matplotlib is imported when the first picture is drawn; the extra `experiments` installs it. A notebook shows a figure
that is a cell's last expression; `figure.savefig("curves.png")` writes it into a file. Color-blind readers can tell all
colors apart: Okabe and Ito's palette for lines, viridis and a purple-orange scale for surfaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmlp._forward import predict
from jaxmlp.log_axes import set_log_scale as set_log_scale
from jaxmlp.log_axes import set_log_ticks as set_log_ticks
from jaxmlp.network import MLP, Params

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000",
)  # fmt: skip
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
DIVERGING = "PuOr"


def figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (5, 3.6), **options: Any) -> tuple[Figure, Any]:
    """A figure with a grid of axes, without the global state of pyplot.

    Args:
        rows, columns: of the grid.
        size: width and height of one cell of the grid, in inches.
        options: of `Figure.subplots`.
    Returns:
        The figure and its axes: one, or an array of them.
    Example:
        >>> drawn, axes = jm.plotting.figure(1, 2)
        >>> axes.shape, drawn.get_size_inches().tolist()
        ((2,), [10.0, 3.6])
    """
    drawn = make_picture((size[0] * columns, size[1] * rows), layout="constrained")
    return drawn, drawn.subplots(rows, columns, **options)


def make_picture(size: tuple[float, float], **options: Any) -> Figure:
    """An empty figure that a notebook shows as a picture.

    Args:
        size: width and height in inches.
        options: of `matplotlib.figure.Figure`.
    Raises:
        ImportError: where matplotlib is not installed.
    Example:
        >>> jm.plotting.make_picture((4, 3)).get_size_inches().tolist()
        [4.0, 3.0]
    """
    try:
        from jaxmlp.picture import Picture
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("matplotlib"):
            raise
        raise ImportError("pictures need matplotlib, expected the extra: pip install 'jaxmlp[experiments]'") from error
    return Picture(figsize=size, **options)


def curves(histories: Any) -> Figure:
    """Draws the cost, and the accuracy if there is one, against the epoch, for training and validation.

    Args:
        histories: one history of `fit`, a sequence of them, or a mapping from names to them.
    Raises:
        ValueError: where there is no history.
    Example:
        >>> history = {"epoch": np.arange(1, 4), "cost": np.array([0.9, 0.5, 0.4])}
        >>> drawn = jm.plotting.curves(history)
        >>> [ax.get_ylabel() for ax in drawn.axes]
        ['cost (mean loss)']
    """
    if isinstance(histories, Mapping) and "cost" in histories:
        histories = [histories]  # one history alone
    named = dict(histories) if isinstance(histories, Mapping) else {f"run {i}": h for i, h in enumerate(histories, 1)}
    if not named:
        raise ValueError("histories is empty, expected at least one history of fit")
    first = next(iter(named.values()))
    quantities = [q for q in ("cost", "accuracy") if q in first]
    drawn, axes = figure(1, len(quantities), squeeze=False)
    for ax, quantity in zip(axes[0], quantities, strict=True):
        for (name, history), color in zip(named.items(), PALETTE * (1 + len(named) // len(PALETTE)), strict=False):
            scale = 100 if quantity == "accuracy" else 1
            x = history["epoch" if "epoch" in history else "step"]
            style = {"color": color, "marker": "." if len(x) < 30 else ""}
            ax.plot(x, scale * history[quantity], linestyle="-", label=f"{name}, training", **style)
            if f"validation_{quantity}" in history:
                held_out = scale * history[f"validation_{quantity}"]
                ax.plot(x, held_out, linestyle="--", label=f"{name}, validation", **style)
        ax.set_xlabel("epoch" if "epoch" in first else "step")
        ax.set_ylabel("accuracy (%)" if quantity == "accuracy" else "cost (mean loss)")
        ax.xaxis.get_major_locator().set_params(integer=True)
        values = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines])
        if quantity == "cost" and not (values < 0).any():
            set_log_scale(ax, values)
        ax.grid(alpha=0.3)
    if len(named) <= 4:
        axes[0][-1].legend(fontsize="small")
    else:
        drawn.legend(*axes[0][-1].get_legend_handles_labels(), loc="outside right", fontsize="small")  # pyright: ignore
    return drawn


MONITORS = {  # a column of the history: its label, and whether its axis is logarithmic
    "delta_norm": ("norm of delta, mean over examples", True),
    "update_ratio": ("norm of update / norm of weights", True),
    "dead": ("dead units (%)", False),
    "saturated": ("saturated activations (%)", False),
    "noise_scale": ("noise scale (examples)", True),
}


def monitors(history: Mapping[str, np.ndarray]) -> Figure:
    """Draws the monitors of `fit(monitor=True)` against the epoch, with a line for each layer.

    Args:
        history: the history of one fit.
    Raises:
        ValueError: where the history has no monitors.
    Example:
        >>> history = {"epoch": np.arange(1, 3), "dead": np.array([[0.0, 0.1], [0.1, 0.2]])}
        >>> len(jm.plotting.monitors(history).axes[0].lines)
        2
    """
    found = [name for name in MONITORS if name in history and history[name][0].size]
    if not found:
        raise ValueError("history has no columns of monitors, expected a history of fit with monitor=True")
    drawn, axes = figure(-(-len(found) // 3), min(3, len(found)), size=(4, 3.2), squeeze=False)
    x_name = "epoch" if "epoch" in history else "step"
    for ax, name in zip(axes.flat, found, strict=False):
        label, logarithmic = MONITORS[name]
        values = np.asarray(history[name]).reshape(len(history[name]), -1) * (1 if logarithmic else 100)
        colors = PALETTE * (1 + values.shape[1] // len(PALETTE))
        for layer, (column, color) in enumerate(zip(values.T, colors, strict=False), start=1):
            ax.plot(history[x_name], column, color=color, label=f"layer {layer}")
        ax.set(xlabel=x_name, ylabel=label)
        if logarithmic:
            set_log_scale(ax, values)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    for ax in axes.flat[len(found) :]:
        ax.axis("off")
    drawn.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right", fontsize="small")  # pyright: ignore
    return drawn


def confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draws a confusion matrix with its counts. Rows are true classes; the color is the share of the row.

    Args:
        counts: `(k, k)`, of `jm.metrics.confusion_matrix`.
        classes: the k names of the classes.
    Raises:
        ValueError: where the shape of `counts` does not fit `classes`.
    Example:
        >>> drawn = jm.plotting.confusion(np.array([[9, 1], [2, 8]]), ["cat", "dog"])
        >>> [text.get_text() for text in drawn.axes[0].texts]
        ['9', '1', '2', '8']
    """
    if counts.shape != (len(classes),) * 2:
        raise ValueError(f"counts has shape {counts.shape}, expected {(len(classes),) * 2} for {len(classes)} classes")
    longest = max(map(len, classes))
    drawn, ax = figure(size=(3 + 0.5 * len(classes) + 0.06 * longest, 2 + 0.5 * len(classes) + 0.06 * longest))
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    from matplotlib.colors import PowerNorm

    norm = PowerNorm(0.3, 0, 100)  # shows the few confusions beside the many right ones
    drawn.colorbar(ax.imshow(share, cmap="viridis", norm=norm), ax=ax, label="share of the true class (%)")
    for (row, column), count in np.ndenumerate(counts):
        ax.text(column, row, str(count), ha="center", va="center", fontsize=7,
                color="black" if norm(share[row, column]) > 0.6 else "white")  # fmt: skip
    ax.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
    ax.set_yticks(range(len(classes)), classes)
    ax.set(xlabel="predicted class", ylabel="true class")
    return drawn


def weights_as_images(W: np.ndarray, shape: tuple[int, int], limit: int = 64) -> Figure:
    """Draws the incoming weights of each unit as a picture of the inputs' shape, all on one scale around 0.

    Args:
        W: the weights of the first layer, `(n_1, n_0)`.
        shape: height and width of a picture, with `height * width = n_0`.
        limit: the largest number of units to draw.
    Example:
        >>> drawn = jm.plotting.weights_as_images(params[0].W, (28, 28), limit=4)
        >>> len(drawn.axes)  # four pictures and the scale
        5
    """
    chosen = np.asarray(W)[:limit]
    columns = min(8, len(chosen))
    rows = -(-len(chosen) // columns)
    drawn, axes = _grid(rows, columns, (0.9, 0.9), 6)
    reach = float(np.percentile(np.abs(chosen), 99.5))
    image = None
    for unit, (w, ax) in enumerate(zip(chosen, axes.flat, strict=False)):
        image = ax.imshow(w.reshape(shape), cmap=DIVERGING, vmin=-reach, vmax=reach)
        ax.set_title(str(unit), fontsize=6, pad=1, y=1)
    if image is not None:
        drawn.colorbar(image, ax=axes, label="weight", shrink=0.6)
    return drawn


def pictures(X: np.ndarray, titles: Sequence[str], columns: int = 8) -> Figure:
    """Draws gray pictures in a grid, each under its title.

    Args:
        X: the pictures, `(m, height, width)`.
        titles: one for each picture.
        columns: of the grid.
    Example:
        >>> drawn = jm.plotting.pictures(np.zeros((2, 28, 28)), ["7", "3"], columns=2)
        >>> [ax.get_title() for ax in drawn.axes]
        ['7', '3']
    """
    rows = -(-len(X) // columns)
    lines = max((title.count("\n") + 1 for title in titles), default=1)
    drawn, axes = _grid(rows, columns, (1.3, 1.5), 9 * lines)
    for picture, title, ax in zip(X, titles, axes.flat, strict=False):
        ax.imshow(picture, cmap="gray_r")
        ax.set_title(title, fontsize=7, pad=3, y=1)
    return drawn


def _grid(rows: int, columns: int, size: tuple[float, float], title: float) -> tuple[Figure, Any]:
    """A grid of axes without frames, and room for titles of that height in points.

    Its places are computed: a layout engine measures each of many axes, which takes longer than to draw them.
    """
    drawn = make_picture((size[0] * columns, size[1] * rows))
    room = (title + 4) / 72 / size[1]  # in cells
    places = {"left": 0, "right": 1, "bottom": 0, "top": 1 - room / rows, "wspace": 0.06, "hspace": room / (1 - room)}
    axes = drawn.subplots(rows, columns, squeeze=False, gridspec_kw=places)
    for ax in axes.flat:
        ax.axis("off")
    return drawn, axes


def decision_boundary(net: MLP, params: Params, X: np.ndarray, Y: np.ndarray) -> Figure:
    """Draws the output (the second of two) over the plane of two inputs, its boundary at 1/2, and the examples.

    Args:
        net: a network of 2 inputs and 1 or 2 outputs.
        params: its parameters.
        X: examples, `(m, 2)`.
        Y: their labels, 0 or 1, `(m,)` or `(m, 1)`.
    Raises:
        ValueError: where the network has other sizes.
    Example:
        >>> xor = jm.MLP((2, 3, 1), hidden="tanh", output="sigmoid", loss="binary_cross_entropy")
        >>> corners = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
        >>> drawn = jm.plotting.decision_boundary(xor, jm.init(xor, key), corners, np.array([0, 1, 1, 0]))
        >>> drawn.axes[0].get_xlabel()
        '$x_1$'
    """
    if net.sizes[0] != 2 or net.sizes[-1] > 2:
        raise ValueError(f"net is {net}, expected 2 inputs and 1 or 2 outputs")
    drawn, ax = figure(size=(4.6, 3.8))
    low, high = X.min(0) - 0.5 * np.ptp(X, 0), X.max(0) + 0.5 * np.ptp(X, 0)
    across, up = np.meshgrid(np.linspace(low[0], high[0], 200), np.linspace(low[1], high[1], 200))
    points = np.stack([across.ravel(), up.ravel()], axis=1).astype(np.asarray(params[0].W).dtype)
    surface = np.asarray(predict(net, params, points))[:, -1].reshape(across.shape)
    image = ax.pcolormesh(across, up, surface, cmap=DIVERGING, vmin=0, vmax=1, shading="auto", rasterized=True)
    drawn.colorbar(image, ax=ax, label="output $\\hat y$")
    ax.contour(across, up, surface, levels=[0.5], colors="black")
    for value, marker, color in ((0, "o", ORANGE), (1, "s", PURPLE)):
        chosen = X[np.ravel(Y) == value]
        ax.scatter(
            *chosen.T,
            marker=marker,
            s=80 if len(X) < 50 else 12,
            color=color,
            edgecolor="black",
            label=f"y = {value}",
            zorder=3,
        )
    ax.set(xlabel="$x_1$", ylabel="$x_2$")
    ax.legend(loc="upper right", fontsize="small")
    return drawn
