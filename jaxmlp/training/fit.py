"""`fit`: checks what it is given, then runs the compiled epoch until the run is over."""

import math
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, PRNGKeyArray

from jaxmlp import metrics, rules, validate
from jaxmlp.network import MLP, Params
from jaxmlp.rules import Rule
from jaxmlp.training.epoch import epoch
from jaxmlp.training.progress import shown
from jaxmlp.training.state import Data, Optimizer, Plan, Readout, Sampling, TrainState, start
from jaxmlp.validate import Given, Preprocess

COLUMNS = ("cost", "accuracy", "validation_cost", "validation_accuracy")
FULL_BATCH_UP_TO, MINI_BATCH = 2000, 64  # notes 002, "Choosing Batches"

_compiled_epoch = jax.jit(epoch, static_argnums=0, donate_argnums=1)
_compiled_start = jax.jit(start, static_argnums=0)

History = dict[str, np.ndarray]


@dataclass(frozen=True)
class Result:
    """What `fit` returns. `history` has one array a column, one entry an epoch: see `fit`."""

    params: Params  # the best on the validation examples; without any, the last
    last_params: Params
    history: History
    best_epoch: int | None  # 1 is the first; None without validation
    stopped_early: bool  # by patience
    state: TrainState


class DivergedError(RuntimeError):
    """Training diverged: the cost is not finite, or 1,000 times the first one.

    `epoch` is the one in which it happened (1 is the first); `result` holds the history up to it and the weights of
    the epoch before.
    """

    def __init__(self, epoch: int, cost: float, first_cost: float, result: Result):
        super().__init__(
            f"training diverged in epoch {epoch}: cost {cost:g}, at the start {first_cost:g}; "
            "a smaller learning rate may help. error.result has the last good weights and the history"
        )
        self.epoch = epoch
        self.result = result


def fit(
    net: MLP,
    params: Params,
    data: tuple[Any, Any],
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
    preprocess: Preprocess | None = None,
    rule: Rule = rules.backprop,
    rule_state: tuple[Any, ...] | None = None,
    readout: Readout | None = None,
    progress: bool = True,
) -> Result:
    """Minimises the cost by the hand-written gradient and an optax optimiser; an epoch is one compiled program.

    - `data = (X, Y)`, on the device as they come: uint8 pictures stay uint8 and `preprocess(x)`, a function of one
      example, makes them the network's input inside each step.
    - `weights (m,)`: one per example, relative to their mean: a batch of b descends `sum w g / (b mean(w))`, so that
      they count at any batch size.
    - `optimizer`: an optax transformation (compiled for that object), or a factory such as `optax.sgd` with
      `hyper={"learning_rate": 0.1}`, whose values are traced: another rate does not compile again. Nor does another
      key. The same key gives the same bits.
    - `epochs` with `sampling="shuffle"`: every example once an epoch, the last, ragged batch included. `steps` with
      `sampling="replacement"`: so many steps, each on `batch_size` examples drawn with replacement; an "epoch" is then
      `validate_every` steps, as many as make up the data unless given. `sampling="poisson"`: each step takes each
      example with probability `batch_size / m`, as the accountants of private learning assume, padded with weight 0.
    - `readout(trace, weights, key)` may read another gradient from the trace than `mean_gradient`, such as
      `lambda trace, weights, key: jm.private_gradient(trace, 1.0, 1.1, key, batch_size, weights)`.
    - `batch_size`: 1 is the per-example rule, m the full batch. By default m up to 2,000 examples, else 64.
    - `validation = (X, Y)` is scored after each epoch; `params` of the result are those with the best score
      (`best_by`), and `patience` is the number of epochs without a better one that ends the run.
    - `rule` is what carries error signals down; `rule_state`, drawn unless given, learns within each step if the rule's
      does, and `result.state.rule_state` is the last.
    - `history` columns: `epoch` (or `step`), `cost` (the mean over the epoch's batches as they were met), `accuracy`
      where classes are predicted, `validation_cost`, `validation_accuracy`, `seconds` (the first with compilation).

    Raises ValueError for bad input before anything is compiled, and DivergedError. Sources: notes 002, 004.
    """
    checked = _checked_data(net, params, data, weights, validation, preprocess)
    m = checked.X.shape[0]
    plan = Plan(
        net=net,
        optimizer=_checked_optimizer(optimizer, hyper),
        batch_size=_checked_batch_size(batch_size, m, sampling),
        steps=1,
        sampling=validate.one_of(sampling, ("shuffle", "replacement", "poisson"), "sampling"),  # pyright: ignore[reportArgumentType]
        preprocess=preprocess,
        rule=rules.checked(rule),
        readout=readout,
        accuracy=metrics.predicts_classes(net, checked.Y),
        best_by=validate.one_of(best_by, ("cost", "accuracy"), "best_by"),  # pyright: ignore[reportArgumentType]
    )
    rounds = _rounds(plan, m, epochs, steps, validate_every)
    if weights is not None and (sampling == "poisson" or readout is not None):
        raise ValueError(
            "weights are given, expected none with sampling='poisson' or a readout, which weigh themselves"
        )
    if patience is not None and validation is None:
        raise ValueError(f"patience is {patience}, but validation is None: expected examples to validate on")
    if plan.best_by == "accuracy" and not plan.accuracy:
        raise ValueError("best_by is 'accuracy', but the network predicts no classes: expected 'cost'")
    dtype = params[0].W.dtype
    hyper = {name: _traced(name, value, dtype) for name, value in (hyper or {}).items()}
    if rule_state is not None:
        rule_state = rules.checked_state(net, rule, rule_state)
    state = _compiled_start(
        plan, params, checked, validate.key(key), hyper,
        -1 if patience is None else validate.whole(patience, "patience"), rule_state,
    )  # fmt: skip
    return _run(plan, state, checked, rounds, progress)


