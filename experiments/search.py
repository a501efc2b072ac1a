"""The best of 64 settings for MNIST by successive halving, beside the default settings.

Row 25 of the notes' systems (note 002, "Hyperparameters": learning rate, iterations, layers, units, activation, chosen
on the dev set). Settings of one shape train together in one program, and after each rung the better half goes on.
Expect the winner to be at least as good as the default on the validation examples and on the test set. Expect the
learning rate to decide more than everything else, and the search to take less than 3 minutes on two cores.
"""

import time
from dataclasses import dataclass

import jax
import numpy as np
import optax

import jaxmlp as jm
from experiments import datasets
from experiments.output import Output
from jaxmlp import metrics, plotting
from jaxmlp.data import scale_pixels

DEFAULT = {"learning_rate": 0.1, "momentum": 0.0, "l2": 0.0, "hidden": (64,), "activation": "relu"}  # from note 002
SPACE = {
    "learning_rate": jm.log_uniform(1e-3, 1),
    "momentum": [0.0, 0.5, 0.9],
    "l2": jm.log_uniform(1e-6, 1e-2),
    "hidden": [(64,), (64, 64)],
    "activation": ["relu", "tanh"],
}


@dataclass(frozen=True)
class Settings:
    data: str = "mnist"  # mnist, fashion_mnist, or a folder with the four IDX files
    trials: int = 64  # random settings
    budget: int = 384  # epochs of all settings together; 64 settings have 6 rungs of 1, 2, 4, 8, 16 and 32 epochs
    batch_size: int = 128
    validation: int = 10_000  # training examples held out for the choice
    key: int = 0
    quick: bool = False  # 4 settings of one shape, 24 epochs, 2,000 examples


def network(hidden: tuple[int, ...], activation: str) -> jm.MLP:
    """A network that classifies pictures."""
    return jm.MLP((784, *hidden, 10), activation, output="softmax", loss="cross_entropy")


def run(settings: Settings, out: Output) -> dict[str, float]:
    pictures = datasets.load(settings.data)
    m = 2000 if settings.quick else len(pictures.X)
    held_out = min(settings.validation, m // 5)
    X, Y = pictures.X[: m - held_out], pictures.Y[: m - held_out]
    dev = pictures.X[m - held_out : m], pictures.Y[m - held_out : m]
    trials, budget = (4, 24) if settings.quick else (settings.trials, settings.budget)
    space = SPACE | ({"hidden": [(64,)], "activation": ["relu"]} if settings.quick else {})
    out.say(f"{trials} settings, {budget} epochs in all on {len(X):,} examples, chosen on {held_out:,} others")
    began = time.perf_counter()
    found = jm.search(
        space, network, (X, Y), key=jax.random.key(settings.key), optimizer=optax.sgd, validation=dev, trials=trials,
        budget=budget, batch_size=settings.batch_size, best_by="accuracy", preprocess=scale_pixels,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    out.table("the best 16; longer training comes first", _rows(found)[:16])
    out.numbers("trials", {name: [row[name] for row in _rows(found)] for name in _rows(found)[0]})

    retrained = found.retrain()
    epochs = int(found.epochs[found.best])
    net = network(DEFAULT["hidden"], DEFAULT["activation"])
    default = jm.fit(
        net, jm.init(net, jax.random.key(settings.key)), (X, Y), key=jax.random.key(settings.key), optimizer=optax.sgd,
        hyper={name: DEFAULT[name] for name in ("learning_rate", "momentum")}, epochs=epochs, validation=dev,
        batch_size=settings.batch_size, best_by="accuracy", preprocess=scale_pixels,
    )  # fmt: skip
    best = network(found.settings["hidden"], found.settings["activation"])
    report = jm.check_gradients(best, retrained.params, X[:32], Y[:32], preprocess=scale_pixels, entries=20)
    rows, shown = [], {"seconds": seconds, "passed": float(report.passed)}
    for name, one, result in (("winner, as searched", best, found.result), ("winner, from scratch", best, retrained),
                              ("default", net, default)):  # fmt: skip
        Y_hat = jm.predict(one, result.params, pictures.X_test, preprocess=scale_pixels)
        scores = result.history["validation_accuracy"].max(), float(metrics.accuracy(Y_hat, pictures.Y_test))
        shown |= {f"{name}, dev": float(scores[0]), f"{name}, test": scores[1]}
        rows.append({"network": name, "epochs": epochs, "validation": f"{scores[0]:.2%}", "test": f"{scores[1]:.2%}"})
    out.table(f"the search took {seconds:.0f} seconds; all three networks have the same epochs", rows)
    out.say(f"the winner's gradient against autodiff and central differences: {'passed' if report.passed else 'WRONG'}")
    out.picture("scores", _picture(found))
    out.close()
    return shown


def _rows(found: jm.SearchResult) -> list[dict[str, str]]:
    return [{"trial": str(i), "learning rate": f"{s['learning_rate']:.4f}", "momentum": f"{s['momentum']:g}",
             "l2": f"{s['l2']:.1e}", "hidden": "-".join(map(str, s["hidden"])), "activation": s["activation"],
             "epochs": str(found.epochs[i]), "validation": _share(float(found.scores[i]))}
            for i, s in ((i, found.trials[i]) for i in found.order())]  # fmt: skip


def _share(score: float) -> str:
    return f"{-score:.2%}" if np.isfinite(score) else "diverged"


def _picture(found: jm.SearchResult):
    """The validation error of every trial against its settings; the color has its epochs."""
    from matplotlib import colormaps

    figure, axes = plotting.figure(1, 3, size=(4.4, 3.8), sharey=True)
    diverged = ~np.isfinite(found.scores)
    error = 100 * (1 + np.where(diverged, np.nan, found.scores))
    of = lambda name: np.asarray([s[name] for s in found.trials])
    shapes = ["-".join(map(str, s["hidden"])) + "\n" + s["activation"] for s in found.trials]
    kinds = sorted(set(shapes))
    apart = np.random.default_rng(0).uniform(-0.2, 0.2, len(shapes))
    x = {"learning rate / (1 - momentum)": of("learning_rate") / (1 - of("momentum")), "L2 strength": of("l2"),
         "hidden layers, activation": np.asarray([kinds.index(shape) for shape in shapes]) + apart}  # fmt: skip
    lengths = np.unique(found.epochs)
    for ax, (label, values) in zip(axes, x.items(), strict=True):
        for number, epochs in enumerate(lengths):
            chosen, color = found.epochs == epochs, colormaps["viridis"](number / max(1, len(lengths) - 1))
            ax.scatter(values[chosen], error[chosen], s=30, color=color, edgecolor="black", linewidth=0.4,
                       label=f"{epochs}")  # fmt: skip
        if diverged.any():  # at the upper edge
            ax.plot(values[diverged], np.ones(diverged.sum()), "x", color=plotting.RED, label="diverged", clip_on=False,
                    transform=ax.get_xaxis_transform())  # fmt: skip
        ax.set(xlabel=label)
        ax.grid(alpha=0.3)
    for ax in axes[:2]:
        ax.set_xscale("log")
        plotting.set_log_ticks(ax.xaxis)
    axes[2].set_xticks(range(len(kinds)), kinds, fontsize="small")
    axes[0].set_ylabel("validation error (%)")
    plotting.set_log_scale(axes[0], error)
    plotting.set_log_ticks(axes[0].yaxis)
    labels = axes[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside right", title="epochs\ntrained", fontsize="small")  # pyright: ignore
    return figure
