"""Batches: every example once, orders that depend on key and epoch alone, memory that does not grow with the data."""

import collections
import math
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmlp.data import Batches


def numbered(m: int) -> tuple[np.ndarray, np.ndarray]:
    """Examples that tell their number, twice."""
    return np.stack([np.arange(m), np.arange(m) + 0.5], 1).astype(np.float32), np.arange(m)


def order(batches) -> list[int]:
    return [int(y) for _, Y in batches for y in Y]


@given(data=st.data(), m=st.integers(1, 400), buffer=st.integers(1, 300), shuffled=st.booleans())
def test_every_example_comes_once_an_epoch_with_its_label(data, m, buffer, shuffled):
    size = data.draw(st.integers(1, m))
    X, Y = numbered(m)
    batches = Batches(X, Y, size, key=jax.random.key(m) if shuffled else None, buffer=buffer)
    for _ in range(2):
        made = list(batches)
        assert [len(y) for _, y in made] == [size] * (m // size) + [m % size] * (m % size > 0)
        assert len(batches) == len(made)
        for x, y in made:
            np.testing.assert_array_equal(x, X[y])
        assert sorted(order(made)) == list(range(m))
    if not shuffled:
        assert order(batches) == list(range(m))


def test_an_epochs_order_depends_on_key_and_number_alone(key):
    X, Y = numbered(300)
    batches = Batches(X, Y, 7, key, buffer=128)
    first, second = order(batches), order(batches)
    assert first != second and batches.epoch == 2
    resumed = Batches(X, Y, 7, jax.random.PRNGKey(0), buffer=128)  # the same key, as one wrote it once
    resumed.set_epoch(1)
    left, right = iter(resumed), iter(resumed)  # of epochs 1 and 2, side by side
    assert order(one for one, _ in zip(left, right, strict=True)) == second
    assert order(Batches(X, Y, 7, jax.random.key(1), buffer=128)) != first


def test_an_order_is_the_same_on_every_machine(key):
    """Read from a run: a resumed run elsewhere, or years later, must meet the same batches."""
    assert order(Batches(*numbered(12), 5, key)) == PINNED


PINNED = [0, 9, 3, 4, 10, 5, 7, 1, 2, 8, 6, 11]


def test_where_the_buffer_holds_all_examples_every_order_is_as_likely(key):
    X, Y = numbered(4)
    batches, n = Batches(X, Y, 4, key, buffer=4), 4800
    counts = collections.Counter(tuple(order(batches)) for _ in range(n))
    assert len(counts) == math.factorial(4)
    assert max(abs(count - n / 24) for count in counts.values()) <= 5 * math.sqrt(n / 24)


def test_rows_that_are_sorted_by_class_are_mixed(key):
    """With a buffer of a tenth of the data, each batch holds every class."""
    m = 20_000
    X, Y = np.zeros((m, 1), np.float32), np.repeat(np.arange(10), m // 10)
    shares = [np.bincount(y, minlength=10) / len(y) for _, y in Batches(X, Y, 500, key, buffer=m // 10)]
    assert len(shares) == 40 and np.min(shares) >= 0.03 and np.max(shares) <= 0.2
    X, Y = np.zeros((25_700, 1)), np.repeat([0, 1], 12_850)  # a piece of 100 rows more than the buffer
    *_, (_, last) = Batches(X, Y, 100, key, buffer=25_600)
    assert 0.2 < last.mean() < 0.8


class Disk:
    """What a file of rows gives: slices, and a note of each that was read."""

    def __init__(self, rows: np.ndarray):
        self.rows, self.shape, self.dtype, self.read = rows, rows.shape, rows.dtype, []

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.read.append((rows.start, rows.stop))
        return self.rows[rows]


def test_reads_are_long_contiguous_and_each_row_is_read_once(key):
    X, Y = numbered(5000)
    disk = Disk(X)
    list(Batches(disk, Y, 64, key, buffer=2560))
    assert {stop - start for start, stop in disk.read} == {10}
    assert sorted(disk.read) == [(i, i + 10) for i in range(0, 5000, 10)] != disk.read
    assert disk.read[:250] == sorted(disk.read[:250])  # within a buffer the disk moves one way


def test_what_is_yielded_is_the_readers_own(tmp_path):
    X, Y = numbered(6)
    np.save(tmp_path / "X.npy", X.astype(">f4"))
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r+")
    for key in (None, jax.random.key(0)):
        for x, y in Batches(mapped, Y, 4, key):
            assert type(x) is np.ndarray and x.dtype == np.float32 and x.dtype.isnative
            x[:], y[:] = -1, -1
    np.testing.assert_array_equal(mapped, X)
    np.testing.assert_array_equal(Y, np.arange(6))


def test_lists_and_jax_arrays_are_read_too():
    for X, Y in (([[1.0], [2.0], [3.0]], [True, False, True]), (jax.numpy.asarray([[1.0], [2.0], [3.0]]), [1, 0, 1])):
        got = list(Batches(X, Y, 2))
        assert [x.tolist() for x, _ in got] == [[[1], [2]], [[3]]]
        assert [y.tolist() for _, y in got] == [[1, 0], [1]]


X, Y = numbered(5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Batches(X, Y[:4], 2), r"X has 5 examples, Y has 4, expected one label for each example"),
        (lambda: Batches(X, Y, 6), r"batch_size is 6, but there are 5 examples; expected at most 5"),
        (lambda: Batches(X, Y, 0), r"batch_size is 0, expected at least 1"),
        (lambda: Batches(X, Y, 2, key=3), r"key is 3, expected one key"),
        (lambda: Batches(X, Y, 2, buffer=0), r"buffer is 0, expected at least 1"),
        (lambda: Batches(X[:0], Y[:0], 2), r"X has shape \(0, 2\), expected at least one example \(m, \.\.\.\)"),
        (lambda: Batches(X, 3, 2), r"Y has shape \(\), expected at least one example"),
        (lambda: Batches(X, ["a"] * 5, 2), r"Y has dtype <U1, expected an array of numbers"),
        (lambda: Batches(X, np.asarray(["a"] * 5), 2), r"Y has dtype <U1, expected numbers"),
        (lambda: Batches([[1], [2, 3]], Y, 2), r"X is ragged, expected an array"),
        (lambda: Batches(X, Y, 2).set_epoch(-1), r"epoch is -1, expected at least 0"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


MEMORY = """
import re, sys
import jax, numpy as np
from jaxmlp.data import Batches

def resident():
    with open("/proc/self/status") as status:
        return int(re.search(r"RssAnon:\\s+(\\d+) kB", status.read())[1]) / 1024

X = np.memmap(sys.argv[1], np.uint8, "r", offset=16, shape=(200_000, 28, 28))
batches = Batches(X, np.zeros(200_000, np.uint8), 128, jax.random.key(0), buffer=8192)
start = resident()
print(max(resident() - start for _ in batches))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_memory_is_bounded_by_the_buffer(tmp_path):
    """157 MB of pictures in an IDX file, shuffled in a buffer of 6.4 MB."""
    path = tmp_path / "train-images-idx3-ubyte"
    with path.open("wb") as file:
        file.truncate(16 + 200_000 * 784)  # zeros that take no disk
    ran = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert 6 <= float(ran.stdout) <= 16  # MB: the buffer, and at most another
