"""Each activation with its hand-written derivative; ReLU units fit kinks, tanh units fit a sine.

Row 7 of the notes' systems (notes 002, "Activation functions"; 001, "Why ReLU?": it best captures the kinks in data).
Expect every derivative to equal autodiff's. On data with kinks expect ReLU units to fit at least 10 times closer than
as many tanh units. On a sine expect tanh units to fit at least 3 times closer than ReLU units. The units with the
data's shape win.
"""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments._descent import descend
from experiments.output import Output
from jaxmlp import activations, plotting
from jaxmlp.activations import Activation, Softmax
from jaxmlp.network import Params


@dataclass(frozen=True)
class Settings:
    units: int = 32  # hidden units of the fitted networks
    starts: int = 20  # random starts, fitted at once; the table has their median
    steps: int = 4000  # full-batch steps of Adam
    learning_rate: float = 0.02  # first rate; it falls to 0 along a cosine
    key: int = 0
    quick: bool = False  # 8 starts, 2,000 steps


KINKS = np.asarray([(-1, 0), (-0.6, 1), (-0.2, -0.5), (0.1, 0.8), (0.5, -0.2), (1, 0.6)])
X = np.linspace(-1, 1, 200, dtype=np.float32)[:, None]
NAMES = [name if name != "softmax" else "softmax, 1st of 3" for name in activations.NAMED]
TARGETS = {"kinks": np.interp(X, *KINKS.T).astype(np.float32), "sine": np.sin(2 * np.pi * X)}


def run(settings: Settings, out: Output) -> dict[str, float]:
    if min(settings.units, settings.starts, settings.steps) < 1:
        raise ValueError(f"units, starts and steps are {settings.units}, {settings.starts}, {settings.steps}; "
                         "expected at least 1 of each")  # fmt: skip
    with jax.enable_x64(True):
        z = np.linspace(-6, 6, 1200)  # an even number leaves out 0, where some have a kink
        curves = dict(zip(NAMES, jax.tree.map(np.asarray, _curves(z)), strict=True))
    out.table("ranges of f and f' over z from -6 to 6; distance of f' by hand from autodiff (float64)", _table(curves))
    out.picture("activations", _grid(z, curves))
    fits, rows, shown = {}, [], {"derivatives": max(float(np.abs(df - auto).max()) for _, df, auto in curves.values())}
    begun = _begin(settings)
    for name in ("relu", "tanh"):
        began = time.perf_counter()
        outputs = _fit(name, begun, settings)
        seconds = time.perf_counter() - began
        for (data, Y), Y_hat in zip(TARGETS.items(), outputs, strict=True):
            errors = np.sqrt(np.mean((Y_hat - Y) ** 2, axis=(1, 2)))
            fits[data, name] = Y_hat[np.argsort(errors)[len(errors) // 2]]
            shown[f"{data}, {name}"] = float(np.median(errors))
            rows.append({"units": name, "data": data, "median error": f"{np.median(errors):.2e}",
                         "10% to 90%": f"{np.percentile(errors, 10):.1e} to {np.percentile(errors, 90):.1e}",
                         "seconds, both": f"{seconds:.1f}"})  # fmt: skip
    out.table(f"1-{settings.units}-1 fitted to 200 points: root mean squared error, over the starts", rows)
    out.numbers("fits", {"x": X[:, 0], **{f"{d}, {n}": Y[:, 0] for (d, n), Y in fits.items()}})
    out.picture("kinks", _fits(fits, shown))
    out.close()
    return shown


def _component(activation: Activation) -> tuple[activations.Elementwise, activations.Elementwise]:
    """Its `f` and `f'`. Of softmax: the first output as a function of the first of three pre-activations."""
    if not isinstance(activation, Softmax):
        return activation.f, activation.df
    beside = lambda z: jnp.stack([z, jnp.zeros_like(z), jnp.zeros_like(z)])
    one = lambda of: lambda z: jax.vmap(lambda z: of(beside(z)).ravel()[0])(z)
    return one(activation.f), one(activation.df)


@jax.jit
def _curves(z):
    """`f`, `f'` by hand and `f'` by autodiff of every activation."""
    auto = lambda f: jax.vmap(jax.grad(lambda z: f(z[None])[0]))(z)
    return [(f(z), df(z), auto(f)) for f, df in map(_component, activations.NAMED.values())]


def _table(curves) -> list[dict[str, str]]:
    return [
        {"activation": name, "f": f"{f.min():+.3f} to {f.max():+.3f}", "f'": f"{df.min():+.3f} to {df.max():+.3f}",
         "f' - autodiff": f"{np.abs(df - auto).max():.1e}",
         "kinks at z": ", ".join(f"{kink:g}" for kink in activation.kinks)}
        for (name, (f, df, auto)), activation in zip(curves.items(), activations.NAMED.values(), strict=True)
    ]  # fmt: skip


def _fit(activation: str, begun: Params, settings: Settings) -> np.ndarray:
    """The outputs `(targets, starts, m, 1)` of 1-units-1 networks; Adam fits all of them at once."""
    steps = 2000 if settings.quick else settings.steps
    net = jm.MLP((1, settings.units, 1), activation)
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, steps))

    def fit(params, Y):
        params, _ = descend(net, optimizer, steps, params, jnp.asarray(X), Y)
        return jm.predict(net, params, X)

    targets = jnp.stack([jnp.asarray(Y) for Y in TARGETS.values()])
    return np.asarray(jax.jit(jax.vmap(lambda Y: jax.vmap(lambda params: fit(params, Y))(begun)))(targets))


