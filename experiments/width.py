"""Learning rates and width: under mu-P the best rate of a narrow network is that of a wide one.

Tanh networks with three hidden layers learn digits. First a check of coordinates: how far does each layer's
pre-activation z move in the first four steps? Its slope is that of the logarithm of the root mean square of `z - z_0`
against the logarithm of the width. Under the maximal-update parametrization (mu-P, `jm.mup`), by Adam and by SGD,
expect slopes within 0.1 of 0 for each layer and step. Under the standard parametrization expect wide networks to move
too far: the outputs with a slope of about 0.9 by Adam and 0.5 by SGD. Under the NTK scaling, by SGD, expect outputs
that move alike and hidden layers that stay, with a slope of about -0.45: wide networks learn no features.

Then a sweep of rates for each width by Adam. The best rate is the one with the least training cost in the last epoch.
From width 64 to 2048 expect it to move by at most a factor of 2 under mu-P, and wider networks to learn better. Under
the standard parametrization expect it to fall by a factor of 8 or more; the best rate of the narrowest network fails
the widest. The two are one at the base width, the narrowest.

With ReLU units and He's weights the slope of the outputs is about -0.15 under mu-P: the first function of a narrow
network is larger, and so are its first errors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments import datasets
from experiments.output import Output
from jaxmlp import plotting
from jaxmlp.network import Params


@dataclass(frozen=True)
class Settings:
    data: str = "mnist"  # mnist, fashion_mnist, or a folder with the four IDX files
    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)  # of the hidden layers; the first is the base width
    depth: int = 3  # hidden layers
    activation: str = "tanh"  # of the hidden layers
    weights: str = "lecun"  # initializer of the weights
    batch_size: int = 32
    moved: int = 4  # steps after which the movement of pre-activations is measured
    starts: int = 3  # random starts of that check; the table has their mean
    adam_rate: float = 2.0**-9  # of that check
    sgd_rate: float = 0.1  # of that check
    examples: int = 1600  # of the sweeps
    epochs: int = 4  # of the sweeps; the cost of the last one judges a rate
    rates: tuple[int, int] = (-14, -6)  # exponents of 2 of the lowest and the highest rate of the sweeps
    keys: int = 2  # runs of each rate, each from a random start of its own; the best has the least mean cost
    one_key_from: int = 1024  # width from which one run must do
    quick: bool = False  # widths 32 and 256, two hidden layers, one start, 640 examples, 2 epochs, rates 2^-10 to 2^-5


SMALLER: dict[str, Any] = {
    "widths": (32, 256), "depth": 2, "starts": 1, "examples": 640, "epochs": 2, "rates": (-10, -5), "keys": 1,
}  # fmt: skip
CHECKED = (("Adam", "standard"), ("Adam", "mu-P"), ("SGD", "standard"), ("SGD", "NTK"), ("SGD", "mu-P"))
Case = tuple[str, str]
SWEPT = ("standard", "mu-P")
WEIGHTS_AT_ONCE = 2**24  # of the members that train together


def run(settings: Settings, out: Output) -> dict[str, float]:
    settings = replace(settings, **SMALLER) if settings.quick else settings
    numbers = {name: value for name, value in vars(settings).items() if type(value) is int}  # not bool
    if min(numbers.values()) < 1 or len(settings.widths) < 2 or settings.rates[0] >= settings.rates[1]:
        raise ValueError(f"settings are {settings}, expected at least 1 of each, two widths and two rates")
    pictures = datasets.load(settings.data)
    datasets.check_amount("examples", settings.examples, len(pictures.X))
    X = jnp.asarray(pictures.X.reshape(len(pictures.X), -1), jnp.float32) / 255
    Y = jnp.asarray(pictures.Y)
    nets = [_network(settings, X.shape[1], width, len(pictures.classes)) for width in settings.widths]
    moves = {case: _measure_moves(nets, *case, X, Y, settings) for case in CHECKED}
    slopes = {case: _find_slopes(settings.widths, moved) for case, moved in moves.items()}
    _report_moves(moves, slopes, settings, out)
    costs = {"standard": _sweep_rates(nets, "standard", X, Y, settings)}
    wider = _sweep_rates(nets[1:], "mu-P", X, Y, settings)
    costs["mu-P"] = np.concatenate([costs["standard"][:1], wider])  # at the base width the two are one
    best = {scaling: np.argmin(of_scaling, axis=1) for scaling, of_scaling in costs.items()}
    _report_rates(costs, best, settings, out)
    out.picture("moves", _draw_moves(moves, settings))
    out.picture("rates", _draw_rates(costs, best, settings))
    out.close()
    shown = {f"{' '.join(case)}, slope": float(np.abs(of_case).max()) for case, of_case in slopes.items()}
    for scaling, (first, *_, last) in best.items():
        shown[f"{scaling}, moved"] = float(2.0 ** np.ptp(best[scaling]))
        shown[f"{scaling}, excess"] = float(costs[scaling][-1, first] / costs[scaling][-1, last])
    return shown


def _network(settings: Settings, pixels: int, width: int, classes: int) -> jm.MLP:
    hidden = (width,) * settings.depth
    return jm.MLP((pixels, *hidden, classes), settings.activation, "softmax", "cross_entropy")


def _optimizer(net: jm.MLP, base: int, name: str, scaling: str) -> Callable[..., optax.GradientTransformation]:
    """A factory of Adam or SGD whose rates by layer are those of the scaling."""
    factory: Any = {"Adam": optax.adam, "SGD": optax.sgd}[name]
    if scaling == "mu-P":
        return jm.mup(net, base, factory, rates="adam" if name == "Adam" else "sgd")
    if scaling == "NTK":
        return lambda rate: optax.chain(factory(rate), optax.stateless(partial(_scale_as_ntk, net, base)))
    return factory


def _scale_as_ntk(net: jm.MLP, base: int, updates: Any, params: Any) -> Params:
    """SGD on w with `W = w / sqrt(n_in)` is SGD on W whose rate is divided by n_in, here relative to the base's."""
    widths = zip((net.sizes[0], *[base] * (net.depth - 1)), net.sizes[:-1], strict=True)
    return tuple(u._replace(W=n_base / n_in * u.W) for u, (n_base, n_in) in zip(updates, widths, strict=True))


