"""Tables in the forms in which public ones are published, each read in one call; what is not as told is refused."""

import gzip

import jax
import numpy as np
import pytest

from jaxmlp import data

WINE = """"fixed acidity";"volatile acidity";"quality"
7.4;0.7;5
7.8;0.88;6
"""
AIR = """Date;Time;CO(GT);PT08.S1(CO);C6H6(GT);;
10/03/2004;18.00.00;2,6;1360;11,9;;
10/03/2004;19.00.00;-200;1292;-200,0;;
11/03/2004;00.00.00;1,2;-200;9,5;;
;;;;;;
;;;;;;
"""
ADULT = """39, State-gov, 77516, Bachelors, Male, 2174, <=50K
50, ?, 83311, HS-grad, Female, 0, >50K
38, Private, 215646, HS-grad, Male, ?, <=50K

"""
ADULT_TEST = """|1x3 Cross validator
25, Private, 226802, Bachelors, Male, 0, <=50K.
?, ?, 89814, HS-grad, Female, 7688, >50K.

"""
IRIS = "5.1,3.5,1.4,0.2,Iris-setosa\n7.0,3.2,4.7,1.4,Iris-versicolor\n4.9,3.0,1.4,0.2,Iris-setosa\n\n"

AIR_KINDS = dict.fromkeys(("Time", "CO(GT)", "PT08.S1(CO)", "C6H6(GT)"), "number")
AIR_FORM = {"delimiter": ";", "decimal": ",", "missing": -200, "edit": {"Time": lambda cell: cell[:2]}}
ADULT_KINDS = {"age": "number", "workclass": "category", "fnlwgt": None, "education": "category",
               "sex": ("Female", "Male"), "gain": "number", "income": "category"}  # fmt: skip
ADULT_FORM = {"header": None, "skipinitialspace": True, "missing": "?"}
TEST_FORM = ADULT_FORM | {"comment": "|", "edit": {"income": lambda cell: cell.removesuffix(".")}}
IRIS_KINDS = dict.fromkeys(("sepal length", "sepal width", "petal length", "petal width"), "number")
FEATURES = ("age", "gain", "workclass", "sex")


@pytest.fixture
def read(tmp_path):
    def write_and_read(text, columns, **form):
        path = tmp_path / "table.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return data.read_csv(path, columns, **form)

    return write_and_read


def test_wine_has_semicolons_and_quoted_names(read):
    table = read(WINE, {"quality": "number", "fixed acidity": "number"}, delimiter=";")
    np.testing.assert_array_equal(table.matrix(("fixed acidity", "quality")), np.float32([[7.4, 5], [7.8, 6]]))


def test_air_quality_has_decimal_commas_empty_ends_and_a_number_for_missing(read):
    table = read(AIR, AIR_KINDS, **AIR_FORM)
    X = table.matrix(tuple(AIR_KINDS))
    np.testing.assert_array_equal(X, np.float32([[18, 2.6, 1360, 11.9], [19, np.nan, 1292, np.nan],
                                                 [0, 1.2, np.nan, 9.5]]))  # fmt: skip
    filled = np.asarray(data.fill_missing(X)(X))
    np.testing.assert_array_equal(filled[:, 4:], [[0, 0, 0], [1, 0, 1], [0, 1, 0]])
    np.testing.assert_allclose(filled[1], [19, 1.9, 1292, 10.7, 1, 0, 1], rtol=1e-6)


def test_the_second_part_of_adult_has_the_categories_and_the_means_of_the_first(read):
    train = read(ADULT, ADULT_KINDS, **ADULT_FORM)
    assert train.categories == {"workclass": ("?", "Private", "State-gov"), "education": ("Bachelors", "HS-grad"),
                                "sex": ("Female", "Male"), "income": ("<=50K", ">50K")}  # fmt: skip
    assert train.columns["income"].dtype == np.int32 and train.columns["income"].tolist() == [0, 1, 0]
    assert list(train.columns) == [name for name in ADULT_KINDS if name != "fnlwgt"]
    test = read(ADULT_TEST, train.kinds, **TEST_FORM)
    assert test.categories == train.categories and test.columns["income"].tolist() == [0, 1]
    filling = data.fill_missing(train.matrix(FEATURES), features=(0, 1))
    np.testing.assert_allclose(filling(train.matrix(FEATURES))[2], [38, 1087, 0, 1, 0, 0, 1, 0, 1])
    np.testing.assert_allclose(filling(test.matrix(FEATURES)), [[25, 0, 0, 1, 0, 0, 1, 0, 0],
                                                                [127 / 3, 7688, 1, 0, 0, 1, 0, 1, 0]])  # fmt: skip
    for old, new, message in (
        ("Private", "Never", r"table.csv, line 2, column 'workclass': 'Never', expected one of '\?', 'Private'"),
        (">50K.", "50K.", r"table.csv, line 3, column 'income': '50K', expected one of '<=50K', '>50K'$"),
        ("7688", "many", r"table.csv, line 3, column 'gain': 'many', expected a finite number"),
        ("Male, ", "", r"table.csv, line 2: 6 fields, expected 7 as in columns"),
        ("|1x", "1x", r"table.csv, line 1: 1 fields, expected 7 as in columns"),
    ):
        assert old in ADULT_TEST
        with pytest.raises(ValueError, match=message):
            read(ADULT_TEST.replace(old, new, 1), train.kinds, **TEST_FORM)


