"""Readers: every type a file may hold, and every way it can be broken. Splits and scaling: their properties."""

import csv
import gzip
import hashlib
import struct
from pathlib import Path

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler

from jaxmlp import data


def encode(values: np.ndarray, code: int) -> bytes:
    big = values.astype(values.dtype.newbyteorder(">"))
    return struct.pack(f">HBB{values.ndim}I", 0, code, values.ndim, *values.shape) + big.tobytes()


CODES = {"uint8": 0x08, "int8": 0x09, "int16": 0x0B, "int32": 0x0C, "float32": 0x0D, "float64": 0x0E}


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("compress", [False, True])
def test_what_was_written_is_read(tmp_path, dtype, compress):
    values = np.random.default_rng(0).integers(0, 100, (4, 3, 2)).astype(dtype)
    raw = encode(values, CODES[dtype])
    path = tmp_path / "values-idx3"
    path.write_bytes(gzip.compress(raw) if compress else raw)
    got = data.read_idx(path)
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(got, values)


GOOD = encode(np.zeros((5, 2), np.uint8), 0x08)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (GOOD[:-1], r"is 21 bytes long, expected 22 for shape \(5, 2\) of uint8"),
        (GOOD + b"x", r"is 23 bytes long, expected 22"),
        (GOOD[:6], r"is truncated in its header: 6 bytes, expected at least 12"),
        (b"", r"starts with nothing, expected the magic number"),
        (b"<html>", r"starts with 3c 68 74 6d, expected the magic number of an IDX file"),
        (b"\0\0\x07\x01", r"expected the magic number of an IDX file"),
        (gzip.compress(GOOD)[:-6], r"is a truncated or corrupt gzip file"),
        (gzip.compress(GOOD)[:12] + b"????????" + gzip.compress(GOOD)[20:], r"is a truncated or corrupt gzip file"),
    ],
)
def test_a_broken_file_is_refused(tmp_path, raw, message):
    path = tmp_path / "broken"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        data.read_idx(path)


def test_pictures_become_flat_vectors_between_0_and_1():
    scaled = data.scale_pixels(np.asarray([[0, 51], [204, 255]], np.uint8))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [0, 0.2, 0.8, 1], rtol=1e-6)


HOUSES = """id,price,"rooms",driveway,side
1,42000,5.5,yes,north
2,"38500",-1e2,no,south
3,49500,.25,no,"north"
"""
KINDS = {"id": "number", "price": "number", "rooms": "number", "driveway": "yes_no", "side": ("south", "north")}


@pytest.fixture
def houses(tmp_path):
    def write(text=HOUSES, encoding="utf-8"):
        path = tmp_path / "houses.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


@pytest.mark.parametrize("text", [HOUSES, HOUSES.replace("\n", "\r\n"), "\ufeff" + HOUSES, HOUSES.rstrip("\n")])
def test_a_table_is_read_by_its_declared_columns(houses, text):
    table = data.read_csv(houses(text), KINDS)
    assert table.columns["price"].dtype == np.float64 and table.columns["price"].tolist() == [42000, 38500, 49500]
    assert table.columns["id"].tolist() == [1, 2, 3]
    assert table.columns["rooms"].tolist() == [5.5, -100, 0.25]
    assert table.columns["driveway"].dtype == bool and table.columns["driveway"].tolist() == [True, False, False]
    assert table.columns["side"].tolist() == [1, 0, 1] and table.categories == {"side": ("south", "north")}
    X = table.matrix(("side", "rooms", "driveway"))
    assert X.dtype == np.float32
    np.testing.assert_array_equal(X, [[0, 1, 5.5, 1], [1, 0, -100, 0], [0, 1, 0.25, 0]])


