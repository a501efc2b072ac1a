"""What `fit` is given, checked and made arrays before anything is compiled."""

import inspect
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxmlp import metrics, validate
from jaxmlp.network import MLP
from jaxmlp.training import processes, regularization, sharding
from jaxmlp.training.regularization import Penalty
from jaxmlp.training.state import Data, Plan, Regularisation

FULL_BATCH_UP_TO, MINI_BATCH = 2000, 64  # notes 002, "Choosing Batches"


def arrays(net, dtype, data, weights, class_weights, validation, preprocess) -> Data:
    """`data = (X, Y)` and `validation` as arrays; the weights multiplied."""
    X, Y = pair(data, "data")
    X = validate.inputs(net, X, dtype, preprocess)
    Y = validate.targets(net, Y, X.shape[0])
    if weights is not None:
        weights = validate.example_weights(weights, X.shape[0], dtype)
    if class_weights is not None:
        each = of_classes(net, class_weights, Y, dtype)
        weights = each if weights is None else weights * each
    return Data(X, Y, weights, *held_out(net, validation, dtype, preprocess))


def held_out(net: MLP, validation: Any, dtype: Any, preprocess: Any) -> tuple:
    """The validation examples and their weights, None where there are none."""
    if validation is None:
        return None, None, None
    X, Y, weights = weighted(validation, "validation")
    X = validate.inputs(net, X, dtype, preprocess, name="validation X")
    Y = validate.targets(net, Y, X.shape[0], name="validation Y")
    if weights is not None:
        weights = validate.example_weights(weights, X.shape[0], dtype, name="validation weights")
    return X, Y, weights


def of_classes(net: MLP, class_weights: Any, Y: jax.Array, dtype: Any) -> jax.Array:
    """Each example's weight by its class; a single output has the classes 0 and 1."""
    k = max(2, net.sizes[-1])
    given = validate.array(class_weights, "class_weights")
    if given.shape != (k,):
        raise ValueError(f"class_weights has shape {given.shape}, expected one weight for each of the {k} classes")
    if not metrics.predicts_classes(net, Y):
        raise ValueError(f"class_weights is given, but loss {net.loss.name!r} with these labels predicts no classes")
    return validate.example_weights(given, k, dtype, name="class_weights")[metrics.classes(Y)]


def augmented(net: MLP, augment: Any, X: jax.Array, preprocess: Any) -> Any:
    """`augment`, if it turns an example into one that the network (or `preprocess`) takes as well."""
    if augment is None:
        return None
    if not callable(augment):
        raise ValueError(f"augment is {augment!r}, expected a function of a key and one example")
    example = jax.ShapeDtypeStruct(X.shape[1:], X.dtype)
    try:
        made = jax.eval_shape(augment, jax.eval_shape(lambda: jax.random.key(0)), example)
    except TypeError as error:
        raise ValueError(f"augment fails on a key and an example {example.shape}: {error}") from None
    shape, dtype = getattr(made, "shape", None), getattr(made, "dtype", None)
    if shape != example.shape or (preprocess is None and dtype != example.dtype):
        raise ValueError(
            f"augment turns an example {example.shape} of {example.dtype} into {shape} of {dtype}, expected the same"
        )
    return augment


def regularisation(net: MLP, given_penalties, keep, label_smoothing, input_noise, dtype) -> Regularisation:
    """The strengths as arrays of the parameters' dtype."""
    each = regularization.checked(net, given_penalties)
    each = tuple(Penalty(penalty.kind, jnp.asarray(penalty.strength).astype(dtype)) for penalty in each)
    if keep is not None:
        keep = regularization.checked_keep(net, keep).astype(dtype)
    if label_smoothing is not None:
        check_smoothed(net)
        label_smoothing = jnp.asarray(
            validate.number(label_smoothing, "label_smoothing", above=0, below=1, or_equal=True), dtype
        )
    if input_noise is not None:
        input_noise = jnp.asarray(validate.number(input_noise, "input_noise", above=0, or_equal=True), dtype)
    return Regularisation(each, keep, label_smoothing, input_noise)


def check_smoothed(net: MLP) -> None:
    """Refuses to smooth labels that are no classes."""
    if net.loss.targets == "real":
        raise ValueError(f"label_smoothing is given, but loss {net.loss.name!r} takes numbers, not classes")


def pair(given: Any, name: str) -> tuple[Any, Any]:
    """`given`, if it is `(X, Y)`."""
    if not isinstance(given, tuple) or len(given) != 2:
        got = f"a tuple of {len(given)}" if isinstance(given, tuple) else f"a {type(given).__name__}"
        raise ValueError(f"{name} is {got}, expected a tuple (X, Y)")
    return given


