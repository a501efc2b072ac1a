"""What an optax optimizer is told in a step, and its whole-number arguments.

Line searches, Polyak's step, SAM and K-FAC take more than the gradient: `value`, `grad`, `value_fn` and `grad_fn` of
the cost, and the `trace` of the batch with its `weights`, a `key`, and the `net`.
"""

import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import norms, rules, validate
from jaxmlp._backward import trace_of
from jaxmlp.network import MLP, Params
from jaxmlp.trace import Trace

Optimizer = optax.GradientTransformation | Callable[..., optax.GradientTransformation]


class Objective(NamedTuple):
    """A step's cost with its penalties, in the words of optax's optimizers, and what the cost is made of."""

    value: Float[Array, ""]  # at the parameters
    value_fn: Callable[[Params], Float[Array, ""]]
    grad_fn: Callable[[Params], Params]  # by hand
    trace: Trace  # of the batch; the deltas of an example of weight 0 mean nothing
    weights: Float[Array, " m"] | None  # of the trace's examples: the cost is `sum w L / sum w`
    key: PRNGKeyArray | None  # for what the optimizer draws in this step
    net: MLP  # that is trained
    plain: bool = False  # whether the gradient is known to be the mean of the trace's, without penalties


class Factory(NamedTuple):
    """An optimizer's factory with the whole-number arguments that are compiled in, such as `memory_size=5`."""

    make: Callable[..., optax.GradientTransformation]
    whole: tuple[tuple[str, int], ...]

    def __call__(self, **hyper: Any) -> optax.GradientTransformation:
        return self.make(**dict(self.whole), **hyper)


def update(
    optimizer: optax.GradientTransformation, grads: Params, state: Any, params: Params, objective: Objective
) -> tuple[Any, Any]:
    """`optimizer.update`, told as much of the objective as it takes."""
    # optax's line searches hand on what value_fn names, and refuse all else that they do not take themselves.
    value_fn = lambda params, trace=None, weights=None, key=None, net=None, plain=None: objective.value_fn(params)
    known = objective._asdict() | {"grad": grads, "value_fn": value_fn}
    grad_fn = known.pop("grad_fn")
    extended = optax.with_extra_args_support(optimizer)
    taken = inspect.signature(extended.update).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        known = {name: given for name, given in known.items() if name in taken}
    only_named = {"obj_fn": value_fn, "grad_fn": lambda params, *_: grad_fn(params)}
    known |= {name: given for name, given in only_named.items() if name in taken}
    return extended.update(grads, state, params, **known)  # pyright: ignore[reportArgumentType]


def check_factory(optimizer: Any, hyper: dict[str, Any]) -> None:
    """Refuses what is neither an optax transformation nor a factory that makes one of `hyper`."""
    if isinstance(optimizer, optax.GradientTransformation):
        if hyper:
            raise ValueError(
                f"hyper is {hyper}, but optimizer is made already: expected a factory such as optax.sgd beside it"
            )
        return
    if hasattr(optimizer, "gradient_transformation"):
        raise ValueError("optimizer is an optax.MultiSteps, expected the result of its gradient_transformation()")
    if not callable(optimizer):
        raise ValueError(f"optimizer is {optimizer!r}, expected an optax transformation, or a factory and hyper")
    made: Any = None
    try:
        made = optimizer(**hyper)
    except (TypeError, ValueError) as error:
        raise ValueError(f"hyper is {hyper or None}, and the optimizer's factory refuses it: {error}") from None
    if not isinstance(made, optax.GradientTransformation):
        raise ValueError(f"optimizer makes a {type(made).__name__}, expected an optax transformation")


