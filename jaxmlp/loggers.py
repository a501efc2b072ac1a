"""Callbacks of `fit` that hand each epoch to a program that draws it: TensorBoard, Weights & Biases.

Every column of the history is written under its name, with the epoch (or step) as step. A column with a number for each
layer becomes `dead/1`, `dead/2`, .. With several processes, give the callback to one of them.
"""

import importlib.util
import inspect
import math
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from jaxmlp.training import reporting

Callback = Callable[[int, dict[str, Any]], None]


def tensorboard(folder: str | Path) -> Callback:
    """A callback that appends each epoch to an event file in `folder`, for TensorBoard.

    An epoch is on the disk before the next one starts. Each run writes a file of its own. Of a folder with several,
    TensorBoard shows every epoch as it was written last: a run that goes on from its checkpoints continues its curves,
    and one that starts again replaces them.

    Args:
        folder: the run's own, new or not; TensorBoard shows the folders side by side.
    Raises:
        ValueError: where the folder cannot be written.
        ImportError: where the extra `loggers` is not installed.
    Example:
        >>> result = jm.fit(net, params, (X, Y), optimizer=optax.sgd(0.1), epochs=2, key=key, progress=False,
        ...                 callback=jm.loggers.tensorboard("runs/first"))
    """
    path = reporting.check_folder(folder, "folder")
    if importlib.util.find_spec("tensorboardX") is None:
        raise ImportError("tensorboardX is not installed: python3 -m pip install 'jaxmlp[loggers]'")
    # Not its SummaryWriter, whose flush leaves behind what waits in a queue.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

    events, last, stack = None, math.inf, ExitStack()

    def write(epoch: int, metrics: dict[str, Any]) -> None:
        nonlocal events, last
        if events is None or epoch <= last:
            stack.close()
            path.mkdir(parents=True, exist_ok=True)
            name = f".{time.time_ns()}"  # its own counts seconds, and a file of the same second would be overwritten
            events = stack.enter_context(closing(EventsWriter(str(path / "events"), name)))
            start = SessionLog(status=SessionLog.START)  # hides this epoch and later ones in the files before
            events.write_event(Event(step=epoch, wall_time=time.time(), session_log=start))
        values = [Summary.Value(tag=name, simple_value=value) for name, value in _name_numbers(metrics).items()]
        events.write_event(Event(step=epoch, wall_time=time.time(), summary=Summary(value=values)))
        events.flush()
        last = epoch

    weakref.finalize(write, stack.close)
    return write


def wandb(run: Any) -> Callback:
    """A callback that logs each epoch to a run of Weights & Biases.

    Args:
        run: that of `wandb.init(..)`, or another object with a method `log(columns, step=epoch)`. A run that goes on
            from its checkpoints goes on with `wandb.init(id=.., resume="allow")`.
    Raises:
        ValueError: where the run has no such method.
    Example:
        >>> class Run:
        ...     def log(self, columns, step):
        ...         print(step, sorted(columns))
        >>> result = jm.fit(net, params, (X, Y), optimizer=optax.sgd(0.1), epochs=2, key=key, progress=False,
        ...                 callback=jm.loggers.wandb(Run()))
        1 ['accuracy', 'cost', 'seconds']
        2 ['accuracy', 'cost', 'seconds']
    """
    log: Any = getattr(run, "log", None)
    try:
        taken = inspect.signature(log)
        taken.bind({}, step=1)
    except (TypeError, ValueError):
        raise ValueError(
            f"run is {run!r}, expected one of wandb.init(..), or an object with a method log(columns, step=epoch)"
        ) from None
    # Given a step, wandb would keep its columns back until the next step.
    now = {"commit": True} if "commit" in taken.parameters else {}
    return lambda epoch, metrics: log(_name_numbers(metrics), step=epoch, **now)


def _name_numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """A name for each number: `dead/1`, `dead/2`, .. for those of layers."""
    numbers = {}
    for name, value in metrics.items():
        numbers |= {f"{name}/{l}": v for l, v in enumerate(value, 1)} if isinstance(value, list) else {name: value}
    return numbers
