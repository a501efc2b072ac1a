"""The rows of the literature's table: network, protocol, published score and the score to reach."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import optax

import jaxmlp as jm

Descent = Callable[[int], optax.GradientTransformation]  # from the number of steps


@dataclass(frozen=True)
class Row:
    """One network by one protocol; a score is a share of errors or of right answers."""

    name: str
    published: str
    score: str  # "error", "accuracy" or "solved"
    bound: float  # the largest error or the least accuracy that counts as reached
    net: jm.MLP
    descent: Descent
    epochs: int
    batch_size: int
    weights: str = "he"
    data: str = "mnist"
    one_hot: bool = False
    seeds: int = 3
    options: dict[str, Any] = field(default_factory=dict)  # further options of fit
    note: str = ""  # the protocol in words
    quick: bool = False  # whether --quick runs it

    @property
    def side_by_side(self) -> bool:
        """Whether its products are too small to use two cores, so that two runs at once are faster."""
        return self.batch_size * max(self.net.sizes[1:]) <= 128 * 64

    def is_reached_by(self, mean: float) -> bool:
        """Whether this mean over the seeds is good enough."""
        return mean <= self.bound if self.score == "error" else mean >= self.bound


def momentum(rate: float, coefficient: float = 0.9) -> Descent:
    """SGD with Nesterov's momentum; its rate falls to 0 along a cosine."""
    return lambda steps: optax.sgd(optax.cosine_decay_schedule(rate, steps), momentum=coefficient, nesterov=True)


def plain(rate: float) -> Descent:
    """SGD with a constant rate."""
    return lambda steps: optax.sgd(rate)


def rmsprop(rate: float) -> Descent:
    """RMSprop; its rate falls to 0 along a cosine."""
    return lambda steps: optax.rmsprop(optax.cosine_decay_schedule(rate, steps))


def adamw(rate: float, decay: float) -> Descent:
    """AdamW; its rate falls to 0 along a cosine."""
    return lambda steps: optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=decay)


def adam(rate: float) -> Descent:
    """Adam; its rate falls to 0 along a cosine."""
    return lambda steps: optax.adam(optax.cosine_decay_schedule(rate, steps))


def classifier(*sizes: int, loss: str = "cross_entropy") -> jm.MLP:
    """A network of ReLU units with a softmax output."""
    return jm.MLP(sizes, "relu", "softmax", loss)


def nielsen(*sizes: int, loss: str) -> jm.MLP:
    """A network of sigmoid units, in the output too."""
    return jm.MLP(sizes, "sigmoid", "sigmoid", loss)


BCE = "binary_cross_entropy"

ROWS = (
    Row("784-10 softmax", "7.5 to 7.7% error", "error", 0.076, classifier(784, 10), momentum(0.05), 20, 128,
        quick=True, note="momentum, 20 epochs"),
    Row("784-64-10 ReLU", "none given", "accuracy", 0.975, classifier(784, 64, 10), momentum(0.1), 20, 128,
        options={"penalties": jm.l2(1e-4)}, quick=True, note="momentum, L2 1e-4, 20 epochs"),
    Row("784-10-10 ReLU", "about 85%", "accuracy", 0.85, classifier(784, 10, 10), plain(0.1), 500, 60_000, "lecun",
        note="500 full-batch steps, rate 0.1, variance 1/n"),
    Row("784-10-10 ReLU, He", "about 85%", "accuracy", 0.90, classifier(784, 10, 10), plain(0.1), 500, 60_000,
        note="500 full-batch steps, rate 0.1, variance 2/n"),
    Row("784-30-10 sigmoid, squared error", "95.42%", "accuracy", 0.948, nielsen(784, 30, 10, loss="squared_error"),
        plain(3.0), 30, 10, "lecun", one_hot=True, seeds=5, note="batch 10, rate 3, 30 epochs"),
    Row("784-100-10 sigmoid, cross-entropy", "98.04%", "accuracy", 0.98,
        nielsen(784, 100, 10, loss="binary_cross_entropy"), plain(0.1), 60, 10, "lecun", one_hot=True,
        options={"penalties": jm.l2(5e-5), "average": 0.9998},
        note="batch 10, rate 0.1, L2 with lambda / m = 5e-5, 60 epochs, average of the weights"),
    Row("784-300-10, squared error", "4.7% error", "error", 0.02, classifier(784, 300, 10, loss="squared_error"),
        momentum(0.3), 30, 128, one_hot=True, options={"penalties": jm.l2(1e-5)},
        note="softmax, momentum, L2 1e-5, 30 epochs"),
    Row("784-300-100-10, squared error", "3.05% error", "error", 0.02,
        classifier(784, 300, 100, 10, loss="squared_error"), momentum(0.2), 20, 128, one_hot=True,
        quick=True, note="softmax, momentum, 20 epochs"),
    Row("784-500-300-10", "1.53% error", "error", 0.015, classifier(784, 500, 300, 10), momentum(0.1), 30, 128,
        options={"penalties": jm.l2(3e-4), "input_noise": 0.2}, note="momentum, L2 3e-4, input noise 0.2, 30 epochs"),
    Row("784-800-10", "1.6% error", "error", 0.015, classifier(784, 800, 10), momentum(0.1), 40, 128,
        options={"penalties": jm.l2(1e-4), "label_smoothing": 0.1},
        note="momentum, L2 1e-4, labels smoothed by 0.1, 40 epochs"),
    Row("784-512-512-10, dropout 0.2", "98.40%", "accuracy", 0.984, classifier(784, 512, 512, 10), rmsprop(1e-3), 20,
        128, options={"keep": (1.0, 0.8, 0.8)}, note="RMSprop, 20 epochs"),
    Row("784-1024-1024-10, dropout", "1.06% error", "error", 0.0115, classifier(784, 1024, 1024, 10), momentum(0.1),
        400, 128, seeds=1, options={"keep": (0.8, 0.5, 0.5), "penalties": jm.max_norm(2.0)},
        note="momentum, keep 0.8 and 0.5, max-norm 2, 400 epochs"),
    Row("Fashion-MNIST 784-256-128-64-10", "90.0%", "accuracy", 0.90, classifier(784, 256, 128, 64, 10),
        adamw(1e-3, 1e-2), 40, 128, data="fashion_mnist", options={"keep": (0.9, 0.8, 0.9, 1.0)},
        note="AdamW, decay 0.01, keep 0.9, 0.8, 0.9, 1, 40 epochs"),
    Row("XOR 2-3-1 sigmoid", "99% solved", "solved", 0.99, jm.MLP((2, 3, 1), "sigmoid", "sigmoid", BCE), plain(2.0),
        5000, 4, data="xor", seeds=1000, quick=True, note="deviation 0.3, 5,000 full-batch steps of rate 2"),
    Row("two spirals, 2-64-64-1 tanh", "20,000 epochs", "accuracy", 1.0, jm.MLP((2, 64, 64, 1), "tanh", "sigmoid", BCE),
        adam(0.01), 2000, 194, "lecun", data="spirals", seeds=10, quick=True, note="Adam, 2,000 full-batch epochs"),
)  # fmt: skip
