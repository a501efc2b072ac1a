"""Checks of arguments, made before anything is compiled. An error names the argument, its value and the expected one.

Shapes and dtypes are checked always, under a trace too; values only where they are concrete. Every error is a
`ValueError`.
"""

import math
import operator
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from jaxmlp import arrays
from jaxmlp.choices import flag as flag
from jaxmlp.choices import look_up as look_up
from jaxmlp.choices import one_of as one_of
from jaxmlp.doors import article, check_network

Given = jax.Array | np.ndarray | np.generic  # public functions take nested lists for an array, too
Preprocess = Callable[[jax.Array], jax.Array]
FEW = {"cpu": 2**22}  # values that NumPy checks, by backend; elsewhere they must be copied first, and 2**16 are few
Network = Any  # an MLP: network.py imports this file, so this file does not import it
array = arrays.to_jax  # `array(given, name)`: a JAX array of real numbers


class Examples(NamedTuple):
    """A batch: inputs and targets, a weight for each example, and dropout masks, or None for either."""

    X: jax.Array  # (m, ...)
    Y: jax.Array  # (m,) or (m, k)
    weights: jax.Array | None = None  # (m,)
    masks: tuple[jax.Array, ...] | None = None  # (m, n_l) for the inputs and each hidden layer


def whole(given: Any, argument: str, least: int = 1) -> int:
    """`given` as an int of at least `least`."""
    try:
        number = operator.index(given)
    except TypeError:
        raise ValueError(f"{argument} is {reprlib.repr(given)}, expected a whole number") from None
    if number < least or isinstance(given, bool):
        raise ValueError(f"{argument} is {given}, expected at least {least}")
    return number


def number(given: Any, argument: str, **bounds: Any) -> float:
    """Returns one number as a float, within the bounds of `numbers`."""
    if numbers(given, argument, **bounds).ndim:
        raise ValueError(f"{argument} is {given!r}, expected a number")
    return float(given)


def scalar(given: Any, argument: str, **bounds: Any) -> jax.Array:
    """Returns one number, which may be traced, within the bounds of `numbers`."""
    values = numbers(given, argument, **bounds)
    if values.ndim:
        raise ValueError(f"{argument} has shape {values.shape}, expected one number")
    return values


def numbers(
    given: Any, argument: str, whole: bool = False, *, above: float = -math.inf, least: float = -math.inf,
    below: float = math.inf, at_most: float = math.inf,
) -> jax.Array:  # fmt: skip
    """Returns a number, or an array of them, each finite (or whole) and within the bounds."""
    bounds = {"above": above, "of at least": least, "below": below, "at most": at_most}
    limits = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))
    kind = "whole" if whole else "finite"
    one, several = f"a {kind} number {limits}".rstrip(), f"{kind} numbers {limits}".rstrip()
    if callable(given) or given is None or isinstance(given, bool | str):
        raise ValueError(f"{argument} is {given!r}, expected {one}")
    values = array(given, argument)
    fine = jnp.issubdtype(values.dtype, jnp.integer) or (not whole and jnp.issubdtype(values.dtype, jnp.floating))
    if fine and concrete(values):
        x = np.asarray(given)  # before it is rounded
        fine = (np.isfinite(values) & (x > above) & (x >= least) & (x < below) & (x <= at_most)).all()
    if not fine:
        raise ValueError(f"{argument} is {given}, expected {several if values.ndim else one}")
    return values


def key(given: Any) -> jax.Array:
    """A key of `jax.random.key`, or an old-style one of `jax.random.PRNGKey`."""
    if isinstance(given, jax.Array):
        if jnp.issubdtype(given.dtype, jax.dtypes.prng_key) and given.shape == ():
            return given
        if given.dtype == jnp.uint32 and given.ndim == 1:
            return jax.random.wrap_key_data(given)
    raise ValueError(f"key is {given!r}, expected one key such as jax.random.key(0)")


def float_dtype(given: Any) -> jnp.dtype:
    """A floating-point dtype; JAX's default one for None."""
    try:
        dtype = jnp.result_type(float) if given is None else jnp.dtype(given)
    except TypeError:
        raise ValueError(f"dtype is {given!r}, expected a floating-point type") from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype is {dtype}, expected a floating-point type")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"dtype is {dtype}, which JAX has switched off; jax.config.update('jax_enable_x64', True)")
    return dtype


