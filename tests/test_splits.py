"""Splits: disjoint parts of the right sizes and shares, drawn by a key."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from jaxmlp import data

SIZES = st.sampled_from([1, 2, 5, 13, 60])  # a few, since each is compiled


@hypothesis.given(SIZES, st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 9), st.data())
def test_parts_are_disjoint_cover_all_and_keep_shares(m, ratios, seed, drawn):
    fractions = np.asarray(ratios) / sum(ratios)
    key = jax.random.key(seed)
    classes = np.asarray(drawn.draw(st.lists(st.integers(-1, 3), min_size=m, max_size=m)))
    try:
        parts = data.split(key, m, fractions)
    except ValueError as error:
        assert "expected at least one example in each part" in str(error)
        assert (m * fractions).min() < 1
        return
    for stratify in (None, classes, classes.astype(str)):
        parts, again = (data.split(key, m, fractions, stratify=stratify) for _ in range(2))
        assert sorted(np.concatenate(parts).tolist()) == list(range(m))
        sizes = np.asarray([len(part) for part in parts])
        assert (np.abs(sizes - m * fractions) < 1).all()
        for part, same in zip(parts, again, strict=True):
            np.testing.assert_array_equal(part, same)
        if stratify is not None and len(parts) <= 3:
            for c in np.unique(stratify):
                counts = np.asarray([(stratify[part] == c).sum() for part in parts])
                assert (np.abs(counts - sizes * (stratify == c).mean()) < 2).all()


@pytest.mark.parametrize(
    ("m", "fractions", "sizes"),
    [
        (100, (0.98, 0.01, 0.01), (98, 1, 1)),
        (100_003, (0.98, 0.01, 0.01), (98_003, 1000, 1000)),
        (7, (0.6, 0.2, 0.2), (4, 2, 1)),  # 4.2, 1.4, 1.4: the first of equal remainders
        (5, (0.6, 0.2, 0.2), (3, 1, 1)),
        (6, (0.1, 0.3, 0.6), (1, 2, 3)),  # 0.6, 1.8, 3.6
        (25, (0.2, 0.7, 0.1), (5, 18, 2)),  # 5, 17.5, 2.5
        (100, (0.29, 0.71), (29, 71)),
        (3, (1,), (3,)),
    ],
)
def test_sizes_are_rounded_by_largest_remainder(key, m, fractions, sizes):
    assert tuple(len(part) for part in data.split(key, m, fractions)) == sizes


def test_strata_are_those_of_scikit_learn(key):
    classes = np.repeat(["a", "b", "c"], [500, 307, 91])  # no ties, which scikit-learn breaks by its own chance
    ours = data.split(key, len(classes), (0.7, 0.3), stratify=classes)
    theirs = next(StratifiedShuffleSplit(1, train_size=629, test_size=269).split(classes, classes))
    assert [len(part) for part in ours] == [629, 269]  # of 628.6 and 269.4
    for our, their in zip(ours, theirs, strict=True):
        assert np.unique(classes[our], return_counts=True)[1].tolist() == \
            np.unique(classes[their], return_counts=True)[1].tolist()  # fmt: skip


def test_a_split_is_drawn_by_its_key_and_in_no_order():
    classes = np.repeat([0, 1], 500)
    for stratify in (None, classes):
        train, other = (data.split(jax.random.key(seed), 1000, stratify=stratify)[0] for seed in (0, 1))
        assert set(train) != set(other)
        assert 0.4 < np.mean(np.diff(train) > 0) < 0.6 and abs(np.corrcoef(classes[train], range(600))[0, 1]) < 0.15
    many = np.arange(1000)  # each its own class: which go to which part is drawn, not the first in order
    assert abs(data.split(jax.random.key(0), 1000, (0.5, 0.5), stratify=many)[0].mean() - 499.5) < 40


def test_a_wrong_split_is_refused(key):
    for fractions in ((0.5, 0.6), (0.5, 0.5, 0), (1.5, -0.5), (), ((0.5,), (0.5,)), (np.nan, 0.5)):
        with pytest.raises(ValueError, match="expected numbers above 0 that sum to 1"):
            data.split(key, 10, fractions)
    with pytest.raises(ValueError, match="fractions has dtype <U4, expected an array of numbers"):
        data.split(key, 10, "most")
    with pytest.raises(ValueError, match=r"m is 50, too few for a fraction of 0.01, expected at least one example"):
        data.split(key, 50, (0.98, 0.01, 0.01))
    with pytest.raises(ValueError, match="m is 0, expected at least 1"):
        data.split(key, 0)
    with pytest.raises(ValueError, match="key is 0, expected one key"):
        data.split(0, 10)
    with pytest.raises(ValueError, match=r"stratify has shape \(9,\), expected one class for each of the 10 examples"):
        data.split(key, 10, stratify=np.zeros(9, int))
    with pytest.raises(ValueError, match=r"stratify has dtype datetime64.*, expected whole numbers, bools or strings"):
        data.split(key, 2, (0.5, 0.5), stratify=np.zeros(2, "M8[D]"))
    with pytest.raises(ValueError, match="stratify has dtype float64, expected whole numbers, bools or strings"):
        data.split(key, 10, stratify=np.zeros(10))


def test_classes_may_be_any_arrays_of_one_kind(key):
    """The strings of a DataFrame are Python's, in an array of objects."""
    names = ["cat", "dog", "eel", "dog"] * 10
    numbers = [0, 1, 2, 1] * 10
    expected = data.split(key, 40, stratify=np.asarray(names))
    objects = (np.asarray(names, object), np.asarray(numbers, object), [np.int8(n) for n in numbers])
    for same in (names, tuple(names), numbers, np.asarray(names, "S"), np.ma.array(numbers), *objects):
        for part, other in zip(data.split(key, 40, stratify=same), expected, strict=True):
            np.testing.assert_array_equal(part, other)


@pytest.mark.parametrize("wrong", [None, float("nan"), 3, b"dog", ("cat",)])
def test_mixed_and_missing_classes_are_named(key, wrong):
    labels = np.empty(40, object)
    labels[:] = ["cat", "dog"] * 20
    labels[7] = wrong
    message = r"stratify holds .* at 7 beside 'cat' at 0, expected whole numbers, bools or strings, all of one kind"
    for given in (labels, list(labels)) if wrong != ("cat",) else (labels,):
        with pytest.raises(ValueError, match=message):
            data.split(key, 40, stratify=given)
    with pytest.raises(ValueError, match="stratify holds True at 1 beside 2 at 0"):
        data.split(key, 2, (0.5, 0.5), stratify=[2, True])
    with pytest.raises(ValueError, match="stratify holds None at 0, expected"):
        data.split(key, 2, (0.5, 0.5), stratify=[None, None])