def _begin(settings: Settings) -> Params:
    """The starts, the same for both activations; one program, since random numbers take long to compile."""
    net = jm.MLP((1, settings.units, 1))
    spread = jax.nn.initializers.normal(1.0)  # biases that spread the units' kinks and bends over the data
    keys = jax.random.split(jax.random.key(settings.key), 8 if settings.quick else settings.starts)
    return jax.jit(jax.vmap(lambda key: jm.init(net, key, weights="he", biases=spread)))(keys)


def _grid(z, curves):
    figure, axes = plotting.figure(3, 4, size=(2.8, 2.3), sharex=True)
    for (name, (f, df, _)), ax in zip(curves.items(), axes.flat, strict=True):
        for values, color, style, label in ((f, plotting.BLUE, "-", "$f(z)$"), (df, plotting.RED, "--", "$f'(z)$")):
            values = values.copy()
            values[1:][np.abs(np.diff(values)) > 0.5] = np.nan  # draws no line across a jump
            ax.plot(z, values, style, color=color, label=label)
        ax.set_title(name, fontsize="medium")
        ax.set(xlim=(-4, 4), ylim=(-1.25, 2.25))
        ax.axhline(0, color="gray", linewidth=0.6)
        ax.axvline(0, color="gray", linewidth=0.6)
        ax.grid(alpha=0.3)
    for ax in axes[-1]:
        ax.set_xlabel("pre-activation $z$")
    for ax in axes[:, 0]:
        ax.set_ylabel("$f(z)$ and $f'(z)$")
    axes[0][0].legend(fontsize="small")
    return figure


def _fits(fits, shown):
    figure, axes = plotting.figure(1, 2, size=(5.2, 3.6), sharey=True)
    for ax, (data, Y) in zip(axes, TARGETS.items(), strict=True):
        ax.plot(X, Y, ".", color="gray", markersize=3, label="data")
        for name, color, style in (("relu", plotting.BLUE, "-"), ("tanh", plotting.ORANGE, "--")):
            ax.plot(
                X, fits[data, name], style, color=color, label=f"{name}: median error {shown[f'{data}, {name}']:.1e}"
            )
        ax.set(xlabel="$x$", title=data, ylim=(-1.15, 1.85))
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small", loc="upper right")
    axes[0].set_ylabel("$y$")
    return figure
