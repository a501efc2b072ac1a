"""Programs with static arguments: each is kept while the functions among its static arguments live, and few are kept.

`jax.jit` keeps every program, and with it the functions among its static arguments. In a loop over new functions, such
as `optax.sgd(rate)`, each program would stay until the process has no memory left.
"""

import dataclasses
import functools
import inspect
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import jax

MOST = 128  # programs kept, of all functions; a step of the smallest network holds about a hundred memory maps


def compiled(*static: str, donate: str | None = None) -> Callable[[Callable], Callable]:
    """`jax.jit` for a function whose arguments `static` are hashable: equal ones share a program.

    Args:
        static: the names of the arguments that are compiled in.
        donate: the name of the argument whose memory the result may take.
    """

    def decorate(function: Callable) -> Callable:
        names = list(inspect.signature(function).parameters)
        is_static = [name in static for name in names]
        traced = [name for name in names if name not in static]
        donated = () if donate is None else (traced.index(donate),)

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            given = list(zip(args, is_static, strict=False))  # the last may have defaults
            fixed = [arg for arg, known in given if known]
            rest = [arg for arg, known in given if not known]
            program = _find(function, is_static, donated, fixed)
            before, program.lent.fixed = getattr(program.lent, "fixed", None), fixed
            try:
                return program.run(*rest)
            finally:
                program.lent.fixed = before

        return call

    return decorate


class _Program:
    """A jitted function that holds none of its static arguments: a call lends them for the time it takes."""

    def __init__(self, function: Callable, is_static: list[bool], donated: tuple[int, ...]):
        lent = self.lent = threading.local()

        @functools.wraps(function)
        def run(*rest: Any) -> Any:
            fixed, traced = iter(lent.fixed), iter(rest)
            given = len(lent.fixed) + len(rest)
            return function(*(next(fixed if known else traced) for known in is_static[:given]))

        del run.__wrapped__  # whose signature has the static arguments, too
        self.run = jax.jit(run, donate_argnums=donated)


_kept: OrderedDict[Hashable, _Program] = OrderedDict()
_keys: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # of records: to take one apart costs 40 us


def _find(function: Callable, is_static: list[bool], donated: tuple[int, ...], fixed: list[Any]) -> _Program:
    """The program for these static arguments, the newest of all that are kept."""
    known = [_key(value) for value in fixed]
    key = (function, *(own for own, _ in known))
    program = _kept.pop(key, None)
    if program is None:
        program = _Program(function, is_static, donated)
        for target in {id(ref()): ref() for _, references in known for ref in references}.values():
            weakref.finalize(target, _kept.pop, key, None).atexit = False
    _kept[key] = program
    while len(_kept) > MOST:
        _kept.popitem(last=False)
    return program


def _key(value: Any) -> tuple[Hashable, list[weakref.ref]]:
    """The key of a static argument, and the references in it."""
    record = dataclasses.is_dataclass(value)
    if record and value in _keys:
        return _keys[value]
    references: list[weakref.ref] = []
    made = _weaken(value, references), references
    if record:
        _keys[value] = made
    return made


def _weaken(value: Any, references: list[weakref.ref]) -> Hashable:
    """A key equal for equal values. What is equal to itself alone, such as a function, is held by a weak reference."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, tuple):
        return (type(value), *(_weaken(entry, references) for entry in value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and "__eq__" in vars(type(value)):
        return (type(value), *(_weaken(getattr(value, f.name), references) for f in dataclasses.fields(value)))
    if type(value).__eq__ is not object.__eq__ or isinstance(value, type):
        return value
    try:
        references.append(weakref.ref(value))
    except TypeError:
        return value
    return references[-1]
