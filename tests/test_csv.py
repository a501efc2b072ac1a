"""Tables: columns as they are declared, and every cell that is not as declared."""

import csv
import hashlib
from pathlib import Path

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxmlp import data

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
    with pytest.raises(ValueError, match=r"houses.csv has no header, expected a line"):
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


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        ("price,area\n1,2\n", {}, r"0 columns are called 'rooms', expected one among \['price', 'area'\]$"),
        ("Room,area\n1,2\n", {}, r"expected one among \['Room', 'area'\]; did you mean 'Room'\?$"),
        ("area,ROOMS\n1,2\n", {}, r"did you mean 'ROOMS'\?$"),
        ("rooms;area\n1;2\n", {}, r"expected one among \['rooms;area'\]; delimiter=';' splits this line$"),
        ("rooms\tarea\n1\t2\n", {}, r"; delimiter='\\t' splits this line$"),
        ("1;2\n", {"header": None}, r"line 1: 1 fields, expected 2 as in columns; delimiter=';' splits this line$"),
        ("1,2\n", {}, r"expected one among \['1', '2'\]; header=None is for a file without names$"),
        ("", {}, r"houses.csv has no header, expected a line with the names of the columns$"),
        ("\nrooms,area\n1,2\n", {}, r"houses.csv has no header"),
        ("rooms,area\n1,2\n", {"header": None}, r"'rooms', expected a finite number; header='first' skips the names$"),
        ("rooms,area\n?,2\n", {}, r"'rooms': '\?', expected a finite number; missing='\?' makes it nan$"),
        ("rooms,area\nN/A,2\n", {"missing": "?"}, r"'N/A', expected a finite number; missing='N/A' makes it nan$"),
        ("rooms,area\n,2\n", {}, r"'', expected a finite number; missing='' makes it nan$"),
        ("rooms,area\n 1,2\n", {}, r"' 1', expected a finite number; skipinitialspace=True leaves spaces out$"),
        ("rooms;area\n1,5;2\n", {"delimiter": ";"}, r"finite number; decimal=',' is for a comma before the fraction$"),
        ("rooms,area\nfew,2\n", {}, r"line 2, column 'rooms': 'few', expected a finite number$"),
    ],
)
def test_a_mistake_that_the_file_shows_is_named(houses, text, form, message):
    with pytest.raises(ValueError, match=message):
        data.read_csv(houses(text), {"rooms": "number", "area": "number"}, **form)


def test_a_matrix_holds_the_numbers_of_the_file_or_names_the_one_it_cannot(houses):
    """Rounding may cost a fraction some digits; it must not make another whole number, infinity or 0 of one."""
    read = lambda *cells: data.read_csv(houses("x\n" + "".join(f"{cell}\n" for cell in cells)), {"x": "number"})
    for fine in ("16777216", "0.1", "-3.4e38", "1.2e-38", "6.02e23", "1e10", "0", "-0.0"):
        np.testing.assert_array_equal(read(fine).matrix(["x"]), np.asarray([[fine]], np.float32))
    for lost in ("16777217", "1e39", "-1e39", "1e-50", "1e-42", "123456789", "9007199254740991"):
        table = read("1", lost)
        with pytest.raises(ValueError, match=r"column 'x' holds .* in row 1, which float32 cannot hold; .*float64"):
            table.matrix(["x"])
        exact = table.matrix(["x"], dtype=np.float64)
        assert exact.dtype == np.float64 and exact[1, 0] == float(lost)
    for dtype in (np.float16, "float64", int, None):
        with pytest.raises(ValueError, match=r"dtype is .*, expected numpy.float32 or numpy.float64"):
            read("1").matrix(["x"], dtype)
    for beyond in ("9007199254740993", "1e-400", "-0.0000e1"):
        if beyond == "-0.0000e1":
            assert read(beyond).columns["x"].tolist() == [0]
            continue
        with pytest.raises(ValueError, match=rf"line 2, column 'x': '{beyond}', which float64 cannot hold"):
            read(beyond)


def test_other_bytes_are_named_with_their_line(houses):
    with pytest.raises(ValueError, match=r"houses\.csv is not a text file in UTF-8: line 4 holds the byte 0xf6"):
        data.read_csv(houses(HOUSES.replace('"north"', '"n\xf6rth"'), "latin-1"), KINDS)
    with pytest.raises(ValueError, match=r"houses\.csv is not a text file in UTF-8: line 1 holds the byte 0xff"):
        data.read_csv(houses(HOUSES, "utf-16"), KINDS)


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
