"""What a run reports: lines on the screen, and a log of JSON lines."""

import json

from problems import examples, fit


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
