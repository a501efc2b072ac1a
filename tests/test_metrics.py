"""Scores equal scikit-learn's (row 31 of the notes' systems); what errors say (row 21)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from jaxmlp import metrics


def predictions(m=200, k=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(k), m), rng.integers(0, k, m)


def test_classification_scores_equal_scikit_learns():
    Y_hat, Y = predictions()
    chosen = Y_hat.argmax(1)
    for labels in (Y, np.eye(4)[Y]):
        assert float(metrics.accuracy(Y_hat, labels)) == pytest.approx(sklearn.metrics.accuracy_score(Y, chosen))
        confusion = metrics.confusion_matrix(Y_hat, labels)
        np.testing.assert_array_equal(confusion, sklearn.metrics.confusion_matrix(Y, chosen))
        recall = sklearn.metrics.recall_score(Y, chosen, average=None)
        np.testing.assert_allclose(metrics.per_class_accuracy(Y_hat, labels), recall, rtol=1e-6)


def test_a_single_output_is_cut_at_one_half():
    Y_hat, Y = np.asarray([[0.2], [0.5], [0.51], [0.9]]), np.asarray([0, 1, 1, 0])
    assert metrics.classes(jnp.asarray(Y_hat)).tolist() == [0, 0, 1, 1]
    for labels in (Y, Y[:, None], Y.astype(float)):
        assert float(metrics.accuracy(Y_hat, labels)) == 0.5
    assert metrics.confusion_matrix(Y_hat, Y).tolist() == [[1, 1], [1, 1]]


def test_a_class_without_examples_has_no_accuracy():
    Y_hat, Y = predictions(m=20)
    assert np.isnan(metrics.per_class_accuracy(Y_hat, np.minimum(Y, 2))[3])


def test_regression_errors_equal_scikit_learns():
    rng = np.random.default_rng(1)
    Y, Y_hat = rng.normal(size=(50, 3)), rng.normal(size=(50, 3))
    errors = metrics.regression_errors(Y_hat, Y)
    assert float(errors.mse) == pytest.approx(sklearn.metrics.mean_squared_error(Y, Y_hat), rel=1e-5)
    assert float(errors.rmse) == pytest.approx(sklearn.metrics.mean_squared_error(Y, Y_hat) ** 0.5, rel=1e-5)
    assert float(errors.mae) == pytest.approx(sklearn.metrics.mean_absolute_error(Y, Y_hat), rel=1e-5)
    assert float(errors.r2) == pytest.approx(sklearn.metrics.r2_score(Y, Y_hat), rel=1e-5)


CONSTANT = {
    "wrong": ([[1], [2], [3]], [5, 5, 5]),
    "right": ([[5], [5]], [5, 5]),
    "one of two": ([[1, 2.0], [2, 2.1], [3, 2]], [[1, 2.0], [2, 2], [3, 2]]),
    "no binary fraction": ([[0.1]] * 999, [0.1] * 999),
    "nearly right": ([[0.1]] * 998 + [[0.2]], [0.1] * 999),
}


@pytest.mark.parametrize("what", CONSTANT)
def test_r2_of_a_constant_target_is_1_or_0(what):
    Y_hat, Y = (np.asarray(values, np.float32) for values in CONSTANT[what])
    expected = {"nearly right": 0.0}.get(what, sklearn.metrics.r2_score(Y.reshape(Y_hat.shape), Y_hat))
    assert float(metrics.regression_errors(Y_hat, Y).r2) == pytest.approx(expected, abs=1e-6)


def test_errors_of_any_size_and_dtype_are_those_of_float64():
    rng = np.random.default_rng(2)
    Y, noise = rng.normal(size=(2, 30, 3))
    for scale in (1e-30, 1e-25, 1e-15, 1.0, 1e15, 1e25, 1e37):
        Y_hat, labels = (scale * (Y + 0.1 * noise)).astype(np.float32), (scale * Y).astype(np.float32)
        errors = metrics.regression_errors(Y_hat, labels)
        exact_hat, exact = Y_hat.astype(float), labels.astype(float)
        assert float(errors.r2) == pytest.approx(sklearn.metrics.r2_score(exact, exact_hat), rel=1e-5)
        assert float(errors.rmse) == pytest.approx(np.sqrt(((exact - exact_hat) ** 2).mean()), rel=1e-5)
        assert float(errors.mae) == pytest.approx(np.abs(exact - exact_hat).mean(), rel=1e-5)
    for dtype in (np.uint8, np.int8, np.float16):
        errors = metrics.regression_errors(np.asarray([[3], [100]], dtype), np.asarray([[5], [0]], dtype))
        assert (float(errors.mse), float(errors.mae)) == (5002, 51)
    for dtype in (np.float64, np.int64):  # times, whose differences float32 does not hold
        Y_hat, labels = np.asarray([[5], [15]], dtype) + 1_700_000_000, np.asarray([0, 10], dtype) + 1_700_000_000
        errors = metrics.regression_errors(Y_hat, labels)
        assert (float(errors.mse), float(errors.mae), float(errors.r2)) == (25, 5, 0)


def test_scores_of_many_classes_need_no_table_of_pairs():
    k = 100_000
    Y = np.asarray([0, 1, 1, k - 1])
    shares = metrics.per_class_accuracy(np.eye(4, k, dtype=np.float32)[[0, 1, 2, 0]], Y)
    assert shares.shape == (k,) and shares[:2].tolist() == [1, 0.5] and float(shares[-1]) == 0 and np.isnan(shares[2])
    with pytest.raises(ValueError, match="Y_hat has 100000 outputs, expected at most 46340"):
        metrics.confusion_matrix(np.zeros((4, k), np.float32), Y)


def test_rows_of_several_labels_are_no_classes():
    Y_hat = np.asarray([[0.9, 0.8, 0.1], [0.2, 0.7, 0.1]])
    for rows, message in [
        ([[1, 1, 0], [0, 1, 0]], "Y: row 0 sums to 2, expected one class for each example"),
        ([[0, 1, 0], [0, 0, 0]], "Y: row 1 sums to 0"),
        ([[0.9, 0.8, 0.1], [0, 1, 0]], "Y: row 0 sums to 1.8"),
        ([[1, -1, 1], [-1, 1, -1]], "Y: row 0 has its largest entry several times"),
    ]:
        for score in (metrics.accuracy, metrics.confusion_matrix, metrics.per_class_accuracy):
            with pytest.raises(ValueError, match=message):
                score(Y_hat, np.asarray(rows))
    for rows in (
        [[1, 0, 0], [0, 1, 0]],
        [[0.6, 0.2, 0.2], [0.1, 0.8, 0.1]],
        [[1, -1, -1], [-1, 1, -1]],
        [[2.5, 1, 0], [0, 3, 1]],
    ):
        assert float(metrics.accuracy(Y_hat, np.asarray(rows))) == 1
    for score in (metrics.accuracy, metrics.regression_errors):
        with pytest.raises(ValueError, match=r"Y_hat is empty \(shape \(0, 3\)\), expected at least one example"):
            score(np.zeros((0, 3)), np.zeros((0, 3)))


def test_labels_of_bytes_do_not_overflow():
    Y = np.repeat(np.arange(26, dtype=np.uint8), 10)
    assert np.trace(metrics.confusion_matrix(np.eye(26)[Y], Y)) == 260


@pytest.mark.parametrize(
    ("Y_hat", "Y", "message"),
    [
        (
            np.eye(3),
            np.asarray([2.0, 0, 1]),
            r"Y has dtype float.*, expected integer classes, or rows",
        ),
        (np.ones((2, 1)), np.asarray([3.7, -5.0]), "Y holds values from -5 to 3.7, expected 0 to 1"),
        (np.eye(3) * np.nan, np.asarray([0, 0, 0]), r"Y_hat holds nan at \(0, 0\)"),
        (np.eye(3), np.asarray([0, -1, 1]), r"Y holds the class -1, expected classes 0 to 2"),
        (np.eye(3), np.asarray([0, 3, 1]), r"Y holds the class 3, expected classes 0 to 2"),
    ],
)
def test_labels_that_are_no_classes_are_refused(Y_hat, Y, message):
    for score in (metrics.accuracy, metrics.confusion_matrix, metrics.per_class_accuracy):
        with pytest.raises(ValueError, match=message):
            score(Y_hat, Y)


def test_known_labels_are_scored_inside_jit():
    labels = np.asarray([0.0, 1, 1])
    assert float(jax.jit(lambda Y_hat: metrics.accuracy(Y_hat, labels))(jnp.ones((3, 1)))) == pytest.approx(2 / 3)


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"Y has shape \(3,\), expected \(3, 3\)"):
        metrics.regression_errors(np.eye(3), np.ones(3))
    with pytest.raises(ValueError, match=r"Y has shape \(3,\), expected one that fits Y_hat \(2, 4\)"):
        metrics.accuracy(np.ones((2, 4)), np.zeros(3, int))
    with pytest.raises(ValueError, match=r"Y_hat has shape \(4,\), expected \(examples, outputs\)"):
        metrics.accuracy(np.ones(4), np.zeros(4, int))


@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ({"train": 0.01, "dev": 0.11}, "high variance"),  # notes 002, the two worked cases
        ({"train": 0.15, "dev": 0.16}, "high bias"),
        ({"train": 0.15, "dev": 0.16, "bayes": 0.14}, "low bias and low variance"),
        ({"train": 0.15, "dev": 0.30}, "high bias and high variance"),
        ({"train": 0.005, "dev": 0.01}, "low bias and low variance"),
        ({"train": 0.01, "train_dev": 0.015, "dev": 0.10}, "data mismatch"),
        ({"train": 0.10, "train_dev": 0.11, "dev": 0.20}, "high bias and data mismatch"),
        ({"train": 0.01, "train_dev": 0.09, "dev": 0.10}, "high variance"),
        ({"train": 0.01, "dev": 0.03}, "low bias and low variance"),  # a gap of exactly the tolerance
    ],
)
def test_errors_are_diagnosed(errors, said):
    assert str(metrics.diagnosis(**errors)) == said
    assert str(metrics.diagnosis(**{name: jnp.float32(error) for name, error in errors.items()})) == said


SHARE = st.floats(0, 1)


@given(SHARE, SHARE, st.none() | SHARE, SHARE, st.floats(0.001, 0.5))
def test_the_gaps_add_up_and_name_the_problems(train, dev, train_dev, bayes, tolerance):
    found = metrics.diagnosis(train, dev, train_dev=train_dev, bayes=bayes, tolerance=tolerance)
    gaps = dict(zip(("high bias", "high variance", "data mismatch"), found[:3], strict=True))
    assert sum(gaps.values()) == pytest.approx(dev - bayes, abs=1e-12)
    assert found.mismatch == 0 or train_dev is not None
    assert all(gap > tolerance for gap in (gaps[name] for name in found.problems))
    assert all(gap <= tolerance + 1e-8 for name, gap in gaps.items() if name not in found.problems)


def test_wrong_errors_and_tolerances_are_refused():
    for wrong in ({"train": 1.5}, {"dev": float("nan")}, {"bayes": -0.1}, {"train_dev": 11}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(
            ValueError, match=f"{name} is {value}, expected a finite number of at least 0 and at most 1"
        ):
            metrics.diagnosis(**({"train": 0.1, "dev": 0.1} | wrong))
    with pytest.raises(ValueError, match="tolerance is 0, expected a finite number above 0"):
        metrics.diagnosis(0.1, 0.1, tolerance=0)
