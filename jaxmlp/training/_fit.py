"""`fit`: checks what it is given, then runs the compiled epoch until the run is over."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PRNGKeyArray

from jaxmlp import metrics, rules, validate
from jaxmlp.network import MLP, Params
from jaxmlp.rules import Rule
from jaxmlp.training import processes, settings, sharding, stream
from jaxmlp.training._epoch import Metrics, epoch, epoch_key, finish, needs_keys, some_steps, start
from jaxmlp.training.checkpoint import Checkpoints, Columns, described
from jaxmlp.training.regularization import Keep, Penalty
from jaxmlp.training.reporting import json_lines, shown
from jaxmlp.training.result import DivergedError, Result, result_of
from jaxmlp.training.sampling import Batch
from jaxmlp.training.state import Augment, Data, Optimizer, Plan, Readout, Sampling, TrainState
from jaxmlp.validate import Given, Preprocess

COLUMNS = ("cost", "accuracy", "penalty", "validation_cost", "validation_accuracy",
           "delta_norm", "dead", "saturated", "update_ratio", "noise_scale")  # fmt: skip

_compiled_epoch = jax.jit(epoch, static_argnums=0, donate_argnums=1)
_compiled_part = jax.jit(some_steps, static_argnums=0, donate_argnums=1)
_compiled_finish = jax.jit(finish, static_argnums=0, donate_argnums=2)
_compiled_start = jax.jit(start, static_argnums=0)

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
    validation: tuple[Any, Any] | None = None,
    best_by: Literal["cost", "accuracy"] = "cost",
    patience: int | None = None,
    weights: Float[Given, " m"] | None = None,
    class_weights: Float[Given, " k"] | None = None,
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
    """Minimises the cost by the hand-written gradient and an optax optimiser; an epoch is one compiled program.

    Data
    - `data = (X, Y)`, on the device as they come: uint8 pictures stay uint8 and `preprocess(x)`, a function of one
      example, makes them the network's input inside each step. `augment(key, x)` comes before it, in training only.
    - or any re-iterable of batches `(X, Y)` or `(X, Y, weights)`, read anew each epoch (after its
      `set_epoch(number)`, 0 the first, if it has that), the next ones while the present ones compute. A batch of
      another shape compiles once more.
    - `weights (m,)`: one per example, relative to their mean: a batch of b descends `sum w g / (b mean(w))`, so that
      they count at any batch size (a stream's count as they are). `class_weights (k,)` multiply them.

    Steps
    - `optimizer`: an optax transformation (compiled for that object), or a factory such as `optax.sgd` with
      `hyper={"learning_rate": 0.1}`, whose values are traced: another rate does not compile again. Nor does another
      key. The same key gives the same bits.
    - `epochs` with `sampling="shuffle"`: every example once an epoch, the last, ragged batch included. `steps` with
      `sampling="replacement"`: so many steps, each on `batch_size` examples drawn with replacement; an "epoch" is then
      `validate_every` steps, as many as make up the data unless given. `sampling="poisson"`: each step takes each
      example with probability `batch_size / m`, as the accountants of private learning assume, padded with weight 0.
    - `batch_size`: 1 is the per-example rule, m the full batch. By default m up to 2,000 examples, else 64.
    - `rule` is what carries error signals down; `rule_state`, drawn unless given, learns within each step if the rule's
      does, and `result.state.rule_state` is the last.
    - `readout(trace, weights, key)` may read another gradient from the trace than `mean_gradient`, such as
      `lambda trace, weights, key: jm.private_gradient(trace, 1.0, 1.1, key, batch_size, weights)`.

    Regularisation, none of which compiles again for another strength
    - `penalties`: `jm.l2(s)`, `jm.l1(s)`, `jm.max_norm(c)`, or several. `cost` in the history is the mean loss;
      `penalty` is what they add to it at the end of each epoch.
    - `keep`: dropout, by `jm.dropout_masks` for each batch: a probability, or K, the inputs' first.
    - `label_smoothing`: the share of each label that is spread over all classes. `input_noise`: the deviation of
      Gaussian noise on the network's inputs.
    - `average`: the decay of an exponentially weighted average of the weights, with bias correction. It is then what
      is validated, kept as best and returned as `params`.

    Devices
    - `mesh`: of devices; each batch is divided along its axis `data`, the hidden layers 1, 3, .. along `model`. The
      same key gives the same batches on any mesh, and weights to rounding.
    - `shares`: the data in so many equal parts, one after the other, each shuffled by itself, as many examples of each
      in a batch. On a mesh over several processes each gives its own part of the data (and all of `validation`), and
      there are as many shares as devices along `data` unless given; a share lies on one device.

    Keeping
    - `validation = (X, Y)`, or `(X, Y, weights)`, is scored after each epoch; `params` of the result are those with
      the best score (`best_by`), and `patience` is the number of epochs without a better one that ends the run.
    - `checkpoints`: a folder for the whole state, written atomically after every `checkpoint_every` epochs, at the best
      and at the end. The same call goes on from there, to the bits of a run that was never killed; with more `epochs`
      it goes further. ValueError if the folder's run had other data or settings, as far as can be seen: of a stream the
      shapes of its first batch, of functions what they do to the first example, of an optimiser its first updates.
    - `monitor`: adds the columns of `training.monitors`, one number a layer, for the price of one batch an epoch.
    - `callback(epoch, metrics)` is called after each epoch; `log` is a file that JSON lines are appended to, one an
      epoch.
    - `history` columns: `epoch` (or `step`), `cost` (the mean over the epoch's batches as they were met), `accuracy`
      where classes are predicted (both weighted as the examples are), `penalty`, `validation_cost`,
      `validation_accuracy`, monitors, `seconds` (the first with compilation).

    Raises ValueError for bad input before anything is compiled, and DivergedError. Sources: notes 002, 004.
    """
    mesh = sharding.checked(mesh, net, (sharding.DATA, sharding.MODEL))
    streamed = not isinstance(data, tuple)
    with processes.refused_together(mesh):
        dtype = validate.params(net, params)
        if streamed:
            _refuse_with_stream(batch_size=batch_size, weights=weights, class_weights=class_weights, steps=steps,
                                shares=shares, sampling=None if sampling == "shuffle" else sampling)  # fmt: skip
            first = stream.first_batch(net, stream.checked(data), dtype, preprocess, mesh)
            held_out = settings.held_out(net, validation, dtype, preprocess)
            given = Data(jnp.asarray(first.X), jnp.asarray(first.Y), None, *held_out)
        else:
            given = settings.arrays(net, dtype, data, weights, class_weights, validation, preprocess)
        sampling = validate.one_of(sampling, ("shuffle", "replacement", "poisson"), "sampling")  # pyright: ignore[reportAssignmentType]
        m = given.X.shape[0] * processes.count(mesh)
        shares = 1 if streamed else settings.shares_of(shares, mesh, len(given.X), sampling)
        plan = Plan(
            net=net,
            optimizer=settings.optimizer_of(optimizer, hyper),
            batch_size=m if streamed else settings.batch_size_of(batch_size, m, sampling),
            steps=1,
            sampling=sampling,
            augment=settings.augmented(net, augment, given.X, preprocess),
            preprocess=preprocess,
            rule=rules.checked(rule),
            readout=readout,
            accuracy=metrics.predicts_classes(net, given.Y),
            best_by=validate.one_of(best_by, ("cost", "accuracy"), "best_by"),  # pyright: ignore[reportArgumentType]
            monitor=monitor,
            mesh=mesh,
            shares=shares,
        )
        if not streamed:
            settings.check_divides(plan.batch_size, mesh, shares, sampling)
        rounds = settings.rounds(plan, m, epochs, steps, validate_every)
        settings.check_outputs(callback, log, checkpoints)
        settings.check_together(plan, weights is not None or class_weights is not None, patience, validation)
        if rule_state is not None:
            rule_state = rules.checked_state(net, rule, rule_state)
        regularisation = settings.regularisation(net, penalties, keep, label_smoothing, input_noise, dtype)
        waits = jnp.asarray(-1 if patience is None else validate.whole(patience, "patience"), jnp.int32)
        decay = None if average is None else validate.number(average, "average", above=0, below=1, or_equal=True)
        decay = None if decay is None else jnp.asarray(decay, dtype)
        every = validate.whole(checkpoint_every, "checkpoint_every")
        key, numbers = validate.key(key), settings.hyperparameters(hyper, dtype)
    processes.check_agreed(mesh, **_to_agree(
        plan, m, rounds, numbers, regularisation, keep=keep, label_smoothing=label_smoothing, input_noise=input_noise,
        average=average, rule_state=rule_state, augment=augment, preprocess=preprocess, readout=readout,
        weights=given.weights, validation=validation, checkpoints=checkpoints,
    ))  # fmt: skip
    placed = sharding.placed_data(mesh, given, by_share=shares > 1 or (streamed and processes.several(mesh)))
    if placed.weights is not None:
        placed = placed._replace(weights=placed.weights / placed.weights.mean())
    others = (key, numbers, waits, rule_state, regularisation, decay)
    state = _compiled_start(plan, sharding.placed(mesh, params), placed, *sharding.placed(mesh, others))
    keeper = None
    if checkpoints is not None or processes.several(mesh):
        run = described(plan, processes.local(mesh, state), given, streamed)
        processes.check_agreed(mesh, **run)
        keeper = None if checkpoints is None else Checkpoints(Path(checkpoints), every, run, mesh)
    one_epoch = partial(_streamed_epoch, stream=data) if streamed else _compiled_epoch
    if jax.process_index() > 0 and processes.several(mesh):
        log, progress = None, False  # the first process tells for all
    return _run(plan, state, placed, rounds, one_epoch, keeper, log, callback, progress)


def _to_agree(plan: Plan, m: int, rounds: list[int], hyper, regularisation, **optional: Any) -> dict[str, Any]:
    """What decides which program several processes run together, by the names of the arguments."""
    given = {name: "given" if value is not None else "not given" for name, value in optional.items()}
    return {"net": repr(plan.net), "the number of examples": m, "batch_size": plan.batch_size, "shares": plan.shares,
            "sampling": plan.sampling, "rule": plan.rule.name, "best_by": plan.best_by, "monitor": plan.monitor,
            "epochs": rounds, "hyper": sorted(hyper), **given,
            "penalties": [penalty.kind.name for penalty in regularisation.penalties]}  # fmt: skip


def _run(
    plan: Plan,
    state: TrainState,
    data: Data,
    rounds: list[int],
    one_epoch: Callable[[Plan, TrainState, Data], tuple[TrainState, Metrics]],
    keeper: Checkpoints | None,
    log: str | Path | None,
    callback: Callback | None,
    progress: bool,
) -> Result:
    columns: Columns = {}
    saved = None if keeper is None else keeper.restored(state)
    if saved is not None:
        state, columns = saved
    elif keeper is not None:
        keeper.save(state, columns, 0, last=True)  # from here on it is this run's folder
    unit = "step" if plan.sampling == "replacement" else "epoch"
    done, total = len(columns.get(unit, [])), len(rounds) if unit == "epoch" else sum(rounds)
    resumed = None if saved is None else columns.get(unit, [0])[-1]
    with ExitStack() as stack:
        show = stack.enter_context(shown(total, unit, progress, sum(rounds[:done]) if unit == "step" else done))
        write = None if log is None else stack.enter_context(json_lines(log, unit, resumed))
        for number in range(done, len(rounds)):
            if bool(state.stopped):
                break
            began = time.perf_counter()
            state, scores = one_epoch(replace(plan, steps=rounds[number]), state, data)
            at = number + 1 if unit == "epoch" else sum(rounds[: number + 1])
            row = {unit: at, **_on_host(scores), "seconds": time.perf_counter() - began}  # waits for the device
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
            if keeper is not None:
                keeper.save(state, columns, number + 1, last=number + 1 == len(rounds) or bool(state.stopped))
            show(at, {name: value for name, value in row.items() if name != unit and not isinstance(value, list)})
            if write is not None:
                write(row)
            if callback is not None:
                callback(at, {name: value for name, value in row.items() if name != unit})
    state = processes.local(plan.mesh, state)
    result = result_of(state, {name: np.asarray(values) for name, values in columns.items()})
    if bool(state.diverged):
        raise DivergedError(int(state.epoch) + 1, columns["cost"][-1], float(state.first_cost), result)
    return result


def _streamed_epoch(plan: Plan, state: TrainState, data: Data, stream: Any) -> tuple[TrainState, Metrics]:
    """An epoch over a stream's batches, part by part."""
    trained, sums = jax.tree.map(jnp.copy, state), []
    keys = epoch_key(state) if needs_keys(plan, state) else None
    for number, part in enumerate(_parts(plan, state, stream)):
        n = part.X.shape[0]
        if keys is not None:
            part = part._replace(key=jax.random.split(jax.random.fold_in(keys, number), n))
        trained, more = _compiled_part(replace(plan, steps=n), trained, part)
        jax.block_until_ready(sums[-1:])  # two parts are under way, or all would be read before the first is done
        sums.append(more)
    if not sums:
        raise ValueError(
            f"data gave no batches in epoch {int(state.epoch) + 1}; expected an object that starts anew each epoch"
        )
    whole = jax.tree.map(lambda *each: sum(each[1:], each[0]), *sums)
    return _compiled_finish(replace(plan, steps=1), state, trained, whole, data)


def _parts(plan: Plan, state: TrainState, data: Any) -> Iterator[Batch]:
    return stream.parts(plan.net, data, int(state.epoch), state.params[0].W.dtype, plan.preprocess, plan.mesh)


def _refuse_with_stream(**given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name} is given, but data is an iterable of batches, which are taken as they come; expected none "
                "(a batch may be (X, Y, weights))"
            )


def _on_host(scores: Metrics) -> dict[str, Any]:
    """Numbers, and lists of them for what has one a layer."""
    return {name: np.asarray(scores[name]).tolist() for name in COLUMNS if name in scores}
