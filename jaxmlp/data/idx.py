"""Reads the IDX format of MNIST: a magic number, the sizes, then the numbers.

Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits".
"""

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
    """Reads an IDX file, gzipped or plain.

    Args:
        path: the file.
    Returns:
        The array in the machine's byte order. MNIST has pictures `(m, 28, 28)` and labels `(m,)`, both uint8.
    Raises:
        ValueError: where the file is truncated, corrupt or not IDX.
        FileNotFoundError: where there is no such file.
    Example:
        >>> with open("labels-idx1-ubyte", "wb") as file:
        ...     written = file.write(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        >>> jm.data.read_idx("labels-idx1-ubyte").tolist()
        [7, 2, 1]
    """
    return decode_idx(Path(path).read_bytes(), str(path))


def decode_idx(raw: bytes, name: str) -> np.ndarray:
    """The array in the bytes of an IDX file; errors call the file `name`."""
    raw = decompress(raw, name)
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


def decompress(raw: bytes, name: str) -> bytes:
    """Unpacks gzipped bytes and returns other bytes unchanged; errors call the file `name`."""
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{name} is a truncated or corrupt gzip file: {error}") from None
