"""A network of step functions learns by a surrogate derivative, about as well as one of ReLUs.

A step's derivative is 0, so backpropagation moves only the last layer. A surrogate replaces this derivative in the
backward pass alone (Neftci et al. 2019). Expect each surrogate to reach at least 96.5% of MNIST's test set, about as
much as ReLU units. Expect backpropagation to stay below 85%, because the hidden layers keep their random weights.
"""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments import datasets
from experiments.output import Output
from jaxmlp import activations, plotting, rules
from jaxmlp.data import scale_pixels


@dataclass(frozen=True)
class Settings:
    hidden: tuple[int, ...] = (256, 256)  # widths of the hidden layers
    epochs: int = 8
    batch_size: int = 128
    learning_rate: float = 1e-3  # rate of Adam
    key: int = 0
    quick: bool = False  # 12,000 examples, 3 epochs, only the triangle


def run(settings: Settings, out: Output) -> dict[str, float]:
    pictures = datasets.load("mnist")
    m, epochs = (12_000, 3) if settings.quick else (len(pictures.X), settings.epochs)
    X, Y = pictures.X[:m], pictures.Y[:m]
    surrogates = ["triangle"] if settings.quick else list(rules.SURROGATES)
    runs = {"step, backpropagation": ("step", rules.backprop), "ReLU, backpropagation": ("relu", rules.backprop)}
    runs |= {f"step, {name}": ("step", rules.surrogate(name)) for name in surrogates}
    rows, histories, shown = [], {}, {}
    optimizer = optax.adam(settings.learning_rate)
    for name, (activation, rule) in runs.items():
        began = time.perf_counter()
        net = jm.MLP((784, *settings.hidden, 10), activation, "softmax", "cross_entropy")
        params = jm.init(net, jax.random.key(settings.key))
        result = jm.fit(net, params, (X, Y), optimizer=optimizer, epochs=epochs, batch_size=settings.batch_size,
                        key=jax.random.key(settings.key), rule=rule, preprocess=scale_pixels)  # fmt: skip
        Y_hat = jm.predict(net, result.params, pictures.X_test, preprocess=scale_pixels)
        shown[name] = float(jm.metrics.accuracy(Y_hat, pictures.Y_test))
        histories[name] = result.history
        moved = [float(np.linalg.norm(a.W - b.W) / np.linalg.norm(b.W))
                 for a, b in zip(result.params, params, strict=True)]  # fmt: skip
        rows.append({"hidden units, rule": name, "test accuracy": f"{shown[name]:.2%}",
                     **{f"layer {l} moved": f"{by:.2f}" for l, by in enumerate(moved, start=1)},
                     "seconds": f"{time.perf_counter() - began:.1f}"})  # fmt: skip
    widths = "-".join(map(str, net.sizes))
    out.table(f"{widths}, {epochs} epochs; moved: norm of the change of W over the norm of W", rows)
    out.numbers("accuracy", {"epoch": range(1, epochs + 1), **{k: h["accuracy"] for k, h in histories.items()}})
    out.picture("curves", plotting.curves(histories))
    z = np.linspace(-2, 2, 401).astype(np.float32)
    figure, ax = plotting.figure(size=(5, 3.4))
    ax.plot(z, np.asarray(activations.step.f(jnp.asarray(z))), color="black", label="step")
    for (name, g), color in zip(rules.SURROGATES.items(), plotting.PALETTE, strict=False):
        ax.plot(z, np.asarray(g(jnp.asarray(z))), color=color, label=f"surrogate: {name}")
    ax.set(xlabel="pre-activation $z$", ylabel="step, surrogate derivatives")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    out.picture("surrogates", figure)
    out.close()
    return shown
