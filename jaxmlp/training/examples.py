"""The examples of training and validation, checked. In a population, labels and weights may be a member's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxmlp import metrics, validate
from jaxmlp.network import MLP
from jaxmlp.training import processes
from jaxmlp.training.state import Data
from jaxmlp.validate import Given, Preprocess

ClassWeights = Float[Given, " k"] | Sequence[float] | Mapping[int, float] | Literal["balanced"]


@dataclass
class Axis:
    """The member axis of a population: collects the length of every argument that has one."""

    lengths: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, length: int) -> None:
        """Notes that `name` has an entry for each of `length` members."""
        if length == 0:
            raise ValueError(f"{name} is empty, expected an entry for each member")
        self.lengths[name] = length

    @property
    def members(self) -> int:
        """The number of members; ValueError if no argument has an axis, or two have different ones."""
        if not self.lengths:
            raise ValueError("nothing has a member axis, expected keys, or any other value, with one entry a member")
        (first, n), *others = self.lengths.items()
        for name, length in others:
            if length != n:
                raise ValueError(f"{name} has {length} members, but {first} has {n}: expected one number of members")
        return n


class Reading(NamedTuple):
    """What examples must fit: a network, its dtype, and in a population the member axis."""

    net: MLP
    dtype: Any
    preprocess: Preprocess | None
    axis: Axis | None = None
    weighted: bool = True  # whether the batches of a stream may bring weights
    relative: bool = True  # whether weights are all here, so that they may be scaled


def read_data(how: Reading, data: Any, given: SimpleNamespace) -> tuple[Data, Data]:
    """The examples, and the member axis of each array: 0, or None where all members share it."""
    training, axes = _read_set(how, data, given.weights, "data")
    if given.class_weights is not None:
        training, axes = _weigh_classes(how, given, training, axes)
    if given.augment is not None:
        check_augment(how, given.augment, training[0])
    held_out, axes_dev = read_validation(how, given.validation)
    return Data(*training, *held_out), Data(*axes, *axes_dev)


def read_validation(how: Reading, given: Any) -> tuple[tuple, tuple]:
    """The validation examples with their weights, and their member axes; None where there are none."""
    if given is None:
        return (None,) * 3, (None,) * 3
    weighted = isinstance(given, tuple) and len(given) == 3
    return _read_set(how, given[:2] if weighted else given, given[2] if weighted else None, "validation")


def weigh_classes(net: MLP, class_weights: Any, Y: jax.Array, dtype: Any) -> jax.Array:
    """Each example's weight by its class; a single output has the classes 0 and 1."""
    k = max(2, net.sizes[-1])
    known = isinstance(class_weights, str | Mapping)
    given = None if known else validate.array(class_weights, "class_weights")
    if given is not None and given.shape != (k,):
        raise ValueError(f"class_weights has shape {given.shape}, expected one weight for each of the {k} classes")
    if not metrics.predicts_classes(net, Y):
        raise ValueError(f"class_weights is given, but loss {net.loss.name!r} with these labels predicts no classes")
    classes = metrics.classes(Y)
    if isinstance(class_weights, str):
        validate.one_of(class_weights, ("balanced",), "class_weights")
        given = _balance(np.bincount(np.asarray(classes), minlength=k))
    elif isinstance(class_weights, Mapping):
        given = _read_classes(class_weights, k)
    return validate.example_weights(given, k, dtype, name="class_weights")[classes]


def _balance(counts: np.ndarray) -> np.ndarray:
    """`m / (k count)`, with k the number of classes that occur, as scikit-learn has it; 0 for the others."""
    return counts.sum() / (counts > 0).sum() / np.maximum(counts, 1) * (counts > 0)


def _read_classes(given: Mapping[Any, Any], k: int) -> np.ndarray:
    """The weights of a dict by class; 1 for a class that it does not name."""
    weights = np.ones(k)
    for c, weight in given.items():
        number = validate.whole(c, "a class of class_weights", least=0)
        if number >= k:
            raise ValueError(f"class_weights has the class {c}, expected classes 0 to {k - 1}")
        weights[number] = validate.number(weight, f"class_weights[{c}]", least=0)
    return weights


