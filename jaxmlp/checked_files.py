"""Safetensors files with a checksum: a write is atomic, a read believes nothing that it has not checked.

The metadata has one entry, `jaxmlp`, in JSON. It holds a format number, the kind of file and its description, and a
SHA-256 checksum. The checksum is taken of the whole file with 64 zeros in the place of the checksum. What is behind a
valid checksum is checked all the same. Source: https://huggingface.co/docs/safetensors, "Format".
"""

import hashlib
import json
import math
import os
import reprlib
import secrets
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from jaxmlp import paths

FilePath = str | os.PathLike[str]
Places = dict[str, tuple[np.dtype, tuple[int, ...], int]]  # dtype, shape, first byte

FORMAT = 1
NO_DIGEST = "0" * 64
PART = ".part"  # the ending of an unfinished file
LONGEST_HEADER = 100_000_000  # bytes, as for all readers of safetensors
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def write(path: FilePath, tensors: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Writes arrays and their description `about`, which is JSON, with a checksum of the whole file."""
    description = json.dumps({"sha256": NO_DIGEST, "format": FORMAT, **about})
    raw = safetensors.numpy.save(tensors, {"jaxmlp": description})
    digest = hashlib.sha256(raw).hexdigest()
    replace_file(path, raw.replace(NO_DIGEST.encode(), digest.encode(), 1))


def replace_file(path: FilePath, raw: bytes) -> None:
    """Writes a file; a link stays a link. A crash leaves the old file or the new one, whole."""
    checked = Path(os.path.realpath(paths.check(path)))
    with paths.name_errors(checked):
        _replace(checked, raw)


def read(path: FilePath, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads the arrays and the description of a file of `write`, and checks every byte."""
    return decode(_read_bytes(path, f"a file of jaxmlp's with a {kind}"), kind, str(path))


def read_foreign(path: FilePath) -> dict[str, np.ndarray]:
    """Reads the arrays of anyone's safetensors file; without a checksum, only what the header says is checked."""
    raw = _read_bytes(path, "a safetensors file")
    length = _header_length(raw[:8], len(raw), str(path))
    return _view(raw, 8 + length, _find_tensors(bytes(raw[8 : 8 + length]), len(raw), str(path)), str(path))


def _read_bytes(path: FilePath, expected: str) -> bytearray:
    """The bytes of a safetensors file, read no further than its header says."""
    checked = paths.check(path)
    if checked.is_dir():
        raise ValueError(f"{path} is a folder, expected {expected}")
    try:
        with paths.name_errors(checked), checked.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = file.read(_header_length(file.read(8), size, str(path)))
            _find_tensors(header, size, str(path))  # before a file of any size is read
            file.seek(0)
            raw = bytearray(size)
            file.readinto(raw)
            return raw
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there, expected {expected}") from None


def decode(raw: bytes | bytearray, kind: str, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays, which lie in a bytearray as they are, and the description in a file; errors call the file `name`."""
    raw = bytearray(raw) if isinstance(raw, bytes) else raw
    length = _header_length(raw[:8], len(raw), name)
    header = bytes(raw[8 : 8 + length])
    places = _find_tensors(header, len(raw), name)
    try:
        about = json.loads(json.loads(header)["__metadata__"]["jaxmlp"])
        digest, version = about.pop("sha256"), about.pop("format")
        found = _digest(raw, digest.encode())
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        hint = f"; it holds {_list(places)}; jaxmlp.params_from(net, path) reads the weights of other libraries"
        hint = hint if places and kind == "network" else ""
        raise ValueError(f"{name} is corrupt, or a safetensors file that jaxmlp did not write{hint}") from None
    if found != digest:
        raise ValueError(f"{name} is corrupt: its SHA-256 is {found}, expected {digest}")
    if version != FORMAT:
        raise ValueError(f"{name} has format {version}, expected {FORMAT}, which this jaxmlp reads")
    if about.get("kind") != kind:
        raise ValueError(f"{name} holds a {about.get('kind')}, expected a {kind}")
    return _view(raw, 8 + length, places, name), about


def _view(raw: bytearray, start: int, places: Places, name: str) -> dict[str, np.ndarray]:
    """The arrays that lie in the bytes behind the header."""
    arrays = {tensor: np.frombuffer(raw, dtype, math.prod(shape), start + begin).reshape(shape)
              for tensor, (dtype, shape, begin) in places.items()}  # fmt: skip
    for tensor, array in arrays.items():
        if array.dtype == bool and array.view(np.uint8).max(initial=0) > 1:
            raise ValueError(f"{name} is corrupt: {tensor} is of bools, but holds other bytes than 0 and 1")
    return arrays


def _list(places: Places) -> str:
    """The names and shapes of the first arrays."""
    first = ", ".join(f"{reprlib.repr(tensor)} {shape}" for tensor, (_, shape, _) in list(places.items())[:4])
    return first if len(places) <= 4 else f"{first} and {len(places) - 4} more"


def _digest(raw: bytearray, written: bytes) -> str:
    """The checksum of a file's bytes, with zeros in the place of the one that is written in it."""
    at = max(raw.find(written), 0)
    made, view = hashlib.sha256(), memoryview(raw)
    for part in (view[:at], NO_DIGEST.encode(), view[at + len(written) :]):
        made.update(part)
    return made.hexdigest()


def _header_length(start: bytes | bytearray, size: int, name: str) -> int:
    """The length of the header, which the first 8 bytes tell, in a file of `size` bytes."""
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= min(size - 8, LONGEST_HEADER):
        told = f"a header of {length} bytes" if len(start) == 8 else "no header"
        raise ValueError(f"{name} is truncated, corrupt or no safetensors file: it has {size} bytes, and {told}")
    return length


def _find_tensors(header: bytes, size: int, name: str) -> Places:
    """Each array's dtype, shape and first byte behind the header; together the arrays fill the file."""
    try:
        told = json.loads(header.decode())
        told.pop("__metadata__", None)
        places, end = {}, 0
        for tensor, entry in sorted(told.items(), key=lambda item: item[1]["data_offsets"]):
            begin, stop = entry["data_offsets"]
            shape, dtype = entry["shape"], jnp.dtype(DTYPES[entry["dtype"]])
            whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in (*shape, begin, stop))
            if not whole or begin != end or stop - begin != math.prod(shape) * dtype.itemsize or len(shape) > 64:
                raise ValueError(f"{reprlib.repr(tensor)} is {reprlib.repr(entry)}")
            places[tensor], end = (dtype, tuple(shape), begin), stop
        if 8 + len(header) + end != size:
            raise ValueError(f"it has {size} bytes, its header promises {8 + len(header) + end}")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError, OverflowError) as error:
        raise ValueError(f"{name} is truncated, corrupt or no safetensors file: {error}") from None
    return places


def _replace(path: Path, raw: bytes) -> None:
    """Writes another file to the disk, then renames it to `path`."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file's name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not there, expected a folder for {path.name}")
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        with part.open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # other systems cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # writes the new name to the disk
        finally:
            os.close(folder)
