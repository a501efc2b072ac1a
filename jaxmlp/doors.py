"""The first argument of public functions: a network, not its class, and a trace, not an array."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def check_network(given: Any) -> None:
    """Refuses a class, and any other thing that is no `MLP`."""
    if isinstance(given, type):
        raise ValueError(f"net is the class {given.__name__}, expected a network such as MLP((784, 64, 10))")
    if not hasattr(given, "sizes"):
        of_estimator = ", such as its net_" if hasattr(given, "net_") else ""
        raise ValueError(f"net is {article(type(given).__name__)}, expected an MLP{of_estimator}")


def check_trace(given: Any) -> None:
    """Refuses what is no `Trace`."""
    if isinstance(given, type) or not hasattr(given, "deltas"):
        raise ValueError(f"trace is {article(type(given).__name__)}, expected a Trace such as jaxmlp.backprop gives")


def takes_network(function: Function) -> Function:
    """Makes a function check its first argument, `net`."""
    return _check_first(function, "net", check_network)


def takes_trace(function: Function) -> Function:
    """Makes a function check its first argument, `trace`."""
    return _check_first(function, "trace", check_trace)


def _check_first(function: Function, name: str, check: Callable[[Any], None]) -> Function:
    @functools.wraps(function)
    def checked(*given: Any, **named: Any) -> Any:
        if given or name in named:
            check(given[0] if given else named[name])
        return function(*given, **named)

    return checked  # pyright: ignore[reportReturnType]


def article(noun: str) -> str:
    """Such as `an MLP`, `a tuple`."""
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"