def _weigh_classes(how: Reading, given: SimpleNamespace, training: tuple, axes: tuple) -> tuple[tuple, tuple]:
    """The training set with `class_weights` in its weights, each member's by its own labels."""
    (X, Y, weights), (axis_X, axis_Y, _) = training, axes
    if isinstance(given.class_weights, str) and processes.are_several(given.mesh):
        raise ValueError(
            "class_weights is a name, which counts one process's examples, expected a number for each class"
        )
    weigh = lambda labels: weigh_classes(how.net, given.class_weights, labels, how.dtype)
    each = weigh(Y) if axis_Y is None else jnp.stack([weigh(labels) for labels in Y])
    if weights is not None:
        each = jnp.broadcast_to(each, jnp.broadcast_shapes(each.shape, weights.shape))
        each = jnp.broadcast_to(weights, each.shape) * each
    if validate.concrete(each) and bool((each.sum(-1) == 0).any()):
        raise ValueError("class_weights leave no example a weight above 0, expected some")
    return (X, Y, each), (axis_X, axis_Y, None if each.ndim == 1 else 0)


def check_augment(how: Reading, augment: Any, X: Any) -> None:
    """Refuses an `augment` that makes an example one that the network (or `preprocess`) does not take."""
    example = jax.ShapeDtypeStruct(X.shape[1:], X.dtype)
    try:
        made = jax.eval_shape(augment, jax.eval_shape(lambda: jax.random.key(0)), example)
    except TypeError as error:
        raise ValueError(f"augment fails on a key and an example {example.shape}: {error}") from None
    shape, dtype = getattr(made, "shape", None), getattr(made, "dtype", None)
    if shape != example.shape or (how.preprocess is None and dtype != example.dtype):
        raise ValueError(
            f"augment turns an example {example.shape} of {example.dtype} into {shape} of {dtype}, expected the same"
        )


def _read_set(how: Reading, given: Any, weights: Any, name: str) -> tuple[tuple, tuple]:
    """`X`, `Y` and weights as arrays, and the member axis of each; `name` is "data" or "validation"."""
    if not isinstance(given, tuple) or len(given) != 2:
        got = f"a tuple of {len(given)}" if isinstance(given, tuple) else f"a {type(given).__name__}"
        raise ValueError(f"{name} is {got}, expected a tuple (X, Y)")
    prefix = "" if name == "data" else f"{name} "
    X = validate.inputs(how.net, given[0], how.dtype, how.preprocess, name=f"{prefix}X")
    Y, axis_Y = _read_labels(how, given[1], len(X), f"{prefix}Y")
    axis_weights = None
    if weights is not None:
        weights, axis_weights = _read_weights(how, weights, len(X), f"{prefix}weights")
    return (X, Y, weights), (None, axis_Y, axis_weights)


def _read_labels(how: Reading, Y: Any, m: int, name: str) -> tuple[jax.Array, int | None]:
    Y = validate.array(Y, name)
    # Labels that `fit` takes have no member axis: rows of one probability a class look like members' classes.
    per_member = Y.ndim >= 2 and Y.shape[1] == m and (Y.ndim == 3 or Y.shape != (m, how.net.sizes[-1]))
    if how.axis is None or not per_member:
        return validate.targets(how.net, Y, m, name=name), None
    E = len(Y)
    how.axis.add(name, E)
    flat = validate.targets(how.net, Y.reshape(E * m, *Y.shape[2:]), E * m, name)
    return flat.reshape(E, m, *Y.shape[2:]), 0


def _read_weights(how: Reading, weights: Any, m: int, name: str) -> tuple[jax.Array, int | None]:
    weights = validate.array(weights, name)
    if how.axis is None or not (weights.ndim == 2 and weights.shape[1] == m):
        return validate.example_weights(weights, m, how.dtype, name, how.relative), None
    how.axis.add(name, len(weights))
    validate.example_weights(weights.ravel(), weights.size, how.dtype, name, relative=False)
    rows = np.asarray(weights, np.float64)
    largest = rows.max(1, keepdims=True)
    if not largest.all():
        raise ValueError(f"{name} are all 0 for a member, expected some above 0")
    return jnp.asarray(np.ldexp(rows, -np.frexp(largest)[1]), how.dtype), 0  # each member's are relative to its own
