"""Exponentially weighted averages, and momentum, RMSprop and Adam built on them.

Row 24 of the notes' systems (note 002, "Exponentially weighted averages"). `v_t = beta v_(t-1) + (1 - beta) x_t` from
`v_0 = 0`. Divided by `1 - beta^t` it is an average, `(1 - beta) sum_i beta^(t-i) x_i / (1 - beta^t)`. Expect both
forms to agree to the last digits of float64, and each optimizer that is written with the average to agree with optax's.
Expect the average without the correction to start far too low. On an elongated quadratic expect each of the three
optimizers to come closer to the minimum in 60 steps than plain descent.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments.output import Output
from jaxmlp import plotting


@dataclass(frozen=True)
class Settings:
    days: int = 365  # days of the averaged series
    betas: tuple[float, ...] = (0.5, 0.9, 0.98)
    steps: int = 60  # steps of descent on the quadratic
    network_steps: int = 100  # steps of training a network, for the comparison with optax
    seed: int = 0
    quick: bool = False  # nothing here is slow


def average(v, x, beta):
    """`v_t = beta v_(t-1) + (1 - beta) x_t`, leaf by leaf."""
    return jax.tree.map(lambda v, x: beta * v + (1 - beta) * x, v, x)


def correct(v, beta, t):
    """`v_t / (1 - beta^t)`, which takes the zero of `v_0` out of the average."""
    return jax.tree.map(lambda v: v / (1 - beta**t), v)


# An optimizer: (state, gradient, t = 1, 2, ..) -> (the step to subtract, state). The first state is (0, 0).
def momentum(state, g, t, rate=0.001, beta=0.9):
    v = average(state[0], g, beta)
    return jax.tree.map(lambda v: rate * v, v), (v, state[1])


def rmsprop(state, g, t, rate=0.001, beta=0.9, epsilon=1e-8):
    s = average(state[1], jax.tree.map(jnp.square, g), beta)
    return jax.tree.map(lambda g, s: rate * g / (jnp.sqrt(s) + epsilon), g, s), (state[0], s)


def adam(state, g, t, rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-8):
    v, s = average(state[0], g, beta1), average(state[1], jax.tree.map(jnp.square, g), beta2)
    step = lambda v, s: rate * v / (jnp.sqrt(s) + epsilon)
    return jax.tree.map(step, correct(v, beta1, t), correct(s, beta2, t)), (v, s)


def descent(state, g, t, rate=0.001):
    return jax.tree.map(lambda g: rate * g, g), state


OPTIMIZERS = {"descent": descent, "momentum": momentum, "RMSprop": rmsprop, "Adam": adam}
# optax's momentum is a sum, v = beta v + g: its rate is (1 - beta) times the rate of an average.
OPTAX = {
    "descent": optax.sgd(0.001),
    "momentum": optax.sgd((1 - 0.9) * 0.001, momentum=0.9),
    "RMSprop": optax.rmsprop(0.001, decay=0.9, eps=1e-8, eps_in_sqrt=False),
    "Adam": optax.adam(0.001, eps=1e-8),
}
CURVATURES = np.asarray([1.0, 50.0])  # of the quadratic, along its axes
RATES = {"descent": 0.035, "momentum": 0.2, "RMSprop": 0.3, "Adam": 0.6}  # on the quadratic


def run(settings: Settings, out: Output) -> dict[str, float]:
    if settings.days < 2 or min(settings.steps, settings.network_steps) < 1 or not settings.betas:
        raise ValueError(f"settings are {settings}, expected at least 2 days, 1 step of each kind, and a beta")
    if not all(0 <= beta < 1 for beta in settings.betas):
        raise ValueError(f"betas is {settings.betas}, expected numbers of at least 0 and below 1")
    x = _temperatures(settings)
    with jax.enable_x64(True):
        averages = {beta: tuple(map(np.asarray, _averages(x, beta))) for beta in settings.betas}
        differences = {name: _compare_with_optax(name, settings) for name in OPTIMIZERS}
        paths = {name: np.asarray(_path(name, settings.steps)) for name in OPTIMIZERS}
    closed = {beta: float(np.abs(fair - _closed_form(x, beta)).max()) for beta, (_, fair) in averages.items()}
    out.table("averages of daily temperatures; an average has about 1 / (1 - beta) days of memory", [
        {"beta": f"{beta:g}", "days": f"{1 / (1 - beta):.0f}", "day 1": f"{x[0]:.2f}", "uncorrected": f"{raw[0]:.2f}",
         "corrected": f"{fair[0]:.2f}", "deviation around the season": f"{np.std(fair - _season(settings)):.2f}",
         "corrected - closed form": f"{closed[beta]:.1e}"}
        for beta, (raw, fair) in averages.items()
    ])  # fmt: skip
    left = {name: float(_height(path[-1]) / _height(path[0])) for name, path in paths.items()}
    out.table(f"optimizers written with the average: weights after {settings.network_steps} steps against optax's, and "
              f"the share of the quadratic's cost left after {settings.steps}", [
        {"optimizer": name, "largest difference from optax": f"{differences[name]:.1e}", "rate on the quadratic":
         f"{RATES[name]:g}", "cost left": f"{left[name]:.1e}"}
        for name in OPTIMIZERS
    ])  # fmt: skip
    out.numbers("averages", {"day": range(1, len(x) + 1), "temperature": x, **{
        f"{word}, beta {beta:g}": values for beta, both in averages.items()
        for word, values in zip(("uncorrected", "corrected"), both, strict=True)}})  # fmt: skip
    out.picture("averages", _series(x, averages))
    out.picture("paths", _paths(paths))
    out.close()
    beta, noise = max(settings.betas), lambda values: float(np.std(values - _season(settings)))
    return {"closed": max(closed.values()), "optax": max(differences.values()),
            "uncorrected": float(averages[beta][0][0] / x[0]), "corrected": float(averages[beta][1][0] / x[0]),
            "smoother": min(noise(fair) for _, fair in averages.values()) / noise(x),
            **{f"{name} over descent": left[name] / left["descent"] for name in OPTIMIZERS}}  # fmt: skip


def _season(settings: Settings) -> np.ndarray:
    return 12 - 9 * np.cos(2 * np.pi * (np.arange(settings.days) - 20) / 365)


def _temperatures(settings: Settings) -> np.ndarray:
    """A temperature in degrees Celsius for each day: a season, and noise of deviation 3."""
    return _season(settings) + np.random.default_rng(settings.seed).normal(0, 3, settings.days)


def _averages(x: np.ndarray, beta: float):
    """`v_t` and its corrected form for each day, by the recursion."""

    def day(v, tx):
        v = average(v, tx[1], beta)
        return v, (v, correct(v, beta, tx[0]))

    return jax.lax.scan(day, jnp.zeros(()), (jnp.arange(1.0, len(x) + 1), jnp.asarray(x)))[1]


def _closed_form(x: np.ndarray, beta: float) -> np.ndarray:
    """`(1 - beta) sum_i beta^(t-i) x_i / (1 - beta^t)`."""
    t = np.arange(1, len(x) + 1)
    power = np.where(t[:, None] >= t, float(beta) ** np.maximum(t[:, None] - t, 0), 0)
    return (1 - beta) * power @ x / (1 - float(beta) ** t)


def _compare_with_optax(name: str, settings: Settings) -> float:
    """The largest difference between weights that this optimizer trains and weights that optax's trains."""
    rng = np.random.default_rng(settings.seed)
    net = jm.MLP((3, 8, 1), "tanh")
    X = jnp.asarray(rng.normal(size=(50, 3)))
    Y = jnp.sin(X[:, :1]) * X[:, 1:2]
    start = tuple(jm.Layer(jnp.asarray(rng.normal(size=s) / s[1] ** 0.5), jnp.zeros(s[0])) for s in net.shapes)
    gradient = lambda params: jm.value_and_grad(net, params, X, Y)[1]

    def by_optax(carry, _):
        params, state = carry
        updates, state = OPTAX[name].update(gradient(params), state, params)
        return (jax.tree.map(jnp.add, params, updates), state), None

    @jax.jit
    def train(start):
        ours = _run(OPTIMIZERS[name], gradient, start, settings.network_steps)[0]
        theirs, _ = jax.lax.scan(by_optax, (start, OPTAX[name].init(start)), length=settings.network_steps)
        return ours, theirs[0]

    pairs = zip(*map(jax.tree.leaves, train(start)), strict=True)
    return max(float(jnp.abs(a - b).max()) for a, b in pairs)


