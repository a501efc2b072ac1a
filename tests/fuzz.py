"""Mutated files for every reader: each gives the right value, or a ValueError or OSError that names the file.

`python tests/fuzz.py` mutates 2,000 files for each reader; `--files`, `--readers` and `--seed` choose fewer or others.
No file may take more than `SECONDS`, and the process no more than `BYTES` beyond what it held after the first files.
"""

import argparse
import collections
import contextlib
import csv
import gzip
import io
import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import safetensors.numpy
from mutations import ANY, forge, unpack

import jaxmlp as jm
from jaxmlp import trees
from jaxmlp.training import _fit

SECONDS, BYTES = 20, 500 * 2**20
NET = jm.MLP((3, 4, 2), "tanh", "softmax", "cross_entropy")
SGD = optax.sgd(0.1, momentum=0.9)
X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
Y = np.arange(12) % 2


class Reader(NamedTuple):
    """A reader: files for it, how it reads one, and whether it read what the bytes say; `None` for any value."""

    seeds: list[bytes]
    read: Callable[[Path], Any]
    right: Callable[[bytes, Any], bool]
    mutations: tuple[Callable[[random.Random, bytes], bytes], ...]


def of_networks(folder: Path) -> Reader:
    """A mutation that a right checksum covers is read as it stands, so any network is right."""
    nets = (NET, jm.MLP((1, 1)), jm.MLP((2, 3, 3, 1), ("relu", "gelu"), "sigmoid", "binary_cross_entropy", "bfloat16"))
    for number, net in enumerate(nets):
        jm.save(folder / f"{number}", net, jm.init(net, jax.random.key(number)))

    def right(raw: bytes, value: Any) -> bool:
        net, params = value
        x, y = np.ones((1, net.sizes[0]), params[0].W.dtype), np.eye(1, net.sizes[-1], dtype=np.float32)
        return jm.cost(net, jax.tree.map(np.nan_to_num, params), x, y).ndim == 0

    return Reader(_seeds(folder), jm.load, right, (*ANY, *[forge] * 6))


def of_weights(folder: Path) -> Reader:
    """Of other libraries; no checksum tells a changed number."""
    for number, (part, order) in enumerate((("kernel", 1), ("weight", -1), ("w", 1))):
        arrays = {f"fc{l}.{part}": np.ones(shape[::order], np.float32) for l, shape in enumerate([(3, 4), (4, 2)])}
        biases = {f"fc{l}.b": np.ones(n, np.float32) for l, n in enumerate((4, 2))}
        safetensors.numpy.save_file(arrays | biases, folder / f"{number}")
    right = lambda raw, params: tuple(layer.W.shape for layer in params) == NET.shapes
    return Reader(_seeds(folder), lambda path: jm.params_from(NET, path), right, ANY)


def of_populations(folder: Path) -> Reader:
    one, none, history = jm.init(NET, jax.random.key(0)), np.zeros(2, bool), {"epoch": np.arange(1, 3)}
    stacked = jax.tree.map(lambda a: jax.numpy.stack([a, a]), one)
    for name, params, net in (("0", stacked, NET), ("1", [one] * 2, (NET,) * 2)):
        jm.SweepResult(params, params, history | {"cost": np.ones((2, 2))}, history["epoch"], none, none, np.ones(2),
                       history["epoch"], {"net": np.asarray(["a", "b"]), "l2": np.ones((2, 2))}, None, net
                       ).save(folder / name)  # fmt: skip
    right = lambda raw, many: bool(str(many)) and bool(repr(many)) and len(many.predict(X)) == len(many.scores)
    return Reader(_seeds(folder), jm.SweepResult.load, right, (*ANY, *[forge] * 6))


def of_trees(folder: Path) -> Reader:
    like = {"a": np.arange(6, dtype=np.float64).reshape(2, 3), "b": [jax.numpy.ones(3), 4, 2.5, "text", True, None],
            "key": jax.random.key(0), "flag": np.asarray([True, False])}  # fmt: skip
    trees.write_tree(folder / "0", like, {"note": [1, 2]})
    forms = lambda tree: {name: (type(leaf), getattr(leaf, "dtype", None), getattr(leaf, "shape", None))
                          for name, leaf in trees.by_path(tree).items()}  # fmt: skip
    right = lambda raw, value: forms(value[0]) == forms(like)
    return Reader(_seeds(folder), lambda path: trees.read_tree(path, like), right, (*ANY, *[forge] * 6))