def weighted(given: Any, name: str) -> tuple[Any, Any, Any]:
    """`given`, if it is `(X, Y)` or `(X, Y, weights)`; the weights are None without any."""
    return given if isinstance(given, tuple) and len(given) == 3 else (*pair(given, name), None)


def optimizer_of(optimizer: Any, hyper: dict[str, Any] | None) -> Any:
    """`optimizer`, if it is an optax transformation, or a factory that makes one of `hyper`."""
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


def hyperparameters(hyper: dict[str, Any] | None, dtype: Any) -> dict[str, jax.Array]:
    """The factory's arguments as arrays of the parameters' dtype."""
    return {name: _number(name, value, dtype) for name, value in (hyper or {}).items()}


def _number(name: str, value: Any, dtype: jnp.dtype) -> jax.Array:
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


def batch_size_of(given: int | None, m: int, sampling: str) -> int:
    """As given, or by default all of a small set."""
    if given is None:
        return 1 if sampling == "replacement" else m if m <= FULL_BATCH_UP_TO else MINI_BATCH
    size = validate.whole(given, "batch_size")
    if size > m:
        raise ValueError(f"batch_size is {size}, but there are {m} examples; expected at most {m}")
    return size


def shares_of(given: int | None, mesh: Mesh | None, m: int, sampling: str) -> int:
    """In how many shares m examples, those of this process, are shuffled; by default one for each that must be."""
    several, devices = processes.count(mesh), sharding.length(mesh, sharding.DATA)
    if devices % several:
        raise ValueError(f"mesh's data axis has {devices} devices, expected a multiple of the {several} processes")
    shares = (1 if several == 1 else devices) if given is None else validate.whole(given, "shares")
    if shares > 1 and sampling == "poisson":
        raise ValueError(f"shares is {shares}, expected 1 with sampling='poisson', whose coins are tossed together")
    if shares > 1 and shares % devices:
        raise ValueError(f"shares is {shares}, expected a multiple of the {devices} devices of mesh's data axis")
    if m * several % shares:
        raise ValueError(
            f"data has {m * several} examples, expected a multiple of its {shares} shares: leave some out, such as "
            f"the last {m * several % shares}"
        )
    return shares


def check_divides(batch_size: int, mesh: Mesh | None, shares: int, sampling: str) -> None:
    """That a batch has as many examples of each share and for each device."""
    devices = sharding.length(mesh, sharding.DATA)
    if batch_size % shares:
        raise ValueError(f"batch_size is {batch_size}, expected a multiple of the {shares} shares")
    if batch_size % devices and sampling != "poisson":  # whose batches are filled up
        raise ValueError(
            f"batch_size is {batch_size}, expected a multiple of the {devices} devices of mesh's data axis"
        )


def rounds(plan: Plan, m: int, epochs: int | None, steps: int | None, validate_every: int | None) -> list[int]:
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


def check_together(plan: Plan, weighted: bool, patience: Any, validation: Any) -> None:
    """What fits alone but not together."""
    if weighted and (plan.sampling == "poisson" or plan.readout is not None):
        raise ValueError(
            "weights are given, expected none with sampling='poisson' or a readout, which weigh themselves"
        )
    if patience is not None and validation is None:
        raise ValueError(f"patience is {patience}, but validation is None: expected examples to validate on")
    if plan.best_by == "accuracy" and not plan.accuracy:
        raise ValueError("best_by is 'accuracy', but the network predicts no classes: expected 'cost'")


def check_outputs(callback: Any, log: Any, checkpoints: Any) -> None:
    """That what a run leaves can be left, before it starts."""
    if callback is not None and not callable(callback):
        raise ValueError(f"callback is {callback!r}, expected a function of the epoch and its metrics")
    if callback is not None:
        _check_called(callback)
    if log is not None and Path(log).is_dir():
        raise ValueError(f"log is {str(log)!r}, a folder, expected a file's name")
    if checkpoints is not None and Path(checkpoints).exists() and not Path(checkpoints).is_dir():
        raise ValueError(f"checkpoints is {str(checkpoints)!r}, a file, expected a folder")


def _check_called(callback: Any) -> None:
    """That a callback takes what it will be called with, where it says what it takes."""
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(1, {})
    except TypeError:
        raise ValueError(
            f"callback takes {signature}, expected a function of two arguments, the epoch and its metrics"
        ) from None
