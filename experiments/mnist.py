"""MNIST by a hand-written backward pass: 784-64-10, ReLU, softmax, cross-entropy.

Row 11 of the notes' systems (note 002, "MNIST dataset Example"), and with `--digits 5 6` row 5: one sigmoid output
tells a 5 from a 6. The run first checks the gradient against autodiff and central differences. Expect at least 97.5% of
the test set after 20 epochs, and 98.5% for 5 against 6, as the mean over keys.
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


@dataclass(frozen=True)
class Settings:
    data: str = "mnist"  # mnist, fashion_mnist, or a folder with the four IDX files
    digits: tuple[int, ...] = ()  # two classes for one sigmoid output; all classes and softmax if empty
    hidden: tuple[int, ...] = (64,)  # widths of the hidden layers
    activation: str = "relu"  # activation of the hidden layers
    weights: str = "he"  # initializer of the weights
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 0.1  # first rate; it falls to 0 along a cosine
    momentum: float = 0.9
    validation: int = 5000  # training examples held out to choose the best epoch
    keys: int = 3  # runs, each from a random key of its own
    quick: bool = False  # one key, at most 3 epochs, 2,000 examples


def run(settings: Settings, out: Output) -> dict[str, float]:
    pictures = datasets.load(settings.data)
    X, Y, X_test, Y_test = _choose_examples(pictures, settings)
    if settings.keys < 1 or settings.epochs < 1 or settings.validation < 1:
        raise ValueError(f"keys, epochs and validation are {settings.keys}, {settings.epochs}, {settings.validation}; "
                         "expected at least 1 of each")  # fmt: skip
    keys, epochs = (1, min(3, settings.epochs)) if settings.quick else (settings.keys, settings.epochs)
    held_out = min(settings.validation, len(X) // 5)
    X_dev, Y_dev, X, Y = X[-held_out:], Y[-held_out:], X[:-held_out], Y[:-held_out]
    net = _network(settings, X[0].size, len(pictures.classes))
    out.say(f"{net}\n{len(X):,} training, {len(X_dev):,} validation, {len(X_test):,} test examples of {settings.data}")
    _check_gradient(net, jm.init(net, jax.random.key(0), weights=settings.weights), X[:32], Y[:32], out)
    rows, histories, result = [], {}, None
    steps = epochs * -(-len(X) // settings.batch_size)
    optimizer = optax.sgd(optax.cosine_decay_schedule(settings.learning_rate, steps), momentum=settings.momentum)
    for seed in range(keys):
        start, began = jm.init(net, jax.random.key(seed), weights=settings.weights), time.perf_counter()
        result = jm.fit(net, start, (X, Y), optimizer=optimizer, epochs=epochs, batch_size=settings.batch_size,
                        key=jax.random.key(seed), validation=(X_dev, Y_dev), preprocess=scale_pixels,
                        monitor=True)  # fmt: skip
        seconds = time.perf_counter() - began
        Y_hat = jm.predict(net, result.params, X_test, preprocess=scale_pixels)
        test = float(metrics.accuracy(Y_hat, Y_test))
        histories[f"key {seed}"] = result.history
        rows.append({"key": seed, **_read_best_epoch(result), "test": test, "seconds": seconds})
        columns = {name: column for name, column in result.history.items() if column.ndim == 1}
        out.numbers(f"history_{seed}", columns)
    assert result is not None
    mean = float(np.mean([row["test"] for row in rows]))
    share = ("train", "validation", "test")
    out.table(
        "accuracy at the best epoch, that of the least validation cost",
        [{k: f"{v:.2%}" if k in share else f"{v:.3g}" for k, v in row.items()} for row in rows],
    )
    out.say(f"test accuracy {mean:.2%}, mean of {keys} (deviation {np.std([row['test'] for row in rows]):.2%})")
    counts = np.asarray(metrics.confusion_matrix(Y_hat, Y_test))
    names = [pictures.classes[d] for d in settings.digits] or list(pictures.classes)
    out.picture("curves", plotting.curves(histories))
    out.picture("monitors", plotting.monitors(result.history))
    out.picture("confusion", plotting.confusion(counts, names))
    W = np.asarray(result.params[0].W)
    out.picture("weights", plotting.weights_as_images(W, (pictures.X.shape[1], pictures.X.shape[2])))
    out.close()
    return {"accuracy": mean}


def _read_best_epoch(result: jm.Result) -> dict[str, float]:
    """The accuracies of one epoch: the one whose weights the run returns, that of the least validation cost."""
    best = result.best_epoch
    assert best is not None
    train, dev = (float(result.history[name][best - 1]) for name in ("accuracy", "validation_accuracy"))
    return {"best epoch": best, "train": train, "validation": dev}


def _check_gradient(net: jm.MLP, params, X, Y, out: Output) -> None:
    report = jm.check_gradients(net, params, X, Y, preprocess=scale_pixels, entries=40)
    out.say(f"\nthe gradient at the initial weights, by hand and by two other routes\n\n{report}\n")
    if not report.passed:
        raise ValueError("the hand-written gradient is wrong; see the table")


def _network(settings: Settings, n_in: int, classes: int) -> jm.MLP:
    if settings.digits:
        return jm.MLP((n_in, *settings.hidden, 1), settings.activation, "sigmoid", "binary_cross_entropy")
    return jm.MLP((n_in, *settings.hidden, classes), settings.activation, "softmax", "cross_entropy")


def _choose_examples(pictures: datasets.Pictures, settings: Settings):
    """Training and test examples; for two digits only theirs, with labels 0 and 1."""
    if not settings.digits:
        X, Y = (pictures.X[:2000], pictures.Y[:2000]) if settings.quick else (pictures.X, pictures.Y)
        return X, Y, pictures.X_test, pictures.Y_test
    known = range(len(pictures.classes))
    if len(set(settings.digits)) != 2 or not set(settings.digits) <= set(known):
        raise ValueError(f"digits is {settings.digits}, expected two different classes from 0 to {known[-1]}")
    parts = []
    for X, Y in ((pictures.X, pictures.Y), (pictures.X_test, pictures.Y_test)):
        of_two = np.isin(Y, settings.digits)
        parts += [X[of_two], (Y[of_two] == settings.digits[1]).astype(np.int32)]
    if settings.quick:
        parts[:2] = parts[0][:2000], parts[1][:2000]
    return parts