def check(net: MLP, given: Optimizer, hyper: dict[str, Any], params: Params) -> None:
    """Refuses an optimizer that fails on these parameters, or changes their form or its state's. It is only traced.

    Args:
        given: a transformation, or a factory that makes one of `hyper`.
        params: the parameters, or their shapes.
    """

    def step(hyper, params):
        optimizer = given if isinstance(given, optax.GradientTransformation) else given(**hyper)
        objective = make_objective(net, params, jnp.zeros((2, net.sizes[0]), params[0].b.dtype))
        state = optimizer.init(params)
        return state, update(optimizer, params, state, params, objective)

    named = f" with hyper={{{', '.join(f'{name!r}: ..' for name in hyper)}}}" if hyper else ""
    try:
        state, (updates, after) = jax.eval_shape(step, hyper, params)
    except Exception as error:
        traced = hyper and re.search("[Tt]race[rd]", str(error))
        hint = "; a whole number, one for all members, is compiled in" if traced else ""
        raise ValueError(f"optimizer{named} fails on the network's parameters: {_first_line(error)}{hint}") from error
    if (got := jax.tree.map(jnp.shape, updates)) != (expected := jax.tree.map(jnp.shape, params)):
        raise ValueError(f"optimizer{named} makes updates {got}, expected the parameters' structure {expected}")
    if (got := form(after)) != (expected := form(state)):
        raise ValueError(f"optimizer{named} makes the state {got} of {expected}, expected one structure and dtypes")


def compile_in_whole(
    net: MLP, optimizer: Any, hyper: dict[str, Any], given: dict[str, Any], params: Params
) -> tuple[Any, dict[str, Any]]:
    """The optimizer, and the part of `hyper` that is traced: whole numbers it cannot take so are compiled in.

    Such are the vectors that L-BFGS keeps; a rate of 1 is traced like one of 0.1.

    Args:
        optimizer: a transformation, or a factory.
        hyper: its arguments as they are traced.
        given: the same as they came.
        params: the parameters' shapes.
    """
    whole = {
        name: int(value) for name, value in given.items() if not np.ndim(value) and np.asarray(value).dtype.kind in "iu"
    }
    if not whole:
        return optimizer, hyper
    like = lambda names: {name: jax.ShapeDtypeStruct((), hyper[name].dtype) for name in names}

    try:
        check(net, optimizer, like(hyper), params)
        return optimizer, hyper
    except ValueError:
        left = [name for name in hyper if name not in whole]
        made = Factory(optimizer, tuple(whole.items()))
        check(net, made, like(left), params)
        return made, {name: hyper[name] for name in left}


def make_objective(net: MLP, params: Params, X: Float[Array, "m i"]) -> Objective:
    """An objective that is constant but in form, with the trace of fixed inputs."""
    value = jnp.ones((), params[0].b.dtype)
    Y = jnp.zeros((X.shape[0], net.sizes[-1]), X.dtype)
    trace = trace_of(net, params, X, Y, None, rules.backprop, None)
    constant = lambda p: 0 * p[0].b.sum() + value
    return Objective(value, constant, lambda p: p, trace, None, jax.random.key(0), net)


def state_dtype(params: Any) -> Any:
    """The dtype of what an optimizer averages; optax asks for it with a placeholder, which holds no array."""
    leaves = jax.tree.leaves(params)
    return norms.wide(leaves[0].dtype) if leaves else jnp.dtype(jnp.float32)


class Told(NamedTuple):
    """What an optimizer of ours hears of a step beside the gradient: see `Objective`."""

    trace: Trace
    weights: Float[Array, " m"] | None = None
    key: Any = None
    value: Any = None
    value_fn: Any = None
    grad: Any = None  # the whole gradient, before any transformation
    plain: bool = False

    @classmethod
    def read(cls, name: str, net: MLP, params: Any, given: dict[str, Any], needed: tuple[str, ...]) -> "Told":
        """The extra arguments of `update`; refuses one without `needed`, or for another network."""
        if missing := [argument for argument in needed if (given | {"params": params}).get(argument) is None]:
            raise ValueError(
                f"{name}'s update is called without {', '.join(missing)}, expected what jaxmlp.fit hands over: "
                "update(grads, state, params, trace=jaxmlp.backprop(..), key=.., value=.., value_fn=..); around it, "
                "optax.MultiSteps and others that are no GradientTransformationExtraArgs hand nothing on"
            )
        trained = given.get("net", net)  # a loop of one's own need not name it
        if trained != net:
            raise ValueError(f"{name} is for the network {net!r}, expected the one that is trained, {trained!r}")
        validate.params(net, params)
        return cls(**{argument: given[argument] for argument in cls._fields if argument in given})

    @property
    def counts(self) -> Any:
        """Whether any example of the batch counts: one of weights 0 alone, as Poisson's may be, says nothing."""
        return True if self.weights is None else (self.weights > 0).any()


def form(tree: Any) -> Any:
    """Each leaf's dtype and shape, to compare and to print."""
    return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
