"""What a run reports: lines on the screen, and a log of JSON lines."""

import json
import os

import pytest
from problems import examples, fit

from jaxmlp.training import reporting


def test_a_log_gets_one_plain_line_an_epoch(params, capsys):
    fit(params, epochs=2, validation=examples(20, seed=5), progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("epoch 1/2  cost 0.") and "\r" not in "".join(lines)
    assert "validation_accuracy" in lines[1] and "%" in lines[1]


def test_a_log_is_appended_to_and_loses_nothing(params, tmp_path):
    log = tmp_path / "run.jsonl"
    log.write_text('another file\n{"epoch": 1, "cost"')  # the second line was torn
    fit(params, epochs=2, log=log)
    first, torn, *rows = log.read_text().splitlines()
    assert first == "another file" and torn == '{"epoch": 1, "cost"'
    assert [json.loads(row)["epoch"] for row in rows] == [1, 2]


def test_a_log_has_null_for_what_is_not_finite(params, tmp_path):
    fit(params, examples(1), monitor=True, log=tmp_path / "one.jsonl")
    assert json.loads((tmp_path / "one.jsonl").read_text())["noise_scale"] is None


def resume(path, rows=({"epoch": 3},), done=2):
    with reporting.append_json(path, "epoch", done) as write:
        for row in rows:
            write(row)
    return path.read_bytes()


def test_lines_after_the_epoch_that_is_done_are_written_again(tmp_path):
    """What no run wrote stays, whatever it is; JSON that only looks like a row has no epoch."""
    path, row = tmp_path / "log", b'{"epoch": %d, "cost": 1.0}\n'
    strange = [b"", b"[1]\n", b'{"epoch": "3"}\n', b'{"epoch": null}\n', b'{"epoch": true}\n', b"[" * 10**5 + b"\n",
               b"\0\0\n", "\u2028 \u4e2d\n".encode(), b'{"epoch": [4]}\n', b"text\r\n"]  # fmt: skip
    for line in strange:
        kept = row % 1 + row % 2 + line
        for after in (b"", row % 3, row % 3 + row % 4, row % 3 + b'{"epoch": 4, "co'):
            path.write_bytes(kept + after)
            assert resume(path) == kept + b'{"epoch": 3}\n'
        path.write_bytes(kept + b"no end")
        assert resume(path) == kept + b'no end\n{"epoch": 3}\n'


def test_bytes_that_are_no_text_are_named_and_left_alone(tmp_path):
    path = tmp_path / "picture.png"
    for raw, message in (
        (b'{"epoch": 1}\n\x89PNG\r\n', r"picture.png is not a text file in UTF-8: line 2 holds the byte 0x89"),
        (b"\xff\xfe{\0}\0", r"line 1 holds the byte 0xff"),
    ):
        path.write_bytes(raw)
        for done in (None, 0, 2):
            with pytest.raises(ValueError, match=message):
                resume(path, done=done)
        assert path.read_bytes() == raw
    os.truncate(path, 2**34)
    path.write_bytes(b"")
    os.truncate(path, 2**34)
    with pytest.raises(ValueError, match="line 1 has more than 16,777,216 characters"):
        resume(path)


def test_a_log_and_a_folder_that_cannot_be_written_are_refused_before_the_run(params, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, message in (
        (5, "5, expected the name of a file or folder"),
        ("a\0b", "expected the name of a file or folder"),
        (tmp_path / "file" / "x", "file is no folder to write to"),
        (tmp_path / "loop", "Too many levels of symbolic links; expected a path that can be written"),
        (tmp_path / ("x" * 300), "File name too long; expected a path"),
    ):
        for argument in ("log", "checkpoints"):
            with pytest.raises(ValueError, match=rf"{argument} is .*{message}"):
                fit(params, **{argument: path})
    fit(params, log=tmp_path / "new" / "folder" / "log")
    assert json.loads((tmp_path / "new" / "folder" / "log").read_text())["epoch"] == 1
