"""The tour runs from top to bottom, and shows its results as a reader of the stored notebook sees them."""

import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest

import jaxmlp as jm
from experiments import _tour


@pytest.fixture(scope="module")
def tours(once):
    """The stored tour and a run of it, their cells of code by name; the kernel compiles as fast as these tests do."""

    def run(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
            nbformat.write(_tour.execute(), folder / "run.ipynb")

    paths = {"stored": _tour.TOUR, "run": once("tour", run) / "run.ipynb"}
    code = lambda path: {c.id: c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"}
    stored = nbformat.read(_tour.TOUR, as_version=4)
    return SimpleNamespace(stored=stored, cells={which: code(path) for which, path in paths.items()})


def test_the_stored_tour_is_short_and_small_and_shows_what_a_run_shows(tours):
    assert 15 <= len(tours.stored.cells) <= 25
    assert _tour.TOUR.stat().st_size < 300_000
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert tours.stored.metadata == {"kernelspec": kernel, "language_info": {"name": "python"}}
    assert not re.search(r"/home/|/root/|/tmp/|/usr/|site-packages|Warning|Error", _tour.TOUR.read_text())
    forms = lambda cell: [sorted(output.get("data", {"stream": 0})) for output in cell.outputs]
    for name, cell in tours.cells["stored"].items():
        assert not cell.metadata and cell.execution_count is not None
        assert forms(cell) == forms(tours.cells["run"][name]), f"run `python3 -m experiments._tour`: {name} differs"


@pytest.mark.parametrize("which", ["stored", "run"])
def test_progress_is_one_line_and_results_are_tables(tours, which):
    cells = tours.cells[which]
    for name, end in (("train-run", "8/8"), ("by-signs-run", "8/8"), ("sweep-run", "8/8"), ("influence-run", "2/2")):
        bar, _ = cells[name].outputs
        assert bar.output_type == "display_data" and list(bar.data) == ["text/plain"]
        assert bar.data["text/plain"].startswith("100%|") and end in bar.data["text/plain"]
        assert "\n" not in bar.data["text/plain"] and "\r" not in bar.data["text/plain"]
    for name, rows, words in (
        ("check-run", 15, ("W^1", "autodiff", "<div class=", "passed</div>")),
        ("train-run", 5, ("validation_accuracy", "best</td>")),
        ("sweep-run", 5, ("learning_rate", "member")),
    ):
        html = cells[name].outputs[-1].data["text/html"]
        assert html.count("<tr>") == rows + 1 and html.startswith("<table")
        assert all(word in html for word in words), (name, words)


def test_html_escapes_text_and_lines_up_numbers():
    rows = [{"name": "<b>&", "cost": 1 / 3, "end": ""}, {"name": "$x$", "cost": 2.0, "end": ""}]
    html = jm.tables.make_html(rows, most=1)
    assert re.sub(r' (style|class)="[^"]*"', "", html) == (
        "<table><tr><th>name</th><th>cost</th></tr><tr><td>&lt;b&gt;&amp;</td><td>0.3333</td></tr></table>"
        "<div>and 1 more</div>"
    )
    assert html.count('<td style="text-align: right">') == 2 and 'class="tex2jax_ignore mathjax_ignore"' in html


def test_everything_that_prints_as_a_table_is_one_in_a_notebook(tmp_path):
    def cells_of(result):
        return re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", result._repr_html_())

    found = jm.SearchResult([{"rate": 0.1}, {"rate": 0.2}], np.array([0.5, 0.25]), np.array([3, 3]), 1, None, None)
    assert cells_of(found) == ["trial", "rate", "epochs", "score", "1", "0.2", "3", "0.25", "0", "0.1", "3", "0.5"]
    many = SimpleNamespace(scores=np.zeros(2))
    folds = jm.CrossValidation({"validation_cost": np.array([0.5, 1.0])}, 3, 2, many)
    assert cells_of(folds)[:6] == ["fold", "validation_cost", "0", "0.5", "1", "1"] and "deviation" in cells_of(folds)
    assert cells_of(jm.circuit(lambda x, y: x * y, 2.0, 3.0))[-6:] == ["f", "mul", "x, y", "6", "3, 2", "1"]
    (tmp_path / "table.csv").write_text("kind,size,right\n" + "a&b,?,yes\n" * 12)
    kinds = {"kind": "category", "size": "number", "right": "yes_no"}
    table = jm.data.read_csv(tmp_path / "table.csv", kinds, missing="?")
    assert cells_of(table)[:6] == ["kind", "size", "right", "a&amp;b", "nan", "True"]
    assert table._repr_html_().count("<tr>") == 11 and "and 2 more" in table._repr_html_()
