"""The table of settings, one row each: all that `fit`, `sweep`, `search`, checkpoints and processes know of a setting.

A new setting is a row here, its field in the state or the plan, and the step that uses it; `fit` and `sweep` also name
it in their signatures. Rules that span several settings are functions, below the table.
"""

import dataclasses
import inspect
import reprlib
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxmlp import norms, optimizers, penalties, rules, trees, validate
from jaxmlp.network import MLP, Layer
from jaxmlp.penalties import Penalty
from jaxmlp.training.examples import Axis
from jaxmlp.training.regularization import Regularization
from jaxmlp.training.state import Plan, Run


class Context(NamedTuple):
    """What a value must fit: the networks it is for, and the member axis, None for a single run."""

    nets: tuple[MLP, ...]
    axis: Axis | None = None


def as_given(given: Any, name: str, context: Context) -> Any:
    """The value itself: a rule that spans settings, or the data's reader, checks it."""
    return given


def number(whole: bool = False, layers: bool = False, **bounds: float) -> Callable[[Any, str, Context], Any]:
    """The reader of a number: one for all members or one each; with `layers` also one for each layer."""

    def read(given: Any, name: str, context: Context) -> Any:
        if given is None:
            return None
        values = validate.numbers(given, name, whole, **bounds)
        _check_shape(values, name, context, layers)
        return values if whole or jnp.issubdtype(values.dtype, jnp.floating) else values.astype(float)

    return read


def _check_shape(values: jax.Array, name: str, context: Context, layers: bool) -> None:
    """A number; by a sweep also `(E,)`; with `layers` also `(K,)` by `fit` and `(1, K)` or `(E, K)` by a sweep."""
    depths = {net.depth for net in context.nets}
    if context.axis is None:
        if values.ndim and (not layers or values.shape != (max(depths),)):
            each = f", or one for each of the {max(depths)} layers" if layers else ""
            raise ValueError(f"{name} has shape {values.shape}, expected a number{each}")
        return
    if values.ndim > (2 if layers else 1):
        each = ", or (members, layers)" if layers else ""
        raise ValueError(f"{name} has shape {values.shape}, expected a number, or one for each member{each}")
    if values.ndim == 2 and {values.shape[1]} != depths:
        each = " or ".join(map(str, sorted(depths)))
        raise ValueError(f"{name} has shape {values.shape}, expected {each} columns, one for each layer")
    if values.ndim and not (values.ndim == 2 and len(values) == 1):
        context.axis.add(name, len(values))