def _initial(net: jm.MLP, scaling: str, settings: Settings) -> Any:
    return jm.mup_weights(net, settings.widths[0], settings.weights) if scaling == "mu-P" else settings.weights


@partial(jax.jit, static_argnums=0)
def _pre_activations(net: jm.MLP, params: Params, X: jax.Array) -> tuple[jax.Array, ...]:
    return jax.vmap(lambda x: jm.forward(net, params, x)[1].pre_activations)(X)


_gradient = jax.jit(jm.value_and_grad, static_argnums=0)


def _measure_moves(nets: Sequence[jm.MLP], name: str, scaling: str, X, Y, settings: Settings) -> np.ndarray:
    """`(widths, steps, layers)`: the root mean square of `z - z_0` on the first batch, mean over the starts."""
    rate = {"Adam": settings.adam_rate, "SGD": settings.sgd_rate}[name]
    keys = jax.random.split(jax.random.key(0), settings.starts)
    moved = []
    for net in nets:
        optimizer = _optimizer(net, settings.widths[0], name, scaling)(rate)
        update, initial = jax.jit(optimizer.update), _initial(net, scaling, settings)
        each = [_move(net, optimizer, update, jm.init(net, key, initial), X, Y, settings) for key in keys]
        moved.append(np.mean(each, axis=0))
    return np.asarray(moved)


def _move(net: jm.MLP, optimizer, update, params: Params, X, Y, settings: Settings) -> list[list[float]]:
    """The movement of each layer after each step; a step takes the next batch."""
    b = settings.batch_size
    start, state, moved = _pre_activations(net, params, X[:b]), optimizer.init(params), []
    for at in range(0, settings.moved * b, b):
        _, grads = _gradient(net, params, X[at : at + b], Y[at : at + b])
        updates, state = update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        pairs = zip(_pre_activations(net, params, X[:b]), start, strict=True)
        moved.append([float(jnp.sqrt(jnp.mean((z - z_0) ** 2))) for z, z_0 in pairs])
    return moved


def _find_slopes(widths: Sequence[int], moved: np.ndarray) -> np.ndarray:
    """`(steps, layers)`: the least-squares slopes of the logarithm against that of the width."""
    flat = np.log(moved).reshape(len(widths), -1)
    return np.polyfit(np.log(widths), flat, 1)[0].reshape(moved.shape[1:])


