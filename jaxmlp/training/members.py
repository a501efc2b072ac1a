"""What a population is given, checked: each thing is one for all members, or has a member axis in front."""

import math
import reprlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp import trees, validate
from jaxmlp.network import MLP, Params
from jaxmlp.training import regularization, settings
from jaxmlp.training.regularization import Penalty
from jaxmlp.training.state import Data, Regularisation


class Axis:
    """The member axis: whatever has one tells its length here; what has none is one for all."""

    def __init__(self) -> None:
        self.lengths: dict[str, int] = {}

    def seen(self, name: str, length: int) -> None:
        """Notes that `name` has an entry for each of `length` members."""
        if length == 0:
            raise ValueError(f"{name} is empty, expected an entry for each member")
        self.lengths[name] = length

    @property
    def members(self) -> int:
        """How many there are; ValueError if that is not said, or not the same everywhere."""
        if not self.lengths:
            raise ValueError("nothing has a member axis, expected keys, or any other value, with one entry a member")
        (first, n), *others = self.lengths.items()
        for name, length in others:
            if length != n:
                raise ValueError(f"{name} has {length} members, but {first} has {n}: expected one number of members")
        return n


def keys(given: Any, axis: Axis) -> jax.Array:
    """One key, or one each."""
    if isinstance(given, jax.Array):
        if given.dtype == jnp.uint32 and given.ndim in (1, 2):
            given = jax.random.wrap_key_data(given)
        if trees.is_key(given) and given.ndim <= 1:
            if given.ndim:
                axis.seen("keys", len(given))
            return given
    raise ValueError(
        f"keys is {reprlib.repr(given)}, expected a key, or an array of them such as "
        "jax.random.split(jax.random.key(0), 8)"
    )


def number(
    given: Any,
    name: str,
    axis: Axis,
    above: float = -math.inf,
    least: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
    layers: bool = False,
) -> jax.Array:
    """A number, or one each; with `layers` also `(1, K)` or `(E, K)`, one for each layer."""
    if callable(given) or given is None or isinstance(given, bool | str):
        raise ValueError(f"{name} is {given!r}, expected a number, or one for each member")
    values = validate.array(given, name)
    if values.ndim > (2 if layers else 1):
        wanted = ", or (members, layers)" if layers else ""
        raise ValueError(f"{name} has shape {values.shape}, expected a number, or one for each member{wanted}")
    if values.ndim and not (values.ndim == 2 and len(values) == 1):
        axis.seen(name, len(values))
    known = np.asarray(values)
    if not (np.isfinite(known) & (known > above) & (known >= least) & (known <= at_most) & (known < below)).all():
        bounds = {"above": above, "of at least": least, "at most": at_most, "below": below}
        limits = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))
        raise ValueError(f"{name} is {given}, expected finite numbers {limits}".rstrip())
    return values


