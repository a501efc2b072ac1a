"""Initial weights: equal ones keep hidden units equal, and the variance decides how far signals reach.

Row 13 of the notes' systems (note 002, "Random Initialization" and "Choice of Weight Initialization"). Expect zeros,
with sigmoid units, to keep the hidden units' weights equal to the last bit through all of full-batch training.
`E[z^2]`, the mean over random starts, goes through 50 layers of width 1,024. Expect it to stay within a factor of 2 of
layer 1's for identity with variance `1/n` and ReLU with `2/n`. Expect it to change by a factor of more than 1,000 with
a wrong variance; with 0.01^2 it ends in exact zeros, because float32 holds nothing smaller. For tanh with `1/n` expect
it to decay slowly, as about `1 / (2 l)`.

The symmetry is exact in mathematics. In floating point it holds while a matrix product sums every unit in the same
order, as it does on a CPU for few units.
"""

import time
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments._descent import descend
from experiments._mean_field import variances
from experiments.output import Output
from jaxmlp import activations, plotting
from jaxmlp.initializers import VARIANCES


@dataclass(frozen=True)
class Settings:
    width: int = 1024  # width of the deep networks
    depth: int = 50  # layers of the deep networks
    starts: int = 10  # random starts; the table has their mean
    examples: int = 4  # examples through each of them
    units: int = 4  # hidden units of the network that tests symmetry
    steps: int = 3000  # full-batch steps that may break it
    learning_rate: float = 2.0
    key: int = 0
    quick: bool = False  # 2 starts, 600 steps


WEIGHTS = {"lecun": "1/n", "he": "2/n", "small_normal": "0.01^2"}
HIDDEN = ("identity", "relu", "tanh")
KEPT = (("identity", "lecun"), ("relu", "he"))
SLOW = ("tanh", "lecun")


def run(settings: Settings, out: Output) -> dict[str, float]:
    if min(settings.starts, settings.examples, settings.steps) < 1 or min(settings.depth, settings.units) < 2:
        raise ValueError(f"settings are {settings}, expected at least 1 of each, and at least 2 layers and 2 units")
    starts, steps = (2, 600) if settings.quick else (settings.starts, settings.steps)
    began = time.perf_counter()
    squares = _mean_squares(settings, starts)
    seconds = time.perf_counter() - began
    limits = {each: _infinite_width(*each, settings) for each in squares}
    n, K = settings.width, settings.depth
    out.table(f"E[z^2], width {n:,}, mean of {starts} starts ({seconds:.1f} seconds)", [
        {"hidden units": f, "variance": WEIGHTS[how], "layer 1": f"{q[0]:.3g}",
         f"layer {K // 2}": f"{q[K // 2 - 1]:.3g}", f"layer {K}": f"{q[-1]:.3g}", "last / first": f"{q[-1] / q[0]:.2g}",
         "at infinite width": f"{limits[f, how][-1] / limits[f, how][0]:.2g}"}
        for (f, how), q in squares.items()
    ])  # fmt: skip
    trained = _train(settings, steps, ("zeros", "small_normal", "lecun"))
    out.table(f"2-{settings.units}-1, sigmoid units, {steps:,} full-batch steps; label: inside a circle or not", [
        {"weights": how, "largest difference between hidden units": f"{apart.max():.2g}",
         "all bits equal after": f"{np.sum(apart == 0):,} of {len(apart):,} steps",
         "cost": f"{costs[0]:.3f} to {costs[-1]:.3f}"}
        for how, (apart, costs) in trained.items()
    ])  # fmt: skip
    out.numbers("mean_squares", {"layer": range(1, K + 1), **{f"{f}, {how}": q for (f, how), q in squares.items()}})
    out.picture("initialization", _picture(squares, limits, trained, K))
    out.close()
    log = {each: np.abs(np.log(np.maximum(q, 1e-45) / q[0])) for each, q in squares.items()}
    wrong = [log[each][-1] for each in squares if each[0] != "tanh" and each not in KEPT]
    return {"kept": float(np.exp(max(log[each].max() for each in KEPT))), "left": float(np.exp(min(wrong))),
            "tanh": float(squares[SLOW][-1] / squares[SLOW][0]),
            "symmetric": float(np.mean(trained["zeros"][0] == 0)), "broken": float(trained["small_normal"][0][-1]),
            "cost, zeros": float(trained["zeros"][1][-1]), "cost, lecun": float(trained["lecun"][1][-1])}  # fmt: skip


