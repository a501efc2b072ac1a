"""Reads arrays as people give them: lists, NumPy's, pandas', PyTorch's. What a conversion would lose is refused."""

import functools
import reprlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp.doors import article

REAL = bool | int | float | np.bool_ | np.integer | np.floating


def read(given: Any, name: str) -> np.ndarray:
    """`given` as a NumPy array of real numbers or bools in the machine's byte order; errors call it `name`."""
    values = as_numpy(given, name)
    if values.dtype == object:
        values = _read_objects(values, name)
    if not is_real(values.dtype):
        raise ValueError(f"{name} has dtype {values.dtype}, expected an array of numbers")
    if values.dtype.kind == "f" and values.dtype.itemsize > 8:  # a long double, which JAX does not know
        return narrow(values, np.dtype(np.float64), name)
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def as_numpy(given: Any, name: str) -> np.ndarray:
    """`given` as a NumPy array of any dtype, if nothing in it is masked."""
    try:
        masked = _is_masked(given)
        values = np.empty(0) if masked else np.asanyarray(given)
    except jax.errors.TracerArrayConversionError:
        raise
    except Exception as error:  # of another person's `__array__`
        if isinstance(error, ValueError) and isinstance(given, list | tuple):
            raise ValueError(f"{name} is ragged, expected an array{_tell_shapes(given)}") from None
        raise ValueError(f"{name} is {article(type(given).__name__)} that gives no array: {error}") from None
    if masked or np.ma.is_masked(values):
        raise ValueError(
            f"{name} is masked in places, expected an array without masked entries: leave those examples out, or give "
            "the entries a value by filled()"
        )
    return np.asarray(values)


def _tell_shapes(given: Any) -> str:
    """What a list or tuple holds, where it holds arrays, such as the two of `(X, Y)`."""
    shapes = [getattr(entry, "shape", None) for entry in given]
    if None in shapes:
        return ""
    return f", not {article(type(given).__name__)} of arrays of shapes {reprlib.repr(shapes)[1:-1]}"


def _is_masked(given: Any) -> bool:
    """Whether an array, or one in a list, has masked entries."""
    if isinstance(given, list | tuple):
        return any(map(_is_masked, given))
    return isinstance(given, np.ma.MaskedArray) and bool(np.ma.is_masked(given))


def _read_objects(values: np.ndarray, name: str) -> np.ndarray:
    """An array of Python's numbers, such as a pandas column, in NumPy's own dtype."""
    if not all(issubclass(kind, REAL) for kind in {type(value) for value in values.flat}):
        where, value = next((at, value) for at, value in np.ndenumerate(values) if not isinstance(value, REAL))
        if values.ndim:
            raise ValueError(f"{name} holds {reprlib.repr(value)} at {where}, expected numbers")
        hint = "; toarray() makes one" if hasattr(value, "toarray") else ""  # a sparse matrix
        raise ValueError(f"{name} is {article(type(value).__name__)}, expected an array of numbers{hint}")
    made = np.asarray(values.tolist())
    if made.dtype == object:
        raise ValueError(f"{name} holds whole numbers beyond 64 bits, expected smaller ones, or floats")
    return made


@functools.cache
def is_real(dtype: Any) -> bool:
    """Whether an array of this dtype holds real numbers or bools."""
    kinds = jnp.floating, jnp.integer, jnp.bool_
    return any(jnp.issubdtype(dtype, kind) for kind in kinds) and np.dtype(dtype).kind != "m"  # durations are integers


def narrow(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """Rounds floats to `dtype`, if none of them becomes infinite."""
    with np.errstate(over="ignore"):
        held = values.astype(dtype)
    if np.isinf(held).any() and (lost := np.isinf(held) & np.isfinite(values)).any():
        where = tuple(int(i) for i in np.argwhere(lost)[0])
        top = f"at most {jnp.finfo(dtype).max:.8g}, the largest {dtype}"
        raise ValueError(f"{name} holds {values[where]!s} at {where}, expected {top}")
    return held


def for_jax(given: Any, name: str) -> np.ndarray:
    """`given` as a NumPy array of real numbers or bools, in the dtype in which JAX holds it."""
    values = read(given, name)
    dtype = jax.dtypes.canonicalize_dtype(values.dtype)  # JAX keeps 32 bits by default
    if dtype == values.dtype:
        return values
    if jnp.issubdtype(dtype, jnp.floating):
        return narrow(values, dtype, name)
    if values.size:
        low, high = jnp.iinfo(dtype).min, jnp.iinfo(dtype).max
        if values.min() < low or values.max() > high:
            raise ValueError(f"{name} holds {values.min()} to {values.max()}, expected {low} to {high} ({dtype})")
    return values.astype(dtype)


def to_jax(given: Any, name: str) -> jax.Array:
    """`given` as a JAX array of real numbers or bools, in JAX's dtype for it."""
    if isinstance(given, jax.Array):
        if not is_real(given.dtype):
            raise ValueError(f"{name} has dtype {given.dtype}, expected an array of numbers")
        return given
    try:
        values = for_jax(given, name)
    except jax.errors.TracerArrayConversionError:  # a list of traced numbers
        return jnp.asarray(given)
    with jax.ensure_compile_time_eval():  # concrete inside a caller's trace, too
        return jax.device_put(values, may_alias=False)  # jnp.asarray compiles a program for each shape


def widen(leaf: Any) -> jax.Array:
    """A JAX array with the floats of `leaf` in float64; for `jax.enable_x64(True)`."""
    array = np.asarray(leaf)
    return jax.device_put(array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array)
