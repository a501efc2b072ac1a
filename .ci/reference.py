"""Write the API reference with pdoc, and the tour with nbconvert: HTML in the folder `site`. A warning is an error.

    python3 -m pip install -e ".[docs]" && python3 .ci/reference.py

A package's page shows the names that its `__init__.py` lists. The page of another module shows the module's own names.
pdoc prints types resolved, as `Union[jaxtyping.Num[jaxlib._jax.Array, ...`. Here signatures stand as the source has
them, and each page explains the names of types in them. A comment behind a field of a record describes the field.
"""

import ast
import functools
import importlib
import inspect
import re
import shutil
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

import pdoc
import pdoc.doc
import pdoc.render
from nbconvert import HTMLExporter

ROOT = Path(__file__).parents[1]
SITE = ROOT / "site"
PACKAGES = ("jaxmlp", "jaxmlp.data", "jaxmlp.training")
MODULES = ("jaxmlp.interop.estimators", "jaxmlp.loggers", "jaxmlp.metrics", "jaxmlp.plotting", "jaxmlp.rules")
TYPE = re.compile(r"(?<![.\w])[A-Z][a-z]*[A-Z]?\w*(?![.\w])")  # Params, MLP


class Text(str):
    """Source text that pdoc prints without quotes."""

    def __repr__(self):
        return str(self)


class Types:
    """Writes types as the source does: a class of some page by its full name, which pdoc makes a link."""

    def __init__(self, classes: dict[str, str]):
        self.classes = classes
        self.used: dict[str, str] = {}  # names of types without an entry of their own, and what each stands for

    def write(self, node: ast.expr, module: str) -> Text:
        text = ast.unparse(node)
        for name in TYPE.findall(text):
            meaning, home = read_types(module).get(name, (None, module))
            if isinstance(meaning, ast.expr):
                self.used[name] = f"`{self.write(meaning, home)}`"
            elif isinstance(meaning, ast.ClassDef) and name not in self.classes:
                self.used[name] = describe(meaning, home)
        return Text(TYPE.sub(lambda found: self.classes.get(found[0], found[0]), text))


@functools.cache
def read_types(module: str) -> dict[str, tuple[ast.expr | ast.ClassDef, str]]:
    """The names of types that a module defines or imports: what each stands for, and the module that defines it."""
    types = {}
    for node in ast.parse(inspect.getsource(importlib.import_module(module))).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxmlp."):
            names = [alias.name for alias in node.names if TYPE.fullmatch(alias.name)]
            there = read_types(node.module) if names else {}
            types |= {name: there[name] for name in names if name in there}
        elif isinstance(node, ast.ClassDef):
            types[node.name] = node, module
        elif isinstance(node, ast.Assign) and not isinstance(node.value, ast.Call | ast.Constant):
            name = ast.unparse(node.targets[0])
            if TYPE.fullmatch(name) and not name.isupper():
                types[name] = node.value, module
    return types


def describe(node: ast.ClassDef, module: str) -> str:
    """A class that has no entry of its own: its first sentence, its module and its fields."""
    summary = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    fields = [f"`{ast.unparse(field.target)}`" for field in node.body if isinstance(field, ast.AnnAssign)]
    return f"{summary} A class of `{module}`" + (f" with {', '.join(fields)}." if fields else ".")


def list_names(package) -> list[str]:
    """The names that a package makes public by `from .. import name as name`, in their order."""
    imports = [node for node in ast.parse(inspect.getsource(package)).body if isinstance(node, ast.ImportFrom)]
    return [alias.asname for node in imports for alias in node.names if alias.asname]


def walk(namespace) -> Iterator[pdoc.doc.Doc]:
    """All functions, classes, methods and fields of a module's page."""
    for doc in namespace.own_members:
        yield doc
        if isinstance(doc, pdoc.doc.Class):
            yield from walk(doc)


def write_function(doc: pdoc.doc.Function, types: Types) -> None:
    node = ast.parse(textwrap.dedent(doc.source)).body[0] if doc.source else None
    if isinstance(node, ast.FunctionDef):
        given = node.args
        positional = [*given.posonlyargs, *given.args]
        defaults = dict(zip(reversed(positional), reversed(given.defaults), strict=False))
        defaults |= dict(zip(given.kwonlyargs, given.kw_defaults, strict=True))
        rest = [parameter for parameter in (given.vararg, given.kwarg) if parameter]
        all_of_them = [*positional, *given.kwonlyargs, *rest]
        write_signature(doc, {p.arg: (p.annotation, defaults.get(p)) for p in all_of_them}, types)
        if node.returns:
            returns = types.write(node.returns, doc.taken_from[0])
            doc.signature = doc.signature.replace(return_annotation=returns)


