"""Documents: their examples run, their commands, names and links exist. The examples of docstrings run, too."""

import ast
import doctest
import functools
import importlib
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro

import jaxmlp as jm
from experiments import _all

ROOT = Path(__file__).parents[1]
FOLDERS = (".github", "jaxmlp", "experiments", "tests")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(path: Path) -> str:
    """The path from the top of the repository."""
    return path.relative_to(ROOT).as_posix()


def blocks_of(path: Path, language: str) -> list[str]:
    """The code blocks of a document in this language, from top to bottom."""
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def without_code(path: Path) -> str:
    """The text of a document without its code blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)


@pytest.fixture
def as_a_user(tmp_path, monkeypatch):
    """An empty working folder, and JAX's own rules of promotion."""
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def draw_digits(m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of noise and their classes."""
    rng = np.random.default_rng(seed)
    return rng.random((m, 784), np.float32), rng.integers(0, 10, m).astype(np.int32)


# A document finds X, Y, X_dev and Y_dev at hand, and what its own blocks above have made.
@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks_of(path, "python")], ids=name_of)
def test_the_blocks_of_a_document_run_from_top_to_bottom(path, as_a_user):
    names = dict(zip(("X", "Y", "X_dev", "Y_dev"), (*draw_digits(256, 0), *draw_digits(64, 1)), strict=True))
    for number, block in enumerate(blocks_of(path, "python"), start=1):
        exec(compile(block, f"{name_of(path)}, block {number}", "exec"), names)
    if path == ROOT / "README.md":
        check_the_recursion(names)


def check_the_recursion(names):
    """README's simplified recursion gives the error signals of the code."""
    net, params = names["net"], names["params"]
    _, tape = jm.forward(net, params, jnp.asarray(names["X"][0]))
    delta_out = jm.output_delta(net, tape, jnp.asarray(names["Y"][0]))
    ours = jm.backward(net, params, tape, delta_out)
    for shown, delta in zip(names["backward"](net, params, tape, delta_out), ours, strict=True):
        np.testing.assert_allclose(shown, delta, rtol=1e-6)


@every_document
def test_every_command_exists(path):
    inline = re.findall(r"`(python3 -m [^`]+)`", without_code(path))
    lines = [line for block in blocks_of(path, "bash") for line in block.splitlines()]
    for command in [part for line in lines + inline for part in line.split(" && ")]:
        check_command(shlex.split(command))


def check_command(words: list[str]):
    """A file of the repository, a package of an extra, or a module of Python; an experiment takes its arguments."""
    while "=" in words[0]:  # an environment variable
        words = words[1:]
    if words[:2] != ["python3", "-m"]:
        packages = {re.split(r"\W", package)[0] for extra in extras().values() for package in extra}
        assert words[0] in packages or (ROOT / words[0]).is_file(), words
        return
    module, arguments = words[2], words[3:]
    assert importlib.util.find_spec(module), words
    if module == "pip":
        asked = re.findall(r"\[(.*)\]", " ".join(arguments))
        assert asked and all(extra in extras() for extra in asked[0].split(",")), words
    if module == "experiments" and arguments:
        chosen = _all if arguments[0] == "all" else importlib.import_module(f"experiments.{arguments[0]}")
        if "--help" not in arguments:
            tyro.cli(chosen.Settings, args=arguments[1:])


def extras() -> dict[str, list[str]]:
    """The optional dependencies."""
    return PROJECT["optional-dependencies"]


@every_document
def test_every_link_leads_to_a_file_and_a_heading(path):
    for target, anchor in re.findall(r"\]\((?!https://)([^)#\s]*)(?:#([^)\s]*))?\)", without_code(path)):
        there = path.parent / target if target else path
        assert there.exists(), target
        headings = re.findall(r"^#+ (.*)$", without_code(there), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}, anchor


@every_document
def test_every_name_of_the_library_exists(path):
    for name in set(re.findall(r"\bjm\.(\w+(?:\.\w+)*)", path.read_text())):
        functools.reduce(getattr, name.split("."), jm)


@every_document
def test_lines_outside_tables_have_at_most_120_characters(path):
    assert not [line for line in path.read_text().splitlines() if len(line) > 120 and not line.startswith("|")]


def test_the_readme_is_short_and_stands_alone():
    """The package index shows README.md without the repository: a relative link would lead nowhere there."""
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    assert "](" not in text
    assert f"version = {{{PROJECT.get('version') or jm.__version__}}}" in text
    for file in re.findall(r"`((?:\w|\.github|/)+\.(?:md|py))`", text):
        assert (ROOT / file).is_file(), file


def test_the_guide_has_a_line_for_every_file():
    lines = re.findall(r"^\| `(\w+\.py|\w+/)` \|", (ROOT / "jaxmlp" / "README.md").read_text(), re.MULTILINE)
    for path in (ROOT / "jaxmlp").iterdir():
        if path.suffix == ".py" and path.name != "__init__.py":
            assert path.name in lines, path.name
        if path.is_dir() and path.name != "__pycache__":
            assert f"{path.name}/" in lines, path.name


@functools.cache  # 0.2 s, and every example asks for it
def docstring_examples() -> dict[str, tuple[Path, int, str]]:
    """The docstrings of the package that have examples, by module and name, with their file and line."""
    found = {}
    for path in sorted((ROOT / "jaxmlp").rglob("*.py")):
        module = name_of(path).removesuffix(".py").replace("/", ".")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text, line = ast.get_docstring(node) or "", getattr(node, "lineno", 1)
                if ">>>" in text:
                    found[f"{module}.{getattr(node, 'name', '')} (line {line})"] = path, line, text
    return found


@functools.cache
def names_at_hand() -> dict:
    """The names that an example in a docstring finds."""
    key = jax.random.key(0)
    net = jm.MLP((784, 64, 10), hidden="relu", output="softmax", loss="cross_entropy")
    X, Y = draw_digits(20, 0)
    return {"jm": jm, "jax": jax, "jnp": jnp, "np": np, "optax": optax, "key": key, "net": net,
            "params": jm.init(net, key), "X": X, "Y": Y}  # fmt: skip


@pytest.mark.parametrize("name", docstring_examples())
def test_the_examples_of_a_docstring_run(name, as_a_user):
    path, line, text = docstring_examples()[name]
    if ".stablehlo" in text:
        pytest.importorskip("flatbuffers")
    example = doctest.DocTestParser().get_doctest(text, dict(names_at_hand()), name, str(path), line)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(example, out=report.append)
    assert runner.tries and not runner.failures, "".join(report)
