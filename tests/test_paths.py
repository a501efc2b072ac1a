"""Paths and lines of text: errors name the file, and memory does not grow with a file that is no text."""

import os

import pytest

import jaxmlp as jm
from jaxmlp import paths

pytestmark = pytest.mark.wrong_arguments


@pytest.mark.parametrize("given", [5, None, "", "s3://bucket/net", b"bytes", "a\0b", ["a"], "\ud800"])
def test_what_is_no_path_is_named(given):
    net = jm.MLP((1, 1))
    for use in (
        jm.load,
        jm.data.read_idx,
        lambda path: jm.data.read_csv(path, {"a": "number"}),
        lambda path: jm.trees.read_tree(path, {}),
        lambda path: jm.trees.write_tree(path, {}),
        lambda path: jm.save(path, net, (jm.Layer(jm.data.scale_pixels([[1]])[None], jm.data.scale_pixels([[1]])),)),
    ):
        with pytest.raises(ValueError, match=r"path is .*, expected the name of a file or folder"):
            use(given)


def test_lines_keep_their_ends_and_other_bytes_are_named(tmp_path):
    path = tmp_path / "text"
    raw = "one\n\u4e2d two\r\n\rthree"
    path.write_bytes(raw.encode())
    assert list(paths.read_lines(path)) == ["one\n", "\u4e2d two\r\n", "\r", "three"]
    path.write_bytes(b"fine\n\xc3\xbc\nnot \xff\n")
    with pytest.raises(ValueError, match=r"text is not a text file in UTF-8: line 3 holds the byte 0xff"):
        list(paths.read_lines(path))
    path.write_bytes(b"a\n")
    os.truncate(path, 2**34)
    with pytest.raises(ValueError, match=r"text, line 2 has more than 16,777,216 characters, expected a text file"):
        list(paths.read_lines(path))


def test_errors_of_the_system_and_of_memory_name_the_file(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(OSError, match=r"\[Errno 28\] full: '.*file'") as error, paths.name_errors(path):
        raise OSError(28, "full")
    assert error.value.errno == 28
    with pytest.raises(ValueError, match="file needs more memory than there is"), paths.name_errors(path):
        raise MemoryError
    with pytest.raises(FileNotFoundError, match="our own words"), paths.name_errors(path):
        raise FileNotFoundError("our own words")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for wrong in (tmp_path, tmp_path / "loop", tmp_path / "none"):
        for read in (jm.load, jm.data.read_idx, lambda path: jm.data.read_csv(path, {"a": "number"})):
            with pytest.raises((OSError, ValueError), match=wrong.name):
                read(wrong)
