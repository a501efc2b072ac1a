"""What can be known is checked before anything is compiled, and named: which argument, what came, what was expected.

Shapes and dtypes are checked always, under a trace too; values only where they are concrete. Every error is a
`ValueError`.
"""

from __future__ import annotations

import difflib
import math
import operator
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxmlp.network import MLP, Params

Given = jax.Array | np.ndarray  # what a door takes for an array; nested lists become one too
Preprocess = Callable[[jax.Array], jax.Array]


def named(given: Any, table: Mapping[str, Any], kind: Any, argument: str) -> Any:
    """`given` itself if it is a `kind`, else the entry of `table` it names; an unknown name suggests the nearest."""
    if isinstance(given, str):
        if given in table:
            return table[given]
        near = difflib.get_close_matches(given.lower(), table, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{argument} is {given!r}, expected one of {', '.join(map(repr, table))}{hint}")
    if isinstance(given, kind):
        return given
    raise ValueError(f"{argument} is {given!r}, expected a name or {_article(kind.__name__)}")


def one_of(given: str, names: Sequence[str], argument: str) -> str:
    """`given`, if it is one of `names`."""
    if not isinstance(given, str):
        raise ValueError(f"{argument} is {given!r}, expected one of {', '.join(map(repr, names))}")
    return named(given, {name: name for name in names}, str, argument)


def positive(given: Any, argument: str, or_zero: bool = False) -> None:
    """Refuses a number that is known and not above 0 (or, `or_zero`, below it), NaN included."""
    if concrete(given) and not (given > 0 or (or_zero and given == 0)):
        raise ValueError(f"{argument} is {given}, expected a number {'of at least' if or_zero else 'above'} 0")


def whole(given: Any, argument: str, least: int = 1) -> int:
    """`given` as an int of at least `least`."""
    try:
        number = operator.index(given)
    except TypeError:
        raise ValueError(f"{argument} is {reprlib.repr(given)}, expected a whole number") from None
    if number < least or isinstance(given, bool):
        raise ValueError(f"{argument} is {given}, expected at least {least}")
    return number


def number(
    given: Any, argument: str, above: float, at_most: float = math.inf, below: float = math.inf, or_equal: bool = False
) -> float:
    """`given` as a float in (above, at_most] and below `below`; `or_equal`: `above` itself, too."""
    try:
        value = float(given)
    except (TypeError, ValueError):
        raise ValueError(f"{argument} is {given!r}, expected a number") from None
    if not ((above < value or (or_equal and above == value)) and value <= at_most and value < below):
        least = f"of at least {above:g}" if or_equal else f"above {above:g}"
        most = "" if at_most == math.inf else f" and at most {at_most:g}"
        most = most if below == math.inf else f" and below {below:g}"
        raise ValueError(f"{argument} is {given}, expected a number {least}{most}")
    return value


def sizes(given: Sequence[int]) -> tuple[int, ...]:
    """The widths of a network: at least the inputs' and the outputs', each at least 1."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ValueError(f"sizes is {given!r}, expected a sequence of widths such as (784, 64, 10)")
    if len(given) < 2:
        raise ValueError(f"sizes is {tuple(given)}, expected at least the widths of the inputs and of the outputs")
    return tuple(whole(n, f"sizes[{index}]") for index, n in enumerate(given))


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


def params(net: MLP, given: Params) -> jnp.dtype:
    """Checks each layer's shapes, and that all share one floating-point dtype, which it returns."""
    if not hasattr(net, "sizes"):
        raise ValueError(f"net is {_article(type(net).__name__)}, expected an MLP")
    if not isinstance(given, tuple | list) or len(given) != net.depth:
        got = f"{len(given)} layers" if isinstance(given, tuple | list) else f"a {type(given).__name__}"
        raise ValueError(f"params is {got}, expected a tuple of {net.depth} layers (W, b)")
    for number, (layer, shape) in enumerate(zip(given, net.shapes, strict=True), start=1):
        if not (isinstance(layer, tuple) and hasattr(layer, "W") and hasattr(layer, "b")):
            raise ValueError(f"params: layer {number} is {_article(type(layer).__name__)}, expected a Layer(W, b)")
        got = tuple(jnp.shape(array) for array in layer)
        if got != (shape, shape[:1]):
            raise ValueError(f"params: layer {number} has W {got[0]} and b {got[1]}, expected {shape} and {shape[:1]}")
    dtypes = {jnp.dtype(jnp.result_type(array)) for layer in given for array in layer}
    if len(dtypes) > 1 or not jnp.issubdtype(dtype := dtypes.pop(), jnp.floating):
        found = sorted({str(jnp.result_type(array)) for layer in given for array in layer})
        raise ValueError(f"params have dtype {', '.join(found)}, expected one floating-point type")
    return dtype


def inputs(net: MLP, given: Any, dtype: jnp.dtype, preprocess: Preprocess | None = None, name: str = "X") -> jax.Array:
    """A batch `(m, n_0)` of the parameters' dtype, or one that `preprocess` makes so, example by example."""
    X = array(given, name)
    if X.ndim < 2 or (X.ndim > 2 and preprocess is None):
        raise ValueError(f"{name} has shape {X.shape}, expected (examples, {net.sizes[0]})")
    if X.shape[0] == 0:
        raise ValueError(f"{name} is empty (shape {X.shape}), expected at least one example")
    _example(net, X.shape[1:], X.dtype, dtype, preprocess, name)
    finite(X, name)
    return X


def example(net: MLP, x: Any, dtype: jnp.dtype) -> jax.Array:
    """One example `(n_0,)` of the parameters' dtype; its values are not looked at."""
    x = array(x, "x")
    if x.ndim != 1:
        raise ValueError(f"x has shape {x.shape}, expected one example ({net.sizes[0]},); batches go to predict")
    _example(net, x.shape, x.dtype, dtype, None, "x")
    return x


def _example(net: MLP, shape: tuple[int, ...], given: Any, dtype: Any, preprocess: Preprocess | None, name: str):
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


def targets(net: MLP, given: Any, m: int | None, name: str = "Y") -> jax.Array:
    """Labels of `m` examples (of one, for None) that fit the network's loss: see `Loss.targets`."""
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
        raise ValueError(f"{name} has dtype {Y.dtype}, expected integer classes, or rows of shape {shapes[0]}")
    if not jnp.issubdtype(Y.dtype, jnp.number):
        raise ValueError(f"{name} has dtype {Y.dtype}, expected numbers")
    if concrete(Y):
        with jax.ensure_compile_time_eval():  # a known array inside somebody's trace is checked now, not traced
            _target_values(Y, net.loss.targets, k, classes, name)
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
        off = int(jnp.argmax(jnp.abs(sums - 1)))
        if abs(float(sums[off]) - 1) > 1e-3:
            raise ValueError(f"{name}: row {off} sums to {float(sums[off]):g}, expected probabilities that sum to 1")


def example_weights(given: Any, m: int, dtype: jnp.dtype, name: str = "weights") -> jax.Array:
    """A weight `(m,)` per example, at least 0 and not all 0."""
    w = array(given, name)
    if w.shape != (m,):
        raise ValueError(f"{name} has shape {w.shape}, expected one weight for each of the {m} examples")
    if concrete(w):
        finite(w, name)
        with jax.ensure_compile_time_eval():
            low, high = float(w.min()), float(w.max())
        if low < 0 or high == 0:
            raise ValueError(f"{name} holds values from {low:g} to {high:g}, expected none below 0 and not all 0")
    return w.astype(dtype)


def masks(net: MLP, given: Any, lead: tuple[int, ...]) -> Any:
    """One mask for the inputs and one for each hidden layer, each `lead + (n_l,)`."""
    expected = [(*lead, n) for n in net.sizes[:-1]]
    got = [jnp.shape(mask) for mask in given] if isinstance(given, tuple | list) else type(given).__name__
    if got != expected:
        raise ValueError(f"masks have shapes {got}, expected {expected}: one for the inputs and each hidden layer")
    return tuple(given)


def array(given: Any, name: str) -> jax.Array:
    """`given` as a JAX array; what cannot be one is named."""
    if isinstance(given, jax.Array):
        return given
    try:
        values = np.asarray(given)
    except ValueError:
        raise ValueError(f"{name} is ragged, expected an array") from None
    if not (jnp.issubdtype(values.dtype, jnp.number) or values.dtype == bool):
        raise ValueError(f"{name} has dtype {values.dtype}, expected an array of numbers")
    with jax.ensure_compile_time_eval():  # known inside somebody's trace too
        held = jnp.asarray(values)
    if values.size and values.dtype.kind in "iu" and held.dtype != values.dtype:  # JAX keeps 32 bits unless told
        low, high = jnp.iinfo(held.dtype).min, jnp.iinfo(held.dtype).max
        if values.min() < low or values.max() > high:
            raise ValueError(f"{name} holds {values.min()} to {values.max()}, expected what {held.dtype} holds")
    return held


def finite(values: jax.Array, name: str) -> None:
    """Refuses NaN and infinity, and says where the first one is."""
    if not concrete(values) or not jnp.issubdtype(values.dtype, jnp.floating):
        return
    with jax.ensure_compile_time_eval():
        fine = bool(jnp.isfinite(values).all())
    if not fine:
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(np.asarray(values)))[0])
        raise ValueError(f"{name} holds {np.asarray(values)[where]} at {where}, expected finite numbers")


def concrete(values: Any) -> bool:
    """Whether the values are known now, not only under a trace."""
    return not isinstance(values, jax.core.Tracer)


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOU' else 'a'} {noun}"