def _infinite_width(f: str, how: str, settings: Settings) -> np.ndarray:
    """`E[z^2]` of each layer of an infinitely wide network."""
    c = settings.width * VARIANCES[how](settings.width, settings.width)
    return variances(activations.NAMED[f], c, first=c, depth=settings.depth)  # inputs of mean square 1


def _mean_squares(settings: Settings, starts: int) -> dict[tuple[str, str], np.ndarray]:
    """`E[z^2]` of each layer over units, examples and starts, for each hidden activation and way to draw weights.

    Memory holds one layer at a time: all 50 would take 200 MB.
    """
    n = settings.width
    nets = {f: jm.MLP((n, n), output=f) for f in HIDDEN}

    def layer(A, key):
        A, squares = dict(A), {}
        for how in WEIGHTS:
            params = jm.init(nets["identity"], key, weights=how)
            for f, net in nets.items():
                A[f, how], tape = jax.vmap(partial(jm.forward, net, params))(A[f, how])
                squares[f, how] = jnp.mean(tape.pre_activations[0] ** 2)
        return A, squares

    @jax.jit
    def through(key):
        input_key, key = jax.random.split(key)
        X = jax.random.normal(input_key, (settings.examples, n))
        start = {(f, how): X for f in HIDDEN for how in WEIGHTS}
        return jax.lax.scan(layer, start, jax.random.split(key, settings.depth))[1]

    each = [through(key) for key in jax.random.split(jax.random.key(settings.key), starts)]
    return {name: np.mean([start[name] for start in each], axis=0) for name in each[0]}


def _train(settings: Settings, steps: int, ways) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each way to draw weights: the largest difference of two hidden units' weights, and the cost, by step."""
    rng = np.random.default_rng(settings.key)
    X = rng.normal(size=(200, 2)).astype(np.float32)
    Y = (np.linalg.norm(X, axis=1) < 1.2).astype(np.float32)
    net = jm.MLP((2, settings.units, 1), "sigmoid", "sigmoid", "binary_cross_entropy")
    optimizer = optax.sgd(settings.learning_rate)

    @jax.jit
    def train(params):
        def step(params, _):
            params, costs = descend(net, optimizer, 1, params, jnp.asarray(X), jnp.asarray(Y))
            units = jnp.concatenate([params[0].W, params[0].b[:, None], params[1].W.T], axis=1)
            return params, (jnp.max(units.max(0) - units.min(0)), costs[0])

        return jax.lax.scan(step, params, length=steps)[1]

    draw = lambda how: jm.init(net, jax.random.key(settings.key), weights=how)
    return {how: jax.tree.map(np.asarray, train(draw(how))) for how in ways}


def _picture(squares, limits, trained, depth: int):
    figure, axes = plotting.figure(1, len(HIDDEN) + 1, size=(3.5, 3.6))
    layer = np.arange(1, depth + 1)
    for f, ax in zip(HIDDEN, axes, strict=False):
        for (how, variance), color, marker in zip(WEIGHTS.items(), plotting.PALETTE, "osD", strict=False):
            ax.semilogy(layer, limits[f, how], "-", color=color, linewidth=1)
            ax.semilogy(layer, squares[f, how], marker, color=color, markersize=3.5, markevery=3, label=variance)
        ax.set(xlabel="layer $l$", title=f"{f} units", ylim=(1e-24, 1e18))
    axes[0].set_ylabel("$E[z^2]$ (lines: infinite width)")
    axes[2].legend(fontsize="small", title="variance of the weights", title_fontsize="small", loc="upper right")
    named = {"zeros": "zeros: equal hidden units", "small_normal": "0.01^2", "lecun": "1/n"}
    colors = (plotting.BLACK, plotting.GREEN, plotting.BLUE)
    for (how, (_, costs)), color in zip(trained.items(), colors, strict=True):
        axes[-1].semilogx(np.arange(1, len(costs) + 1), costs, color=color, label=named[how])
    axes[-1].set(xlabel="full-batch step", ylabel="cost (mean loss)", ylim=(0, None), title="sigmoid units, trained")
    axes[-1].legend(fontsize="small", loc="lower left")
    for ax in axes:
        ax.grid(alpha=0.3)
    return figure