def _run(optimizer: Callable, gradient: Callable, start, steps: int):
    """The weights after `steps` steps, and after each of them."""

    def step(carry, t):
        w, state = carry
        by, state = optimizer(state, gradient(w), t)
        w = jax.tree.map(jnp.subtract, w, by)
        return (w, state), w

    zeros = jax.tree.map(jnp.zeros_like, start)
    (w, _), along = jax.lax.scan(step, (start, (zeros, zeros)), jnp.arange(1.0, steps + 1))
    return w, along


def _path(name: str, steps: int):
    """The weights `(steps + 1, 2)` along descent on `1/2 sum c w^2`."""
    start = jnp.asarray([-9.0, 2.0])
    optimizer = lambda state, g, t: OPTIMIZERS[name](state, g, t, rate=RATES[name])
    along = jax.jit(lambda start: _run(optimizer, lambda w: CURVATURES * w, start, steps)[1])(start)
    return jnp.concatenate([start[None], along])


def _height(w):
    return (CURVATURES * w**2).sum(-1) / 2


def _series(x, averages):
    figure, (whole, first) = plotting.figure(1, 2, size=(5.4, 3.8))
    day = np.arange(1, len(x) + 1)
    for ax, until in ((whole, len(x)), (first, min(60, len(x)))):
        ax.plot(day[:until], x[:until], ".", color="darkgray", markersize=4, label="temperature")
        for (beta, (raw, fair)), color in zip(averages.items(), plotting.PALETTE, strict=False):
            ax.plot(day[:until], fair[:until], color=color, label=f"$\\beta$ = {beta:g}")
            if ax is first:
                ax.plot(day[:until], raw[:until], "--", color=color, label=f"$\\beta$ = {beta:g}, uncorrected")
        ax.set(xlabel="day", ylabel="temperature (degrees Celsius)")
        ax.grid(alpha=0.3)
    whole.legend(fontsize="small")
    first.legend(fontsize="small", ncols=2, loc="lower right")
    return figure


def _paths(paths):
    figure, axes = plotting.figure(2, 2, size=(5, 2.5), sharex=True, sharey=True)
    grid = np.stack(np.meshgrid(np.linspace(-10, 6, 161), np.linspace(-3, 3, 121)), axis=-1)
    for (name, path), ax in zip(paths.items(), axes.flat, strict=True):
        ax.contourf(grid[..., 0], grid[..., 1], _height(grid), levels=np.geomspace(0.5, 300, 12), cmap="Blues",
                    norm="log", extend="both")  # fmt: skip
        ax.plot(*path.T, ".-", color=plotting.RED, linewidth=1, markersize=4)
        ax.plot(0, 0, "*", color="white", markeredgecolor="black", markersize=12)
        ax.set_title(f"{name}: cost {_height(path[-1]):.1e} after {len(path) - 1} steps", fontsize="medium")
    for ax in axes[1]:
        ax.set_xlabel("$w_1$ (curvature 1)")
    for ax in axes[:, 0]:
        ax.set_ylabel("$w_2$ (curvature 50)")
    return figure
