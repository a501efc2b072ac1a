"""The benchmark's comparison of two records: by ratios to the peers, and refused where they cannot be compared."""

import json

import pytest

from experiments import benchmark
from experiments._benchmark import record


def written(path, cells):
    """A file with these cells: each contestant's ratio, ours beginning with `own`."""
    contestants = lambda ratios: {name: {"ratio": ratio, "own": name.startswith("own")}
                                  for name, ratio in ratios.items()}  # fmt: skip
    kept = [{"section": "epochs", "cell": name, "contestants": contestants(ratios)} for name, ratios in cells.items()]
    path.write_text(json.dumps({"cells": kept}))
    return str(path)


def test_a_comparison_is_of_ratios_to_the_peers_and_fails_beyond_the_tolerance(tmp_path, out):
    old = written(tmp_path / "old.json", {"a": {"own": 1, "own bytes": 0.5, "torch": 2.0, "numpy": 3.0},
                                          "b": {"own": 1, "torch": 1.0}, "c": {"own": 1, "torch": 1.0}})  # fmt: skip
    new = written(tmp_path / "new.json", {"a": {"own": 1, "own bytes": 0.55, "torch": 1.6, "flax": 1.0},
                                          "b": {"own": 1, "torch": 1.3}})  # fmt: skip
    both, old_alone, new_alone = record.changes(record.read(old), record.read(new))
    assert [(change.cell, change.ours, change.peer) for change in both] == [
        ("epochs: a", "own bytes", "torch"), ("epochs: a", "own", "torch"), ("epochs: b", "own", "torch")]  # fmt: skip
    # bytes against torch was 0.5 / 2, is 0.55 / 1.6; ours 1 / 2, is 1 / 1.6
    assert [change.factor for change in both] == pytest.approx([1.375, 1.25, 1 / 1.3])
    assert old_alone == ["epochs: a, own, numpy", "epochs: a, own bytes, numpy", "epochs: c, own, torch"]
    assert new_alone == ["epochs: a, own, flax", "epochs: a, own bytes, flax"]

    def compare(tolerance):
        given = benchmark.Settings(compare=(old, new), tolerance=tolerance)
        to = out("benchmark", given)
        return to, lambda: benchmark.run(given, to)

    to, run = compare(1.3)
    with pytest.raises(ValueError, match=r"ours has lost more than 1.3 in 1 of 3 comparisons"):
        run()
    report = (to.folder / "report.txt").read_text()
    assert "1.375" in report and "1.250" not in report and "epochs: c, own, torch" in report
    assert "the worst of 3: 1.375, epochs: a, own bytes against torch" in report
    assert compare(1.4)[1]() == {"worst_change": pytest.approx(1.375)}


def test_files_that_cannot_be_compared_are_refused(tmp_path, out):
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"compare has .*broken.json, expected a benchmark.json"):
        record.read(str(tmp_path / "broken.json"))
    (tmp_path / "partial.json").write_text('{"cells": [{"section": "a", "cell": "b"}]}')
    for given in ("partial.json", "nowhere.json", "."):
        with pytest.raises(ValueError, match=r"compare has .*, expected a benchmark.json"):
            benchmark.run(benchmark.Settings(compare=(str(tmp_path / given),)), None)  # before anything is measured
    one, other = (written(tmp_path / f"{name}.json", {name: {"own": 1, "torch": 2}}) for name in "ab")
    given = benchmark.Settings(compare=(one, other))
    with pytest.raises(ValueError, match="have no cell in common"):
        benchmark.run(given, out("benchmark", given))


@pytest.mark.parametrize(
    "ratio", [float("nan"), float("inf"), -float("inf"), 0, -1, 10**400, 1e300, 1e-300, True, "1", None]
)
@pytest.mark.parametrize("whose", ["own", "torch"])
def test_a_ratio_that_no_clock_measured_is_named_with_its_cell(tmp_path, out, ratio, whose):
    good = written(tmp_path / "good.json", {"cell 7": {"own": 1, "torch": 2}})
    bad = written(tmp_path / "bad.json", {"cell 7": {"own": 1, "torch": 2} | {whose: ratio}})
    for compare in ((good, bad), (bad, good), (bad,)):
        with pytest.raises(ValueError, match=rf"bad.json, .*the cell 'epochs: cell 7' has the ratio .* for '{whose}'"):
            benchmark.run(benchmark.Settings(compare=compare), out("benchmark", benchmark.Settings()))
