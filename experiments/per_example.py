"""Each example's gradient norm from one backward pass finds odd digits and wrong labels.

784-64-10 trains for a few epochs on digits, and a share of their labels is wrong on purpose. Traces give the norms of
all examples' gradients. Among the right labels expect the largest norms at digits that a person finds odd too. Expect
most of the largest norms at wrong labels: a precision at k of at least 70%, where k is the number of wrong labels and
chance gives 5%.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments import datasets
from experiments.output import Output
from jaxmlp import plotting
from jaxmlp.data import scale_pixels


@dataclass(frozen=True)
class Settings:
    data: str = "mnist"  # mnist, fashion_mnist, or a folder with the four IDX files
    examples: int = 20_000  # training examples
    planted: float = 0.05  # share of the examples that get a wrong label
    epochs: int = 5  # few, before the network learns the wrong labels by heart
    learning_rate: float = 0.05
    key: int = 0
    quick: bool = False  # 6,000 examples


def plant(Y: np.ndarray, share: float, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with a share of them replaced by another class, and a mask of these."""
    rng = np.random.default_rng(seed)
    wrong = np.zeros(len(Y), bool)
    wrong[rng.permutation(len(Y))[: round(share * len(Y))]] = True
    other = (Y + rng.integers(1, classes, len(Y))) % classes
    return np.where(wrong, other, Y).astype(np.int32), wrong


def norms(net: jm.MLP, params, X: np.ndarray, Y: np.ndarray, size: int = 2000) -> np.ndarray:
    """The norm of each example's gradient, chunk by chunk."""
    read = jax.jit(lambda X, Y: jm.per_example_norms(jm.backprop(net, params, X, Y, preprocess=scale_pixels)))
    chunks = range(0, len(X), size)
    return np.concatenate([np.asarray(read(X[i : i + size], Y[i : i + size])) for i in chunks])


def run(settings: Settings, out: Output) -> dict[str, float]:
    pictures = datasets.load(settings.data)
    m, k = (min(6000, len(pictures.X)) if settings.quick else settings.examples), len(pictures.classes)
    datasets.check_amount("examples", m, len(pictures.X))
    if not 1 <= round(settings.planted * m) <= m // 2:
        raise ValueError(f"planted is {settings.planted}, expected a share of {m} examples that is at least one of "
                         "them and at most half")  # fmt: skip
    X, clean = pictures.X[:m], pictures.Y[:m]
    Y, wrong = plant(clean, settings.planted, k, settings.key)
    net = jm.MLP((X[0].size, 64, k), "relu", "softmax", "cross_entropy")
    params = jm.init(net, jax.random.key(settings.key))
    result = jm.fit(net, params, (X, Y), optimizer=optax.sgd(settings.learning_rate, momentum=0.9),
                    epochs=settings.epochs, batch_size=128, key=jax.random.key(settings.key),
                    preprocess=scale_pixels)  # fmt: skip
    found = norms(net, result.params, X, Y)
    order = np.argsort(-found)
    rows, precision = [], {}
    for at in sorted({max(1, wrong.sum() // 10), max(1, wrong.sum() // 2), wrong.sum(), 2 * wrong.sum()}):
        hits = wrong[order[:at]].sum()
        precision[int(at)] = hits / at
        rows.append({"k": str(at), "planted among the k largest": str(hits), "precision at k": f"{hits / at:.1%}",
                     "share of the planted found": f"{hits / wrong.sum():.1%}", 
                     "chance": f"{wrong.mean():.1%}"})  # fmt: skip
    out.table(f"{wrong.sum():,} wrong labels planted among {m:,}, found by gradient norm", rows)
    right = found[~wrong]
    rows = [{"class": name, "mean norm": f"{right[clean[~wrong] == c].mean():.3f}",
             "99th percentile": f"{np.percentile(right[clean[~wrong] == c], 99):.2f}"}
            for c, name in enumerate(pictures.classes)]  # fmt: skip
    out.table("gradient norms at right labels, by class", rows)
    out.numbers("norms", {"norm": found, "label": Y, "planted": wrong.astype(int)})
    hardest = [i for i in order if not wrong[i]][:40]
    Y_hat = np.asarray(jnp.argmax(jm.predict(net, result.params, X[hardest], preprocess=scale_pixels), axis=1))
    names = pictures.classes
    titles = [f"{names[Y[i]]}, taken for {names[p]}\n{found[i]:.1f}" for i, p in zip(hardest, Y_hat, strict=True)]
    out.picture("largest", plotting.pictures(X[hardest], titles))
    top = order[:40]
    titles = [f"{names[Y[i]]}{' (planted)' if wrong[i] else ''}\n{found[i]:.1f}" for i in top]
    out.picture("found", plotting.pictures(X[top], titles))
    out.picture("norms", _histogram(found, wrong))
    out.close()
    return {"precision": float(precision[int(wrong.sum())]), "chance": float(wrong.mean())}


def _histogram(found: np.ndarray, wrong: np.ndarray):
    figure, ax = plotting.figure(size=(6, 3.6))
    least = max(found.min(), 1e-4)
    found = np.maximum(found, least)  # smaller ones are in the first bin
    bins = np.geomspace(least, found.max(), 60)
    ax.hist(found[~wrong], bins, color=plotting.BLUE, alpha=0.7, label="right label")
    ax.hist(found[wrong], bins, color=plotting.ORANGE, alpha=0.8, label="planted wrong label")
    ax.set(xscale="log", yscale="log", xlabel="norm of the example's gradient", ylabel="number of examples")
    ax.legend(fontsize="small")
    return figure
