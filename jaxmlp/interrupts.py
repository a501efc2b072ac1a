"""SIGINT, as Ctrl-C sends it: the first one lets the epoch end, so that it is saved."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def hold(active: bool) -> Iterator[Callable[[], bool]]:
    """Holds back the first SIGINT, so that the epoch ends and is saved; yields whether there was one.

    A second SIGINT interrupts at once. A process that ignores SIGINT, or handles it in its own way, goes on to do so.
    """
    before, held = signal.getsignal(signal.SIGINT), []
    pythons = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if not (active and pythons):
        yield lambda: False
        return

    def note(number: int, frame: Any) -> None:
        held.append(number)
        signal.signal(signal.SIGINT, before)
        with suppress(RuntimeError, OSError):  # the signal may come while the same stream is written to
            print("interrupted: this epoch ends first and is saved; interrupt again to stop at once", file=sys.stderr)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(held)
    finally:
        signal.signal(signal.SIGINT, before)
