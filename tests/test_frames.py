"""DataFrames and Series of numbers go in as arrays do; strings and missing values are named."""

import jax
import numpy as np
import pytest
from problems import NET, SGD, examples

import jaxmlp as jm
from jaxmlp import arrays

pandas = pytest.importorskip("pandas")
pytestmark = pytest.mark.wrong_arguments

X, Y = examples(6)
PARAMS = jm.init(NET, jax.random.key(0))
FRAME = pandas.DataFrame(X, columns=["a", "b", "c"], index=range(40, 46))
LABELS = pandas.Series(Y, index=range(6))


def fit(X, Y):
    return jm.fit(NET, PARAMS, (X, Y), optimizer=SGD, epochs=1, key=jax.random.key(1), progress=False,
                  validation=(X, Y), weights=0 * Y + 1)  # fmt: skip


def test_training_with_frames_gives_the_bits_of_arrays():
    """Rows go by their place: an index is not looked at."""
    for got, expected in zip(fit(FRAME, LABELS).params, fit(X, Y).params, strict=True):
        np.testing.assert_array_equal(got.W, expected.W)
    batch = next(iter(jm.data.Batches(FRAME, LABELS, 6)))
    np.testing.assert_array_equal(batch[0], X)
    np.testing.assert_array_equal(jm.data.standardize(FRAME)(FRAME), jm.data.standardize(X)(X))
    holes = FRAME.mask(FRAME.iloc[1, 1] == FRAME)
    np.testing.assert_array_equal(np.asarray(jm.data.fill_missing(holes)(holes))[:, 3], [0, 1, 0, 0, 0, 0])


def test_numbers_of_every_kind_of_column_are_read():
    numbers = pandas.DataFrame({"a": [1, 2], "b": [0.5, -1.0], "c": [True, False]})
    for frame in (
        numbers,
        numbers.convert_dtypes(),
        numbers.astype(object),
        numbers.assign(a=numbers.a.astype("Int8")),
    ):
        np.testing.assert_array_equal(arrays.to_jax(frame, "X"), [[1, 0.5, 1], [2, -1, 0]])
    for dtype in ("int64", "Int64", "bool", "boolean", "category", object):
        np.testing.assert_array_equal(arrays.to_jax(pandas.Series([1, 0, 1]).astype(dtype), "Y"), [1, 0, 1])


MISSING = FRAME.mask(FRAME.iloc[1, 1] == FRAME)
REFUSED = {
    "nan": (MISSING, Y, r"X holds nan at \(1, 1\), expected finite numbers"),
    "NA": (MISSING.astype("Float32"), Y, r"X holds (<NA>|nan) at \(1, 1\), expected"),
    "strings": (FRAME.assign(b="x"), Y, r"X holds 'x' at \(0, 1\), expected numbers"),
    "whole numbers": (FRAME.astype(int), Y, "X has dtype int32, expected float32; convert it"),
    "a class is missing": (
        X,
        LABELS.astype("Int64").mask(LABELS.index == 2),
        r"Y holds nan at \(2,\), expected finite",
    ),
    "a flag is missing": (X, pandas.Series([True, None] * 3, dtype="boolean"), r"Y holds <NA> at \(1,\), expected"),
    "names": (X, pandas.Series(list("ababab")), r"Y holds 'a' at \(0,\), expected numbers"),
    "categories": (X, pandas.Series(list("ababab"), dtype="category"), r"Y holds 'a' at \(0,\), expected numbers"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_number_is_named(what):
    given, labels, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        jm.cost(NET, PARAMS, given, labels)
