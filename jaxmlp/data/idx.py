"""Reads the IDX format of MNIST: a magic number, the sizes, then the numbers.

Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits".
"""

import math
import os
import stat
import struct
from io import BufferedReader
from typing import Any

import numpy as np

from jaxmlp import paths
from jaxmlp.data import gunzip

# The third byte of the magic number; numbers are big-endian in the file.
DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
PIECE = 2**20  # bytes read at once, so that memory grows with what is there, not with what a header promises
DIMENSIONS = 64  # of a NumPy array, at most


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an IDX file, gzipped or plain.

    The header is believed only as far as the file goes: no more is unpacked than it promises, and one byte.

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
    return decode_idx(unpack_idx(path), str(path))


def unpack_idx(path: str | os.PathLike[str]) -> bytearray:
    """The bytes of an IDX file, unpacked: its header and the numbers that this promises."""
    checked = paths.check(path)
    with paths.name_errors(checked), checked.open("rb") as file:
        about = os.fstat(file.fileno())
        return unpack(file, str(checked), about.st_size if stat.S_ISREG(about.st_mode) else None)


def unpack(file: BufferedReader, name: str, size: int | None) -> bytearray:
    """The same of an open file; `size` is the file's, None where that is unknown; errors call the file `name`."""
    if file.peek(2)[:2] == gunzip.MAGIC:
        return _read_promised(gunzip.Unpacked(file, name), name, None, None if size is None else gunzip.RATIO * size)
    return _read_promised(file, name, size, size)


def _read_promised(file: Any, name: str, size: int | None, most: int | None) -> bytearray:
    """The header and the numbers that it promises, of `file.read`; the file has `size` bytes, or at most `most`."""
    raw = bytearray(file.read(4))
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in DTYPES:
        raise ValueError(f"{name} starts with {raw.hex(' ') or 'nothing'}, expected the magic number of an IDX file")
    header = 4 + 4 * raw[3]
    raw += file.read(header - 4)
    if len(raw) < header:
        raise ValueError(f"{name} is truncated in its header: {len(raw)} bytes, expected at least {header}")
    shape, dtype = _read_header(raw, name)
    promised = header + math.prod(shape) * dtype.itemsize
    wrong = lambda n: ValueError(f"{name} is {n} bytes long, expected {promised} for shape {shape} of {dtype.name}")
    if (size is not None and size != promised) or (most is not None and most < promised):
        raise wrong(f"at most {most}" if size is None else size)
    while len(raw) < promised and (piece := file.read(min(PIECE, promised - len(raw)))):
        raw += piece
    if len(raw) < promised:
        raise wrong(len(raw))
    if file.read(1):  # at its end a gzip file also checks its checksum
        raise wrong(f"more than {promised}")
    return raw


def decode_idx(raw: bytearray, name: str) -> np.ndarray:
    """The array in the bytes that `unpack` gives."""
    shape, dtype = _read_header(raw, name)
    values = np.frombuffer(raw, dtype, offset=4 + 4 * len(shape)).reshape(shape)
    return values.astype(dtype.newbyteorder("="), copy=False)


def _read_header(raw: bytearray, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and dtype that a whole header tells."""
    shape, dtype = struct.unpack_from(f">{raw[3]}I", raw, 4), np.dtype(DTYPES[raw[2]])
    if len(shape) > DIMENSIONS or math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**63:
        raise ValueError(f"{name} has shape {shape}, expected at most {DIMENSIONS} dimensions, and fewer numbers")
    return shape, dtype