def test_iris_has_names_for_labels_and_a_blank_line_behind(read):
    table = read(IRIS, IRIS_KINDS | {"species": "category"}, header=None)
    assert table.matrix(tuple(IRIS_KINDS)).shape == (3, 4)
    assert table.columns["species"].tolist() == [0, 1, 0]
    assert table.categories["species"] == ("Iris-setosa", "Iris-versicolor")
    assert read(IRIS, dict.fromkeys("abcd") | {"species": "category"}, header=None).columns.keys() == {"species"}


def test_a_packed_table_is_its_text_and_a_damaged_one_is_refused(read, tmp_path):
    packed = gzip.compress(WINE.encode())
    table = read(packed, {"quality": "number"}, delimiter=";")
    assert table.columns["quality"].tolist() == [5, 6]
    for damaged in (packed[:-9], packed[:12] + b"\xff" + packed[13:], packed + b"more"):
        with pytest.raises(ValueError, match=r"table\.csv is a truncated or corrupt gzip file"):
            read(damaged, {"quality": "number"}, delimiter=";")


@pytest.mark.parametrize(
    ("text", "columns", "form", "message"),
    [
        (AIR, AIR_KINDS, AIR_FORM | {"decimal": "."}, r"line 2, column 'CO\(GT\)': '2,6', .*; decimal=',' is for"),
        (AIR.replace("2,6", "2.6"), AIR_KINDS, AIR_FORM, r"line 2, .*: '2.6', expected a finite number, with a"),
        (AIR, AIR_KINDS, AIR_FORM | {"edit": {}}, r"line 2, column 'Time': '18.00.00', expected a finite number"),
        (AIR.replace(";19.", ";xx."), AIR_KINDS, AIR_FORM, r"line 3, column 'Time': 'xx', expected a finite"),
        (AIR + AIR, AIR_KINDS, AIR_FORM, r"line 5, column 'Time': '', expected a finite number"),
        (IRIS + IRIS, dict.fromkeys("abcd") | {"e": "category"}, {"header": None}, "line 4: 0 fields, expected 5"),
        (ADULT, ADULT_KINDS, ADULT_FORM | {"missing": ()}, r"line 3, column 'gain': '\?', expected a finite number"),
        (ADULT, ADULT_KINDS, ADULT_FORM | {"skipinitialspace": False}, r"line 1, column 'sex': ' Male', expected one"),
        (ADULT, ADULT_KINDS, ADULT_FORM | {"header": "first"}, r"line 1: 0 columns are called 'age', expected one"),
        ("a,b\n1,\n", {"b": "category"}, {}, r"line 2, column 'b': '', expected a category; missing=\('',\) makes"),
        ("a\n1\n", {"a": "number"}, {"edit": {"a": lambda cell: cell[3]}}, "line 2, .*'1', for which edit raised"),
        ("a\n1\n", {"a": "number"}, {"edit": {"a": float}}, "line 2, column 'a': '1', of which edit made 1.0"),
        ("a\nx\n", {"a": [f"c{i}" for i in range(25)]}, {}, "line 2, .*'x', expected one of 'c0', .* or 5 more"),
        ("# one\n# two\nb\n1\n", {"a": "number"}, {"comment": "#"}, "line 3: 0 columns are called 'a'"),
        ('a,b\n"x\n# y",1\n# z\n1,c\n', {"b": "number"}, {"comment": "#"}, "line 5, column 'b': 'c', expected"),
        ("", {"a": "number"}, {"header": None}, "has no rows, expected at least one"),
    ],
)  # fmt: skip
def test_a_table_of_another_form_than_told_is_refused(read, text, columns, form, message):
    with pytest.raises(ValueError, match=message):
        read(text, columns, **form)


def test_a_number_that_float32_cannot_hold_is_named_with_its_line(read):
    table = read("# large\na\n1\n1e39\n", {"a": "number"}, comment="#")
    with pytest.raises(ValueError, match=r"table.csv, line 4: column 'a' holds 1e\+39 in row 1, which float32 cannot"):
        table.matrix(["a"])
    assert table.matrix(["a"], np.float64)[1] == 1e39


