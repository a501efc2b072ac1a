"""Lists the experiments, or runs one or all of them: `python3 -m experiments [NAME [--help]]`."""

import importlib
import os
import sys
from typing import Any

from experiments._rows import docstrings


def experiments() -> dict[str, str]:
    """The name of each experiment and the first line of its docstring; imports none of them."""
    return {name: text.split("\n")[0] for name, text in docstrings().items()}


def main(arguments: list[str]) -> int:
    """Runs the command line and returns its exit status."""
    known = experiments() | {"all": "Runs all of these and makes one page of them, results/index.html."}
    if not arguments or arguments[0] in ("-h", "--help"):
        print("python3 -m experiments NAME runs one of these, and NAME --help shows its settings.\n")
        width = max(map(len, known))
        print("\n".join(f"  {name:<{width}}  {line}" for name, line in known.items()))
        print("\nThe notes that they cite are five handwritten lecture notes; experiments/README.md says more.")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in known:
        print(f"experiment is {name!r}, expected one of {', '.join(known)}", file=sys.stderr)
        return 2
    try:
        from experiments import _all
        from experiments.output import NotReached, Output
        from jaxmlp import DivergedError

        module: Any = _all if name == "all" else importlib.import_module(f"experiments.{name}")
        settings = _all.parse(module, (name, *rest))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(("jaxmlp", "experiments")):
            raise
        print(f'{error.name} is missing: python3 -m pip install -e ".[experiments]"', file=sys.stderr)
        return 2
    try:
        if name == "all":
            return _all.run(settings)
        module.run(settings, Output.create(name, settings))
    except (ValueError, FileNotFoundError, ChildProcessError, DivergedError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except NotReached as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        status = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
