"""What a run's own functions do, seen on fixed numbers: whether they fit the step, and what tells them from others.

The numbers are multiples of 1/8, so that products of them are exact on every device.
"""

import math
from contextlib import suppress
from dataclasses import replace
from types import FunctionType, MethodType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp import activations, losses, optimizers
from jaxmlp._backward import trace_of
from jaxmlp.network import Params
from jaxmlp.optimizers import Objective
from jaxmlp.programs import compiled
from jaxmlp.readouts import Trace
from jaxmlp.training.sampling import draw, gather
from jaxmlp.training.state import Data, Plan, TrainState
from jaxmlp.training.step import prepare

LATER = (10, 100, 1000, 10_000, 100_000)  # steps at which schedules are compared
EXAMPLES = 16  # on which functions of one example are compared


def check_readout(plan: Plan, state: TrainState, data: Data) -> None:
    """Refuses a readout that does not give a gradient with the parameters' structure; it is only traced."""
    if plan.readout is None:
        return
    trace, weights = _forms(plan, state, data)
    try:
        made = jax.eval_shape(plan.readout, trace, weights, jax.eval_shape(lambda: jax.random.key(0)))
    except Exception as error:
        raise ValueError(f"readout fails on a trace, weights and a key: {error}") from error
    if (got := optimizers.form(made)) != (expected := optimizers.form(state.params)):
        raise ValueError(f"readout gives {got}, expected the parameters' structure {expected}")


def check_padding(plan: Plan, state: TrainState, data: Data, always: bool = False) -> None:
    """Refuses a readout that looks at examples of weight 0, with which batches are filled up.

    `always`: also where no batch is known to be filled up, as of a stream on a mesh.
    """
    if plan.readout is None or (not always and _forms(plan, state, data)[1] is None):
        return
    made = [_read(plan, state, data, jnp.asarray(factor, jnp.float32), always) for factor in (1, -3)]
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*map(jax.tree.leaves, made), strict=True)):
        raise ValueError(
            "readout depends on an example of weight 0, which only fills up a batch; expected one that weighs its "
            "examples, such as lambda trace, weights, key: jaxmlp.clipped_gradient(trace, 1.0, weights)"
        )


def read_fixed(plan: Plan, state: TrainState, data: Data) -> Any:
    """The readout of fixed numbers; None without a readout."""
    return None if plan.readout is None else _read(plan, state, data, jnp.ones((), jnp.float32), False)


@compiled("plan", "weighted")
def _read(plan: Plan, state: TrainState, data: Data, factor: Any, weighted: bool) -> Any:
    trace, weights = _forms(plan, state, data)
    b = len(trace.losses)
    weights = jax.ShapeDtypeStruct((b,), trace.losses.dtype) if weighted else weights
    last = jnp.where(jnp.arange(b) == b - 1, factor, 1)
    size = last * jnp.ldexp(jnp.ones(b, jnp.float32), jnp.arange(b) % 13 - 6)  # small gradients and large ones
    scaled = lambda delta: (size[:, None] * _fill(delta)).astype(delta.dtype)
    each = lambda arrays: tuple(map(_fill, arrays))
    filled = Trace(each(trace.inputs), each(trace.pre_activations), tuple(map(scaled, trace.deltas)),
                   _fill(trace.output), abs(_fill(trace.losses)))  # fmt: skip
    weights = None if weights is None else jnp.ones(b, weights.dtype).at[-1].set(0)
    assert plan.readout is not None
    return plan.readout(filled, weights, jax.random.key(0))


def _forms(plan: Plan, state: TrainState, data: Data) -> tuple[Trace, Any]:
    """The shapes of a step's trace and weights."""

    m = len(data.X)
    b = min(plan.batch_size, m)
    plan = replace(plan, mesh=None, shares=1, batch_size=b, steps=math.ceil(m / b))

    def one(state: TrainState, data: Data):
        params = state.params
        entry = jax.tree.map(lambda array: array[0], draw(plan, data, jax.random.key(0), True))
        X, Y, weights, masks = prepare(plan, state.regularization, gather(plan, data, entry), params[0].W.dtype)
        return trace_of(plan.net, params, X, Y, masks, plan.rule, state.rule_state), weights

    return jax.eval_shape(one, state, data)