def _read_hyper(given: Any, name: str, context: Context) -> dict[str, Any]:
    """The optimizer factory's arguments, by name."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"hyper is {given!r}, expected a dict such as {{'learning_rate': 0.1}}")
    for key, value in (given or {}).items():
        if callable(value):
            raise ValueError(f"hyper[{key!r}] is a function; pass a schedule in an optimizer: optax.sgd(schedule)")
        if value is None or isinstance(value, bool | str):
            raise ValueError(
                f"hyper[{key!r}] is {value!r}, expected a finite number; give other values to the factory: "
                f"functools.partial(optimizer, {key}={value!r})"
            )
    return {key: number()(value, f"hyper[{key!r}]", context) for key, value in (given or {}).items()}


def _read_penalties(given: Any, name: str, context: Context) -> tuple[Penalty, ...]:
    read = number(layers=True)
    each = penalties.as_tuple(given)
    for penalty in each:
        for net in context.nets:
            penalty.check(net)
    return tuple(dataclasses.replace(p, strength=read(p.strength, p.kind.name, context)) for p in each)


def _read_smoothing(given: Any, name: str, context: Context) -> Any:
    for net in context.nets:
        if given is not None and net.loss.targets == "real":
            raise ValueError(f"{name} is given, but loss {net.loss.name!r} takes numbers, not classes")
    return number(least=0, at_most=1)(given, name, context)


def _read_whole(given: Any, name: str, context: Context) -> int | None:
    return None if given is None else validate.whole(given, name)


def _read_one_of(*names: str) -> Callable[[Any, str, Context], Any]:
    return lambda given, name, context: validate.one_of(given, names, name)


def _read_flag(given: Any, name: str, context: Context) -> bool:
    return validate.flag(given, name)


def _read_function(words: str) -> Callable[[Any, str, Context], Any]:
    def read(given: Any, name: str, context: Context) -> Any:
        if given is not None and not callable(given):
            raise ValueError(f"{name} is {given!r}, expected a function of {words}")
        return given

    return read


def _read_keys(given: Any, context: Context) -> jax.Array:
    """One key, or one for each member."""
    if isinstance(given, jax.Array):
        if given.dtype == jnp.uint32 and given.ndim in (1, 2):
            given = jax.random.wrap_key_data(given)
        if trees.is_key(given) and given.ndim <= 1:
            if given.ndim and context.axis is not None:
                context.axis.add("keys", len(given))
            return given
    raise ValueError(
        f"keys is {reprlib.repr(given)}, expected a key, or an array of them such as "
        "jax.random.split(jax.random.key(0), 8)"
    )


def _tell_value(value: Any) -> Any:
    return value


def _tell_numbers(value: Any) -> Any:
    return None if value is None else np.asarray(value).tolist()


def _tell_each(hyper: dict[str, Any]) -> dict[str, Any]:
    return {name: _tell_numbers(value) for name, value in hyper.items()}


def _tell_penalties(given: tuple[Penalty, ...]) -> dict[str, Any]:
    return {name: penalty.tell() for name, penalty in penalties.name_each(given).items()}


def _tell_given(value: Any) -> bool:
    return value is not None


class Setting(NamedTuple):
    """A row of the table."""

    default: Any = None
    read: Callable[[Any, str, Context], Any] = as_given  # checks the value, and gives it as the run keeps it
    by_member: bool = False  # traced, and the members of a sweep may differ in it; else compiled in, or outside
    searched: bool = False  # a name in the space of a search
    tell: Callable[[Any], Any] | None = None  # the JSON in which all processes must agree
    saved: str | None = None  # a checkpoint keeps the same JSON, by this name ("": the setting's own)


def _strength(read: Callable[[Any, str, Context], Any]) -> Setting:
    return Setting(None, read, by_member=True, searched=True, tell=_tell_numbers, saved="")


REQUIRED = inspect.Parameter.empty

TABLE: dict[str, Setting] = {
    # Traced: another value never recompiles.
    "key": Setting(REQUIRED, lambda given, name, context: validate.key(given)),
    "keys": Setting(REQUIRED, lambda given, name, context: _read_keys(given, context)),
    "hyper": Setting(None, _read_hyper, by_member=True, tell=_tell_each, saved=""),
    "penalties": Setting((), _read_penalties, by_member=True, tell=_tell_penalties, saved=""),
    "keep": _strength(number(layers=True, above=0, at_most=1)),
    "label_smoothing": _strength(_read_smoothing),
    "input_noise": _strength(number(least=0)),
    "average": _strength(number(least=0, below=1)),
    "scale": Setting(None, number(), by_member=True, searched=True),
    "patience": Setting(None, number(whole=True, least=1), by_member=True, tell=_tell_numbers, saved=""),
    "rule_state": Setting(None, tell=_tell_given),
    # Compiled in: the fields of a plan.
    "optimizer": Setting(REQUIRED),
    "batch_size": Setting(None, _read_whole, searched=True, tell=_tell_value, saved="batch size"),
    "sampling": Setting("shuffle", _read_one_of("shuffle", "replacement", "poisson"), tell=_tell_value, saved=""),
    "augment": Setting(None, _read_function("a key and one example"), tell=_tell_given),
    "preprocess": Setting(None, _read_function("one example"), tell=_tell_given),
    "rule": Setting(
        rules.backprop, lambda given, name, context: rules.check(given), tell=lambda rule: rule.name, saved=""
    ),
    "readout": Setting(None, _read_function("a trace, weights and a key"), tell=_tell_given, saved=""),
    "best_by": Setting("cost", _read_one_of("cost", "accuracy"), tell=_tell_value, saved=""),
    "monitor": Setting(False, _read_flag, tell=_tell_value, saved=""),
    "mesh": Setting(None),
    "shares": Setting(None, _read_whole, tell=lambda shares: None if shares == 1 else shares, saved=""),
    # Outside the compiled program.
    "epochs": Setting(None, _read_whole),
    "steps": Setting(None, _read_whole),
    "validate_every": Setting(None, _read_whole),
    "validation": Setting(None),
    "weights": Setting(None),
    "class_weights": Setting(None),
    "initial": Setting("he", searched=True),
    "shared_order": Setting(True, _read_flag),
    "members_at_once": Setting(None, _read_whole),
    "callback": Setting(None),
    "log": Setting(None),
    "checkpoints": Setting(None),
    "checkpoint_every": Setting(1, _read_whole),
    "progress": Setting(True),
}


def read(arguments: Mapping[str, Any], context: Context) -> SimpleNamespace:
    """Every setting among the arguments, checked, by its name; `arguments` are the values as they came."""
    values = {name: row.read(arguments[name], name, context) for name, row in TABLE.items() if name in arguments}
    return SimpleNamespace(**values, arguments=arguments)


def make_run(given: SimpleNamespace, dtype: Any, **others: Any) -> Run:
    """The traced values, floating-point ones in the parameters' dtype, and `others` of Run's fields."""
    values = {name: _cast(name, getattr(given, name), dtype) for name, row in TABLE.items()
              if row.by_member and hasattr(given, name)}  # fmt: skip
    strengths = Regularization(**{name: values.pop(name) for name in Regularization._fields})
    if values["patience"] is None:
        values["patience"] = np.asarray(-1, np.int32)  # compiles nothing
    return Run(regularization=strengths, **values, **others)


def _cast(name: str, given: Any, dtype: Any) -> Any:
    """The values in `dtype`, those of an average in float32 at least."""
    dtype = norms.wide(dtype) if name == "average" else dtype

    def one(path: Any, values: jax.Array) -> jax.Array:
        if not jnp.issubdtype(values.dtype, jnp.floating):
            return values
        made, was = np.asarray(values.astype(dtype), np.float64), np.asarray(values, np.float64)
        turned = ((made == 0) != (was == 0)) | ((made == 1) != (was == 1)) | ~np.isfinite(made)
        if turned.any():
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} is {was[turned].flat[0]:g}, which is {made[turned].flat[0]:g} in "
                f"the parameters' {jnp.dtype(dtype)}; expected parameters of float32, or another value"
            )
        return values.astype(dtype)

    return jax.tree_util.tree_map_with_path(one, given)


def settle_optimizer(given: SimpleNamespace, nets: tuple[MLP, ...], dtype: Any) -> None:
    """Checks the optimizer and its hyperparameters; whole numbers that cannot be traced move into the optimizer."""
    net, *others = nets
    plain = given.arguments["hyper"] or {}
    first = lambda value: value if np.ndim(value) == 0 else np.ravel(value)[0]
    optimizers.check_factory(given.optimizer, {name: first(value) for name, value in plain.items()})
    like = lambda *shape: jax.ShapeDtypeStruct(shape, dtype)
    params: Any = lambda net: tuple(Layer(like(o, i), like(o)) for o, i in net.shapes)  # pyright: ignore
    given.optimizer, given.hyper = optimizers.compile_in_whole(net, given.optimizer, given.hyper, plain, params(net))
    for other in others:  # which come to train after the first
        optimizers.check(other, given.optimizer, {name: like() for name in given.hyper}, params(other))


def make_plan(net: MLP, given: SimpleNamespace, mesh: Mesh | None, **of_data: Any) -> Plan:
    """The plan of one network: the settings that are its fields, and the fields `of_data`."""
    own = {field.name: vars(given)[field.name] for field in dataclasses.fields(Plan) if field.name in vars(given)}
    return Plan(**own | {"net": net, "mesh": mesh} | of_data)


def tell(plan: Plan, run: Run, saved: bool = False) -> dict[str, Any]:
    """The values in which processes must agree; `saved`: those that tell a checkpoint's run from another."""
    values = vars(plan) | run._asdict() | run.regularization._asdict()
    told = {
        name: row for name, row in TABLE.items() if row.tell and name in values and not (saved and row.saved is None)
    }
    return {(row.saved if saved else None) or name: row.tell(values[name]) for name, row in told.items()}  # pyright: ignore


def name_numbers(given: SimpleNamespace) -> dict[str, jax.Array]:
    """The numbers in which members may differ, each hyperparameter and each penalty by its own name."""
    numbers = {name: getattr(given, name) for name, row in TABLE.items() if row.by_member and hasattr(given, name)}
    strengths = {name: penalty.strength for name, penalty in penalties.name_each(numbers.pop("penalties")).items()}
    return {name: value for name, value in (numbers.pop("hyper") | strengths | numbers).items() if value is not None}


def check_together(plan: Plan, given: SimpleNamespace) -> None:
    """Refuses settings that are right alone and wrong together."""
    weighted = given.weights is not None or getattr(given, "class_weights", None) is not None
    if weighted and (plan.sampling == "poisson" or plan.readout is not None):
        name = "weights" if given.weights is not None else "class_weights"
        raise ValueError(
            f"{name} are given, expected none with sampling='poisson' or a readout, which weigh themselves"
        )
    if given.patience is not None and given.validation is None:
        raise ValueError(f"patience is {given.patience}, but validation is None: expected examples to validate on")
    if plan.best_by == "accuracy" and not plan.accuracy:
        raise ValueError("best_by is 'accuracy', but the network predicts no classes: expected 'cost'")
