"""Normalized inputs: rounder contours of the cost, and fewer steps of descent.

Row 19 of the notes' systems (note 002, "Normalizing training sets", "Why normalize inputs?"). One linear unit predicts
house prices from the size of the lot and the number of bathrooms. Its cost is a quadratic with ellipses as contours,
and the Hessian's condition number says how long these are. Expect the steps of gradient descent to grow with that
number. Expect a need to subtract the mean and to divide by the deviation: both together take less than a hundredth of
the steps of the raw features, and less than a fifth of the steps with only the mean subtracted.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlp as jm
from experiments.housing import FILE
from experiments.output import Output
from jaxmlp import plotting
from jaxmlp.data import read_csv, standardize


@dataclass(frozen=True)
class Settings:
    close: float = 1e-6  # descent ends at this share of the first excess cost over the lowest
    most: int = 1_000_000  # descent gives up after this many steps
    quick: bool = False  # nothing here is slow


NET = jm.MLP((2, 1))  # identity and squared error are the defaults
FEATURES = ("lot", "bathrooms")


def load() -> tuple[np.ndarray, np.ndarray]:
    """Lots in 1,000 square feet and bathrooms `(546, 2)`, and prices in 1,000 dollars above their mean."""
    table = read_csv(FILE, dict.fromkeys(("price", "lotsize", "bathrms"), "number"))
    Y = table.columns["price"] / 1000
    return np.column_stack([table.columns["lotsize"] / 1000, table.columns["bathrms"]]), Y - Y.mean()


def run(settings: Settings, out: Output) -> dict[str, float]:
    if not 0 < settings.close < 1 or settings.most < 1:
        raise ValueError(f"close and most are {settings.close}, {settings.most}, expected 0 to 1 and at least 1")
    with jax.enable_x64(True):
        X, Y = load()
        scaling = standardize(X)
        mean, deviation = np.asarray(scaling.mean), np.asarray(scaling.deviation)
        versions = {"raw": X, "mean subtracted": X - mean, "divided by the deviation": X / deviation,
                    "both": np.asarray(scaling(X))}  # fmt: skip
        measured = {name: _measure(settings, Z, Y) for name, Z in versions.items()}
        figure = _picture({name: versions[name] for name in ("mean subtracted", "both")}, Y)
    out.table(f"one linear unit, best constant rate: steps until {settings.close:g} of the first excess cost is left", [
        {"features": name}
        | {f"deviation, {feature}": f"{d:.2f}" for feature, d in zip(FEATURES, versions[name].std(0), strict=True)}
        | {"largest eigenvalue": f"{high:.3g}", "condition number": f"{high / low:.3g}", "steps": f"{steps:,}"}
        for name, (low, high, steps) in measured.items()
    ])  # fmt: skip
    out.picture("contours", figure)
    out.close()
    steps = {name: each[2] for name, each in measured.items()}
    condition = {name: each[1] / each[0] for name, each in measured.items()}
    ranked = [sorted(versions, key=by.__getitem__) for by in (steps, condition)]
    return {"over raw": steps["both"] / steps["raw"], "over centered": steps["both"] / steps["mean subtracted"],
            "over divided": steps["both"] / steps["divided by the deviation"], "condition": condition["both"],
            "same order": float(ranked[0] == ranked[1])}  # fmt: skip


def _measure(settings: Settings, X, Y) -> tuple[float, float, int]:
    """The smallest and the largest eigenvalue of the cost's Hessian in `(w_1, w_2, b)`, and the steps of descent."""
    padded = np.column_stack([X, np.ones(len(X))])
    eigenvalues = np.linalg.eigvalsh(padded.T @ padded / len(X))
    best = np.linalg.lstsq(padded, Y, rcond=None)[0]
    lowest = np.mean((padded @ best - Y) ** 2) / 2
    steps = _steps(X, Y, _best_rate(eigenvalues), lowest, settings.close, settings.most)
    return float(eigenvalues[0]), float(eigenvalues[-1]), int(steps)


def _best_rate(eigenvalues: np.ndarray) -> float:
    """`2 / (lambda_min + lambda_max)`, which shrinks the two slowest directions at the same speed."""
    return float(2 / (eigenvalues[0] + eigenvalues[-1]))


@jax.jit
def _steps(X, Y, rate, lowest, close, most):
    """The steps from weights of 0 until at most the share `close` of the excess cost is left."""
    start = (jm.Layer(jnp.zeros((1, 2)), jnp.zeros(1)),)
    target = lowest + close * (jm.cost(NET, start, X, Y) - lowest)

    def unfinished(state):
        _, J, step = state
        return (target < J) & (step < most)

    def move(state):
        params, _, step = state
        _, grads = jm.value_and_grad(NET, params, X, Y)
        params = jax.tree.map(lambda w, g: w - rate * g, params, grads)
        return params, jm.cost(NET, params, X, Y), step + 1

    return jax.lax.while_loop(unfinished, move, (start, jnp.inf, 0))[2]


def _path(X, Y, start: np.ndarray, rate: float, steps: int) -> np.ndarray:
    """The weights `(steps + 1, 2)` along descent; the bias stays at 0, because the features have mean 0."""
    params = (jm.Layer(jnp.asarray(start)[None], jnp.zeros(1)),)
    path = [start]
    for _ in range(steps):
        _, grads = jm.value_and_grad(NET, params, X, Y)
        params = jax.tree.map(lambda w, g: w - rate * g, params, grads)
        path.append(np.asarray(params[0].W[0]))
    return np.asarray(path)


def _picture(versions, Y):
    """The excess cost over both weights around the minimum, on an area as wide as the ellipses are long."""
    figure, axes = plotting.figure(1, 2, size=(5, 4.2))
    for ax, (name, X) in zip(axes, versions.items(), strict=True):
        H, best = X.T @ X / len(X), np.linalg.lstsq(X, Y, rcond=None)[0]
        reach = 20 / np.sqrt(np.linalg.eigvalsh(H)[0])
        grid = np.stack(np.meshgrid(*(np.linspace(b - reach, b + reach, 201) for b in best)), axis=-1)
        excess = np.einsum("...i,ij,...j->...", grid - best, H, grid - best) / 2
        image = ax.contourf(grid[..., 0], grid[..., 1], excess, levels=np.geomspace(1, excess.max(), 16),
                cmap="viridis_r", norm="log", extend="min")  # fmt: skip
        start = best + 0.85 * reach * np.asarray([-0.25, 1.0])
        rate = _best_rate(np.linalg.eigvalsh(H))
        units = ["1,000 dollars per deviation"] * 2
        if name != "both":
            units = ["dollars per square foot", "1,000 dollars per bathroom"]
        path = _path(X, Y, start, rate, 30)
        ax.plot(*path.T, ".-", color=plotting.RED, linewidth=1.2, label=f"30 steps at rate {rate:.2g}")
        ax.plot(*best, "*", color="white", markeredgecolor="black", markersize=13, label="minimum")
        ax.set(xlabel=f"weight of {FEATURES[0]} ({units[0]})", ylabel=f"weight of {FEATURES[1]} ({units[1]})")
        ax.set_aspect("equal")
        ax.set_title(f"{name}: condition number {np.linalg.cond(H):.1f}", fontsize="medium")
        ax.legend(fontsize="small", loc="lower right")
        figure.colorbar(image, ax=ax, label="excess cost (1,000 dollars, squared)", format="%.0f", shrink=0.85)
    return figure
