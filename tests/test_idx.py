"""IDX files: every type that one may hold, and every way it can be broken."""

import gzip
import os
import struct
import tracemalloc

import numpy as np
import pytest

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
PACKED = gzip.compress(GOOD, mtime=0)  # without the time, which would change the names of tests


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (GOOD[:-1], r"is 21 bytes long, expected 22 for shape \(5, 2\) of uint8"),
        (GOOD + b"x", r"is 23 bytes long, expected 22"),
        (GOOD[:6], r"is truncated in its header: 6 bytes, expected at least 12"),
        (b"", r"starts with nothing, expected the magic number"),
        (b"<html>", r"starts with 3c 68 74 6d, expected the magic number of an IDX file"),
        (b"\0\0\x07\x01", r"expected the magic number of an IDX file"),
        (PACKED[:-6], r"is a truncated or corrupt gzip file"),
        (
            gzip.compress(GOOD, mtime=0)[:12] + b"????????" + gzip.compress(GOOD, mtime=0)[20:],
            r"is a truncated or corrupt gzip file|starts with 00 07 .*, expected the magic number",
        ),
    ],
)
def test_a_broken_file_is_refused(tmp_path, raw, message):
    path = tmp_path / "broken"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        data.read_idx(path)


def refusal(path) -> str:
    with pytest.raises(ValueError) as error:
        data.read_idx(path)
    assert str(path) in str(error.value)
    return str(error.value).replace(str(path), "the file")


def test_no_more_is_unpacked_than_the_header_promises(tmp_path):
    """A bomb, a promise that the packed bytes cannot keep, and a hole in a plain file."""
    path = tmp_path / "bomb"
    with gzip.open(path, "wb", 1) as file:
        file.write(bytes([0, 0, 8, 1]) + struct.pack(">I", 5))
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    assert "is more than 13 bytes long, expected 13 for shape (5,) of uint8" in refusal(path)
    path.write_bytes(gzip.compress(bytes([0, 0, 8, 2]) + struct.pack(">II", 2**20, 2**20)))
    assert "bytes long, expected 1099511627788 for shape (1048576, 1048576)" in refusal(path)
    path.write_bytes(GOOD)
    os.truncate(path, 2**36)
    assert refusal(path) == "the file is 68719476736 bytes long, expected 22 for shape (5, 2) of uint8"
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("n", [0, 5, 2**20 - 8, 2**20, 2**21 + 3])
def test_a_gzip_file_may_have_several_members_and_zeros_behind_them(tmp_path, n):
    values = np.random.default_rng(n).integers(0, 3, n).astype(np.uint8)
    raw, path = encode(values, 8), tmp_path / "packed"
    middle = len(raw) // 2
    for packed in (
        gzip.compress(raw, 1),
        gzip.compress(raw[:middle], 1) + gzip.compress(raw[middle:], 1) + gzip.compress(b""),
        gzip.compress(raw, 1) + bytes(512),
    ):
        path.write_bytes(packed)
        np.testing.assert_array_equal(data.read_idx(path), values)
    for broken in (packed + b"x", packed[:-513], gzip.compress(raw + b"y", 1), gzip.compress(raw, 1)[:-5] + b"12345"):
        path.write_bytes(broken)
        refusal(path)
    path.write_bytes(packed)
    os.truncate(path, 2**34)
    assert "more than 1,048,576 zeros follow its end" in refusal(path)


@pytest.mark.parametrize("shape", [(1,) * 65, (0, 2**32 - 1, 2**32 - 1), (2**32 - 1,) * 4])
def test_a_shape_that_no_array_has_is_named(tmp_path, shape):
    path = tmp_path / "shape"
    path.write_bytes(bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + b"1")
    assert "expected at most 64 dimensions, and fewer numbers" in refusal(path)
