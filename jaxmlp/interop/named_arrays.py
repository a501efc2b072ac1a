"""Reads weights as other libraries keep them: each layer's arrays with their names, in the order of the layers.

A name tells what an array is: `kernel (in, out)`, `weight (out, in)`, `bias (out,)`. `W` and `w` are weights of an
orientation that the name does not tell, and so are the matrices of a list. No library is imported: the objects are
asked for what they have.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp import arrays, checked_files, paths, trees, validate
from jaxmlp.doors import article

Path = tuple[str | int, ...]
ROLES = {"kernel": "kernel", "weight": "weight", "w": "untold", "bias": "bias", "b": "bias"}
PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")


class Named(NamedTuple):
    """An array, its name, and what the name tells."""

    name: str  # as errors print it, `fc1.weight`
    layer: str  # `fc1`
    role: str  # "kernel", "weight", "untold" or "bias"
    array: np.ndarray


class Found(NamedTuple):
    """One layer's arrays."""

    W: Named | None
    b: Named | None


def read_layers(given: Any) -> list[Found]:
    """The layers in `given`, first to last."""
    if callable(getattr(given, "state_dict", None)):  # a module of PyTorch
        given = given.state_dict()
    layers: dict[str, dict[str, Named]] = {}
    for entry in _read(given):
        of_layer, part = layers.setdefault(entry.layer, {}), "b" if entry.role == "bias" else "W"
        if part in of_layer:
            raise ValueError(f"weights has {of_layer[part].name} and {entry.name}, expected one of them for a layer")
        of_layer[part] = entry
    found = {layer: Found(parts.get("W"), parts.get("b")) for layer, parts in layers.items()}
    if not isinstance(given, Mapping) or any(isinstance(value, Mapping) for value in given.values()):
        _check_order(found)
    return [found[layer] for layer in _sort(list(found))]


def hint_entries(given: Any) -> str:
    """The end of an error: the entries of a checkpoint that are state dicts of PyTorch, or nothing."""
    if not isinstance(given, Mapping) or len(given) < 2:
        return ""
    is_named = lambda part: all("." in str(name) and _is_array(array) for name, array in part.items())
    dicts = {key: part for key, part in given.items() if isinstance(part, Mapping) and part}
    found = [f"weights[{key!r}]" for key, part in dicts.items() if is_named(part)]
    return f"; pass {' or '.join(found)}" if found else ""


def _read(given: Any) -> list[Named]:
    """All arrays in `given`, in its order."""
    if isinstance(given, str | os.PathLike):
        given = _read_file(given)
    if hasattr(given, "coefs_") and hasattr(given, "intercepts_"):
        given = given.coefs_, given.intercepts_
    if _is_pair_of_lists(given):
        parts = zip(("coefs_", "intercepts_"), ("kernel", "bias"), given, strict=True)
        return [
            Named(name := f"{part}[{l}]", str(l), role, to_numpy(array, name))
            for part, role, layers in parts
            for l, array in enumerate(layers)
        ]
    if callable(getattr(given, "get_weights", None)):  # a model of Keras
        entries = _read(list(given.get_weights()))
        return [entry._replace(role="kernel") if entry.role == "untold" else entry for entry in entries]
    if isinstance(given, Iterator):
        raise ValueError(
            f"weights is {article(type(given).__name__)}, expected arrays with names, or lists of them: pass a list or "
            "dict of it"
        )
    leaves = [] if _is_array(given) else list(_walk(given, ()))
    if not leaves:
        raise ValueError(
            f"weights is {article(type(given).__name__)} without arrays in it, expected those of each layer"
        )
    counted = -1
    entries = []
    for path, array in leaves:
        if isinstance(path[-1], int):  # in a list, a matrix begins a layer
            counted += array.ndim != 1
            layer, role = str(max(counted, 0)), "bias" if array.ndim == 1 else "untold"
        else:
            layer, role = _parse(path, array)
        entries.append(Named(_name(path), layer, role, array))
    return entries