@hypothesis.given(hnp.arrays(np.float64, (4, 3), elements=st.floats(allow_nan=False, allow_infinity=False)))
def test_every_finite_number_survives_a_table(houses, values):
    text = "a,b,c\n" + "".join(",".join(map(repr, map(float, row))) + "\n" for row in values)
    table = data.read_csv(houses(text), dict.fromkeys("cab", "number"))
    np.testing.assert_array_equal(np.stack([table.columns[name] for name in "abc"], axis=1), values)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("49500", "4950O", r"houses.csv, line 4, column 'price': '4950O', expected a finite number"),
        ("5.5", "", r"line 2, column 'rooms': '', expected a finite number"),
        ("5.5", "nan", r"line 2, column 'rooms': 'nan'"),
        ("5.5", "1e999", r"line 2, column 'rooms': '1e999'"),
        ("5.5", "5_5", r"line 2, column 'rooms': '5_5'"),
        ("5.5", " 5.5", r"line 2, column 'rooms': ' 5.5'"),
        ("5.5", "\u0665", r"line 2, column 'rooms': '\u0665'"),
        ("yes", "Yes", r"line 2, column 'driveway': 'Yes', expected one of 'no', 'yes'"),
        ("north\n", "east\n", r"line 2, column 'side': 'east', expected one of 'south', 'north'"),
        ('"38500"', "385,00", r"line 3: 6 fields, expected 5 as in the header"),
        (",no,south", "", r"line 3: 3 fields, expected 5 as in the header"),
        ("3,49500", "\n3,49500", r"line 4: 0 fields, expected 5"),
        ('"north"', '"north', r"line 4: unexpected end of data"),
        ('"38500"', '"385"00', r"line 3: ',' expected after"),
        ("price", "cost", r"line 1: 0 columns are called 'price', expected one among \['id', 'cost', 'rooms'"),
        ("driveway", "price", r"line 1: 2 columns are called 'price', expected one"),
    ],
)
def test_a_cell_that_is_not_what_was_declared_is_refused(houses, old, new, message):
    assert old in HOUSES
    with pytest.raises(ValueError, match=message):
        data.read_csv(houses(HOUSES.replace(old, new, 1)), KINDS)


def test_a_record_of_many_lines_is_told_by_its_first(houses):
    with pytest.raises(ValueError, match=r"line 3, column 'side': 'so\\nuth'"):
        data.read_csv(houses(HOUSES.replace("south", '"so\nuth"')), KINDS)


def test_empty_and_foreign_files_and_columns_are_refused(houses):
    with pytest.raises(ValueError, match="line 1: 0 columns are called 'id'"):
        data.read_csv(houses(""), KINDS)
    with pytest.raises(ValueError, match="has no rows below its header"):
        data.read_csv(houses(HOUSES.split("\n")[0]), KINDS)
    with pytest.raises(ValueError, match=r"houses\.csv is not a text file in UTF-8"):
        data.read_csv(houses(HOUSES.replace("north", "n\xf6rth"), "latin-1"), KINDS)
    for columns, message in [
        ({}, r"columns is \{\}, expected a mapping"),
        (["price"], r"columns is \['price'\], expected a mapping"),
        ({"price": "float"}, r"columns\['price'\] is 'float', expected 'number', 'yes_no' or the names"),
        (
            {"side": ("north", "north")},
            r"columns\['side'\] is .*, expected .* one category, and each of them once",
        ),
        ({"side": ()}, r"columns\['side'\] is \(\), expected at least one category"),
        ({"side": (1, 2)}, r"columns\['side'\] is \(1, 2\), expected 'number'"),
    ]:
        with pytest.raises(ValueError, match=message):
            data.read_csv(houses(), columns)
    table = data.read_csv(houses(), KINDS)
    with pytest.raises(ValueError, match=r"a column is 'prize', expected one of .*; did you mean 'price'"):
        table.matrix(["prize"])
    with pytest.raises(ValueError, match="names is 'price', expected a sequence of columns"):
        table.matrix("price")


def test_the_shipped_houses_are_unchanged_and_read_in_full():
    folder = Path(__file__).parents[1] / "experiments" / "data" / "housing"
    sha256 = hashlib.sha256((folder / "windsor.csv").read_bytes()).hexdigest()
    assert f"{sha256}  windsor.csv" in (folder / "README.md").read_text()
    table = data.read_csv(folder / "windsor.csv", {"price": "number", "airco": "yes_no"})
    with (folder / "windsor.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 546
    assert table.columns["price"].tolist() == [float(row["price"]) for row in rows]
    assert table.columns["airco"].tolist() == [row["airco"] == "yes" for row in rows]


SIZES = st.sampled_from([1, 2, 5, 13, 60])  # a few, since each is compiled


@hypothesis.given(SIZES, st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 9), st.data())
def test_parts_are_disjoint_cover_all_and_keep_shares(m, ratios, seed, drawn):
    fractions = np.asarray(ratios) / sum(ratios)
    key = jax.random.key(seed)
    classes = np.asarray(drawn.draw(st.lists(st.integers(-1, 3), min_size=m, max_size=m)))
    try:
        parts = data.split(key, m, fractions)
    except ValueError as error:
        assert "is none, expected at least one example" in str(error)
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
    with pytest.raises(ValueError, match=r"m is 50, of which a fraction of 0.01 is none, expected at least one"):
        data.split(key, 50, (0.98, 0.01, 0.01))
    with pytest.raises(ValueError, match="m is 0, expected at least 1"):
        data.split(key, 0)
    with pytest.raises(ValueError, match="key is 0, expected one key"):
        data.split(0, 10)
    with pytest.raises(ValueError, match=r"stratify has shape \(9,\), expected one class for each of the 10 examples"):
        data.split(key, 10, stratify=np.zeros(9, int))
    with pytest.raises(ValueError, match="stratify has dtype float64, expected whole numbers, bools or strings"):
        data.split(key, 10, stratify=np.zeros(10))