def _sweep_rates(nets: Sequence[jm.MLP], scaling: str, X, Y, settings: Settings) -> np.ndarray:
    """`(widths, rates)`: the training cost of the last epoch, mean over the keys; infinite where one diverged."""
    m, rates = settings.examples, _rates(settings)
    costs = []
    for net in nets:
        count = 1 if net.sizes[1] >= settings.one_key_from else settings.keys
        weights = sum(o * i for o, i in net.shapes)
        many = jm.sweep(
            net, (X[:m], Y[:m]), keys=jnp.repeat(jax.random.split(jax.random.key(1), count), len(rates)),
            optimizer=_optimizer(net, settings.widths[0], "Adam", scaling), initial=_initial(net, scaling, settings),
            hyper={"learning_rate": np.tile(rates, count)}, epochs=settings.epochs, batch_size=settings.batch_size,
            members_at_once=max(1, WEIGHTS_AT_ONCE // weights), progress=False,
        )  # fmt: skip
        last = np.where(many.diverged, np.inf, many.history["cost"][-1])
        costs.append(last.reshape(count, -1).mean(axis=0))
    return np.asarray(costs)


def _rates(settings: Settings) -> np.ndarray:
    lowest, highest = settings.rates
    return 2.0 ** np.arange(lowest, highest + 1)


def _layers(settings: Settings) -> list[str]:
    return [*(f"layer {l}" for l in range(1, settings.depth + 1)), "outputs"]


def _report_moves(
    moves: dict[Case, np.ndarray], slopes: dict[Case, np.ndarray], settings: Settings, out: Output
) -> None:
    first, *_, last = settings.widths
    layers = _layers(settings)
    out.table(f"slope of the movement of z by width, {first} to {last}; least and most of {settings.moved} steps", [
        {"optimizer": name, "parametrization": scaling,
         **{layer: f"{low:+.2f} to {high:+.2f}"
            for layer, low, high in zip(layers, of_case.min(0), of_case.max(0), strict=True)}}
        for (name, scaling), of_case in slopes.items()
    ])  # fmt: skip
    at = [
        (i, step, l) for i in range(len(settings.widths)) for step in range(settings.moved) for l in range(len(layers))
    ]
    columns = {"width": [settings.widths[i] for i, _, _ in at], "step": [step + 1 for _, step, _ in at],
               "layer": [layers[l] for *_, l in at]}  # fmt: skip
    out.numbers("moves", columns | {" ".join(case): moved.ravel() for case, moved in moves.items()})


def _report_rates(costs: dict[str, np.ndarray], best: dict[str, np.ndarray], settings: Settings, out: Output) -> None:
    rates, steps = _rates(settings), settings.epochs * -(-settings.examples // settings.batch_size)
    rows = []
    for i, width in enumerate(settings.widths):
        row = {"width": f"{width:,}"}
        for scaling in SWEPT:
            of_width, at = costs[scaling][i], best[scaling]
            row[f"{scaling}: best rate"] = f"2^{settings.rates[0] + at[i]}"
            row[f"{scaling}: cost"] = f"{of_width[at[i]]:.3f}"
            row[f"{scaling}: with the base's rate"] = f"{of_width[at[0]]:.3f}"
        rows.append(row)
    out.table(f"Adam, {steps} steps: the best of {len(rates)} rates, and its training cost in the last epoch", rows)
    for scaling, at in best.items():
        if {0, len(rates) - 1} & set(at):
            out.say(f"{scaling}: a best rate is at an end of the rates, so that a better one may lie beyond")
        out.numbers(
            f"costs_{scaling}", {"rate": rates, **dict(zip(map(str, settings.widths), costs[scaling], strict=True))}
        )


def _draw_moves(moves: dict[Case, np.ndarray], settings: Settings):
    figure, axes = plotting.figure(1, len(moves), size=(2.9, 3.4), sharey=True)
    layers = _layers(settings)
    for ax, ((name, scaling), moved) in zip(axes, moves.items(), strict=True):
        for l, (layer, color) in enumerate(zip(layers, plotting.PALETTE * 2, strict=False)):
            ax.loglog(settings.widths, moved[:, -1, l], "o-", color=color, markersize=3.5, label=layer)
            ax.loglog(settings.widths, moved[:, 0, l], "o:", color=color, markersize=2.5, linewidth=1)
        ax.set(xlabel="width of the hidden layers (units)", title=f"{name}, {scaling}")
        ax.set_xticks(settings.widths, [str(width) for width in settings.widths], fontsize="x-small")
        ax.set_xticks([], minor=True)
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("movement of z (root mean square)")
    plotting.set_log_ticks(axes[0].yaxis)
    handles, title = axes[0].get_legend_handles_labels(), f"step {settings.moved}\n(dotted: step 1)"
    figure.legend(*handles, loc="outside right", fontsize="small", title=title)  # pyright: ignore
    return figure


def _draw_rates(costs: dict[str, np.ndarray], best: dict[str, np.ndarray], settings: Settings):
    from matplotlib import colormaps

    figure, axes = plotting.figure(1, len(costs), size=(4.6, 3.8), sharey=True)
    rates = _rates(settings)
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(settings.widths)))
    for ax, (scaling, of_scaling) in zip(axes, costs.items(), strict=True):
        for width, of_width, at, color in zip(settings.widths, of_scaling, best[scaling], shades, strict=True):
            ax.loglog(rates, of_width, "-", color=color, label=f"{width:,}", base=2)
            ax.plot(rates[at], of_width[at], "o", color=color)
        ax.set(xlabel="learning rate of the base network" if scaling == "mu-P" else "learning rate", title=scaling,
               yscale="log")  # fmt: skip
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("training cost in the last epoch (mean loss)")
    plotting.set_log_ticks(axes[0].yaxis)
    axes[-1].legend(title="width", fontsize="small", title_fontsize="small")
    return figure
