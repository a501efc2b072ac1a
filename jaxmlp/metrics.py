"""Scores of predictions: accuracies, the confusion matrix, errors of regression, and a diagnosis of errors.

`Y_hat (m, k)` are a network's outputs. `Y` are labels in the form the losses take: classes `(m,)`, rows `(m, k)`, or,
for a single output, 0 and 1 in `(m,)` or `(m, 1)`. Source: notes 003; notes 002 for the thresholds.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from jaxmlp import arrays, validate
from jaxmlp.network import MLP
from jaxmlp.validate import Given

MOST_CLASSES = 46_340  # in a confusion matrix: int32 numbers its entries


def classes(Y: Num[Array, "m *k"]) -> Int[Array, " m"]:
    """The class of each example: the index of the largest entry of its row, the first of equals.

    A single entry is class 1 if it is above 1/2, else class 0. Integer labels stay as they are.

    Args:
        Y: outputs or labels, `(m, k)`, `(m, 1)` or `(m,)`.
    Returns:
        Classes, `(m,)`.
    Example:
        >>> jm.metrics.classes(jnp.array([[0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])).tolist()
        [1, 0]
    """
    Y = validate.array(Y, "Y")
    if Y.ndim == 2 and Y.shape[1] > 1:
        return jnp.argmax(Y, axis=1)
    column = Y.reshape(Y.shape[0])
    if jnp.issubdtype(column.dtype, jnp.integer) or column.dtype == bool:
        return column.astype(int)
    return (column > 0.5).astype(int)


def predicts_classes(net: MLP, Y: Num[Array, "m *k"]) -> bool:
    """Whether the network predicts classes, so that it has an accuracy.

    It does for distributions over classes, for one sigmoid output, and for one-hot rows.
    """
    if net.loss.targets == "distribution":
        return True
    if Y.ndim == 1 or Y.shape[1] == 1:
        return net.loss.targets == "unit"
    return bool(jnp.all((Y == 0) | (Y == 1)) & jnp.all(Y.sum(1) == 1))


def accuracy(Y_hat: Float[Given, "m k"], Y: Num[Given, "m *k"]) -> Float[Array, ""]:
    """The share of examples whose predicted class is the true class: `mean(classes(Y_hat) == classes(Y))`.

    Args:
        Y_hat: the outputs, `(m, k)`.
        Y: the labels, `(m,)`, `(m, 1)` or `(m, k)`.
    Returns:
        A number from 0 to 1.
    Raises:
        ValueError: where the shapes do not fit, there are no examples, a number is not finite, a label is not a class,
            or a row of Y has several.
    Example:
        >>> float(jm.metrics.accuracy(np.eye(4), np.array([0, 1, 2, 2])))
        0.75
    """
    Y_hat, Y = _check_labels(Y_hat, Y)
    return jnp.mean(classes(Y_hat) == classes(Y))


def confusion_matrix(Y_hat: Float[Given, "m k"], Y: Num[Given, "m *k"]) -> Int[Array, "k k"]:
    """Counts the examples of each true class (rows) by their predicted class (columns).

    Args:
        Y_hat: the outputs, `(m, k)`.
        Y: the labels, `(m,)`, `(m, 1)` or `(m, k)`.
    Returns:
        Counts, `(k, k)`; `(2, 2)` for a single output.
    Raises:
        ValueError: in the same cases as `accuracy`, and for more than 46,340 classes.
    Example:
        >>> jm.metrics.confusion_matrix(np.eye(3), np.array([0, 1, 1])).tolist()
        [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    """
    Y_hat, Y = _check_labels(Y_hat, Y)
    k = max(Y_hat.shape[1], 2)
    if k > MOST_CLASSES:
        raise ValueError(
            f"Y_hat has {k} outputs, expected at most {MOST_CLASSES} for a table of all pairs of classes; "
            "per_class_accuracy needs none"
        )
    flat = classes(Y) * k + classes(Y_hat)
    return jnp.bincount(flat, length=k * k).reshape(k, k)


def per_class_accuracy(Y_hat: Float[Given, "m k"], Y: Num[Given, "m *k"]) -> Float[Array, " k"]:
    """For each true class the share of its examples that are predicted right; NaN for a class without examples.

    Args:
        Y_hat: the outputs, `(m, k)`.
        Y: the labels, `(m,)`, `(m, 1)` or `(m, k)`.
    Returns:
        Shares from 0 to 1, `(k,)`.
    Raises:
        ValueError: in the same cases as `accuracy`.
    Example:
        >>> jm.metrics.per_class_accuracy(np.eye(3), np.array([0, 1, 1])).tolist()
        [1.0, 0.5, nan]
    """
    Y_hat, Y = _check_labels(Y_hat, Y)
    true, k = classes(Y), max(Y_hat.shape[1], 2)
    right = jnp.where(true == classes(Y_hat), true, k)  # k: not counted
    return jnp.bincount(right, length=k + 1)[:k] / jnp.bincount(true, length=k)


class RegressionErrors(NamedTuple):
    """Errors over all examples and outputs. `rmse` and `mae` have the targets' unit, `mse` its square, `r2` none."""

    mse: Float[Array, ""]  # mean of (y_hat - y)^2
    rmse: Float[Array, ""]  # its root
    mae: Float[Array, ""]  # mean of |y_hat - y|
    r2: Float[Array, ""]  # 1 - mse / variance of y, averaged over outputs; of a constant y 1 if all is right, else 0


def regression_errors(Y_hat: Float[Given, "m k"], Y: Num[Given, "m *k"]) -> RegressionErrors:
    """Mean squared error, its root, mean absolute error and the coefficient of determination.

    Args:
        Y_hat: the outputs, `(m, k)`.
        Y: the targets, `(m, k)`, or `(m,)` for a single output.
    Returns:
        `RegressionErrors(mse, rmse, mae, r2)`, in at least float32.
    Raises:
        ValueError: where the shapes do not fit, or there are no examples.
    Example:
        >>> errors = jm.metrics.regression_errors(np.array([[1.0], [4.0]]), np.array([0.0, 4.0]))
        >>> float(errors.mse), float(errors.mae), float(errors.r2)
        (0.5, 0.5, 0.875)
    """
    error, Y = _differences(Y_hat, Y)
    mean_square = lambda error, power: jnp.mean((error * jnp.broadcast_to(power, error.shape)) ** 2, axis=0)
    power = _power(jnp.abs(error).max())
    mse = mean_square(error, power).mean()
    each = _power(jnp.maximum(jnp.abs(error).max(0), Y.max(0) - Y.min(0)))
    variance = jnp.var(Y * jnp.broadcast_to(each, Y.shape), axis=0)
    constant = (jnp.broadcast_to(Y[:1], Y.shape) == Y).all(0)
    r2 = 1 - mean_square(error, each) / jnp.where(constant, 1, variance)
    r2 = jnp.where(constant, jnp.where((error == 0).all(0), 1, 0).astype(r2.dtype), r2)
    return RegressionErrors(mse / power / power, jnp.sqrt(mse) / power, jnp.abs(error).mean(), r2.mean())


def _differences(Y_hat: Any, Y: Any) -> tuple[Float[Array, "m k"], Float[Array, "m k"]]:
    """`Y_hat - Y`, and Y up to a constant.

    NumPy's numbers of 64 bits, such as times in seconds, are subtracted before JAX rounds them to 32.
    """
    given = Y_hat, Y
    Y_hat, Y = _check_pair(Y_hat, Y)
    if Y.size != Y_hat.size:
        raise ValueError(f"Y has shape {Y.shape}, expected {Y_hat.shape}")
    if validate.concrete(Y_hat) and validate.concrete(Y) and not any(isinstance(array, Array) for array in given):
        exact_hat, exact = (arrays.read(array, "Y").reshape(Y_hat.shape) for array in given)
        if (exact_hat.dtype, exact.dtype) != (Y_hat.dtype, Y.dtype):
            exact = exact.astype(np.float64)
            with np.errstate(over="ignore"):
                held = lambda array: jnp.asarray(array.astype(jnp.result_type(float)))
                return held(exact_hat - exact), held(exact - exact[:1])
    Y_hat, Y = (_to_floats(array) for array in (Y_hat, Y.reshape(Y_hat.shape)))
    return Y_hat - Y, Y


def _power(reach: Float[Array, "*k"]) -> Float[Array, "*k"]:
    """A power of two by which numbers up to `reach` have squares within the range; 1 in the middle of the range."""
    half = jnp.finfo(reach.dtype).maxexp // 2
    least, most, shift = (2.0**e for e in (4 - half, half - 4, half + 6))
    return jnp.where(reach > most, 1 / shift, jnp.where((reach < least) & (reach > 0), shift, 1)).astype(reach.dtype)


def _to_floats(array: Array) -> Float[Array, "m k"]:
    """Numbers in at least float32, in which differences of whole numbers do not wrap around."""
    fine = jnp.issubdtype(array.dtype, jnp.floating) and jnp.finfo(array.dtype).bits >= 32
    return array if fine else array.astype(float)


class Diagnosis(NamedTuple):
    """The gaps between the best possible error and the error on the dev set."""

    bias: float  # train - bayes
    variance: float  # train_dev - train; dev - train without a train-dev set
    mismatch: float  # dev - train_dev; 0 without a train-dev set
    problems: tuple[str, ...]  # among "high bias", "high variance", "data mismatch", in the order to treat them

    def __str__(self) -> str:
        return " and ".join(self.problems) or "low bias and low variance"


def diagnosis(
    train: float, dev: float, *, train_dev: float | None = None, bayes: float = 0.0, tolerance: float = 0.02
) -> Diagnosis:
    """Names each gap between errors that is above `tolerance`.

        bayes --bias--> train --variance--> train_dev --mismatch--> dev

    Args:
        train: the error on the training examples, a share from 0 to 1.
        dev: the error on the dev examples.
        train_dev: the error on unseen examples of the training distribution. It separates variance from mismatch if
            the dev examples have another distribution.
        bayes: the least possible error, or a human's.
        tolerance: a gap up to this is no problem; above 0 and at most 1.
    Returns:
        `Diagnosis(bias, variance, mismatch, problems)`; it prints its problems.
    Raises:
        ValueError: where an error is outside [0, 1], or the tolerance is outside (0, 1].
    Example:
        >>> print(jm.metrics.diagnosis(train=0.01, dev=0.11))
        high variance

    Source: notes 002: 1% and 11% are high variance, 15% and 16% high bias; Ng, Machine Learning Yearning, chapters 20
    to 22, 40 and 41.
    """
    errors = {"train": train, "dev": dev, "bayes": bayes} | ({} if train_dev is None else {"train_dev": train_dev})
    for name, error in errors.items():
        errors[name] = validate.number(error, name, least=0, at_most=1)
    train, dev, bayes = (errors[name] for name in ("train", "dev", "bayes"))
    validate.number(tolerance, "tolerance", above=0, at_most=1)
    unseen = errors.get("train_dev", dev)
    gaps = {"high bias": train - bayes, "high variance": unseen - train, "data mismatch": dev - unseen}
    # 0.03 - 0.01 is above 0.02 in float64
    problems = tuple(name for name, gap in gaps.items() if gap > tolerance + 1e-9)
    return Diagnosis(train - bayes, unseen - train, dev - unseen, problems)


def _check_pair(Y_hat, Y):
    """Outputs and labels as arrays of shapes that fit."""
    Y_hat, Y = validate.array(Y_hat, "Y_hat"), validate.array(Y, "Y")
    if Y_hat.ndim != 2:
        raise ValueError(f"Y_hat has shape {Y_hat.shape}, expected (examples, outputs)")
    if not Y_hat.size:
        raise ValueError(f"Y_hat is empty (shape {Y_hat.shape}), expected at least one example")
    if Y.shape not in (Y_hat.shape, Y_hat.shape[:1], (Y_hat.shape[0], 1)):
        raise ValueError(f"Y has shape {Y.shape}, expected one that fits Y_hat {Y_hat.shape}")
    return Y_hat, Y


def _check_labels(Y_hat, Y):
    """Outputs and labels as arrays of shapes that fit; outputs are finite and labels are classes."""
    Y_hat, Y = _check_pair(Y_hat, Y)
    k = Y_hat.shape[1]
    validate.finite(Y_hat, "Y_hat")
    validate.finite(Y, "Y")
    if Y.size == Y_hat.shape[0] and k > 1 and jnp.issubdtype(Y.dtype, jnp.floating):
        raise ValueError(f"Y has dtype {Y.dtype}, expected integer classes, or rows of shape {Y_hat.shape}")
    if validate.concrete(Y):
        if Y.ndim == 2 and Y.shape[1] > 1:
            _check_rows(Y)
        else:
            _check_column(Y, max(k, 2))
    return Y_hat, Y


def _check_column(Y, k: int) -> None:
    """Refuses numbers that are no class, or no probability of class 1."""
    low, high = float(np.asarray(Y).min()), float(np.asarray(Y).max())
    if jnp.issubdtype(Y.dtype, jnp.floating):
        if low < 0 or high > 1:
            raise ValueError(f"Y holds values from {low:g} to {high:g}, expected 0 to 1")
    elif low < 0 or high >= k:
        raise ValueError(f"Y holds the class {low if low < 0 else high:.0f}, expected classes 0 to {k - 1}")


def _check_rows(Y) -> None:
    """Refuses rows of several labels: a class is the largest entry of its row, or the row a distribution."""
    rows = np.asarray(Y).astype(float)
    shares = (rows >= 0).all() and (rows <= 1).all()
    several = abs(rows.sum(1) - 1) > 1e-3 if shares else (rows == rows.max(1, keepdims=True)).sum(1) > 1
    if several.any():
        row = int(np.argmax(several))
        why = f"sums to {rows[row].sum():g}" if shares else "has its largest entry several times"
        raise ValueError(f"Y: row {row} {why}, expected one class for each example: one-hot rows or probabilities")
