"""Levenberg-Marquardt on small regressions: against Adam and L-BFGS in the same seconds, and 1,000 starts in one sweep.

The first regression is a sine with one input, the second the 546 house prices. All three optimizers see all examples in
each step, start from the same weights, and have the seconds that Levenberg-Marquardt needs for its steps. Adam has the
best of a few rates, L-BFGS the best of a few memories with its line search. Compilation is not counted. On the sine
expect Levenberg-Marquardt to end with a loss at least 100 times lower than Adam's. On the houses, whose prices no
function of the features predicts, expect no such gap: it is in a local minimum after 200 steps, and Adam, with 10 steps
in the time of one, finds one that is up to a fifth lower. Test errors, by the weights of the best step on the dev
examples, are within 10% of each other.

Then 1,000 networks fit the sine, each from a start of its own, in one `sweep`. Expect it to take less than a twentieth
of the time of 1,000 calls of `fit` (some are timed), with all programs compiled. The two take turns, and the
least time of each counts; the processor's time tells the same on a busy machine. Expect the median start to end at 10
times the loss of the best one, which is what many starts are for.

Numbers are float64: the falls of a loss near 1e-10 are smaller than the rounding of float32 outputs.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments import housing
from experiments.output import Output
from jaxmlp import plotting, training
from jaxmlp.data import split, standardize
from jaxmlp.network import Params


@dataclass(frozen=True)
class Settings:
    points: int = 100  # on the sine
    hidden: int = 20  # tanh units of the network on the sine
    house_hidden: int = 8  # tanh units of the network for house prices
    damping: float = 1e-2  # of the first step
    steps: int = 1000  # of Levenberg-Marquardt; the others get its seconds
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # of Adam
    memories: tuple[int, ...] = (5, 10, 20)  # of L-BFGS: steps that it keeps
    starts: int = 1000  # networks in the sweep
    start_units: int = 8  # tanh units of each of them
    start_points: int = 32  # points that each of them sees
    start_steps: int = 100  # steps of each of them
    fits: int = 20  # of the same starts by `fit`, one after another
    repeats: int = 3  # of the sweep and the fits; the least time of each counts
    key: int = 0
    quick: bool = False  # the sine only, 200 steps, one rate and memory, 100 starts of 50 steps, 4 fits


SMALLER = {
    "steps": 200,
    "rates": (1e-2,),
    "memories": (10,),
    "starts": 100,
    "start_steps": 50,
    "fits": 4,
    "repeats": 2,
}  # --quick
CHUNK = {"Levenberg-Marquardt": 10, "Adam": 100, "L-BFGS": 20}  # steps between two readings of the clock


@dataclass(frozen=True)
class Problem:
    """A network with its start and its examples, and the error of its predictions in its own unit."""

    net: jm.MLP
    params: Params
    data: training.Data
    error: Callable[[Params], float]


@dataclass(frozen=True)
class Descent:
    """One run: the seconds at each reading of the clock, and the least loss so far."""

    setting: str
    steps: int
    seconds: np.ndarray
    losses: np.ndarray
    params: Params  # the best on the dev examples; without any, the last


def run(settings: Settings, out: Output) -> dict[str, float]:
    settings = replace(settings, **SMALLER) if settings.quick else settings
    counts = {name: value for name, value in vars(settings).items() if isinstance(value, int) and name != "key"}
    counts.pop("quick")
    if min(counts.values()) < 1 or not settings.rates or not settings.memories:
        raise ValueError(f"settings are {settings}, expected at least 1 of each, a rate and a memory")
    with jax.enable_x64(True):
        problems = {"sine": _sine(settings)} | ({} if settings.quick else {"house prices": _houses(settings)})
        runs = {name: _compete(problem, settings) for name, problem in problems.items()}
        shown = _report(problems, runs, out)
        x = np.linspace(-1, 1, 501)
        sine = problems["sine"].net
        fits = {
            name: np.asarray(jm.predict(sine, made.params, x[:, None])[:, 0]) for name, made in runs["sine"].items()
        }
        shown |= _fit_many(settings, out)
    out.picture("losses", _draw_losses(runs))
    out.picture("fits", _draw_fits(settings, x, fits))
    out.close()
    return shown


def curve(x: np.ndarray) -> np.ndarray:
    """A sine whose height falls."""
    return np.exp(-x / 2) * np.sin(2 * np.pi * x)


def _sine(settings: Settings) -> Problem:
    x = np.linspace(-1, 1, settings.points)[:, None]
    net = jm.MLP((1, settings.hidden, 1), "tanh")
    params = jm.init(net, jax.random.key(settings.key), weights="lecun")
    between = (x[1:] + x[:-1]) / 2
    error = lambda params: float(np.abs(np.asarray(jm.predict(net, params, between)) - curve(between)).max())
    return Problem(net, params, training.Data(jnp.asarray(x), jnp.asarray(curve(x))), error)


def _houses(settings: Settings) -> Problem:
    """The houses of the first split of `housing`: 327 to learn from, 109 for the choice of a step, 110 to test."""
    X, Y = (array.astype(np.float64) for array in housing.load())
    train, dev, test = split(jax.random.key(0), len(X))
    of_x, of_y = standardize(X[train]), standardize(Y[train])
    Z, T = of_x(X), of_y(Y)[:, None]
    net = jm.MLP((X.shape[1], settings.house_hidden, 1), "tanh")
    params = jm.init(net, jax.random.key(settings.key), weights="lecun")
    data = training.Data(Z[train], T[train], None, Z[dev], T[dev])
    dollars = lambda params: np.asarray(of_y.inverse(jm.predict(net, params, Z[test])[:, 0]))
    return Problem(net, params, data, lambda params: float(np.sqrt(np.mean((dollars(params) - Y[test]) ** 2))))


def _compete(problem: Problem, settings: Settings) -> dict[str, Descent]:
    """The best run of each optimizer; all have the seconds of Levenberg-Marquardt."""
    make = functools.partial(jm.gauss_newton, problem.net)
    first = _descend(problem, "Levenberg-Marquardt", make, {"damping": settings.damping}, settings.steps, np.inf)
    until = first.seconds[-1]
    adam = [_descend(problem, "Adam", optax.adam, {"learning_rate": rate}, None, until) for rate in settings.rates]
    lbfgs = [_descend(problem, "L-BFGS", functools.partial(optax.lbfgs, memory_size=memory), {}, None, until)
             for memory in settings.memories]  # fmt: skip
    least = lambda runs: min(runs, key=lambda made: made.losses[-1])
    return {"Levenberg-Marquardt": first, "Adam": least(adam), "L-BFGS": least(lbfgs)}


def _descend(
    problem: Problem, name: str, make: Callable, hyper: dict[str, float], steps: int | None, until: float
) -> Descent:
    """Full-batch steps, until they or the seconds are over. The programs are compiled and warm before the first one."""
    chunk = CHUNK[name]
    plan = training.Plan(problem.net, make, batch_size=len(problem.data.X), steps=1)
    state = training.start(plan, problem.params, problem.data, jax.random.key(0), hyper=hyper)
    state = jax.tree.map(_make_strong, state)  # as a step returns it: one program for all calls
    jax.block_until_ready(_advance(plan, chunk, state, problem.data))
    clock, done, seconds, losses = 0.0, 0, [], []
    while clock < until and (steps is None or done < steps):
        began = time.perf_counter()
        state, columns = jax.block_until_ready(_advance(plan, chunk, state, problem.data))
        clock, done = clock + time.perf_counter() - began, done + chunk
        seconds.append(clock)
        losses.append(float(columns["cost"].min()))
    setting = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in (hyper | getattr(make, "keywords", {})).items())
    least = np.minimum.accumulate(np.nan_to_num(losses, nan=np.inf))
    return Descent(setting, done, np.asarray(seconds), least, state.params if state.best is None else state.best.params)


def _make_strong(array: Any) -> Any:
    """The array with a dtype of its own, not that of a Python number."""
    if jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key):
        return array
    return jax.lax.convert_element_type(array, jnp.result_type(array))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _advance(plan: training.Plan, steps: int, state: training.TrainState, data: training.Data):
    return jax.lax.scan(lambda state, _: training.epoch(plan, state, data), state, length=steps)


def _report(problems: dict[str, Problem], runs: dict[str, dict[str, Descent]], out: Output) -> dict[str, float]:
    shown = {}
    units = {"sine": ("largest error between the points", ".1e"), "house prices": ("test error (dollars)", ",.0f")}
    for name, problem in problems.items():
        each, (unit, form) = runs[name], units[name]
        best, errors = each["Levenberg-Marquardt"].losses[-1], {k: problem.error(run.params) for k, run in each.items()}
        sizes = "-".join(map(str, problem.net.sizes))
        out.table(f"{name}: {sizes} tanh, {len(problem.data.X)} examples; the least loss of equal seconds", [
            {"optimizer": k, "setting": run.setting, "steps": f"{run.steps:,}", "seconds": f"{run.seconds[-1]:.2f}",
             "microseconds a step": f"{1e6 * run.seconds[-1] / run.steps:.0f}", "loss": f"{run.losses[-1]:.2e}",
             "over Levenberg-Marquardt's": f"{run.losses[-1] / best:.2g}", unit: format(errors[k], form)}
            for k, run in each.items()
        ])  # fmt: skip
        for k, run in each.items():
            out.numbers(f"{name} {k}".replace(" ", "_"), {"seconds": run.seconds, "loss": run.losses})
            shown |= {f"{name}, {k}": run.losses[-1], f"{name}, {k}, ratio": run.losses[-1] / best,
                      f"{name}, {k}, error": errors[k]}  # fmt: skip
    return shown


def _fit_many(settings: Settings, out: Output) -> dict[str, float]:
    """Many starts in one sweep, and some of them by `fit`, one after another; they take turns."""
    x = np.linspace(-1, 1, settings.start_points)[:, None]
    net, data = jm.MLP((1, settings.start_units, 1), "tanh"), (x, curve(x))
    keys = jax.random.split(jax.random.key(settings.key), settings.starts)
    shared: Any = {"optimizer": functools.partial(jm.gauss_newton, net), "hyper": {"damping": settings.damping},
                   "epochs": settings.start_steps, "batch_size": len(x), "progress": False}  # fmt: skip
    sweep = lambda: jm.sweep(net, data, keys=keys, initial="lecun", **shared)
    fit = lambda i: jm.fit(net, jm.init(net, keys[i], weights="lecun"), data, key=keys[0], **shared)
    (cold, _), (cold_fit, _) = _time(sweep), _time(lambda: fit(0))
    turns = [(_time(sweep), _time(lambda: [fit(i).history["cost"][-1] for i in range(settings.fits)]))
             for _ in range(settings.repeats)]  # fmt: skip
    swept, alone = (np.min([turn[i][0] for turn in turns], axis=0) for i in (0, 1))
    after = alone * settings.starts / settings.fits
    name, steps = (
        f"{settings.starts:,} starts of {'-'.join(map(str, net.sizes))}",
        settings.starts * settings.start_steps,
    )
    how = f"{len(x)} points, {settings.start_steps} steps each; {settings.fits} fits are timed"
    out.table(f"{name} on {how}", [
        {"seconds": unit, "one sweep": f"{swept[i]:.2f}", "fit after fit": f"{after[i]:.2f}",
         "times": f"{after[i] / swept[i]:.1f}",
         "microseconds a step and network": f"{1e6 * swept[i] / steps:.1f} and {1e6 * after[i] / steps:.1f}"}
        for i, unit in enumerate(("by the clock", "of the processor"))
    ])  # fmt: skip
    losses = turns[0][0][1].history["cost"][-1]
    quartiles = np.quantile(losses, [0, 0.25, 0.5, 0.75, 1])
    out.say(f"with compilation {cold[0]:.1f} and {cold_fit[0] + after[0]:.1f} seconds; final losses, from the least by "
            f"quarters to the largest: {', '.join(f'{q:.1e}' for q in quartiles)}")  # fmt: skip
    out.numbers("starts", {"loss": losses})
    out.picture("starts", _draw_starts(losses, name, settings))
    apart = np.abs(np.log10(losses[: settings.fits] / np.asarray(turns[0][1][1])))
    return {"faster": after[0] / swept[0], "faster, processor": after[1] / swept[1], "apart": float(np.median(apart)),
            "median loss": float(quartiles[2]), "least loss": float(quartiles[0])}  # fmt: skip


def _time(run: Callable[[], Any]) -> tuple[np.ndarray, Any]:
    """The seconds by the clock and of the processor, and what the run gives."""
    began = np.asarray([time.perf_counter(), time.process_time()])
    made = jax.block_until_ready(run())
    return np.asarray([time.perf_counter(), time.process_time()]) - began, made


COLORS = {"Levenberg-Marquardt": plotting.BLUE, "Adam": plotting.RED, "L-BFGS": plotting.GREEN}


def _draw_losses(runs: dict[str, dict[str, Descent]]):
    figure, axes = plotting.figure(1, len(runs), size=(5, 3.6), squeeze=False)
    for ax, (name, each) in zip(axes[0], runs.items(), strict=True):
        for optimizer, made in each.items():
            ax.plot(made.seconds, made.losses, color=COLORS[optimizer], label=f"{optimizer}, {made.setting}")
        ax.set(xlabel="seconds", ylabel="least loss so far (half a squared error)", title=name)
        plotting.set_log_scale(ax, np.concatenate([made.losses for made in each.values()]))
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    return figure


def _draw_fits(settings: Settings, x: np.ndarray, fits: dict[str, np.ndarray]):
    """The curve with its fits, and how far each is from it."""
    figure, (whole, apart) = plotting.figure(1, 2, size=(5, 3.6))
    points = np.linspace(-1, 1, settings.points)
    whole.plot(points, curve(points), ".", color="gray", markersize=5, label="points")
    styles = {"Levenberg-Marquardt": "-", "Adam": "--", "L-BFGS": ":"}
    for name, y_hat in fits.items():
        whole.plot(x, y_hat, styles[name], color=COLORS[name], label=name)
        apart.plot(x, np.abs(y_hat - curve(x)), color=COLORS[name], linewidth=1, label=name)
    whole.set(xlabel="$x$", ylabel="$y$", ylim=(-1.4, 2.2))
    apart.set(xlabel="$x$", ylabel="|fit - curve|", yscale="log")
    whole.legend(fontsize="small", ncols=2, loc="upper right")
    for ax in (whole, apart):
        ax.grid(alpha=0.3)
    return figure


def _draw_starts(losses: np.ndarray, name: str, settings: Settings):
    figure, ax = plotting.figure(size=(5.4, 3.6))
    edges = np.geomspace(losses.min(), losses.max(), 41)
    ax.hist(losses, edges, color=plotting.SKY, edgecolor="black", linewidth=0.4)
    ax.axvline(np.median(losses), color=plotting.RED, label=f"median {np.median(losses):.1e}")
    ax.set(xscale="log", xlabel=f"loss after {settings.start_steps} steps", ylabel="starts",
           title=name)  # fmt: skip
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    return figure
