"""A deep autoencoder of digits, trained by K-FAC, Nesterov momentum and Adam: error against steps and seconds.

The network is that of Hinton and Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks":
784-1000-500-250-30-250-500-1000-784, here with tanh units, a linear code, and a sigmoid output with binary
cross-entropy. It starts from random weights, without pretraining; the problem became a test of optimizers with Martens
2010, "Deep learning via Hessian-free optimization". The reconstruction error is that of both papers, the mean over the
digits of the squared error `||x - y_hat||^2`, a sum over the pixels; here over the first 10,000 training digits.

A search on 10,000 digits chooses the rates of Nesterov momentum and of Adam. K-FAC has no rate: the quadratic model of
the batch gives rate and momentum of each step; its errors are those of an average of the weights. Then the three train
side by side and take turns, an epoch of Nesterov momentum, one of Adam and 20 steps of K-FAC, so that a busy machine is
equally slow for all. Compilation and the measurement of errors are not counted. The one to beat is the better of
Nesterov and Adam after 20 epochs. Expect K-FAC to reach its error in a tenth of its steps, and in half the seconds: a
step costs about 12 times one of Adam, as it sees 4 times the digits and the model takes two tangents through the
network.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments import datasets
from experiments.output import Output
from jaxmlp import plotting, training
from jaxmlp.network import Params


@dataclass(frozen=True)
class Settings:
    data: str = "mnist"  # mnist, fashion_mnist, or a folder with the four IDX files
    encoder: tuple[int, ...] = (1000, 500, 250)  # widths up to the code; the decoder has them in reverse
    code: int = 30  # units of the code
    activation: str = "tanh"  # of the hidden layers but the code, which is linear
    weights: str = "lecun"  # initializer of the weights
    examples: int = 60_000  # digits to train on
    epochs: int = 20  # of Nesterov momentum and Adam
    kfac_steps: int = 10  # of K-FAC for each half of these epochs
    batch_size: int = 250  # of Nesterov momentum and Adam
    kfac_batch_size: int = 1000
    damping: float = 0.1  # of K-FAC's first step
    decay: float = 0.85  # of the averages of K-FAC's factors, in one step
    average: float = 0.9  # decay of the average of K-FAC's weights, in one step
    factors_every: int = 5  # steps between two updates of the factors
    inverses_every: int = 10  # steps between two inversions
    adapt_every: int = 5  # steps between two adaptations of the damping
    subsample: int = 1  # factors and quadratic model take one in so many digits of a batch
    search_examples: int = 10_000  # digits of the search; a fifth of them judges
    search_epochs: int = 8  # epochs of each setting; a rate for long runs may begin slowly, so none ends earlier
    keys: int = 3  # runs, each from a random key of its own
    quick: bool = False  # one key, 784-16-784, 2,000 digits, 6 epochs, a search of 2 rates of Adam


SMALLER: dict[str, Any] = {
    "encoder": (), "code": 16, "examples": 2000, "epochs": 6, "kfac_steps": 3, "batch_size": 50,
    "kfac_batch_size": 200, "search_examples": 1000, "search_epochs": 2, "keys": 1,
}  # fmt: skip
MEASURED = 10_000  # training digits whose reconstruction error is shown
COLORS = {"K-FAC": plotting.BLUE, "Nesterov": plotting.GREEN, "Adam": plotting.RED}


@dataclass(frozen=True)
class Contestant:
    """An optimizer's factory, the settings that the search chooses from, and how it trains."""

    make: Callable[..., optax.GradientTransformation]
    space: dict[str, list[float]]
    batch_size: int
    steps: int | None = None  # in half a turn, on batches drawn anew; None: those of an epoch, which is the whole turn
    average: float | None = None  # decay of the average of the weights


@dataclass
class Run:
    """One training: its state, and after each turn the steps, the seconds and the reconstruction error."""

    plan: training.Plan
    state: training.TrainState
    advance: Callable[..., Any]  # the compiled epoch
    steps: list[int] = field(default_factory=lambda: [0])
    seconds: list[float] = field(default_factory=lambda: [0.0])
    errors: list[float] = field(default_factory=list)


def run(settings: Settings, out: Output) -> dict[str, float]:
    settings = replace(settings, **SMALLER) if settings.quick else settings
    numbers = {name: value for name, value in vars(settings).items() if type(value) is int}  # not bool
    if min(numbers.values()) < 1:
        raise ValueError(f"settings are {settings}, expected at least 1 of each")
    pictures = datasets.load(settings.data)
    flat = lambda X: jnp.asarray(X.reshape(len(X), -1), jnp.float32) / 255
    X, X_test = flat(pictures.X[: settings.examples]), flat(pictures.X_test)
    net = network(settings, X.shape[1])
    out.say(f"{net}\n{len(X):,} digits")
    contestants = _contestants(net, settings)
    chosen = {name: _search(net, contestant, X, settings, name, out) for name, contestant in contestants.items()}
    rounds = []
    for key in range(settings.keys):
        runs = {name: _begin(net, made, chosen[name], X, key, settings) for name, made in contestants.items()}
        _train(runs, settings.epochs, X, out, key)
        rounds.append(runs)
        for name, made in runs.items():
            columns = {"step": made.steps, "seconds": made.seconds, "error": made.errors}
            out.numbers(f"{name}_{key}", columns)
    shown = _report(rounds, X_test, out)
    out.picture("curves", _draw_curves(rounds))
    out.picture("digits", _draw_digits(rounds[0], X_test, pictures))
    out.close()
    return shown


