"""Where the experiments' data is looked for, and how it is kept."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest

from experiments import datasets


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_set(folder: Path, m=6):
    folder.mkdir(parents=True, exist_ok=True)
    for file in datasets.FILES:
        values = np.zeros((m, 4, 4)) if "images" in file else np.arange(m) % 3
        (folder / f"{file}.gz").write_bytes(gzip.compress(idx(values)))


def test_shipped_mnist_is_complete_and_unchanged():
    pictures = datasets.load("mnist")
    assert pictures.X.shape == (60_000, 28, 28) and pictures.X_test.shape == (10_000, 28, 28)
    assert np.bincount(pictures.Y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_a_folder_of_idx_files_is_a_data_set(tmp_path):
    write_set(tmp_path / "mine")
    pictures = datasets.load(str(tmp_path / "mine"))
    assert pictures.X.shape == (6, 4, 4) and pictures.classes == ("0", "1", "2")
    (tmp_path / "mine" / f"{datasets.FILES[1]}.gz").write_bytes(gzip.compress(idx(np.zeros(5))))
    with pytest.raises(ValueError, match="do not belong together"):
        datasets.load(str(tmp_path / "mine"))


def test_without_data_the_error_says_what_where_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXMLP_DATA", str(tmp_path / "given"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "DEBIAN", {"fashion_mnist": tmp_path / "debian"})
    monkeypatch.setattr(datasets, "MIRRORS", {"fashion_mnist": ("file:///nowhere/",)})
    with pytest.raises(FileNotFoundError) as error:
        datasets.load("fashion_mnist")
    message = str(error.value)
    for part in (
        "train-images-idx3-ubyte",
        "given",
        "debian",
        "cache",
        "file:///nowhere/",
        "JAXMLP_DATA",
        "apt install",
    ):
        assert part in message
    with pytest.raises(FileNotFoundError, match="known sets are mnist, fashion_mnist"):
        datasets.load("fashion")


def test_a_changed_file_is_refused_and_a_good_download_is_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXMLP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets, "DEBIAN", {})
    write_set(tmp_path / "mirror")
    raw = [gzip.decompress((tmp_path / "mirror" / f"{file}.gz").read_bytes()) for file in datasets.FILES]
    sums = tuple(hashlib.sha256(content).hexdigest() for content in raw)
    monkeypatch.setattr(datasets, "SHA256", {"tiny": sums})
    monkeypatch.setattr(datasets, "MIRRORS", {"tiny": (f"file://{tmp_path}/nothing/", f"file://{tmp_path}/mirror/")})
    assert datasets.load("tiny").X.shape == (6, 4, 4)
    assert len(list((tmp_path / "cache" / "jaxmlp" / "tiny").iterdir())) == 4
    changed = tmp_path / "cache" / "jaxmlp" / "tiny" / f"{datasets.FILES[0]}.gz"
    changed.write_bytes(gzip.compress(idx(np.ones((6, 4, 4)))))
    with pytest.raises(ValueError, match=r"has SHA-256 .*, expected .*; remove it and try again"):
        datasets.load("tiny")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            np.asarray([0, 1, 2, 3, 4, 2_000_000_000], ">i4"),
            "has the class 2000000000, expected 0 to 11 with 12 examples",
        ),
        (np.asarray([0, 1, 2, 3, 4, -1], ">i4"), "has the class -1, expected 0 to 11"),
        (np.asarray([0, 1, 2, 3, 4, 0.5], ">f4"), "labels of float32, expected bytes and whole numbers"),
        (np.zeros(0, "u1"), r"pictures \(6, 4, 4\) and labels \(0,\) do not belong together"),
    ],
)
def test_labels_that_are_no_classes_of_these_pictures_are_refused(tmp_path, labels, message):
    write_set(tmp_path)
    code = {"i": 0x0C, "f": 0x0D, "u": 0x08}[labels.dtype.kind]
    (tmp_path / f"{datasets.FILES[1]}.gz").unlink()
    header = bytes([0, 0, code, 1]) + len(labels).to_bytes(4, "big")
    (tmp_path / datasets.FILES[1]).write_bytes(header + labels.tobytes())
    with pytest.raises(ValueError, match=message):
        datasets.load(str(tmp_path))