def _read_file(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file."""
    if (ending := paths.check(path, "weights").suffix) in PICKLES:
        raise ValueError(
            f"{path} is a pickle by its ending {ending}, which may run code, expected a safetensors file, or what "
            "torch.load(path, weights_only=True) gives"
        )
    return checked_files.read_foreign(path)


def _is_pair_of_lists(given: Any) -> bool:
    """Whether these are scikit-learn's `(coefs_, intercepts_)`."""
    if not isinstance(given, list | tuple) or len(given) != 2:
        return False
    fits = lambda part, ndim: all(_is_array(array) and len(array.shape) == ndim for array in part)
    return all(isinstance(part, list | tuple) and part and fits(part, 2 - at) for at, part in enumerate(given))


def _walk(given: Any, path: Path) -> Iterator[tuple[Path, np.ndarray]]:
    """The arrays in dicts and lists, in their order, and in other pytrees; each with its path."""
    if isinstance(given, Mapping):
        parts = [(key if isinstance(key, int) else str(key), part) for key, part in given.items()]
    elif isinstance(given, list | tuple) and not hasattr(given, "_fields"):
        parts = list(enumerate(given))
    elif _is_array(given) and not hasattr(given, "get_value"):  # a variable of Flax has it, and a shape, too
        yield path, to_numpy(given, _name(path))
        return
    else:
        yield from _walk_pytree(given, path)
        return
    for key, part in parts:
        yield from _walk(part, (*path, *(re.split(r"[./]", key) if isinstance(key, str) else (key,))))


def _walk_pytree(given: Any, path: Path) -> Iterator[tuple[Path, np.ndarray]]:
    """The arrays in a module that is a pytree; its functions are left out."""
    for keys, leaf in jax.tree_util.tree_flatten_with_path(given)[0]:
        named = [getattr(key, "name", getattr(key, "key", getattr(key, "idx", None))) for key in keys]
        inner = (*path, *(name if isinstance(name, int) else str(name) for name in named))
        inner = inner[:-1] if inner[-1:] == ("value",) else inner  # of a variable of Flax
        if _is_array(leaf):
            yield inner, to_numpy(leaf, _name(inner))
        elif not callable(leaf):
            name = _name(inner) if inner else "weights"
            raise ValueError(f"{name} is {article(type(leaf).__name__)}, expected arrays with names, or lists of them")


def _is_array(given: Any) -> bool:
    return hasattr(given, "shape") and hasattr(given, "dtype")


def to_numpy(given: Any, name: str) -> np.ndarray:
    """An array of NumPy, JAX or PyTorch as a NumPy array."""
    if not validate.concrete(given):
        raise ValueError(f"{name} is traced, expected numbers: call it outside jit")
    if hasattr(given, "detach"):  # a tensor of PyTorch
        given = given.detach().cpu()
        if str(given.dtype) == "torch.bfloat16":  # which NumPy does not know
            return given.float().numpy().astype(jnp.bfloat16)
        return given.numpy()
    if isinstance(given, jax.Array) and trees.is_key(given):
        raise ValueError(f"{name} is a key, expected weights; nnx.state(module, nnx.Param) leaves keys out")
    return arrays.as_numpy(given, name)


def _name(path: Path) -> str:
    """Such as `fc1.weight`, `weights[0]`, `layers[0].bias`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")
    return text if text and not text.startswith("[") else f"weights{text}"


def _parse(path: Path, array: np.ndarray) -> tuple[str, str]:
    """Layer and role of an array by the last part of its name: `kernel`, `bias`, or `W1`."""
    told = re.fullmatch(r"([a-z]+?)_?(\d*)", str(path[-1]).lower())
    role = ROLES.get(told[1]) if told else None
    if told is None or role is None:
        raise ValueError(
            f"weights has {_name(path)} of shape {array.shape}, expected names that end in kernel or weight, and bias"
        )
    return ".".join(map(str, (*path[:-1], *filter(None, (told[2],))))), role


def _split(layer: str) -> tuple[str, tuple[int, ...]]:
    """A layer's name without its numbers, and the numbers: `fc10` is `fc`, (10,)."""
    return re.sub(r"_?\d+", "#", layer).rstrip("#"), tuple(map(int, re.findall(r"\d+", layer)))


def _sort(layers: list[str]) -> list[str]:
    """Names that differ in numbers alone are sorted by these, at the places where they stand."""
    ordered = {}
    for stem in {_split(layer)[0] for layer in layers}:
        ordered[stem] = iter(sorted((name for name in layers if _split(name)[0] == stem), key=lambda n: _split(n)[1]))
    return [next(ordered[_split(layer)[0]]) for layer in layers]


def _check_order(found: dict[str, Found]) -> None:
    """Refuses layers that may have been sorted by name, as JAX and safetensors do, where no shape tells their order."""
    names = list(found)
    if names != sorted(names):
        return
    seen: dict[tuple[int, ...], str] = {}
    for name, layer in found.items():
        shape = () if layer.W is None else layer.W.array.shape
        other = seen.setdefault(shape, name)
        if _split(other)[0] != _split(name)[0]:
            raise ValueError(
                f"weights has {other!r} and {name!r} of one shape {shape}, and no number tells which is first; "
                f"expected a flat dict in the order of the layers, such as {{'{other}.kernel': ..}}"
            )
