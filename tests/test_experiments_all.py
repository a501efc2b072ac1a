"""The table of the 31 rows, the commands that run one experiment or all, and the page of all."""

import base64
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from html.parser import HTMLParser

import pytest
from test_experiments import CASES

from experiments import __main__ as command
from experiments import _all, _page, _rows
from experiments.output import Output
from jaxmlp import plotting


def test_every_row_has_its_cells_and_every_reference_is_live():
    assert [row.number for row in _rows.ROWS] == list(range(1, 32))
    for row in _rows.ROWS:
        assert row.system and row.equations and row.code and row.tests
        for reference in row.code + row.tests:
            file, name, case = re.fullmatch(r"(.+)::(\w+)(?:\[(\w+)\])?", reference).groups()
            defined = rf"^(def|class) {name}\b|^{name} = "
            assert re.search(defined, (_rows.ROOT / file).read_text(), re.MULTILINE), reference
            assert case is None or (name == "test_experiment" and case in CASES), reference
    in_order = [command for row in _rows.ROWS for command in row.experiments]
    assert set(in_order) == {command for command, rows in _rows.rows_by_command().items() if rows}
    without = {row.number for row in _rows.ROWS if not row.experiments}
    assert without <= {2, 23, 26, 27, 31}  # of these the notes ask no experiment


def test_docstrings_say_which_rows_are_shown():
    shown = _rows.rows_by_command()
    assert shown["mnist",] == (11,) and shown["mnist", "--digits", "5", "6"] == (5,)
    assert shown["flow",] == (29, 4) and shown["vectorization",] == (8, 9) and shown["private",] == ()
    assert _rows._numbers("13 to 15 and 19") == (13, 14, 15, 19)


def test_the_readme_has_the_table_and_its_links_are_live():
    readme = (_rows.FOLDER / "README.md").read_text()
    assert _rows.markdown() in readme, "paste what `python3 -m experiments._rows` prints"
    links = re.findall(r"\]\(([^)]+)\)", _rows.markdown())
    assert len(links) > 100 and all((_rows.FOLDER / link).is_file() for link in links)


def test_all_takes_every_experiment_and_two_only_at_quick():
    known = set(_rows.rows_by_command())
    by_default = _all.commands(_all.Settings())
    assert {tuple(part for part in command if part != "--quick") for command in by_default} == known
    assert {command[0] for command in by_default if "--quick" in command} == {"benchmark", "results"}
    assert all(command[-1] == "--quick" for command in _all.commands(_all.Settings(quick=True)))
    assert _all.commands(_all.Settings(only=("xor",))) == [("xor",)]
    with pytest.raises(ValueError, match="only has 'xro', expected some of activations, "):
        _all.commands(_all.Settings(only=("xro",)))
    with pytest.raises(ValueError, match="workers is 0, expected at least 1"):
        _all.commands(_all.Settings(workers=0))


def test_a_failing_experiment_is_reported_and_the_rest_go_on(tmp_path, monkeypatch, capsys):
    chosen = [("mnist", "--data", "nowhere", "--quick"), ("flow", "--quick")]
    monkeypatch.setattr(_all, "commands", lambda settings: chosen)
    assert _all.run(_all.Settings(quick=True), results=tmp_path) == 1
    said = capsys.readouterr()
    assert "flow --quick: done" in said.out and "1 of 2 experiments" in said.out
    assert "failed: mnist --data nowhere --quick" in said.err
    text = (tmp_path / "index.html").read_text()
    assert "It failed." in text and "known sets are mnist, fashion_mnist" in text
    assert "forward and back: activations and error signals" in text  # a table of flow
    assert 'id="experiment-mnist"' in text  # with other settings it shows no row


def run_command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "experiments", *arguments], cwd=_rows.ROOT, capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_the_command_lists_every_experiment_with_a_line_each():
    listed = run_command()
    assert listed.returncode == 0
    for name, line in command.experiments().items():
        assert f"{name} " in listed.stdout and line and line in listed.stdout


def test_help_shows_the_settings_and_unknown_names_are_refused():
    shown = run_command("mnist", "--help", COLUMNS="200")
    assert shown.returncode == 0
    assert "--learning-rate" in shown.stdout and "examples held out" in shown.stdout
    assert "Traceback" not in run_command("mnist", "--epochs", "none").stderr
    unknown = run_command("minst")
    assert unknown.returncode == 2 and "experiment is 'minst', expected one of" in unknown.stderr


@dataclass(frozen=True)
class Settings:
    rate: float = 0.1


class Parsed(HTMLParser):
    """Ids, links and sources of a page, its cells, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.hrefs, self.sources, self.cells, self.open = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.hrefs += [given["href"]] if "href" in given else []
        self.sources += [given["src"]] if "src" in given else []
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th", "figcaption"):
            self.cells.append(data)


def test_the_page_shows_all_in_order_and_asks_for_nothing(tmp_path):
    out = Output.into(tmp_path / "xor", Settings())
    out.say("before <the> table & so on")
    out.table("rows", [{"name": "a < b", "value": 1.5}, {"name": "c", "value": "x" * 50}])
    out.picture("curve", plotting.figure(size=(2, 1))[0])
    out.say("after")
    runs = [_page.Run(("xor", "--quick"), tmp_path / "xor", 3.0, ""),
            _page.Run(("housing",), tmp_path / "housing", 1.0, "ValueError: broken <there>"),
            _page.Run(("private",), tmp_path / "private", 1.0, "")]  # fmt: skip
    written = _page.write(tmp_path / "deep" / "index.html", runs, "all --quick", datetime(2026, 1, 2), 60.0)
    text = written.read_text()
    page = Parsed(text)
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert {f"row-{number}" for number in range(1, 32)} | {"contents", "experiment-private"} == set(page.ids)
    assert {f"#{anchor}" for anchor in page.ids} >= set(page.hrefs)  # nothing outside, nothing missing
    assert {f"#row-{number}" for number in range(1, 32)} <= set(page.hrefs)
    assert page.cells == ["rows", "name", "value", "a < b", "1.5", "c", "x" * 50]
    (source,) = page.sources
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == (tmp_path / "xor/curve.png").read_bytes()
    assert "//" not in re.sub(r'src="data:[^"]*"', "", text)  # no other host is so much as named
    order = ["row-10", "python3 -m experiments xor --quick", "before &lt;the&gt; table &amp; so on",
             "rows</figcaption>", "data:image", "after</pre>", "row-11"]  # fmt: skip
    at = [text.index(part, text.index('id="row-10"') - 1) for part in order]
    assert at == sorted(at)
    assert "Failed: housing." in text and "ValueError: broken &lt;there&gt;" in text
    assert 'Shown by <code>housing</code>, <a href="#row-6">under row 6</a>' in text


def test_an_equations_indices_are_raised_and_lowered():
    shown = _page.equation("w_{48}^{[5]} < δ^{l+1}")
    assert shown == "<p>w<sub>48</sub><sup>[5]</sup> &lt; δ<sup>l+1</sup></p>"