CODES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def _decode_idx(raw: bytes) -> np.ndarray:
    """The format by the book."""
    shape = struct.unpack_from(f">{raw[3]}I", raw, 4)
    assert raw[:2] == b"\0\0" and len(raw) == 4 + 4 * raw[3] + math.prod(shape) * np.dtype(CODES[raw[2]]).itemsize
    return np.frombuffer(raw, CODES[raw[2]], offset=4 + 4 * raw[3]).reshape(shape)


def of_idx(folder: Path) -> Reader:
    rng = np.random.default_rng(0)
    for code, dtype in CODES.items():
        values = rng.integers(0, 100, (4, 3, 2)).astype(dtype)
        (folder / f"{code}").write_bytes(bytes([0, 0, code, 3]) + struct.pack(">3I", 4, 3, 2) + values.tobytes())

    def right(raw: bytes, value: np.ndarray) -> bool:
        return np.array_equal(
            _decode_idx(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw), value, equal_nan=True
        )

    return Reader(_seeds(folder), jm.data.read_idx, right, ANY)


def of_gzip(folder: Path) -> Reader:
    plain = of_idx(folder)
    packed = [gzip.compress(raw, 9, mtime=0) for raw in plain.seeds]
    return plain._replace(seeds=[*packed, packed[0] + gzip.compress(b"")], mutations=(*ANY, *[unpack] * 6))


KINDS = {"a": "number", "b": "yes_no", "c": ("x", "y", "z")}
TABLE = "a,other,b,c\n" + "".join(f"{n / 8},{n},{'yes' if n % 2 else 'no'},{'xyz'[n % 3]}\n" for n in range(20))


def _rows(raw: bytes) -> list[dict[str, str]]:
    """The rows of a table, packed or plain, without those at the end that are empty."""
    plain = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    rows = list(csv.DictReader(io.StringIO(plain.decode("utf-8-sig"), newline=""), strict=True))
    while rows and not any(rows[-1].values()):
        rows.pop()
    return rows


def of_csv(folder: Path) -> Reader:
    (folder / "0").write_text(TABLE)
    (folder / "1").write_text("\ufeff" + TABLE.replace("\n", "\r\n").replace("x", '"x"'))
    (folder / "2").write_text(TABLE.replace("other", "\u00fcber \u4e2d").replace("0.125", "-1.25e-3"))

    (folder / "3").write_bytes(gzip.compress(TABLE.encode(), 9, mtime=0))

    def right(raw: bytes, table: jm.data.Table) -> bool:
        rows = _rows(raw)
        expected = {"a": [float(row["a"]) for row in rows], "b": [row["b"] == "yes" for row in rows],
                    "c": ["xyz".index(row["c"]) for row in rows]}  # fmt: skip
        return {name: column.tolist() for name, column in table.columns.items()} == expected

    return Reader(_seeds(folder), lambda path: jm.data.read_csv(path, KINDS), right, ANY)


def fit(**settings: Any) -> jm.Result:
    start = jm.init(NET, jax.random.key(0))
    return jm.fit(NET, start, (X, Y), optimizer=SGD, key=jax.random.key(1), batch_size=4, progress=False, **settings)


def of_checkpoints(folder: Path) -> Reader:
    """A run of two epochs that goes on for a third."""
    with tempfile.TemporaryDirectory() as run:
        fit(epochs=2, checkpoints=run, validation=(X, Y))
        for path in Path(run).iterdir():
            shutil.copy(path, folder / path.name)

    def read(path: Path) -> Any:
        with tempfile.TemporaryDirectory() as run:
            path.rename(Path(run) / "last.safetensors")
            try:
                return fit(epochs=3, checkpoints=run, validation=(X, Y))
            except jm.DivergedError as error:  # a forged file may hold any weights
                return error.result
            except (ValueError, OSError) as error:
                raise type(error)(str(error).replace(run, str(path))) from error

    right = lambda raw, result: len(result.history["epoch"]) == len(result.history["cost"]) and len(result.params) == 2
    return Reader(_seeds(folder), read, right, (*ANY, *[forge] * 6))


