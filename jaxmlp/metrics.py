"""Scores of predictions: accuracy, per class too, the confusion matrix, errors of regression, and what errors say.

`Y_hat (m, k)` are a network's outputs. `Y` are labels as the losses take them: classes `(m,)`, rows `(m, k)`, or 0
and 1 `(m,)` or `(m, 1)` for a single output. Source: notes 003; 002 for the thresholds.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from jaxmlp import validate
from jaxmlp.network import MLP
from jaxmlp.validate import Given


def classes(Y: Num[Array, "m *k"]) -> Int[Array, " m"]:
    """The class of each row: its largest entry (the first of equals); of a single entry, whether it is above 1/2.

    Integer labels `(m,)` are classes already.
    """
    if Y.ndim == 2 and Y.shape[1] > 1:
        return jnp.argmax(Y, axis=1)
    column = Y.reshape(Y.shape[0])
    if jnp.issubdtype(column.dtype, jnp.integer) or column.dtype == bool:
        return column.astype(int)
    return (column > 0.5).astype(int)


def predicts_classes(net: MLP, Y: Num[Array, "m *k"]) -> bool:
    """Whether an accuracy means something: distributions over classes, one sigmoid output, or one-hot rows."""
    if net.loss.targets == "distribution":
        return True
    if Y.ndim == 1 or Y.shape[1] == 1:
        return net.loss.targets == "unit"
    return bool(jnp.all((Y == 0) | (Y == 1)) & jnp.all(Y.sum(1) == 1))


def accuracy(Y_hat: Float[Given, "m k"], Y: Num[Given, "m *k"]) -> Float[Array, ""]:
    """The share of examples whose predicted class is the true one, 0 to 1."""
    Y_hat, Y = _labelled(Y_hat, Y)
    return jnp.mean(classes(Y_hat) == classes(Y))


def confusion_matrix(Y_hat: Float[Given, "m k"], Y: Num[Given, "m *k"]) -> Int[Array, "k k"]:
    """How many examples of true class r (rows) were taken for class c (columns)."""
    Y_hat, Y = _labelled(Y_hat, Y)
    k = max(Y_hat.shape[1], 2)
    flat = classes(Y) * k + classes(Y_hat)
    return jnp.bincount(flat, length=k * k).reshape(k, k)


def per_class_accuracy(Y_hat: Float[Given, "m k"], Y: Num[Given, "m *k"]) -> Float[Array, " k"]:
    """For each true class the share of its examples that were recognised; NaN for a class without examples."""
    counts = confusion_matrix(Y_hat, Y)
    return jnp.diag(counts) / counts.sum(1)


class RegressionErrors(NamedTuple):
    """Errors over all examples and outputs, in the targets' units (`mse` in their square; `r2` has none)."""

    mse: Float[Array, ""]  # mean of (y_hat - y)^2
    rmse: Float[Array, ""]  # its root
    mae: Float[Array, ""]  # mean of |y_hat - y|
    r2: Float[Array, ""]  # 1 - mse / variance of y, the mean over outputs


def regression_errors(Y_hat: Float[Given, "m k"], Y: Num[Given, "m *k"]) -> RegressionErrors:
    """Mean squared error, its root, mean absolute error and the coefficient of determination."""
    Y_hat, Y = _pair(Y_hat, Y)
    if Y.size != Y_hat.size:
        raise ValueError(f"Y has shape {Y.shape}, expected {Y_hat.shape}")
    error = Y_hat - Y.reshape(Y_hat.shape)
    mse = jnp.mean(error**2, axis=0)
    r2 = 1 - mse / jnp.var(Y.reshape(Y_hat.shape), axis=0)
    return RegressionErrors(mse.mean(), jnp.sqrt(mse.mean()), jnp.abs(error).mean(), r2.mean())


class Diagnosis(NamedTuple):
    """Where an error comes from: the gaps from the best possible error up to the dev set's."""

    bias: float  # train - bayes
    variance: float  # train_dev - train; dev - train without a train-dev set
    mismatch: float  # dev - train_dev; 0 without a train-dev set
    problems: tuple[str, ...]  # of "high bias", "high variance", "data mismatch", in the order to treat them

    def __str__(self) -> str:
        return " and ".join(self.problems) or "low bias and low variance"


def diagnosis(
    train: float, dev: float, *, train_dev: float | None = None, bayes: float = 0.0, tolerance: float = 0.02
) -> Diagnosis:
    """Names each gap between errors, shares from 0 to 1, that is above `tolerance`.

        bayes --bias--> train --variance--> train_dev --mismatch--> dev

    `train_dev` is the error on examples of the training distribution that were not trained on: where dev examples are
    from another one, it tells variance from mismatch. `bayes` is the least error possible (or a human's). Raises
    ValueError for an error outside [0, 1]. Source: notes 002: 1% and 11% are high variance, 15% and 16% high bias;
    Ng, Machine Learning Yearning, chapters 20 to 22, 40 and 41.
    """
    errors = {"train": train, "dev": dev, "bayes": bayes} | ({} if train_dev is None else {"train_dev": train_dev})
    for name, error in errors.items():
        if not 0 <= error <= 1:
            raise ValueError(f"{name} is {error}, expected a share of errors from 0 to 1")
    validate.number(tolerance, "tolerance", 0, at_most=1)
    unseen = dev if train_dev is None else train_dev
    gaps = {"high bias": train - bayes, "high variance": unseen - train, "data mismatch": dev - unseen}
    # 0.03 - 0.01 is above 0.02 in float64
    problems = tuple(name for name, gap in gaps.items() if gap > tolerance + 1e-9)
    return Diagnosis(train - bayes, unseen - train, dev - unseen, problems)


def _pair(Y_hat, Y):
    Y_hat, Y = validate.array(Y_hat, "Y_hat"), validate.array(Y, "Y")
    if Y_hat.ndim != 2:
        raise ValueError(f"Y_hat has shape {Y_hat.shape}, expected (examples, outputs)")
    if Y.shape not in (Y_hat.shape, Y_hat.shape[:1], (Y_hat.shape[0], 1)):
        raise ValueError(f"Y has shape {Y.shape}, which does not fit Y_hat {Y_hat.shape}")
    return Y_hat, Y


def _labelled(Y_hat, Y):
    """As `_pair`, with outputs that name a class and labels that are one."""
    Y_hat, Y = _pair(Y_hat, Y)
    k = Y_hat.shape[1]
    validate.finite(Y_hat, "Y_hat")
    validate.finite(Y, "Y")
    if Y.size == Y_hat.shape[0] and k > 1 and jnp.issubdtype(Y.dtype, jnp.floating):
        raise ValueError(f"Y has dtype {Y.dtype}, expected integer classes, or rows of shape {Y_hat.shape}")
    if Y.size and validate.concrete(Y):
        low, high = int(classes(Y).min()), int(classes(Y).max())
        if low < 0 or high >= max(k, 2):
            raise ValueError(f"Y holds the class {low if low < 0 else high}, expected classes 0 to {max(k, 2) - 1}")
    return Y_hat, Y