def test_a_lone_empty_cell_counts_and_other_empty_ends_do_not(read):
    assert np.isnan(read('a\n1\n""\n\n', {"a": "number"}, missing="").columns["a"]).tolist() == [False, True]
    table = read("a,b\n1,\n,\n2,\n,\n\n,\n", {"a": "number"}, missing=("", "NA"))
    np.testing.assert_array_equal(table.columns["a"], [1, np.nan, 2])


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"header": 0}, "header is 0, expected 'first', or None for a file without one"),
        ({"delimiter": ", "}, "delimiter is ', ', expected one character"),
        ({"delimiter": '"'}, "delimiter is '\"', expected one character"),
        ({"delimiter": " ", "skipinitialspace": True}, "delimiter is ' ', which skipinitialspace leaves out"),
        ({"skipinitialspace": 1}, "skipinitialspace is 1, expected True or False"),
        ({"decimal": ";"}, "decimal is ';', expected '.' or ','"),
        ({"comment": ""}, "comment is '', expected the start of a line"),
        ({"missing": None}, "missing is None, expected texts or finite numbers"),
        ({"missing": ("?", float("nan"))}, r"missing is \('\?', nan\), expected texts or finite numbers"),
        ({"missing": 10**400}, "missing is 1000.*, expected texts or finite numbers"),
        ({"missing": (True,)}, r"missing is \(True,\), expected texts"),
        ({"edit": str.strip}, "edit is <method .*, expected a mapping"),
        ({"edit": {"quality": ".", "b": 1}}, r"edit\['quality'\] is '.', expected a function of a cell's text"),
        ({"edit": {"qality": str.strip}}, "a column of edit is 'qality', expected one of 'quality'; did you mean"),
    ],
)
def test_what_the_form_of_a_file_cannot_be_is_named(read, form, message):
    with pytest.raises(ValueError, match=message):
        read(WINE, {"quality": "number"}, **form)
    with pytest.raises(ValueError, match=r"columns\['quality'\] is 'label', expected 'number', .* or None to leave"):
        read(WINE, {"quality": "label"})
    with pytest.raises(ValueError, match=r"columns is \{'quality': None\}, expected a mapping"):
        read(WINE, {"quality": None})


def test_filling_is_that_of_scikit_learn():
    from sklearn.impute import SimpleImputer

    rng = np.random.default_rng(0)
    X, other = rng.normal(5, 3, (40, 4)).astype(np.float32), rng.normal(5, 3, (9, 4)).astype(np.float32)
    X[rng.random(X.shape) < 0.3], X[:, 2], other[2, 1] = np.nan, np.float32(0.1), np.nan
    filling, oracle = data.fill_missing(X), SimpleImputer(add_indicator=True).fit(X)
    assert filling.features.tolist() == [0, 1, 3] and filling.mean[2] == np.float32(0.1)
    for each in (X, other):
        made = filling(each)
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, oracle.transform(each), rtol=1e-6)
    np.testing.assert_array_equal(
        jax.jit(lambda x: filling(x))(other[2]), filling(other)[2]
    )  # one example, and under a trace
    with pytest.raises(ValueError, match=r"X holds nan at \(1, 2\), expected a number, as all training examples"):
        filling(np.where(np.arange(8).reshape(2, 4) == 6, np.nan, other[:2]))
    everywhere = data.fill_missing(X, features=range(4))
    assert everywhere(other).shape == (9, 8)


def test_what_cannot_be_filled_is_refused():
    X = np.float32([[1, np.nan], [np.nan, np.nan]])
    for wrong, features, message in (
        (X, None, "X holds nan alone in feature 1, expected an example that has it"),
        (np.float32([[np.inf, 1]]), None, r"X holds inf at \(0, 0\), expected finite numbers"),
        (X[:0], None, r"X has shape \(0, 2\), expected \(examples, features\)"),
        (X[0], None, r"X has shape \(2,\), expected \(examples, features\)"),
        (np.int32([[1]]), None, "X has dtype int32, expected a floating-point type"),
        (X[:, :1], (1,), r"features is \(1,\), expected whole numbers from 0 to 0"),
        (X[:, :1], (0, 0), r"features is \(0, 0\), expected each of them once"),
        (X[:, :1], ("a",), r"features is \('a',\), expected whole numbers"),
        (X[:, :1], [False], r"features is \[False\], expected whole numbers"),
        (X[:, :1], 0, "features is 0, expected whole numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            data.fill_missing(wrong, features)
    with pytest.raises(ValueError, match=r"X has shape \(2, 2\), expected features of shape \(1,\)"):
        data.fill_missing(X[:, :1])(X)
