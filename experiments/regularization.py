"""Nine ways against overfitting on 1,000 digits: penalties, dropout, noise, augmentation and others.

Rows 17 and 18 of the notes' systems (note 002, "Why Regularization reduces overfitting?", "Dropout Regularization"; 000
and 004 for L1 and the SGD form). 784-256-10 fits 1,000 digits without a mistake and gets a tenth of the test set wrong.
Expect dropout, noise and smoothed labels to narrow this gap by a tenth or more, shifts by nearly a half, and shifts
with distortions by three quarters. Expect the penalties to change the accuracy little and the weights much: L2 shrinks
them to less than half, and L1 brings most of the first layer's to 0 or nearly 0. An average of weights gains nothing
where the rate falls to 0. The strengths were chosen on other examples of the training file; `--held-out 10000` scores
these. Expect the penalties' gradients to equal autodiff's of the whole cost to 1e-12 in float64, and inverted dropout
to keep the mean.
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax

import jaxmlp as jm
from experiments import datasets
from experiments.output import Output
from jaxmlp import plotting
from jaxmlp.check import error
from jaxmlp.data import scale_pixels
from jaxmlp.training import Penalty


@dataclass(frozen=True)
class Settings:
    examples: int = 1000  # training examples of MNIST
    hidden: int = 256  # hidden units
    epochs: int = 60
    batch_size: int = 50
    learning_rate: float = 0.1  # first rate; it falls to 0 along a cosine
    keys: int = 3  # runs of each method; the table has their mean
    held_out: int = 0  # other training examples to score instead of the test set; 0 for none
    quick: bool = False  # one key, 30 epochs; only none, L2, L1, dropout and shifts


def augment(key, x):
    first, second = jax.random.split(key)
    return jm.data.elastic()(second, jm.data.shifts(2)(first, x))


def penalties(l2: float = 0, l1: float = 0, max_norm: float = 1e6) -> tuple[Penalty, ...]:
    """All three penalties, so that all their strengths share one program."""
    return jm.l2(l2), jm.l1(l1), jm.max_norm(max_norm)


NEUTRAL = {"penalties": penalties(), "keep": (1.0, 1.0)}
METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "L2, s = 0.003": {"penalties": penalties(l2=0.003)},
    "L1, s = 0.0001": {"penalties": penalties(l1=0.0001)},
    "dropout, keep 0.8 and 0.5": {"keep": (0.8, 0.5)},
    "max-norm 1": {"penalties": penalties(max_norm=1.0)},
    "labels smoothed by 0.3": {"label_smoothing": 0.3},
    "input noise 0.5": {"input_noise": 0.5},
    "shifts by up to 2 pixels": {"augment": jm.data.shifts(2)},
    "shifts and elastic distortions": {"augment": augment},
    "both, and an average of weights": {"augment": augment, "average": 0.99},
}
QUICK = ("none", "L2, s = 0.003", "L1, s = 0.0001", "dropout, keep 0.8 and 0.5", "shifts by up to 2 pixels")
DRAWN = {"none": "none", "L2": "L2, s = 0.003", "L1": "L1, s = 0.0001", "dropout": "dropout, keep 0.8 and 0.5"}
ZERO = 1e-3  # a smaller weight counts as 0: a digit's 784 inputs move z by less than this


def run(settings: Settings, out: Output) -> dict[str, float]:
    m, keys, epochs = settings.examples, settings.keys, settings.epochs
    if min(m, keys, epochs, settings.hidden, settings.batch_size) < 1 or settings.batch_size > m:
        raise ValueError(f"examples, keys, epochs, hidden and batch_size are {m}, {keys}, {epochs}, {settings.hidden}, "
                         f"{settings.batch_size}; expected at least 1, and no batch above the examples")  # fmt: skip
    if settings.quick:
        keys, epochs = 1, min(epochs, 30)
    pictures = datasets.load("mnist")
    X, Y, X_test, Y_test = _examples(pictures, m, settings.held_out)
    net = jm.MLP((784, settings.hidden, 10), "relu", "softmax", "cross_entropy")
    checks = _checks(net, X[:100], Y[:100])
    optimizer = optax.sgd(optax.cosine_decay_schedule(settings.learning_rate, epochs * -(-m // settings.batch_size)),
                          momentum=0.9)  # fmt: skip
    score = lambda params, X, Y: float(jm.metrics.accuracy(jm.predict(net, params, X, preprocess=scale_pixels), Y))
    rows, shares, first = [], {}, {}
    for name, options in METHODS.items():
        if settings.quick and name not in QUICK:
            continue
        began, scores = time.perf_counter(), []
        for seed in range(keys):
            key = jax.random.key(seed)
            params = jm.fit(net, jm.init(net, key), (X, Y), optimizer=optimizer, epochs=epochs, key=key,
                            batch_size=settings.batch_size, preprocess=scale_pixels, progress=False,
                            **NEUTRAL | options).params  # fmt: skip
            scores.append((score(params, X, Y), score(params, X_test, Y_test)))
        shares[name], first[name] = np.asarray(scores), np.asarray(params[0].W)
        rows.append(_row(name, shares[name], first[name], time.perf_counter() - began))
        print(f"{name}: {shares[name][:, 1].mean():.2%}", flush=True)
    out.table(f"{net}, {m:,} digits, {epochs} epochs, mean of {keys}; |w| < {ZERO:g} counts as 0", rows)
    out.say(f"the penalties' gradients differ from autodiff of the whole cost by {checks['penalties']:.1e}\n"
            f"inverted dropout, 400 draws: the mean of z^1 differs from z^1 without dropout by {checks['dropout']:.1f} "
            f"standard errors\n(root mean square over units, expected 1)")  # fmt: skip
    columns = {"method": list(shares), "train": [s[:, 0].mean() for s in shares.values()],
               "test": [s[:, 1].mean() for s in shares.values()]}  # fmt: skip
    out.numbers("accuracy", columns)
    out.picture("gap", _gaps(shares))
    out.picture("weights", _weights({title: first[name] for title, name in DRAWN.items()}))
    out.close()
    gap = {name: float((s[:, 0] - s[:, 1]).mean()) for name, s in shares.items()}
    zeros = {title: float((abs(first[name]) < ZERO).mean()) for title, name in DRAWN.items()}
    return {**checks, "gap": gap["none"], "gap, dropout": gap[DRAWN["dropout"]],
            "gap, shifts": gap["shifts by up to 2 pixels"], "zeros": zeros["none"], "zeros, L1": zeros["L1"],
            "size, L2": float(np.linalg.norm(first[DRAWN["L2"]]) / np.linalg.norm(first["none"]))}  # fmt: skip


def _examples(pictures: datasets.Pictures, m: int, held_out: int):
    """The first m training examples, and the test set or the last `held_out` of the training file."""
    datasets.check_amount("examples", m, len(pictures.X))
    if not 0 <= held_out <= len(pictures.X) - m:
        raise ValueError(f"held_out is {held_out}, expected 0 to {len(pictures.X) - m}, the examples not trained on")
    if held_out:
        return pictures.X[:m], pictures.Y[:m], pictures.X[-held_out:], pictures.Y[-held_out:]
    return pictures.X[:m], pictures.Y[:m], pictures.X_test, pictures.Y_test


def _checks(net: jm.MLP, X, Y) -> dict[str, float]:
    """The penalties' error against autodiff, and the error of dropout's mean pre-activations in standard errors."""
    params = jm.init(net, jax.random.key(0))
    apart = []
    with jax.enable_x64(True):
        X = np.asarray(X.reshape(len(X), -1) / 255)
        params = jax.tree.map(lambda w: np.asarray(w, np.float64), params)
        for penalty in (jm.l2(0.003), jm.l1(0.0003)):
            by_hand = lambda p, s: s.gradient(p, jm.value_and_grad(net, p, X, Y)[1])
            whole = jax.grad(lambda p, s: jm.cost(net, p, X, Y) + s.cost(p))
            ours, autodiffs = (jax.jit(gradient)(params, penalty) for gradient in (by_hand, whole))
            pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(autodiffs), strict=True)
            apart.append(max(error(np.asarray(a), np.asarray(b)) for a, b in pairs))
        masks = jm.dropout_masks(net, jax.random.key(1), (0.8, 0.5), 400)
    Z = (np.asarray(masks[0]) * X[:1]) @ params[0].W.T
    off = (Z.mean(0) - params[0].W @ X[0]) / (Z.std(0) / np.sqrt(len(Z)))
    return {"penalties": max(apart), "dropout": float(np.sqrt((off**2).mean()))}


def _row(name: str, shares: np.ndarray, W: np.ndarray, seconds: float) -> dict[str, str]:
    train, test = shares.mean(0)
    return {"method": name, "training accuracy": f"{train:.2%}", "test accuracy": f"{test:.2%}",
            "deviation": f"{shares[:, 1].std():.2%}", "gap": f"{100 * (train - test):.2f}",
            "||W^1||": f"{np.linalg.norm(W):.2f}", "weights of 0": f"{(abs(W) < ZERO).mean():.0%}",
            "seconds": f"{seconds:.1f}"}  # fmt: skip


def _gaps(shares: dict[str, np.ndarray]):
    """The training and the test accuracy of each method, and the gap between them as a line."""
    figure, ax = plotting.figure(size=(7, 1.1 + 0.34 * len(shares)))
    for number, scores in enumerate(shares.values()):
        train, test = 100 * scores.mean(0)
        ax.plot([test, train], [number, number], color="0.7", zorder=1)
        ax.plot(100 * scores[:, 1], [number] * len(scores), "|", color=plotting.BLUE, markersize=9)
        ax.plot(test, number, "o", color=plotting.BLUE, label=None if number else "test (bars: single runs)")
        ax.plot(train, number, "s", color=plotting.ORANGE, label=None if number else "training")
    ax.set_yticks(range(len(shares)), list(shares))
    ax.set_xlabel("accuracy (%)")
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.3)
    ax.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    return figure


def _weights(first: dict[str, np.ndarray], units: int = 6):
    """Above a histogram of the first layer's weights, below the weights of its largest units as pictures."""
    heights = {"height_ratios": (3, 2)}
    figure, axes = plotting.figure(2, len(first), size=(3.1, 2.4), squeeze=False, gridspec_kw=heights)
    bins, image = np.linspace(-0.2, 0.2, 81), None
    for (name, W), (above, below) in zip(first.items(), axes.T, strict=True):
        above.hist(np.clip(W, -0.2, 0.2).ravel(), bins, color=plotting.BLUE)
        above.set(yscale="log", ylim=(10, 3e5), xlabel="weight", title=name)
        largest = W[np.argsort(-np.linalg.norm(W, axis=1))[:units]].reshape(2, -1, 28, 28)
        image = below.imshow(np.block([list(row) for row in largest]), cmap=plotting.DIVERGING, vmin=-0.2, vmax=0.2)
        below.axis("off")
    axes[0][0].set_ylabel("number of first-layer weights")
    if image is not None:
        figure.colorbar(image, ax=axes[1], label="weight")
    return figure