def params(net: Network, given: Any) -> jnp.dtype:
    """Checks each layer's shapes and returns the floating-point dtype that all arrays share."""
    check_network(net)
    if not isinstance(given, tuple | list) or len(given) != net.depth:
        got = f"{len(given)} layers" if isinstance(given, tuple | list) else f"a {type(given).__name__}"
        raise ValueError(f"params is {got}, expected a tuple of {net.depth} layers (W, b)")
    dtypes: set[jnp.dtype] = set()
    for number, (layer, shape) in enumerate(zip(given, net.shapes, strict=True), start=1):
        if not (isinstance(layer, tuple) and hasattr(layer, "W") and hasattr(layer, "b")):
            raise ValueError(f"params: layer {number} is {article(type(layer).__name__)}, expected a Layer(W, b)")
        (W, W_dtype), (b, b_dtype) = (_form(array, f"params: layer {number}") for array in layer)
        dtypes |= {W_dtype, b_dtype}
        if (got := (W, b)) != (shape, shape[:1]):
            raise ValueError(f"params: layer {number} has W {got[0]} and b {got[1]}, expected {shape} and {shape[:1]}")
    if len(dtypes) > 1 or not jnp.issubdtype(next(iter(dtypes)), jnp.floating):
        raise ValueError(f"params have dtype {', '.join(sorted(map(str, dtypes)))}, expected one floating-point type")
    return dtypes.pop()


def _form(given: Any, name: str) -> tuple[tuple[int, ...], jnp.dtype]:
    """The shape and dtype of an array that needs no conversion by us."""
    if isinstance(given, jax.Array):
        return given.shape, given.dtype
    try:
        shape, dtype = np.shape(given), jnp.dtype(jnp.result_type(given))
    except (TypeError, ValueError):
        shape, dtype = (), None
    if dtype is None or isinstance(given, np.ma.MaskedArray | list | tuple):
        dtype = getattr(given, "dtype", None)
        of = "" if dtype is None else f" of {dtype}"
        raise ValueError(
            f"{name} holds {article(type(given).__name__)}{of}, expected arrays that JAX takes as they are"
        )
    return shape, dtype


def examples(
    net: Network, given_params: Any, X: Any, Y: Any, weights: Any, given_masks: Any, preprocess: Preprocess | None
) -> Examples:
    """A batch as JAX arrays that fit the network and its parameters."""
    dtype = params(net, given_params)
    X = inputs(net, X, dtype, preprocess)
    m = X.shape[0]
    return Examples(
        X,
        targets(net, Y, m),
        None if weights is None else example_weights(weights, m, dtype),
        None if given_masks is None else masks(net, given_masks, (m,)),
    )


def inputs(
    net: Network, given: Any, dtype: jnp.dtype, preprocess: Preprocess | None = None, name: str = "X"
) -> jax.Array:
    """A batch `(m, n_0)` of the parameters' dtype, or one whose examples `preprocess` turns into such inputs."""
    X = array(given, name)
    if X.ndim < 2 or (X.ndim > 2 and preprocess is None):
        raise ValueError(f"{name} has shape {X.shape}, expected (examples, {net.sizes[0]})")
    if X.shape[0] == 0:
        raise ValueError(f"{name} is empty (shape {X.shape}), expected at least one example")
    _example(net, X.shape[1:], X.dtype, dtype, preprocess, name)
    finite(X, name)
    return X


def example(net: Network, x: Any, dtype: jnp.dtype) -> jax.Array:
    """One example `(n_0,)` of the parameters' dtype; its values are not checked."""
    x = array(x, "x")
    if x.ndim != 1:
        raise ValueError(f"x has shape {x.shape}, expected one example ({net.sizes[0]},); batches go to predict")
    _example(net, x.shape, x.dtype, dtype, None, "x")
    return x


def _example(net: Network, shape: tuple[int, ...], given: Any, dtype: Any, preprocess: Preprocess | None, name: str):
    if preprocess is not None:
        if not callable(preprocess):
            raise ValueError(f"preprocess is {preprocess!r}, expected a function of one example")
        made = jax.eval_shape(preprocess, jax.ShapeDtypeStruct(shape, given))
        if not isinstance(made, jax.ShapeDtypeStruct) or made.shape != net.sizes[:1]:
            got = getattr(made, "shape", type(made).__name__)
            raise ValueError(f"preprocess turns one example {shape} into {got}, expected {net.sizes[:1]}")
        if not jnp.issubdtype(made.dtype, jnp.floating):
            raise ValueError(f"preprocess turns {name} into {made.dtype}, expected a floating-point type")
        return
    if shape[0] != net.sizes[0]:
        raise ValueError(f"{name} has {shape[0]} features, the network takes {net.sizes[0]}")
    if not jnp.issubdtype(given, jnp.floating):
        raise ValueError(
            f"{name} has dtype {given}, expected {dtype}; convert it, or scale it inside each step with "
            "preprocess=, a function of one example such as jaxmlp.data.scale_pixels"
        )
    if given != dtype:
        raise ValueError(f"{name} has dtype {given}, the parameters {dtype}; convert one of them")