def write_signature(doc: pdoc.doc.Function, parameters, types: Types) -> None:
    """Write the annotation and the default of each parameter from their nodes."""
    changed = []
    for parameter in doc.signature.parameters.values():
        annotation, default = parameters.get(parameter.name, (None, None))
        if annotation:
            parameter = parameter.replace(annotation=types.write(annotation, doc.taken_from[0]))
        if default and parameter.default is not inspect.Parameter.empty:  # a `field(..)` may be none
            parameter = parameter.replace(default=Text(ast.unparse(default)))
        changed.append(parameter)
    doc.signature = doc.signature.replace(parameters=changed)


def write_record(doc: pdoc.doc.Class, types: Types) -> None:
    """Write the fields of a NamedTuple or a dataclass, each with its comment, and the constructor that takes them."""
    lines = doc.source.splitlines()
    [node] = ast.parse(doc.source).body
    assert isinstance(node, ast.ClassDef)
    fields = {field.target.id: field for field in node.body
              if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)}  # fmt: skip
    for name, field in fields.items():
        member = doc.members.get(name)
        if isinstance(member, pdoc.doc.Variable):
            member.annotation = types.write(field.annotation, doc.taken_from[0])
            comment = lines[field.end_lineno - 1][field.end_col_offset :].strip()
            if comment.startswith("# ") and (not member.docstring or member.docstring.startswith("Alias for field")):
                member.docstring = comment.removeprefix("# ")
    for member in doc.members.values():
        if re.match("Alias for field number|Create new instance of", member.docstring):
            member.docstring = ""
    constructor = doc.members.get("__init__")
    if isinstance(constructor, pdoc.doc.Function) and fields and "def __init__" not in doc.source:
        write_signature(constructor, {name: (field.annotation, field.value) for name, field in fields.items()}, types)


def write_page(page: pdoc.doc.Module, types: Types) -> None:
    for doc in walk(page):
        if isinstance(doc, pdoc.doc.Class):
            write_record(doc, types)
        elif isinstance(doc, pdoc.doc.Function):
            write_function(doc, types)
    if types.used:
        rows = [f"- `{name}`: {text}" for name, text in sorted(types.used.items())]
        page.docstring += "\n\nTypes in the signatures:\n\n" + "\n".join(rows)


def write_tour() -> None:
    """The stored tour as a page. Of links to files of the repository, which the site does not have, the words stay."""
    page, _ = HTMLExporter(embed_images=True, exclude_anchor_links=True).from_filename(ROOT / "experiments/tour.ipynb")
    page = re.sub(r'<a href="(?!https?:|#)[^"]*">(.*?)</a>', r"\1", page)
    (SITE / "tour.html").write_text(page)


def main() -> None:
    warnings.simplefilter("error")
    for name in PACKAGES:
        package = importlib.import_module(name)
        package.__all__ = list_names(package)  # pdoc leaves out imported names where there is no `__all__`
    jaxmlp = importlib.import_module("jaxmlp")
    jaxmlp.__all__ += ["training", "interop"]
    importlib.import_module("jaxmlp.interop").__all__ = ["estimators"]
    jaxmlp.__doc__ += "\n\nNew here? [The tour](tour.html) shows the library in a minute."
    pages = [pdoc.doc.Module.from_name(name) for name in (*MODULES, *reversed(PACKAGES))]
    classes = {doc.name: doc.fullname for page in pages for doc in page.own_members if isinstance(doc, pdoc.doc.Class)}
    for page in pages:
        write_page(page, Types(classes))
    shutil.rmtree(SITE, ignore_errors=True)
    pdoc.render.configure(docformat="google", footer_text=f"jaxmlp {jaxmlp.__version__}")
    pdoc.pdoc("jaxmlp", output_directory=SITE)
    write_tour()
    print(f"{SITE.name}: {len(list(SITE.rglob('*.html')))} pages")


if __name__ == "__main__":
    main()
