"""Writes any pytree of arrays to a file, for checkpoints, and reads it into the structure of a like tree."""

import json
import reprlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp.files import FilePath, read, to_jax, to_numpy, write
from jaxmlp.network import MLP

SCALARS = (bool, int, float, str)  # stored in the metadata


def write_tree(path: FilePath, tree: Any, about: dict[str, Any] | None = None) -> None:
    """Writes the leaves of a tree to a file, bit for bit. The write is atomic.

    Args:
        path: the file, new or to replace.
        tree: its leaves are arrays of JAX or NumPy, keys of any registered implementation, numbers, bools and strings.
            None belongs to the structure.
        about: a dict of JSON to store with them.
    Raises:
        ValueError: where a leaf is of another kind or traced, or `about` is not JSON.
        FileNotFoundError: where the folder does not exist.
    Example:
        >>> jm.trees.write_tree("tree.safetensors", {"key": key, "step": 3}, about={"note": "half way"})
        >>> tree, about = jm.trees.read_tree("tree.safetensors", like={"key": key, "step": 0})
        >>> tree["step"], about
        (3, {'note': 'half way'})
    """
    tensors, scalars, leaves = {}, {}, by_path(tree)
    for name, leaf in leaves.items():
        if type(leaf) in SCALARS:
            scalars[name] = leaf
        else:
            tensors[name] = to_numpy(jax.random.key_data(leaf) if is_key(leaf) else leaf, f"leaf {name}")
    keys = {name: jax.random.key_impl(leaf) for name, leaf in leaves.items() if is_key(leaf)}
    if unnamed := [name for name, impl in keys.items() if not isinstance(impl, str)]:
        raise ValueError(f"leaf {unnamed[0]} is a key of an implementation without a name, expected a registered one")
    forms = {name: _describe_leaf(leaf if name in keys else tensors.get(name, leaf)) for name, leaf in leaves.items()}
    try:
        json.dumps(about)
    except (TypeError, ValueError) as error:
        raise ValueError(f"about is {about!r}, expected a dict of JSON: {error}") from None
    description = {"leaves": forms, "scalars": scalars, "keys": keys, "about": {} if about is None else about}
    write(path, tensors, {"kind": "tree", **description})


def read_tree(path: FilePath, like: Any) -> tuple[Any, dict[str, Any]]:
    """Reads a tree of `write_tree` from a file.

    Args:
        path: the file.
        like: a tree of the same structure and the same shapes and dtypes; `jax.eval_shape` gives one, too.
    Returns:
        The tree in the structure of `like`, and the dict `about`. A leaf is a NumPy array where the leaf of `like` is
        one, else a JAX array on the default device.
    Raises:
        ValueError: where the file is broken, or a leaf differs in path, shape or dtype. The message names the first.
        FileNotFoundError: where there is no such file.
    """
    tensors, stored = read(path, "tree")
    forms = _check_stored(tensors, stored, path)
    expected = by_path(like)
    _check_forms(forms, {name: _describe_leaf(leaf) for name, leaf in expected.items()}, path)
    leaves = []
    for name, leaf in expected.items():
        if name in stored["scalars"]:
            leaves.append(stored["scalars"][name])
        elif name in stored["keys"]:
            leaves.append(_wrap(tensors[name], stored["keys"][name]))
        elif isinstance(leaf, np.ndarray | np.generic):
            leaves.append(tensors[name] if isinstance(leaf, np.ndarray) else tensors[name][()])
        else:
            leaves.append(to_jax(tensors[name], f"{path}: leaf {name}"))
    return jax.tree.unflatten(jax.tree.structure(like), leaves), stored["about"]


def _check_stored(tensors: dict[str, np.ndarray], stored: dict[str, Any], path: FilePath) -> dict[str, str]:
    """The form of each leaf; refuses a description that is not of these arrays: a right checksum proves nothing."""
    for part in ("leaves", "scalars", "keys"):
        if not isinstance(stored.get(part), dict):
            raise ValueError(f"{path} describes no tree: {part} is {reprlib.repr(stored.get(part))}, expected a dict")
    scalars, keys, forms = stored["scalars"], stored["keys"], stored["leaves"]
    twice = scalars.keys() & tensors.keys()
    if (
        twice
        or "about" not in stored
        or forms.keys() != scalars.keys() | tensors.keys()
        or not keys.keys() <= tensors.keys()
    ):
        raise ValueError(f"{path} describes no tree: it tells of other leaves than it holds")
    for name, form in forms.items():
        try:
            held = _wrap(tensors[name], keys[name]) if name in keys else tensors.get(name, scalars.get(name))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} describes no tree: leaf {name} is no key: {error}") from None
        if (found := _describe_leaf(held)) != form:
            raise ValueError(f"{path} describes no tree: leaf {name} is {found}, not {reprlib.repr(form)}")
    return forms


def _wrap(words: np.ndarray, implementation: str) -> jax.Array:
    """A key of its words."""
    return jax.random.wrap_key_data(jnp.asarray(words), impl=implementation)


def by_path(tree: Any) -> dict[str, Any]:
    """A tree's leaves by their paths, such as `.params[0].W`.

    Example:
        >>> sorted(jm.trees.by_path(params[:1]))
        ['[0].W', '[0].b']
    """
    # A network has no leaves, but a file that left it out would lose it without a word.
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda node: isinstance(node, MLP))
    named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError("tree has two leaves with one path, expected a path for each")
    return named


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a key of JAX, or an array of keys.

    Example:
        >>> jm.trees.is_key(key), jm.trees.is_key(3)
        (True, False)
    """
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe_leaf(leaf: Any) -> str:
    """Type, or dtype and shape: `int`, `float32 (64, 784)`, `key<fry> ()`."""
    if type(leaf) in SCALARS:
        return type(leaf).__name__
    if not hasattr(leaf, "dtype"):
        return f"a {type(leaf).__name__}"
    dtype = leaf.dtype.newbyteorder("=") if isinstance(leaf, np.ndarray) else leaf.dtype  # a file has one order
    return f"{dtype} {tuple(leaf.shape)}"


def _check_forms(stored: dict[str, str], expected: dict[str, str], path: FilePath) -> None:
    """Raises for the first leaf that differs."""
    for name, form in expected.items():
        if name not in stored:
            raise ValueError(f"{path} has no leaf {name}, expected {form}")
        if stored[name] != form:
            raise ValueError(f"{path}: leaf {name} is {stored[name]}, expected {form}")
    if more := [name for name in stored if name not in expected]:
        raise ValueError(f"{path} has a leaf {more[0]}, {stored[more[0]]}, expected none there")