def hyper(given: Mapping[str, Any] | None, axis: Axis) -> dict[str, jax.Array]:
    """The optimiser factory's arguments, a number or one each."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"hyper is {given!r}, expected a dict such as {{'learning_rate': rates}}")
    return {name: number(value, f"hyper[{name!r}]", axis) for name, value in (given or {}).items()}


def regularisation(nets: list[MLP], given_penalties, keep, label_smoothing, input_noise, axis: Axis) -> Regularisation:
    """Strengths, of which each is `()`, `(E,)`, or for some layer by layer `(1, K)` or `(E, K)`."""
    each = regularization.several(given_penalties)
    each = tuple(Penalty(p.kind, number(p.strength, p.kind.name, axis, layers=True)) for p in each)
    if keep is not None:
        keep = number(keep, "keep", axis, above=0, at_most=1, layers=True)
    if label_smoothing is not None:
        for net in nets:
            settings.check_smoothed(net)
        label_smoothing = number(label_smoothing, "label_smoothing", axis, least=0, at_most=1)
    if input_noise is not None:
        input_noise = number(input_noise, "input_noise", axis, least=0)
    by_layer = {p.kind.name: p.strength for p in each} | ({} if keep is None else {"keep": keep})
    for name, values in by_layer.items():
        for net in nets:
            if values.ndim == 2 and values.shape[1] != net.depth:
                raise ValueError(f"{name} has shape {values.shape}, expected {net.depth} columns, one for each layer")
    return Regularisation(each, keep, label_smoothing, input_noise)


def spread(tree: Any, members: int, dtype: Any) -> Any:
    """Every number of `tree` as one for each member, floating-point ones of `dtype`."""

    def one(values: jax.Array) -> jax.Array:
        if not trees.is_key(values):
            values = values.astype(dtype)
        if values.ndim == 2:
            return jnp.broadcast_to(values, (members, values.shape[1]))
        return jnp.broadcast_to(values, (members,))

    return jax.tree.map(one, tree)


def nets(given: Any) -> tuple[MLP, ...]:
    """A network, or one for each member."""
    each = (given,) if isinstance(given, MLP) else tuple(given) if isinstance(given, list | tuple) else ()
    if not each or not all(isinstance(net, MLP) for net in each):
        raise ValueError(f"net is {given!r}, expected an MLP, or a list with one for each member")
    if len(widths := sorted({net.sizes[0] for net in each})) > 1:
        raise ValueError(f"net has networks of {widths} inputs, expected as many in each: they see the same examples")
    return each


def patience(given: Any, axis: Axis) -> jax.Array:
    """Whole numbers of epochs, at least 1; -1 stands for none."""
    if given is None:
        return jnp.asarray(-1)
    values = number(given, "patience", axis, least=1)
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise ValueError(f"patience is {given}, expected whole numbers")
    return values


def dtype_of(params: Params | None, X: Any, preprocess: Any) -> Any:
    """That of the parameters; of drawn ones that of the inputs, where these go in as they are."""
    if params is not None:
        return jnp.result_type(params[0].W)
    given = jnp.result_type(X)
    return given if preprocess is None and jnp.issubdtype(given, jnp.floating) else jnp.result_type(float)


def differing(axis: Axis, nets, hyper, regularisation: Regularisation, average, scale, patience) -> dict[str, Any]:
    """What differs between the members, by its name in the table."""
    numbers = {
        **hyper,
        **{penalty.kind.name: penalty.strength for penalty in regularisation.penalties},
        "keep": regularisation.keep,
        "label_smoothing": regularisation.label_smoothing,
        "input_noise": regularisation.input_noise,
        "average": average,
        "scale": scale,
        "patience": patience,
    }
    varied = {name: np.asarray(values) for name, values in numbers.items() if values is not None and values.ndim}
    named = {"net": np.asarray([short(net) for net in nets])} if "net" in axis.lengths else {}
    return named | {name: values for name, values in varied.items() if len(values) == axis.members}


def short(net: MLP) -> str:
    """Such as `784-64-10 relu`."""
    return " ".join(["-".join(map(str, net.sizes)), *dict.fromkeys(f.name for f in net.hidden)])


def initial_params(nets: list[MLP], given: Any, axis: Axis) -> tuple[Params, bool]:
    """Parameters of one network, or stacked ones with a member axis; and whether they have it."""
    if len(nets) > 1:
        raise ValueError("initial holds parameters, expected a name or an initializer for networks of several shapes")
    net = nets[0]
    listed = isinstance(given, tuple | list) and bool(given)
    first: Any = getattr(next(iter(given)), "W", 0) if listed else 0
    if jnp.ndim(first) != 3:
        validate.params(net, given)  # pyright: ignore[reportArgumentType]
        return given, False  # pyright: ignore[reportReturnType]
    lengths = {jnp.shape(array)[:1] for array in jax.tree.leaves(given)}
    if len(lengths) > 1:
        raise ValueError(f"initial has arrays of {sorted(n for (n,) in lengths)} members, expected one number of them")
    validate.params(net, jax.tree.map(lambda array: array[0], tuple(given)))
    axis.seen("initial", len(first))
    return tuple(given), True


def _has_axis(net: MLP, Y: jax.Array, m: tuple[int, ...]) -> bool:
    """Whether the labels are a member's each; what `fit` takes as it is has none."""
    return Y.ndim >= 2 and Y.shape[1:2] == m and (Y.ndim == 3 or Y.shape != (*m, net.sizes[-1]))


def _examples(net: MLP, given: Any, dtype: Any, preprocess: Any, axis: Axis, name: str) -> tuple[tuple, tuple]:
    """`X`, `Y` and weights as arrays, and where each has its member axis; `name` is "" or such as "validation "."""
    X, Y, weights = settings.weighted(given, name.strip() or "data")
    X = validate.inputs(net, X, dtype, preprocess, name=f"{name}X")
    m, Y = X.shape[0], validate.array(Y, f"{name}Y")
    axis_Y = axis_weights = None
    if _has_axis(net, Y, X.shape[:1]):
        E, axis_Y = len(Y), 0
        axis.seen(f"{name}Y", E)
        Y = validate.targets(net, Y.reshape(E * m, *Y.shape[2:]), E * m, f"{name}Y").reshape(E, m, *Y.shape[2:])
    else:
        Y = validate.targets(net, Y, m, f"{name}Y")
    if weights is not None:
        weights = validate.array(weights, f"{name}weights")
        if weights.ndim == 2 and weights.shape[1] == m:
            axis_weights = 0
            axis.seen(f"{name}weights", len(weights))
            flat = validate.example_weights(weights.ravel(), weights.size, dtype, f"{name}weights")
            weights = flat.reshape(weights.shape)
            if bool((weights.sum(1) == 0).any()):
                raise ValueError(f"{name}weights are all 0 for a member, expected some above 0")
        else:
            weights = validate.example_weights(weights, m, dtype, f"{name}weights")
    return (X, Y, weights), (None, axis_Y, axis_weights)


def data(net: MLP, given: Any, validation: Any, dtype: Any, preprocess: Any, axis: Axis) -> tuple[Data, Data]:
    """All examples, and their member axes. Weights are relative to their mean, each member's to its own."""
    (X, Y, weights), (_, axis_Y, axis_weights) = _examples(net, given, dtype, preprocess, axis, "")
    if weights is not None:
        weights = weights / weights.mean(-1, keepdims=True)
    held_out, axes = (None,) * 3, (None,) * 3
    if validation is not None:
        held_out, axes = _examples(net, validation, dtype, preprocess, axis, "validation ")
    return Data(X, Y, weights, *held_out), Data(None, axis_Y, axis_weights, *axes)  # pyright: ignore
