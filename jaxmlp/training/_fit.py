"""`fit`: checks its arguments, then runs the compiled epoch until the run is over."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PRNGKeyArray

from jaxmlp import interrupts, metrics, rules, validate
from jaxmlp.dropout import Keep
from jaxmlp.network import MLP, Params
from jaxmlp.penalties import Penalty
from jaxmlp.programs import compiled
from jaxmlp.rules import Rule
from jaxmlp.training import checkpoint, hint, probe, processes, reporting, sampling, settings, sharding, stream
from jaxmlp.training._epoch import COLUMNS, Metrics, begin, epoch
from jaxmlp.training.checkpoint import Checkpoints, Columns
from jaxmlp.training.divergence import raise_if_lost
from jaxmlp.training.examples import ClassWeights, Reading, check_augment, read_data, read_validation
from jaxmlp.training.result import Result, make_result
from jaxmlp.training.state import Augment, Data, Optimizer, Plan, Readout, Run, Sampling, TrainState
from jaxmlp.validate import Given, Preprocess

_compiled_epoch = compiled("plan", donate="state")(epoch)
_compiled_begin = compiled("plan")(begin)

Callback = Callable[[int, dict[str, Any]], None]


def fit(
    net: MLP,
    params: Params,
    data: tuple[Any, Any] | stream.Stream,
    *,
    optimizer: Optimizer,
    key: PRNGKeyArray,
    hyper: dict[str, Any] | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    sampling: Sampling = "shuffle",
    validate_every: int | None = None,
    validation: tuple[Any, ...] | None = None,
    best_by: Literal["cost", "accuracy"] = "cost",
    patience: int | None = None,
    weights: Float[Given, " m"] | None = None,
    class_weights: ClassWeights | None = None,
    penalties: Penalty | tuple[Penalty, ...] = (),
    keep: Keep | None = None,
    label_smoothing: float | None = None,
    input_noise: float | None = None,
    average: float | None = None,
    augment: Augment | None = None,
    preprocess: Preprocess | None = None,
    rule: Rule = rules.backprop,
    rule_state: tuple[Any, ...] | None = None,
    readout: Readout | None = None,
    mesh: Mesh | None = None,
    shares: int | None = None,
    monitor: bool = False,
    callback: Callback | None = None,
    log: str | Path | None = None,
    checkpoints: str | Path | None = None,
    checkpoint_every: int = 1,
    progress: bool = True,
) -> Result:
    """Minimizes the cost by the hand-written gradient and an optax optimizer; an epoch is one compiled program.

    Each step is `theta <- theta + u`, u the optimizer's update for the mean gradient of a batch plus that of the
    penalties. The same key gives the same bits. No other key, strength or hyperparameter compiles again.

    Args:
        params: the initial weights; they are copied.
        data: `(X, Y)`, arrays that stay on the device in their dtype. Or a re-iterable of batches `(X, Y)` or
            `(X, Y, weights)`, read anew each epoch; `set_epoch(number)` is called before each, 0 the first, where the
            object or its sampler has it. A batch of another shape compiles once more.
        optimizer: an optax transformation, compiled in, or a factory such as `optax.sgd`. Its updates are added, so
            they hold the factor `-rate`, which those of `optax.scale_by_adam()` lack.
        key: for all that training draws.
        hyper: the factory's arguments, such as `{"learning_rate": 0.1}`.
        epochs: passes over the data, with `sampling="shuffle"` or `"poisson"`.
        steps: the number of steps, with `sampling="replacement"`.
        batch_size: examples in a step; by default all of up to 2,000, else 64, and 1 with replacement.
        sampling: `"shuffle"` takes every example once an epoch, the last batch may be smaller. `"replacement"` draws
            each batch anew. `"poisson"` takes each example with probability `batch_size / m`, as accountants of private
            learning assume.
        validate_every: steps between validations with `sampling="replacement"`; by default as many as make up the data.
        validation: `(X, Y)` or `(X, Y, weights)`, scored after each epoch; the best weights are kept.
        best_by: the score that decides, `"cost"` or `"accuracy"`.
        patience: the number of epochs without a better score that ends the run.
        weights: one per example, `(m,)`, relative to their mean: a batch of b descends `sum w g / (b mean(w))`. A
            stream's count as given.
        class_weights: one per class, `(k,)`, or a dict `{class: weight}` with 1 for the others, or "balanced" for
            `m / (k count)` by the k classes that occur; they multiply `weights`.
        penalties: `jm.l2(s)`, `jm.l1(s)`, `jm.max_norm(c)`, `jm.quadratic_penalty(..)`, or a tuple of them.
        keep: dropout's probability of keeping an entry, or K of them, the inputs' first.
        label_smoothing: the share of each label that is spread over all classes, from 0 to 1.
        input_noise: the deviation of Gaussian noise on the network's inputs.
        average: the decay, at least 0 and below 1, of an average of the weights, with bias correction. Validation and
            `result.params` then use the average.
        augment: `augment(key, x)` changes one example inside the step, in training only.
        preprocess: `preprocess(x)` makes one example the network's input, after `augment`, at validation too.
        rule: carries error signals down.
        rule_state: the rule's state; drawn unless given. A rule that learns updates it in each step.
        readout: `readout(trace, weights, key)` gives the gradient to descend in place of the mean gradient.
        mesh: divides each batch along its axis `data` and the hidden layers 1, 3, .. along `model`. The same key gives
            the same batches on any mesh, and the same weights to rounding.
        shares: the number of equal parts of the data, each shuffled by itself; a batch has as many examples of each. On
            a mesh over several processes, each passes its own part of the data (and all of `validation`).
        monitor: adds the columns of `training.monitors`, for the price of one batch an epoch.
        callback: `callback(epoch, metrics)` is called after each epoch; `jm.loggers` has some.
        log: a file that gets one line of JSON an epoch.
        checkpoints: a folder for the whole state, written atomically. The same call goes on from it to the bits of a
            run that was never killed; with more `epochs` it goes further.
        checkpoint_every: epochs between two checkpoints; the best and the last are always written.
        progress: shows a bar on a terminal and in a notebook, one line an epoch in a log.
    Returns:
        A Result: `params` (the best on validation, else the last), `last_params`, `history`, `best_epoch`, `state`.
        Columns of the history: `epoch` (or `step`), `cost` (the mean loss over the epoch's batches), `accuracy`,
        `penalty` (the sum of the penalties' costs at the end of the epoch), `validation_cost`, `validation_accuracy`,
        the monitors, `seconds` (the first with compilation).
    Raises:
        ValueError: for bad input, before anything compiles; and where `checkpoints` holds another run. Data is told
            apart by checksums, a stream by the shapes of its first batch, a function by its results on some examples
            or on fixed numbers, an optimizer by its updates.
        DivergedError: where the cost is not finite or 1,000 times the first one, or no validation score is finite.
    Example:
        >>> result = jm.fit(net, params, (X, Y), optimizer=optax.sgd(0.1), epochs=2, key=key, progress=False)
        >>> result.history["cost"].shape
        (2,)

    Source: notes 002 for batches, 004 for steps with replacement and the best weights on validation.
    """
    return _train(*_prepare(locals()))


class Source(NamedTuple):
    """Where the examples come from: arrays, or a stream of batches."""

    data: Data  # of this process: all, or those of a stream's first batch
    m: int  # the number of examples in `data` of all processes
    batch_size: int
    shares: int
    by_share: bool  # an example lies on one device only
    one_epoch: Callable[[Plan, TrainState, Data], tuple[TrainState, Metrics]]
    describe: Callable[[Plan, Run, TrainState, Data], dict[str, Any]]


def _prepare(arguments: dict[str, Any]) -> tuple[Plan, TrainState, Data, list[int], Source, Checkpoints | None, Any]:
    """The checked arguments of `fit`, as `_train` takes them."""
    net, params, data = (arguments.pop(name) for name in ("net", "params", "data"))
    mesh = sharding.check(arguments["mesh"], net, (sharding.DATA, sharding.MODEL))
    with processes.raise_on_all(mesh):
        dtype = validate.params(net, params)
        given = settings.read(arguments, settings.Context((net,)))
        settings.settle_optimizer(given, (net,), dtype)
        how = Reading(net, dtype, given.preprocess, relative=not processes.are_several(mesh))
        source = (_use_arrays if isinstance(data, tuple) else _use_stream)(how, data, given, mesh)
        plan = settings.make_plan(net, given, mesh, accuracy=metrics.predicts_classes(net, source.data.Y), steps=1,
                                  batch_size=source.batch_size, shares=source.shares)  # fmt: skip
        rounds = sampling.count_steps(plan, source.m, given.epochs, given.steps, given.validate_every)
        reporting.check_outputs(given.callback, given.log, given.checkpoints)
        settings.check_together(plan, given)
        hint.name_hyper(plan)
        if given.rule_state is not None:
            given.rule_state = rules.check_state(net, plan.rule, given.rule_state)
        run = settings.make_run(given, dtype, key=given.key, params=tuple(params), rule_state=given.rule_state)
    told = {"net": repr(net), "the number of examples": source.m, "epochs": rounds} | settings.tell(plan, run)
    told |= {name: getattr(given, name) is not None for name in ("validation", "checkpoints", "weights")}
    processes.check_agreement(mesh, **told)
    data = sharding.put_data(mesh, source.data, source.by_share)
    if data.weights is not None:
        data = data._replace(weights=data.weights / data.weights.mean())
    state = _compiled_begin(plan.at_start, sharding.put(mesh, run), data)
    streamed = source.one_epoch is not _compiled_epoch
    probe.check_padding(plan, state, source.data, streamed and sharding.length(mesh, sharding.DATA) > 1)
    keeper = None
    if given.checkpoints is not None or processes.are_several(mesh):
        told = source.describe(plan, run, processes.gather(mesh, state), source.data)
        processes.check_agreement(mesh, **told)
        if given.checkpoints is not None:
            log = None if given.log is None else Path(given.log).absolute()
            keeper = Checkpoints(Path(given.checkpoints).absolute(), given.checkpoint_every, told, mesh, log)
    return plan, state, data, rounds, source, keeper, given


def _use_arrays(how: Reading, data: Any, given: SimpleNamespace, mesh: Mesh | None) -> Source:
    data, _ = read_data(how, data, given)
    m = len(data.X) * processes.count(mesh)
    shares = sampling.choose_shares(given.shares, mesh, len(data.X), given.sampling)
    size = sampling.choose_batch_size(given.batch_size, m, given.sampling)
    sampling.check_divides(size, mesh, shares, given.sampling)
    return Source(data, m, size, shares, shares > 1, _compiled_epoch, checkpoint.describe)


def _use_stream(how: Reading, data: Any, given: SimpleNamespace, mesh: Mesh | None) -> Source:
    batches = stream.check(data)
    how = how._replace(weighted=given.readout is None)
    opened, first = stream.read_first(how, batches, mesh)
    for name in ("batch_size", "weights", "class_weights", "steps", "shares", "sampling"):
        value, default = given.arguments[name], settings.TABLE[name].default
        if value is not None and not (isinstance(value, str) and value == default):
            raise ValueError(
                f"{name} is given, but data is an iterable of batches, which decides it; expected none "
                "(a batch may be (X, Y, weights))"
            )
    held_out, _ = read_validation(how, given.validation)
    if given.augment is not None:
        check_augment(how, given.augment, first.X)
    m = len(first.X) * processes.count(mesh)
    data = Data(jnp.asarray(first.X), jnp.asarray(first.Y), None, *held_out)
    one_epoch = partial(stream.train_epoch, how, opened)
    return Source(data, m, m, 1, processes.are_several(mesh), one_epoch, checkpoint.describe_stream)


def _train(
    plan: Plan,
    state: TrainState,
    data: Data,
    rounds: list[int],
    source: Source,
    keeper: Checkpoints | None,
    given: SimpleNamespace,
) -> Result:
    columns: Columns = {}
    unit = "step" if plan.sampling == "replacement" else "epoch"
    at = np.cumsum(rounds).tolist() if unit == "step" else list(range(1, len(rounds) + 1))
    silent = jax.process_index() > 0 and processes.are_several(plan.mesh)  # the first process reports for all
    with ExitStack() as stack:
        saved = None if keeper is None else stack.enter_context(keeper.open(state))
        if saved is not None:
            state, columns, _ = saved
            sampling.check_reached(columns.get(unit, []), at, unit, given.checkpoints)
        elif keeper is not None:
            keeper.save(state, columns, 0, last=True)  # from here on it is this run's folder
        done = len(columns.get(unit, []))
        reached = columns[unit][-1] if done else 0
        show = stack.enter_context(reporting.show(at[-1], unit, given.progress and not silent, reached))
        write = None
        if given.log is not None and not silent:
            done_then, end = (None, None) if saved is None else (reached, saved.log_bytes)
            write = stack.enter_context(reporting.append_json(given.log, unit, done_then, end))
        alone = keeper is not None and not processes.are_several(plan.mesh)
        interrupted = stack.enter_context(interrupts.hold(alone))
        for number in range(done, len(rounds)):
            if bool(state.stopped):
                break
            began = time.perf_counter()
            state, scores = source.one_epoch(replace(plan, steps=rounds[number]), state, data)
            row = {unit: at[number], **_to_host(scores), "seconds": time.perf_counter() - began}  # waits for the device
            if columns and number == done and row.keys() != columns.keys():
                raise ValueError(f"checkpoints={str(given.checkpoints)!r} holds a history of {', '.join(columns)}, "
                                 f"expected {', '.join(row)}")  # fmt: skip
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
            if write is not None:
                write(row)  # before the state is saved: a line too many is dropped when the run goes on
            last = number + 1 == len(rounds) or bool(state.stopped)
            if keeper is not None:
                keeper.save(state, columns, number + 1, last)
            metrics = {name: value for name, value in row.items() if name != unit}
            show(at[number], {name: value for name, value in metrics.items() if not isinstance(value, list)})
            if given.callback is not None:
                given.callback(at[number], metrics)
            if interrupted():
                break
        if keeper is not None and interrupted():
            done = len(columns.get(unit, []))
            keeper.save(state, columns, done, last=True)
            raise KeyboardInterrupt(f"{unit} {columns[unit][-1] if done else 0} of {at[-1]} is saved in "
                                    f"{given.checkpoints}; the same call goes on from there")  # fmt: skip
    state = processes.gather(plan.mesh, state)
    result = make_result(state, {name: np.asarray(values) for name, values in columns.items()})
    raise_if_lost(state, result)
    return result


def _to_host(scores: Metrics) -> dict[str, Any]:
    """Numbers, and lists of them where a column has one a layer."""
    return {name: np.asarray(scores[name]).tolist() for name in COLUMNS if name in scores}
