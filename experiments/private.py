"""Private training (DP-SGD) on MNIST: accuracy against noise, and the privacy spent.

Each step draws each example by a coin of its own (Poisson sampling), clips each example's gradient, and adds Gaussian
noise (Abadi et al. 2016): `fit(sampling="poisson", readout=private_gradient)`. The Renyi accountant of dp-accounting
computes the privacy spent. Expect accuracy and epsilon to fall as the noise grows. Expect at least 93% at noise 1.1,
with an epsilon of about 2 after 15 epochs; clipping without noise gives about 96%.
"""

import time
from dataclasses import dataclass
from functools import cache

import jax
import optax
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant

import jaxmlp as jm
from experiments import datasets
from experiments.output import Output
from jaxmlp import plotting
from jaxmlp.data import scale_pixels


@dataclass(frozen=True)
class Settings:
    noise_multipliers: tuple[float, ...] = (0.0, 0.5, 0.8, 1.1, 2.0, 4.0)  # deviations of the noise over max_norm
    max_norm: float = 1.0  # clipping norm of each example's gradient
    batch_size: int = 600  # expected size; each example's probability is this over 60,000
    epochs: int = 15
    learning_rate: float = 4.0  # large, because the norm of a clipped mean gradient is at most max_norm
    hidden: int = 64  # hidden units
    delta: float = 1e-5  # the delta of (epsilon, delta) privacy
    key: int = 0
    quick: bool = False  # two noise levels, 2 epochs


def epsilon(noise_multiplier: float, q: float, steps: int, delta: float) -> float:
    """The epsilon that `steps` steps at sampling rate q spend; infinite without noise."""
    if noise_multiplier == 0:
        return float("inf")
    accountant = RdpAccountant()
    accountant.compose(PoissonSampledDpEvent(q, GaussianDpEvent(noise_multiplier)), steps)
    return float(accountant.get_epsilon(delta))


@cache
def readout(max_norm: float, noise_multiplier: float, batch_size: int):
    """The private gradient as a readout; equal settings share one object, so that it compiles once."""
    return lambda trace, weights, key: jm.private_gradient(trace, max_norm, noise_multiplier, key, batch_size, weights)


def run(settings: Settings, out: Output) -> dict[str, float]:
    pictures = datasets.load("mnist")
    X, Y = pictures.X, pictures.Y
    net = jm.MLP((X[0].size, settings.hidden, 10), "relu", "softmax", "cross_entropy")
    epochs, noises = settings.epochs, settings.noise_multipliers
    if settings.quick:
        epochs, noises = 2, (0.0, 4.0)
    q = settings.batch_size / len(X)
    steps = epochs * -(-len(X) // settings.batch_size)
    rows, accuracies, epsilons = [], {}, {}
    for noise in noises:
        began = time.perf_counter()
        # The pictures are public: with one key the runs differ in the scale of their noise alone. A private run needs a
        # secret key of its own.
        result = jm.fit(net, jm.init(net, jax.random.key(settings.key)), (X, Y),
                        optimizer=optax.sgd(settings.learning_rate), epochs=epochs, batch_size=settings.batch_size,
                        sampling="poisson", readout=readout(settings.max_norm, noise, settings.batch_size),
                        key=jax.random.key(settings.key), preprocess=scale_pixels)  # fmt: skip
        Y_hat = jm.predict(net, result.params, pictures.X_test, preprocess=scale_pixels)
        accuracies[noise] = float(jm.metrics.accuracy(Y_hat, pictures.Y_test))
        epsilons[noise] = epsilon(noise, q, steps, settings.delta)
        rows.append({"noise multiplier": f"{noise:g}", "epsilon": f"{epsilons[noise]:.2f}",
                     "test accuracy": f"{accuracies[noise]:.2%}",
                     "seconds": f"{time.perf_counter() - began:.1f}"})  # fmt: skip
    out.table(f"{steps:,} steps at sampling rate {q:g}, max_norm {settings.max_norm:g}, delta {settings.delta:g}", rows)
    out.numbers("accuracy", {"noise_multiplier": noises, "epsilon": epsilons.values(), "accuracy": accuracies.values()})
    out.picture("accuracy", _picture(settings, noises, accuracies, epsilons))
    out.close()
    return {"plain": accuracies[noises[0]], "noisiest": accuracies[noises[-1]], "epsilon": epsilons[noises[-1]],
            "at_1.1": accuracies.get(1.1, float("nan"))}  # fmt: skip


def _picture(settings: Settings, noises: tuple[float, ...], accuracies: dict, epsilons: dict):
    """The test accuracy against the noise and against the privacy spent."""
    figure, (left, right) = plotting.figure(1, 2)
    left.plot(noises, [100 * a for a in accuracies.values()], "o-", color=plotting.BLUE)
    left.set(xlabel="noise multiplier (deviation / max_norm)", ylabel="test accuracy (%)")
    spent = [n for n in noises if n > 0]
    right.plot([epsilons[n] for n in spent], [100 * accuracies[n] for n in spent], "o-", color=plotting.BLUE)
    right.axhline(100 * accuracies[noises[0]], linestyle="--", color="gray",
                  label=f"noise {noises[0]:g}")  # fmt: skip
    right.set(xscale="log", xlabel=f"privacy spent, $\\epsilon$ at $\\delta$ = {settings.delta:g}",
              ylabel="test accuracy (%)")  # fmt: skip
    right.legend(fontsize="small")
    for ax in (left, right):
        ax.grid(alpha=0.3)
    return figure
