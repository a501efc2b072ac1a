"""Lists the experiments, runs one or all of them: `python3 -m experiments [NAME [--help]]`."""

import ast
import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
NOT_EXPERIMENTS = {"__init__", "__main__", "datasets", "output"}


def experiments() -> dict[str, str]:
    """Each experiment's name and the first line of its docstring, read without importing it."""
    files = sorted(f for f in FOLDER.glob("*.py") if f.stem not in NOT_EXPERIMENTS and not f.stem.startswith("_"))
    return {f.stem: (ast.get_docstring(ast.parse(f.read_text())) or "").split("\n")[0] for f in files}


def main(arguments: list[str]) -> int:
    """Runs what the command line asks for; the exit status."""
    known = experiments()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("python3 -m experiments NAME [--help]\npython3 -m experiments all [--quick]\n")
        width = max(map(len, known))
        print("\n".join(f"  {name:<{width}}  {line}" for name, line in known.items()))
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in known and name != "all":
        print(f"experiment is {name!r}, expected all or one of {', '.join(known)}", file=sys.stderr)
        return 2
    try:
        import tyro

        from experiments import _all
        from experiments.output import Output
        from jaxmlp import DivergedError

        if name == "all":
            return _all.main(rest, list(known))
        module = importlib.import_module(f"experiments.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("jaxmlp", "experiments")):
            raise
        print(f'{error.name} is missing: python3 -m pip install -e ".[experiments]"', file=sys.stderr)
        return 2
    settings = tyro.cli(module.Settings, args=rest, prog=f"python3 -m experiments {name}", description=module.__doc__)
    try:
        module.run(settings, Output.create(name, settings))
    except (ValueError, FileNotFoundError, DivergedError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
