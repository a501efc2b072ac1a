"""The IDX format of MNIST: a magic number, the sizes, then the bytes. Source: LeCun, Cortes and Burges, "MNIST"."""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

# The third byte of the magic number; numbers are big-endian in the file.
DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an IDX file, gzipped or plain, in the machine's byte order: pictures `(m, 28, 28)` uint8, labels `(m,)`.

    Raises ValueError for a file that is truncated, corrupt or not IDX, FileNotFoundError for one that is not there.
    """
    return decode_idx(Path(path).read_bytes(), str(path))


def decode_idx(raw: bytes, name: str) -> np.ndarray:
    """The array in the bytes of an IDX file; `name` is told in errors."""
    raw = decompressed(raw, name)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in DTYPES:
        begin = raw[:4].hex(" ") or "nothing"
        raise ValueError(f"{name} starts with {begin}, expected the magic number of an IDX file")
    ndim = raw[3]
    if len(raw) < 4 + 4 * ndim:
        raise ValueError(f"{name} is truncated in its header: {len(raw)} bytes, expected at least {4 + 4 * ndim}")
    shape = struct.unpack(f">{ndim}I", raw[4 : 4 + 4 * ndim])
    dtype = np.dtype(DTYPES[raw[2]])
    expected = 4 + 4 * ndim + math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise ValueError(f"{name} is {len(raw)} bytes long, expected {expected} for shape {shape} of {dtype.name}")
    values = np.frombuffer(raw, dtype, offset=4 + 4 * ndim).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def decompressed(raw: bytes, name: str) -> bytes:
    """The bytes themselves, or what is gzipped in them."""
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{name} is a truncated or corrupt gzip file: {error}") from None