def targets(net: Network, given: Any, m: int | None, name: str = "Y") -> jax.Array:
    """Labels of `m` examples (of one example for None) that fit the network's loss: see `Loss.targets`."""
    Y, k, lead = array(given, name), net.sizes[-1], () if m is None else (m,)
    Y = Y.astype(jnp.uint8) if Y.dtype == bool else Y
    classes = net.loss.takes_classes(Y, ndim=len(lead))
    shapes = [(*lead, k)] + ([lead] if k == 1 or net.loss.targets == "distribution" else [])
    kinds = " or ".join(str(shape) for shape in shapes)
    if Y.shape not in shapes:
        raise ValueError(
            f"{name} has shape {Y.shape}, expected {kinds} for loss {net.loss.name!r} with {k} outputs"
            + (f" and {m} examples" if m is not None else "")
        )
    if Y.shape == lead and k > 1 and not classes:
        finite(Y, name)  # a missing class made floats of all
        raise ValueError(f"{name} has dtype {Y.dtype}, expected integer classes, or rows of shape {shapes[0]}")
    if not jnp.issubdtype(Y.dtype, jnp.number):
        raise ValueError(f"{name} has dtype {Y.dtype}, expected numbers")
    if concrete(Y):
        with jax.ensure_compile_time_eval():  # a concrete array inside a caller's trace is checked now, not traced
            _target_values(_to_check(Y), net.loss.targets, k, classes, name)
    return Y


def _target_values(Y: jax.Array, kind: str, k: int, classes: bool, name: str):
    if classes:
        if (low := int(Y.min())) < 0 or (high := int(Y.max())) >= k:
            raise ValueError(f"{name} holds the class {low if low < 0 else high}, expected classes 0 to {k - 1}")
        return
    finite(Y, name)
    if kind != "real" and (bool((Y < 0).any()) or bool((Y > 1).any())):
        raise ValueError(f"{name} holds values from {float(Y.min()):g} to {float(Y.max()):g}, expected 0 to 1")
    if kind == "distribution":
        sums = Y.reshape(-1, k).astype(float).sum(-1)
        off = int(abs(sums - 1).argmax())
        if abs(float(sums[off]) - 1) > 1e-3:
            raise ValueError(f"{name}: row {off} sums to {float(sums[off]):g}, expected probabilities that sum to 1")


def example_weights(given: Any, m: int, dtype: jnp.dtype, name: str = "weights", relative: bool = True) -> jax.Array:
    """A weight `(m,)` per example, at least 0 and not all 0; `relative` ones are scaled where `dtype` may lose them."""
    w = array(given, name)
    if w.shape != (m,):
        raise ValueError(f"{name} has shape {w.shape}, expected one weight for each of the {m} examples")
    if concrete(w):
        finite(w, name)
        with jax.ensure_compile_time_eval():
            known = _to_check(w)
            low, high = float(known.min()), float(known.max())
        if low < 0 or high == 0:
            raise ValueError(f"{name} holds values from {low:g} to {high:g}, expected none below 0 and not all 0")
        if relative and abs(exponent := math.frexp(high)[1]) > jnp.finfo(dtype).maxexp // 4:
            w = np.ldexp(np.asarray(w, np.float64), -exponent)  # by a power of 2, which rounds nothing
    return jnp.asarray(w, dtype)


def masks(net: Network, given: Any, lead: tuple[int, ...]) -> Any:
    """One mask for the inputs and one for each hidden layer, each `lead + (n_l,)`."""
    expected = [(*lead, n) for n in net.sizes[:-1]]
    each = [array(mask, "masks") for mask in given] if isinstance(given, tuple | list) else None
    got = type(given).__name__ if each is None else [mask.shape for mask in each]
    if got != expected:
        raise ValueError(f"masks have shapes {got}, expected {expected}: one for the inputs and each hidden layer")
    return each and tuple(each)


def finite(values: jax.Array, name: str) -> None:
    """Refuses NaN and infinity; the error gives the index of the first."""
    if not concrete(values) or not jnp.issubdtype(values.dtype, jnp.floating):
        return
    known = _to_check(values)
    if isinstance(known, np.ndarray):
        fine = np.isfinite(known).all()
    else:
        with jax.ensure_compile_time_eval():
            fine = bool(_all_finite(known))
    if not fine:
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(np.asarray(values)))[0])
        raise ValueError(f"{name} holds {np.asarray(values)[where]} at {where}, expected finite numbers")


_all_finite = jax.jit(lambda values: jnp.isfinite(values).all())


def _to_check(values: Any) -> Any:
    """Few values as a NumPy array: JAX would compile programs for their shape, which takes longer than the check."""
    here = getattr(values, "is_fully_addressable", True)  # not on another process's devices
    few = values.size <= FEW.get(jax.default_backend(), 2**16)
    return np.asarray(values) if few and here else values


def concrete(values: Any) -> bool:
    """Whether the values are known now: they are not under a trace."""
    return not isinstance(values, jax.core.Tracer)