def network(settings: Settings, pixels: int) -> jm.MLP:
    """The encoder and the decoder as one network."""
    there, back = settings.encoder, settings.encoder[::-1]
    hidden = (*[settings.activation] * len(there), "identity", *[settings.activation] * len(back))
    return jm.MLP((pixels, *there, settings.code, *back, pixels), hidden, "sigmoid", "binary_cross_entropy")


def _contestants(net: jm.MLP, settings: Settings) -> dict[str, Contestant]:
    kfac = functools.partial(
        jm.kfac, net, damping=settings.damping, adapt_every=settings.adapt_every, decay=settings.decay,
        factors_every=settings.factors_every, inverses_every=settings.inverses_every, subsample=settings.subsample,
    )  # fmt: skip
    nesterov = functools.partial(optax.sgd, nesterov=True)
    rates = [3e-4, 1e-3, 3e-3]
    made = {
        "K-FAC": Contestant(kfac, {}, settings.kfac_batch_size, settings.kfac_steps, settings.average),
        "Nesterov": Contestant(nesterov, {"learning_rate": rates, "momentum": [0.9, 0.99]}, settings.batch_size),
        "Adam": Contestant(optax.adam, {"learning_rate": rates}, settings.batch_size),
    }
    if settings.quick:
        made["Adam"].space["learning_rate"] = rates[1:]
        made["Nesterov"].space.update(learning_rate=[3e-3], momentum=[0.9])
    return made


def _search(
    net: jm.MLP, contestant: Contestant, X: jax.Array, settings: Settings, name: str, out: Output
) -> dict[str, float]:
    """The settings with the least cost on digits that the search holds out."""
    trials = int(np.prod([len(values) for values in contestant.space.values()]))
    if trials == 1:
        return {k: values[0] for k, values in contestant.space.items()}
    began = time.perf_counter()
    m = min(settings.search_examples, len(X))
    train, dev = X[: m - m // 5], X[m - m // 5 : m]
    found = jm.search(
        contestant.space, net, (train, train), key=jax.random.key(0), optimizer=contestant.make, validation=(dev, dev),
        budget=trials * settings.search_epochs, batch_size=contestant.batch_size, initial=settings.weights,
        progress=False,
    )  # fmt: skip
    out.table(f"{name}: {trials} settings on {len(train):,} digits, {time.perf_counter() - began:.0f} seconds", [
        {"setting": ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in found.trials[i].items()),
         "epochs": str(found.epochs[i]), "cost on others": f"{found.scores[i]:.2f}"}
        for i in found.order()
    ])  # fmt: skip
    return found.settings


