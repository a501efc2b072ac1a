"""Arguments with few possible values: names and flags."""

import difflib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmlp.doors import article


def look_up(given: Any, table: Mapping[str, Any], kind: Any, argument: str) -> Any:
    """`given` itself if it is a `kind`, else the entry of `table` with this name; an error suggests a near name."""
    if isinstance(given, str):
        if given in table:
            return table[given]
        raise ValueError(
            f"{argument} is {given!r}, expected one of {', '.join(map(repr, table))}{suggest(given, table)}"
        )
    if isinstance(given, kind):
        return given
    raise ValueError(f"{argument} is {given!r}, expected a name or {article(kind.__name__)}")


def suggest(given: Any, names: Iterable[Any]) -> str:
    """The end of an error: the name that is nearest to `given` in any case of letters, or nothing."""
    known = {str(name).lower(): name for name in names}
    near = difflib.get_close_matches(str(given).lower(), known, n=1, cutoff=0.4)
    return f"; did you mean {known[near[0]]!r}?" if near else ""


def one_of(given: Any, names: Sequence[str], argument: str) -> str:
    """`given`, if it is one of `names`."""
    if not isinstance(given, str):
        raise ValueError(f"{argument} is {reprlib.repr(given)}, expected one of {', '.join(map(repr, names))}")
    return look_up(given, {name: name for name in names}, str, argument)


def flag(given: Any, argument: str) -> bool:
    """`given`, if it is True or False."""
    if not isinstance(given, bool | np.bool_):
        raise ValueError(f"{argument} is {given!r}, expected True or False")
    return bool(given)