def _fill(like: Any) -> jax.Array:
    n = math.prod(like.shape)
    return (((jnp.arange(n) * 7) % 17 - 8) / 8).astype(like.dtype).reshape(like.shape)


def find_first_updates(plan: Plan, state: TrainState) -> Any:
    """The optimizer's updates for three gradients of 1: a fingerprint for optimizers with equal state shapes."""
    optimizer, ones = plan.transformation(state.hyper), jax.tree.map(jnp.ones_like, state.params)
    known, made = state.opt_state, []
    for _ in range(3):
        updates, known = optimizers.update(optimizer, ones, known, state.params, _constant(plan, state, ones))
        made.append(updates)
    return made, known


def find_later_updates(plan: Plan, state: TrainState) -> Any:
    """The optimizer's updates where its counts of steps are as late as `LATER`, which tells schedules apart."""
    optimizer, grads = plan.transformation(state.hyper), jax.tree.map(_fill, state.params)
    is_count = lambda leaf: jnp.ndim(leaf) == 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.integer)
    made = []
    for n in LATER:
        later = jax.tree.map(lambda leaf, n=n: jnp.full_like(leaf, n) if is_count(leaf) else leaf, state.opt_state)
        made.append(optimizers.update(optimizer, grads, later, state.params, _constant(plan, state, grads))[0])
    return made


def find_numbers(plan: Plan, state: TrainState) -> dict[str, int | float]:
    """The numbers that the optimizer's functions hold in variables, by their names: not each shows in an update."""
    found: dict[str, int | float] = {}
    seen: set[int] = set()

    def look(value: Any, name: str) -> None:
        if isinstance(value, int | float):
            found[name] = value
        elif isinstance(value, tuple):
            for number, entry in enumerate(value):
                look(entry, f"{name}[{number}]")
        elif isinstance(value, FunctionType | MethodType) and id(value) not in seen:
            seen.add(id(value))
            for variable, inner in sorted(_variables(value).items()):
                look(inner, f"{name}.{variable}")

    look(plan.transformation(state.hyper).update, "update")
    return {name.removeprefix("update."): value for name, value in found.items()}


def _variables(function: FunctionType | MethodType) -> dict[str, Any]:
    """What a function holds: the variables of those around it, or the fields of a method's object."""
    if isinstance(function, MethodType):
        return dict(getattr(function.__self__, "__dict__", {}))
    held = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # not set yet
            held[name] = cell.cell_contents
    return held


def _constant(plan: Plan, state: TrainState, grads: Params) -> Objective:
    """A cost of 1 everywhere, with these gradients."""
    inputs = _fill(jax.ShapeDtypeStruct((EXAMPLES, plan.net.sizes[0]), state.params[0].W.dtype))
    objective = optimizers.make_objective(plan.net, state.params, inputs)
    return objective._replace(grad_fn=lambda params: grads)


def run_own(plan: Plan) -> dict[str, Any]:
    """The values of the network's functions that are not jaxmlp's, by their names."""
    z, y = _fill(jax.ShapeDtypeStruct((17,), jnp.float32)), jnp.ones(plan.net.sizes[-1:])
    own: dict[str, Any] = {}
    for l, f in enumerate(plan.net.activations, start=1):
        if f not in activations.NAMED.values():
            own[f"{l}: {f.name}"] = f.f(z), f.df(z)
    loss = plan.net.loss
    if loss not in losses.NAMED.values():
        y_hat = abs(_fill(y)) / 2
        own[loss.name] = (loss.f(y_hat, y), loss.df(y_hat, y))
    return own
