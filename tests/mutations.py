"""Mutations of files: of any bytes, of gzip files, and of safetensors files behind a valid checksum."""

import contextlib
import copy
import gzip
import hashlib
import json
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

EXTREMES = (0, 1, 2, 127, 128, 255, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
STRANGE = (
    None,
    True,
    -1,
    0,
    1,
    3,
    2**31,
    2**63,
    10**30,
    1.5,
    1e400,
    "",
    "x",
    "relu",
    "\ud800",
    "F32",
    [],
    [1],
    [[]],
    {},
    {"a": 1},
)


# Mutations of any bytes.


def flip(rng: random.Random, raw: bytes) -> bytes:
    made = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if made:
            made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def truncate(rng: random.Random, raw: bytes) -> bytes:
    return raw[: rng.randrange(len(raw) + 1)]


def overwrite(rng: random.Random, raw: bytes) -> bytes:
    at, n = rng.randrange(len(raw) + 1), rng.choice((1, 4, 8, 64))
    return raw[:at] + rng.choice((bytes(n), b"\xff" * n, rng.randbytes(n))) + raw[at + n :]


def insert(rng: random.Random, raw: bytes) -> bytes:
    at, n = rng.randrange(len(raw) + 1), rng.choice((1, 8, 100, 5000))
    return raw[:at] + rng.choice((bytes(n), rng.randbytes(n), raw[at : at + n], b"\n" * n, b'"' * n)) + raw[at:]


def remove(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + raw[at + rng.choice((1, 4, 8, 64)) :]


def swap(rng: random.Random, raw: bytes) -> bytes:
    a, b, c = sorted(rng.randrange(len(raw) + 1) for _ in range(3))
    return raw[:a] + raw[b:c] + raw[a:b] + raw[c:]


def set_number(rng: random.Random, raw: bytes) -> bytes:
    """A number of 1, 4 or 8 bytes near the beginning becomes an extreme one."""
    at, form = rng.randrange(min(len(raw), 40) + 1), rng.choice((">B", ">I", "<I", "<Q", ">Q"))
    n = struct.calcsize(form)
    return raw[:at] + struct.pack(form, rng.choice(EXTREMES) % 2 ** (8 * n)) + raw[at + n :]


def random_bytes(rng: random.Random, raw: bytes) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 7, 8, 100, 2000)))


def pack(rng: random.Random, raw: bytes) -> bytes:
    """Gzip of the file, of another one, or of zeros that take a thousandth of their place."""
    return gzip.compress(rng.choice((raw, flip(rng, raw), rng.randbytes(50), raw[:20] + bytes(2**24))), 6, mtime=0)


def unpack(rng: random.Random, raw: bytes) -> bytes:
    """A gzip file's content, mutated and packed again."""
    with contextlib.suppress(OSError, EOFError, zlib.error):
        return gzip.compress(rng.choice(ANY[:8])(rng, gzip.decompress(raw)), 6, mtime=0)
    return raw


ANY = (flip, truncate, overwrite, insert, remove, swap, set_number, random_bytes, pack)


# Mutations behind a valid checksum.


def forge(rng: random.Random, raw: bytes) -> bytes:
    """Another header, description or content of a safetensors file, with the right length and checksum."""
    length = int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    about = json.loads(header["__metadata__"]["jaxmlp"])
    for _ in range(rng.choice((1, 1, 2, 3))):
        part = rng.choice((0, 1, 1, 2))
        if part == 0:
            header = edit(rng, header)
        elif part == 1:
            body = rng.choice((flip, truncate, insert, overwrite))(rng, body)
        else:
            about = edit(rng, about)
    try:
        about["sha256"] = "0" * 64
        header["__metadata__"]["jaxmlp"] = json.dumps(about)
    except (TypeError, KeyError):
        pass
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    made = len(text).to_bytes(8, "little") + text + body
    return made.replace(b"0" * 64, hashlib.sha256(made).hexdigest().encode(), 1)


def edit(rng: random.Random, tree: Any) -> Any:
    """A value somewhere in JSON becomes another one, goes, or comes twice."""
    tree = copy.deepcopy(tree)
    places = list(_places(tree))
    if not places:
        return rng.choice(STRANGE)
    at, name = rng.choice(places)
    what = rng.randrange(5)
    if what == 0:
        del at[name]
    elif what == 1 and isinstance(at, dict):
        at[rng.choice(("more", "W1", "kind", "done", "__metadata__"))] = at.pop(name)
    elif what == 2:
        at[name] = copy.deepcopy(rng.choice(places)[0])
    else:
        at[name] = rng.choice(STRANGE)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in list(entries):
        yield tree, name
        yield from _places(value)