def of_logs(folder: Path) -> Reader:
    """The log of a run that goes on after two epochs; its checkpoint is whole."""
    run, done = Path(tempfile.mkdtemp(dir=folder.parent)), 2
    fit(epochs=done, checkpoints=run, log=folder / "0")
    rows = (folder / "0").read_text()
    (folder / "1").write_text("another\u00fc line\n" + rows + '{"epoch": 3, "cost": 0.1}\n{"epoch": 4, "co')
    (folder / "2").write_text(rows[:-9])

    def read(path: Path) -> bytes:
        with tempfile.TemporaryDirectory() as again:
            shutil.copytree(run, again, dirs_exist_ok=True)
            fit(epochs=3, checkpoints=again, log=path)
        return path.read_bytes()

    def right(raw: bytes, value: bytes) -> bool:
        """Only rows after epoch 2, torn ones among them, may be missing from the end."""
        split = lambda text: [line for line in text.decode().replace("\r", "\n").split("\n") if line]
        lines, (*kept, last) = split(raw), split(value)
        dropped = lines[len(kept) :]
        return lines[: len(kept)] == kept and json.loads(last)["epoch"] == 3 and all(_epoch(d) > done for d in dropped)

    return Reader(_seeds(folder), read, right, ANY)


def _epoch(line: str) -> float:
    try:
        number = json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError, RecursionError):
        row = '{"epoch"'
        return math.inf if line.startswith(row) or row.startswith(line) else -math.inf
    return number if type(number) in (int, float) else -math.inf


def _seeds(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())]


READERS = {"networks": of_networks, "weights": of_weights, "populations": of_populations, "trees": of_trees,
           "idx": of_idx, "gzip": of_gzip, "csv": of_csv, "checkpoints": of_checkpoints, "logs": of_logs}  # fmt: skip


class Fault(Exception):
    """A reader did what it must not."""


def mutate(rng: random.Random, reader: Reader) -> bytes:
    raw = rng.choice(reader.seeds)
    if rng.randrange(12) == 0:  # a splice of two files
        other = rng.choice(reader.seeds)
        return raw[: rng.randrange(len(raw) + 1)] + other[rng.randrange(len(other) + 1) :]
    for _ in range(rng.choice((1, 1, 1, 2))):
        try:
            raw = rng.choice(reader.mutations)(rng, raw)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # what is broken already cannot be forged
    return raw


def judge(reader: Reader, path: Path, raw: bytes) -> str:
    """What a reader makes of the file; Fault where that is wrong."""
    try:
        value = reader.read(path)
    except (ValueError, OSError) as error:
        if path.name not in str(error):
            raise Fault(f"the message names no file: {error!r}") from error
        return "a hole in it" if "characters" in str(error) else "refused"
    except BaseException as error:
        raise Fault(f"{type(error).__name__}: {error}") from error
    try:
        fine = reader.right(raw, value)
    except Exception as error:
        raise Fault(f"what was read is not in the bytes: {error!r}") from error
    if not fine:
        raise Fault(f"read {value!r:.200}")
    return "read"


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """At most `BYTES` more memory, and `SECONDS` between two resets of the alarm."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, old[1]))
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, old)


def run(name: str, files: int, seed: int) -> collections.Counter:
    """Counts what a reader makes of mutated files; prints and counts faults."""
    counts: collections.Counter = collections.Counter()
    with tempfile.TemporaryDirectory() as place:
        (folder := Path(place) / "seeds").mkdir()
        reader, path = READERS[name](folder), Path(place) / "mutated.file"
        rng = random.Random(f"{name} {seed}")
        for raw in reader.seeds:  # compiles what is compiled
            path.write_bytes(raw)
            judge(reader, path, raw)
        with limited():
            for number in range(files):
                raw = mutate(rng, reader)
                path.write_bytes(raw)
                if sparse := rng.randrange(25) == 0:
                    os.truncate(path, rng.choice((2**30, 2**40)))
                signal.alarm(SECONDS)
                try:
                    counts[judge(reader, path, raw + b"?" * sparse)] += 1
                except Fault as fault:
                    counts["FAULTS"] += 1
                    print(f"{name} {seed}, file {number}: {fault}\n    {raw[:300]!r}", flush=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(Fault(f"more than {SECONDS} seconds")))
    # The clock of `fit` stands still, so that files have the same bytes in each run.
    _fit.time = types.SimpleNamespace(perf_counter=lambda: 0.0)  # pyright: ignore[reportAttributeAccessIssue]
    faults = 0
    for name in chosen.readers:
        began = time.perf_counter()
        counts = run(name, chosen.files, chosen.seed)
        faults += counts["FAULTS"]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"{name}: {dict(counts)}, {time.perf_counter() - began:.0f} s, peak {peak} MiB", flush=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
