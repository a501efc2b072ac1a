"""The 31 systems: each has its code, its test and its experiment, README shows them, and the page is self-contained."""

import ast
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments import _all, _page, _rows
from experiments.__main__ import experiments
from experiments.output import Item

ROOT = Path(__file__).parents[1]


def names_in(path):
    """What a file defines at its top level or inside a class."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("row", _rows.ROWS, ids=lambda row: f"row {row.number}")
def test_a_rows_code_test_and_experiment_exist(row):
    assert row.system and row.equation and row.note
    assert row.code[1] in names_in(ROOT / "jaxmlp" / row.code[0])
    assert row.test[1] in names_in(ROOT / "tests" / row.test[0])
    assert row.experiment[0] in experiments()


def test_readme_shows_all_rows_as_they_are_with_live_links():
    assert [row.number for row in _rows.ROWS] == list(range(1, 32))
    readme = (ROOT / "README.md").read_text()
    assert _rows.markdown() in readme
    links = re.findall(r"\]\(([^)#]+)\)", readme)
    assert len(links) > 90
    assert not [link for link in links if not link.startswith("http") and not (ROOT / link).exists()]


class Reader(HTMLParser):
    """Collects ids, links, and whatever a browser would fetch."""

    def __init__(self, page):
        super().__init__()
        self.ids, self.links, self.fetched, self.text = set(), [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs["id"]} if "id" in attrs else set()
        if tag == "a":
            self.links.append(attrs["href"])
        else:
            self.fetched += [attrs[name] for name in ("src", "href") if name in attrs]

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_what_ran_and_asks_nobody_for_anything():
    png = b"\x89PNG"
    items = [Item("text", "", "a < b"), Item("text", "", "and more"),
             Item("table", "a title", [{"x": "1", "y": "<2>"}]), Item("picture", "a_picture", png)]  # fmt: skip
    done = {("shapes", ""): _all.Shown("python3 -m experiments shapes --quick", items, 1.0, None),
            ("flow", ""): _all.Shown("python3 -m experiments flow", [], 1.0, "Traceback: it broke"),
            ("embed", ""): _all.Shown("python3 -m experiments embed", items[:1], 1.0, None)}  # fmt: skip
    page = Reader(html := _page.html(done, 60.0))
    assert {f"row-{number}" for number in range(1, 32)} <= page.ids
    assert all(link[1:] in page.ids for link in page.links)
    assert all(fetched.startswith("data:") for fetched in page.fetched) and "@import" not in html and "url(" not in html
    for shown in ("a < b\nand more", "a title", "<2>", "python3 -m experiments shapes --quick", "it broke"):
        assert shown in page.text
    assert "experiment-embed" in page.ids and html.count("data:image/png;base64,iVBORw==") == 1
    assert "recipe, did not run" in page.text


def test_a_failing_experiment_is_shown_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = _all.shown("vectorization", "", quick=True)
    assert good.error is None and good.command == "python3 -m experiments vectorization --quick"
    assert {"table", "picture"} <= {item.kind for item in good.items}
    assert "no such experiment" in (_all.shown("no such experiment", "", quick=True).error or "")
