"""IDX files: every type that one may hold, and every way it can be broken."""

import gzip
import struct

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
