"""Logistic regression's gradient by two loops, by one and by none; and a table by broadcasting.

Rows 8 and 9 of the notes' systems (note 002, "Logistic regression derivatives" and "Broadcasting"). Expect the
three gradients, and that of a 20-1 network, to agree to the last digits. Expect the vectorized one to be at least 10
times faster than the loop over examples at 10,000 examples. Expect the columns of the calories table to sum to 100%.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlp as jm
from experiments.output import Output
from jaxmlp import plotting


@dataclass(frozen=True)
class Settings:
    features: int = 20  # features of an example
    examples: tuple[int, ...] = (10, 100, 1000, 10_000)  # numbers of examples
    repeats: int = 5  # timings of each; the table has the fastest
    seed: int = 0
    quick: bool = False  # up to 1,000 examples, once


FOODS = ("apples", "beef", "eggs", "potatoes")
CALORIES = {"carbohydrate": (56, 0, 4.4, 68), "protein": (1.2, 104, 52, 8), "fat": (1.8, 185, 99, 0.9)}  # of 100 g

# (w, b, X, Y) -> J, dw, db
Gradient = Callable[[np.ndarray, float, np.ndarray, np.ndarray], tuple[float, np.ndarray, float]]


def two_loops(w, b, X, Y):
    """`J`, `dw` and `db` by a loop over the examples, and in it a loop over the features."""
    m, n = X.shape
    J, dw, db = 0.0, [0.0] * n, 0.0
    for i in range(m):
        z = b
        for j in range(n):
            z += w[j] * X[i, j]
        a = 1 / (1 + math.exp(-z))
        J += -(Y[i] * math.log(a) + (1 - Y[i]) * math.log(1 - a))
        dz = a - Y[i]
        for j in range(n):
            dw[j] += X[i, j] * dz
        db += dz
    return J / m, np.asarray(dw) / m, db / m


def one_loop(w, b, X, Y):
    """The same by a loop over the examples alone."""
    m, n = X.shape
    J, dw, db = 0.0, np.zeros(n), 0.0
    for x, y in zip(X, Y, strict=True):
        a = 1 / (1 + math.exp(-(w @ x + b)))
        J += -(y * math.log(a) + (1 - y) * math.log(1 - a))
        dz = a - y
        dw += x * dz
        db += dz
    return J / m, dw / m, db / m


def no_loop(w, b, X, Y):
    """The same without a loop; examples are rows here and columns in the notes."""
    A = 1 / (1 + np.exp(-(X @ w + b)))
    J = -np.mean(Y * np.log(A) + (1 - Y) * np.log(1 - A))
    dZ = A - Y
    return J, X.T @ dZ / len(X), dZ.mean()


@jax.jit
def _network(w, b, X, Y):
    net = jm.MLP((len(w), 1), output="sigmoid", loss="binary_cross_entropy")
    J, ((dW, db),) = jm.value_and_grad(net, (jm.Layer(w[None], jnp.stack([b])),), X, Y)
    return J, dW[0], db[0]


def network(w, b, X, Y):
    """The same by the hand-written backward pass of one sigmoid unit with binary cross-entropy, compiled."""
    J, dw, db = _network(w, b, X, Y)
    return float(J), np.asarray(dw), float(db)


WAYS: dict[str, Gradient] = {"loop over examples and features": two_loops, "loop over examples": one_loop,
                             "vectorized": no_loop, "jaxmlp, one sigmoid unit": network}  # fmt: skip


def run(settings: Settings, out: Output) -> dict[str, float]:
    if settings.features < 1 or settings.repeats < 1 or not settings.examples or min(settings.examples) < 1:
        raise ValueError(f"features, repeats and examples are {settings.features}, {settings.repeats}, "
                         f"{settings.examples}; expected at least 1 of each")  # fmt: skip
    sizes, repeats = (settings.examples, settings.repeats) if not settings.quick else ((10, 1000), 1)
    rng = np.random.default_rng(settings.seed)
    w, b = rng.normal(size=settings.features) / settings.features**0.5, 0.3
    seconds, apart = {name: [] for name in WAYS}, 0.0
    with jax.enable_x64(True):
        for m in sizes:
            X = rng.normal(size=(m, settings.features))
            Y = (rng.random(m) < 1 / (1 + np.exp(-2 * X @ w))).astype(float)
            expected = np.hstack(two_loops(w, b, X, Y))
            for name, way in WAYS.items():
                made = np.hstack(way(w, b, X, Y))  # the first call compiles
                apart = max(apart, float(np.abs(made - expected).max()))
                seconds[name].append(min(_seconds(way, w, b, X, Y) for _ in range(repeats)))
    out.table(f"cost and gradient of logistic regression, {settings.features} features: seconds", [
        {"way": name, **{f"{m:,} examples": f"{s:.2e}" for m, s in zip(sizes, each, strict=True)},
         "times faster": f"{seconds['loop over examples and features'][-1] / each[-1]:.0f}"}
        for name, each in seconds.items()
    ])  # fmt: skip
    out.say(f"J, dw and db of all four ways differ by at most {apart:.1e}")
    calories = np.asarray(list(CALORIES.values()))
    share = 100 * calories / calories.sum(axis=0)  # (3, 4) / (4,): broadcasting, no loop
    out.table("share of the calories in %", [
        {"from": name, **{food: f"{value:.1f}" for food, value in zip(FOODS, row, strict=True)}}
        for name, row in zip((*CALORIES, "sum"), (*share, share.sum(0)), strict=True)
    ])  # fmt: skip
    out.numbers("seconds", {"examples": sizes, **seconds})
    out.picture("seconds", _times(sizes, seconds))
    out.picture("calories", _bars(share))
    out.close()
    return {"apart": apart, "faster": seconds["loop over examples"][-1] / seconds["vectorized"][-1],
            "sums": float(np.abs(share.sum(0) - 100).max())}  # fmt: skip


def _seconds(way: Gradient, *problem) -> float:
    began = time.perf_counter()
    way(*problem)
    return time.perf_counter() - began


def _times(sizes, seconds):
    figure, ax = plotting.figure(size=(5.6, 3.8))
    for (name, each), color, marker in zip(seconds.items(), plotting.PALETTE, "osD^", strict=False):
        ax.loglog(sizes, each, marker + "-", color=color, label=name)
    ax.set(xlabel="number of examples $m$", ylabel="time for cost and gradient (seconds)")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    return figure


def _bars(share):
    figure, ax = plotting.figure(size=(5.6, 3))
    left = np.zeros(len(FOODS))
    for name, row, color in zip(CALORIES, share, (plotting.BLUE, plotting.ORANGE, plotting.GREEN), strict=True):
        ax.barh(FOODS, row, left=left, color=color, label=name)
        for food, (start, width) in enumerate(zip(left, row, strict=True)):
            if width > 6:
                ax.text(start + width / 2, food, f"{width:.1f}", ha="center", va="center", fontsize="small",
                        color="white" if color == plotting.BLUE else "black")  # fmt: skip
        left = left + row
    ax.set(xlabel="share of the calories (%)", xlim=(0, 100))
    ax.invert_yaxis()
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize="small")
    return figure