def _begin(
    net: jm.MLP, contestant: Contestant, hyper: dict[str, float], X: jax.Array, key: int, settings: Settings
) -> Run:
    """A training before its first step, with its epoch compiled."""
    size = contestant.batch_size
    if contestant.steps is None:
        plan = training.Plan(net, contestant.make, size, -(-len(X) // size))
    else:
        plan = training.Plan(net, contestant.make, size, contestant.steps, sampling="replacement")
    params = jm.init(net, jax.random.key(key), weights=settings.weights)
    traced = {name: jnp.asarray(value, jnp.float32) for name, value in hyper.items()}
    data = training.Data(X, X)
    state = training.start(plan, params, data, jax.random.key(key), hyper=traced, average=contestant.average)
    made = _compile(plan, state, data)
    return Run(plan, state, made, errors=[_error(net, params, X[:MEASURED])])


_COMPILED: dict[training.Plan, Callable[..., Any]] = {}


def _compile(plan: training.Plan, state: training.TrainState, data: training.Data) -> Callable[..., Any]:
    """The epoch as one program; every key shares it."""
    if plan not in _COMPILED:
        epoch = jax.jit(training.epoch, static_argnums=0, donate_argnums=1)
        _COMPILED[plan] = epoch.lower(plan, state, data).compile()
    return _COMPILED[plan]


def _train(runs: dict[str, Run], epochs: int, X: jax.Array, out: Output, key: int) -> None:
    """All take turns."""
    data = training.Data(X, X)
    for epoch in range(1, epochs + 1):
        for name, made in runs.items():
            for _ in range(1 if made.plan.sampling == "shuffle" else 2):
                began = time.perf_counter()
                made.state, _ = jax.block_until_ready(made.advance(made.state, data))
                made.seconds.append(made.seconds[-1] + time.perf_counter() - began)
                made.steps.append(made.steps[-1] + made.plan.steps)
                made.errors.append(_error(made.plan.net, made.state.evaluated, X[:MEASURED]))
            if bool(made.state.diverged):
                raise ValueError(f"{name} diverged in epoch {epoch}, expected lower rates in its space")
        last = ", ".join(f"{name} {made.errors[-1]:.3f} ({made.seconds[-1]:.0f} s)" for name, made in runs.items())
        out.say(f"key {key}, epoch {epoch}: {last}")


@functools.partial(jax.jit, static_argnums=0)
def _squares(net: jm.MLP, params: Params, X: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sum((jm.predict(net, params, X) - X) ** 2, axis=1))


def _error(net: jm.MLP, params: Params, X: jax.Array) -> float:
    """The reconstruction error."""
    return float(_squares(net, params, X))


def _report(rounds: list[dict[str, Run]], X_test: jax.Array, out: Output) -> dict[str, float]:
    mean = lambda values: float(np.mean(values))
    final = {name: mean([runs[name].errors[-1] for runs in rounds]) for name in rounds[0]}
    rival = min(("Nesterov", "Adam"), key=lambda name: final[name])
    rows, shown = [], {"rival": float(rival == "Adam")}
    of = lambda name, what: [getattr(runs[name], what)[-1] for runs in rounds]
    for name in rounds[0]:
        test = mean([_error(runs[name].plan.net, runs[name].state.evaluated, X_test) for runs in rounds])
        per_step = 1000 * mean(of(name, "seconds")) / rounds[0][name].steps[-1]
        rows.append({"optimizer": name, "batch": str(rounds[0][name].plan.batch_size),
                     "steps": f"{rounds[0][name].steps[-1]:,}", "seconds": f"{mean(of(name, 'seconds')):.1f}",
                     "milliseconds a step": f"{per_step:.0f}", "training error": f"{final[name]:.3f}",
                     "test error": f"{test:.3f}"})  # fmt: skip
        shown |= {f"{name}, error": final[name], f"{name}, first": rounds[0][name].errors[0]}
    out.table(f"reconstruction errors at the end, mean of {len(rounds)} keys", rows)
    reached = [_reach(runs["K-FAC"], runs[rival].errors[-1]) for runs in rounds]
    steps, seconds = (mean([at[i] for at in reached]) for i in (0, 1))
    shown |= {"steps": steps / mean(of(rival, "steps")), "seconds": seconds / mean(of(rival, "seconds"))}
    if np.isfinite(steps):
        out.say(f"K-FAC reaches the last error of {rival} after {steps:,.0f} steps, {shown['steps']:.3f} of {rival}'s, "
                f"and {seconds:.1f} seconds, {shown['seconds']:.2f} of {rival}'s")  # fmt: skip
    else:
        out.say(f"K-FAC does not reach the last error of {rival}")
    return shown


def _reach(made: Run, error: float) -> tuple[float, float]:
    """The steps and the seconds after the first turn whose error is at most that; infinite without any."""
    below = np.flatnonzero(np.asarray(made.errors) <= error)
    return (made.steps[below[0]], made.seconds[below[0]]) if len(below) else (np.inf, np.inf)


def _draw_curves(rounds: list[dict[str, Run]]):
    figure, axes = plotting.figure(1, 2, size=(5, 3.8), sharey=True)
    for ax, what in zip(axes, ("steps", "seconds"), strict=True):
        for number, runs in enumerate(rounds):
            for name, made in runs.items():
                label = f"{name}, batch {made.plan.batch_size}" if number == 0 else None
                ax.plot(getattr(made, what)[1:], made.errors[1:], ".-", color=COLORS[name], label=label, markersize=4,
                        linewidth=1)  # fmt: skip
        ax.set(xlabel=what, xscale="log")
        ax.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("training reconstruction error")
    plotting.set_log_scale(axes[0], np.concatenate([made.errors[1:] for runs in rounds for made in runs.values()]))
    for axis in (axes[0].xaxis, axes[1].xaxis, axes[0].yaxis):
        plotting.set_log_ticks(axis)
    axes[1].legend(fontsize="small")
    return figure


def _draw_digits(runs: dict[str, Run], X_test: jax.Array, pictures: datasets.Pictures):
    """A test picture of each class, above its reconstructions."""
    first = [int(np.argmax(pictures.Y_test == c)) for c in range(min(10, len(pictures.classes)))]
    X = X_test[np.asarray(first)]
    rows = {"digits": X} | {name: jm.predict(made.plan.net, made.state.evaluated, X) for name, made in runs.items()}
    figure, axes = plotting.figure(len(rows), size=(0.75 * len(first), 0.8))
    side = pictures.X.shape[1:]
    for ax, (name, shown) in zip(axes, rows.items(), strict=True):
        ax.imshow(np.hstack([x.reshape(side) for x in np.asarray(shown)]), cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
    return figure
