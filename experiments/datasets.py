"""Sets of pictures in IDX files: from the repository, from this machine or from the public mirrors."""

import hashlib
import os
import sys
import urllib.error
import urllib.request
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmlp.data.idx import decode_idx, unpack, unpack_idx

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SHIPPED = Path(__file__).parent / "data"

# SHA-256 of the uncompressed files, in the order of FILES.
SHA256 = {
    "mnist": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion_mnist": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
MIRRORS = {
    "mnist": ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    "fashion_mnist": ("https://fashion-mnist.s3-website.eu-central-1.amazonaws.com/".replace("https", "http"),),
}
DEBIAN = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}  # from the package dataset-fashion-mnist
CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"),
}


class Pictures(NamedTuple):
    """Pictures of bytes `(m, 28, 28)` and their classes `(m,)`."""

    X: np.ndarray
    Y: np.ndarray
    X_test: np.ndarray
    Y_test: np.ndarray
    classes: tuple[str, ...]


def load(name: str) -> Pictures:
    """The set called `name` ("mnist", "fashion_mnist"), or the four IDX files in the folder `name`.

    Raises:
        FileNotFoundError: where no file is found; the message lists the places and the remedies.
        ValueError: where a file is corrupt, or pictures and labels do not belong together.
    """
    if name in SHA256:
        arrays = [_find(name, file, sha) for file, sha in zip(FILES, SHA256[name], strict=True)]
    else:
        arrays = [_read(_in_folder(Path(name), file) or _missing(name, file), None) for file in FILES]
    X, Y, X_test, Y_test = arrays
    m = len(X) + len(X_test)
    highest = max(_check(name, X, Y, m), _check(name, X_test, Y_test, m))
    classes = CLASSES.get(name) or tuple(str(c) for c in range(highest + 1))
    return Pictures(X, Y.astype(np.int32), X_test, Y_test.astype(np.int32), classes)


def check_amount(name: str, given: int, there: int) -> None:
    """ValueError unless so many pictures are there; a slice would take fewer, and the report would not say so."""
    if not 1 <= given <= there:
        raise ValueError(f"{name} is {given}, expected 1 to {there}")


def _check(name: str, X: np.ndarray, Y: np.ndarray, m: int) -> int:
    """The highest class; ValueError unless these are pictures of bytes and their classes, fewer than examples."""
    if X.ndim != 3 or Y.shape != X.shape[:1] or not Y.size:
        raise ValueError(f"{name}: pictures {X.shape} and labels {Y.shape} do not belong together")
    if X.dtype != np.uint8 or Y.dtype.kind not in "iu":
        raise ValueError(f"{name}: pictures of {X.dtype} and labels of {Y.dtype}, expected bytes and whole numbers")
    low, high = int(Y.min()), int(Y.max())
    if low < 0 or high >= m:
        raise ValueError(f"{name} has the class {low if low < 0 else high}, expected 0 to {m - 1} with {m} examples")
    return high


def cache_folder() -> Path:
    """The folder that keeps downloads."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxmlp"


def _folders(name: str) -> list[Path]:
    given = os.environ.get("JAXMLP_DATA")
    folders = [Path(given) / name, Path(given)] if given else []
    return [*folders, SHIPPED / name, *([DEBIAN[name]] if name in DEBIAN else []), cache_folder() / name]


def _in_folder(folder: Path, file: str) -> Path | None:
    return next((path for path in (folder / file, folder / f"{file}.gz") if path.is_file()), None)


def _find(name: str, file: str, sha256: str) -> np.ndarray:
    """Reads the file from the first folder that has it, else downloads it into the cache."""
    for folder in _folders(name):
        if path := _in_folder(folder, file):
            if folder == Path(os.environ.get("JAXMLP_DATA") or "-") and _checksum(path) != sha256:
                continue  # $JAXMLP_DATA itself may hold another set
            return _read(path, sha256)
    return _download(name, file, sha256)


def _checksum(path: Path) -> str:
    return hashlib.sha256(unpack_idx(path)).hexdigest()


def _read(path: Path, sha256: str | None) -> np.ndarray:
    raw = unpack_idx(path)
    if sha256 and (found := hashlib.sha256(raw).hexdigest()) != sha256:
        raise ValueError(f"{path} has SHA-256 {found}, expected {sha256}; remove it and try again")
    return decode_idx(raw, str(path))


def _download(name: str, file: str, sha256: str) -> np.ndarray:
    problems = []
    for mirror in MIRRORS[name]:
        url = f"{mirror}{file}.gz"
        try:
            with urllib.request.urlopen(url, timeout=30) as response:
                raw = response.read()
        except (urllib.error.URLError, OSError) as error:
            problems.append(f"{url}: {getattr(error, 'reason', error)}")
            continue
        try:
            unpacked = unpack(BufferedReader(BytesIO(raw)), url, len(raw))  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            problems.append(str(error))
            continue
        found = hashlib.sha256(unpacked).hexdigest()
        if found != sha256:
            problems.append(f"{url}: SHA-256 {found}, expected {sha256}")
            continue
        path = cache_folder() / name / f"{file}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        partial.write_bytes(raw)
        partial.replace(path)
        print(f"downloaded {url} to {path}", file=sys.stderr)
        return decode_idx(unpacked, url)
    return _read(_missing(name, file, problems), sha256)


def _missing(name: str, file: str, problems: list[str] | None = None) -> Path:
    looked = [str(folder) for folder in (_folders(name) if name in SHA256 else [Path(name)])]
    advice = "put the four IDX files, gzipped or not, into a folder and name it in $JAXMLP_DATA or by --data"
    if name in DEBIAN:
        advice += ", or on Debian: apt install dataset-fashion-mnist"
    lines = [f"no {file}[.gz] for the data {name!r}", "looked in " + ", ".join(looked)]
    lines += [f"tried {problem}" for problem in problems or []]
    if name not in SHA256:
        lines.append(f"known sets are {', '.join(SHA256)}")
    raise FileNotFoundError("\n  ".join([*lines, advice]))