def _run(plan: Plan, state: TrainState, data: Data, rounds: list[int], progress: bool) -> Result:
    columns: dict[str, list[float]] = {}
    unit = "step" if plan.sampling == "replacement" else "epoch"
    done, total = 0, len(rounds) if unit == "epoch" else sum(rounds)
    with shown(total, unit, progress) as show:
        for steps in rounds:
            began = time.perf_counter()
            state, scores = _compiled_epoch(replace(plan, steps=steps), state, data)
            scores = {name: float(scores[name]) for name in COLUMNS if name in scores}  # waits for the device
            scores["seconds"] = time.perf_counter() - began
            done += 1 if unit == "epoch" else steps
            for name, value in {unit: done, **scores}.items():
                columns.setdefault(name, []).append(value)
            show(done, scores)
            if bool(state.stopped):
                break
    result = _result(state, {name: np.asarray(values) for name, values in columns.items()})
    if bool(state.diverged):
        raise DivergedError(int(state.epoch) + 1, columns["cost"][-1], float(state.first_cost), result)
    return result


def _result(state: TrainState, history: History) -> Result:
    best = state.best
    return Result(
        params=state.params if best is None or int(best.epoch) == 0 else best.params,
        last_params=state.params,
        history=history,
        best_epoch=None if best is None else int(best.epoch),
        stopped_early=bool(state.stopped & ~state.diverged),
        state=state,
    )


def _checked_data(net, params, data, weights, validation, preprocess) -> Data:
    dtype = validate.params(net, params)
    X, Y = _pair(data, "data")
    X = validate.inputs(net, X, dtype, preprocess)
    Y = validate.targets(net, Y, X.shape[0])
    if weights is not None:
        weights = validate.example_weights(weights, X.shape[0], dtype)
        weights = weights / weights.mean()
    if validation is None:
        return Data(X, Y, weights)
    X_dev, Y_dev = _pair(validation, "validation")
    X_dev = validate.inputs(net, X_dev, dtype, preprocess, name="validation X")
    return Data(X, Y, weights, X_dev, validate.targets(net, Y_dev, X_dev.shape[0], name="validation Y"))


def _pair(given: Any, name: str) -> tuple[Any, Any]:
    if not isinstance(given, tuple) or len(given) != 2:
        got = f"a tuple of {len(given)}" if isinstance(given, tuple) else f"a {type(given).__name__}"
        raise ValueError(f"{name} is {got}, expected a tuple (X, Y)")
    return given


def _checked_optimizer(optimizer: Any, hyper: dict[str, Any] | None) -> Any:
    if isinstance(optimizer, optax.GradientTransformation):
        if hyper:
            raise ValueError(
                f"hyper is {hyper}, but optimizer is made already: expected a factory such as optax.sgd beside it"
            )
        return optimizer
    if hasattr(optimizer, "gradient_transformation"):
        raise ValueError("optimizer is an optax.MultiSteps, expected what its gradient_transformation() gives")
    if not callable(optimizer):
        raise ValueError(f"optimizer is {optimizer!r}, expected an optax transformation, or a factory and hyper")
    made: Any = None
    try:
        made = optimizer(**(hyper or {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"hyper is {hyper}, which the optimizer's factory does not take: {error}") from None
    if not isinstance(made, optax.GradientTransformation):
        raise ValueError(f"optimizer makes a {type(made).__name__}, expected an optax transformation")
    return optimizer


def _traced(name: str, value: Any, dtype: jnp.dtype) -> jax.Array:
    """A hyperparameter as an array of the parameters' dtype, so that another value does not compile again."""
    if callable(value):
        raise ValueError(f"hyper[{name!r}] is a function; pass a schedule in an optimizer such as optax.sgd(schedule)")
    if value is None or isinstance(value, bool | str):
        raise ValueError(
            f"hyper[{name!r}] is {value!r}, expected a number; fix what is none in the factory, such as "
            f"functools.partial(optax.sgd, {name}={value!r})"
        )
    array = validate.array(value, f"hyper[{name!r}]").astype(dtype)
    if array.shape != ():
        raise ValueError(f"hyper[{name!r}] has shape {array.shape}, expected a number")
    validate.finite(array, f"hyper[{name!r}]")
    return array


def _checked_batch_size(given: int | None, m: int, sampling: str) -> int:
    if given is None:
        return 1 if sampling == "replacement" else m if m <= FULL_BATCH_UP_TO else MINI_BATCH
    size = validate.whole(given, "batch_size")
    if size > m:
        raise ValueError(f"batch_size is {size}, but there are {m} examples; expected at most {m}")
    return size


def _rounds(plan: Plan, m: int, epochs: int | None, steps: int | None, validate_every: int | None) -> list[int]:
    """The number of optimiser steps of each epoch, or of each stretch between validations."""
    if plan.sampling != "replacement":
        if epochs is None or steps is not None or validate_every is not None:
            raise ValueError(
                f"epochs is {epochs}, steps is {steps}, validate_every is {validate_every}; expected epochs alone "
                f"with sampling={plan.sampling!r} (steps go with sampling='replacement')"
            )
        return [math.ceil(m / plan.batch_size)] * validate.whole(epochs, "epochs")
    if steps is None or epochs is not None:
        raise ValueError(f"steps is {steps}, epochs is {epochs}; expected steps with sampling='replacement'")
    steps = validate.whole(steps, "steps")
    an_epochs_worth = min(steps, math.ceil(m / plan.batch_size))
    every = an_epochs_worth if validate_every is None else validate.whole(validate_every, "validate_every")
    whole, rest = divmod(steps, every)
    return [every] * whole + ([rest] if rest else [])