@hypothesis.given(
    hnp.arrays(np.float64, st.sampled_from([(1, 2), (2, 1), (6, 3)]), elements=st.integers(-9, 9)),
    st.sampled_from([1e-200, 0.1, 1.0, 1e200]), st.sampled_from([0, 0.1, 1e6]),
)  # fmt: skip
def test_standardised_features_are_those_of_scikit_learn(values, scale, offset):
    """Whatever the scale, squares that under- or overflow included; a constant feature becomes 0, not NaN."""
    X = scale * (values + offset)
    with jax.enable_x64(True):
        scaling = data.standardise(X)
        Z, back = scaling(X), scaling.inverse(scaling(X))
    constant = (values == values[0]).all(0)
    sure = StandardScaler().fit_transform(values)  # of small whole numbers, before scale and offset
    np.testing.assert_allclose(Z, np.where(constant, 0, sure), atol=1e-8)
    np.testing.assert_allclose(back, X, rtol=1e-12, atol=1e-12 * scale * np.abs(values + offset).max())
    assert (np.asarray(scaling.deviation)[constant] == 1).all()


def test_dev_and_test_are_scaled_by_the_training_mean_and_deviation():
    X = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    other = np.random.default_rng(1).normal(5, 1, (20, 4)).astype(np.float32)
    scaling, oracle = data.standardise(X), StandardScaler().fit(X)
    assert scaling.mean.dtype == np.float32
    np.testing.assert_allclose(scaling(other), oracle.transform(other), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scaling(other[0]), scaling(other)[0], rtol=1e-6)  # one example, too
    pixels = data.standardise(X.reshape(50, 2, 2))
    np.testing.assert_allclose(pixels(other.reshape(20, 2, 2)).reshape(20, 4), scaling(other), rtol=1e-6)
    constant = np.full((1000, 1), 0.1, np.float32)  # its mean in float32 is not 0.1
    assert np.mean(constant) != constant[0, 0] and not np.asarray(data.standardise(constant)(constant)).any()
    targets = data.standardise(X[:, 0])
    np.testing.assert_allclose(targets.inverse(targets(other[:, 0])), other[:, 0], rtol=1e-5)
    many = jax.vmap(data.standardise)(jnp.stack([X, 2 * X]))  # a pytree, so a population has one each
    np.testing.assert_allclose(jax.vmap(lambda s, x: s(x))(many, jnp.stack([X, 2 * X]))[1], scaling(X), atol=1e-5)


def test_what_cannot_be_scaled_is_refused():
    scaling = data.standardise(np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"X has shape \(4, 3\), expected features of shape \(2,\), with or without m"):
        scaling(np.ones((4, 3), np.float32))
    with pytest.raises(ValueError, match=r"Z has shape \(\), expected features of shape \(2,\)"):
        scaling.inverse(np.float32(1))
    with pytest.raises(ValueError, match="X has dtype uint8, expected a floating-point type"):
        scaling(np.ones((4, 2), np.uint8))
    with pytest.raises(ValueError, match="X has dtype int32, expected a floating-point type"):
        data.standardise(np.ones((4, 2), np.int32))
    with pytest.raises(ValueError, match=r"X has shape \(0, 2\), expected at least one example"):
        data.standardise(np.ones((0, 2), np.float32))
    with pytest.raises(ValueError, match=r"X holds nan at \(1, 0\), expected finite numbers"):
        data.standardise(np.asarray([[1.0], [np.nan]], np.float32))
    with pytest.raises(ValueError, match=r"the deviation of X holds (inf|nan) at \(0,\)"):
        data.standardise(np.asarray([[3e38], [-3e38], [3e38]], np.float32))
