"""Any pytree of arrays on disk, for checkpoints: leaves by their path, the structure from a tree of the same form."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmlp.files import FilePath, device, host, read, write

SCALARS = (bool, int, float, str)  # kept in the metadata


def write_tree(path: FilePath, tree: Any, about: dict[str, Any] | None = None) -> None:
    """Writes the leaves of `tree`, bit for bit, and `about`, a dict of JSON; a file that is there is replaced at once.

    Leaves are arrays (JAX's or NumPy's), keys of any implementation, numbers, bools and strings; None is structure.
    """
    tensors, scalars, leaves = {}, {}, by_path(tree)
    for name, leaf in leaves.items():
        if type(leaf) in SCALARS:
            scalars[name] = leaf
        else:
            tensors[name] = host(jax.random.key_data(leaf) if is_key(leaf) else leaf, f"leaf {name}")
    keys = {name: jax.random.key_impl(leaf) for name, leaf in leaves.items() if is_key(leaf)}
    if unnamed := [name for name, impl in keys.items() if not isinstance(impl, str)]:
        raise ValueError(f"leaf {unnamed[0]} is a key of an implementation without a name, expected a registered one")
    told = {"leaves": {name: _form(leaf) for name, leaf in leaves.items()}, "scalars": scalars, "keys": keys}
    try:
        json.dumps(about)
    except (TypeError, ValueError) as error:
        raise ValueError(f"about is no JSON: {error}") from None
    write(path, tensors, {"kind": "tree", **told, "about": {} if about is None else about})


def read_tree(path: FilePath, like: Any) -> tuple[Any, dict[str, Any]]:
    """The tree that `write_tree` wrote, in the structure of `like`, and `about`.

    The leaves of `like` are those of a tree of this form, or shapes and dtypes (`jax.eval_shape`); a leaf is NumPy's
    where that of `like` is, otherwise JAX's on the default device. Raises FileNotFoundError, and ValueError for a
    broken file or one whose leaves are others, with the first that differs.
    """
    tensors, told = read(path, "tree")
    expected = by_path(like)
    _check_forms(told["leaves"], {name: _form(leaf) for name, leaf in expected.items()}, path)
    leaves = []
    for name, leaf in expected.items():
        if name in told["scalars"]:
            leaves.append(told["scalars"][name])
        elif name in told["keys"]:
            leaves.append(jax.random.wrap_key_data(jnp.asarray(tensors[name]), impl=told["keys"][name]))
        elif isinstance(leaf, np.ndarray | np.generic):
            leaves.append(tensors[name] if isinstance(leaf, np.ndarray) else tensors[name][()])
        else:
            leaves.append(device(tensors[name], f"{path}: leaf {name}"))
    return jax.tree.unflatten(jax.tree.structure(like), leaves), told["about"]


def by_path(tree: Any) -> dict[str, Any]:
    """A tree's leaves by their names, such as `.params[0].W`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        raise ValueError("tree has two leaves with one path, expected a path for each")
    return named


def is_key(leaf: Any) -> bool:
    """Whether it is one of JAX's keys, or several."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _form(leaf: Any) -> str:
    """Such as `int`, `float32 (64, 784)`, `key<fry> ()`."""
    if type(leaf) in SCALARS:
        return type(leaf).__name__
    if not hasattr(leaf, "dtype"):
        return f"a {type(leaf).__name__}"
    return f"{leaf.dtype} {tuple(leaf.shape)}"


def _check_forms(stored: dict[str, str], expected: dict[str, str], path: FilePath) -> None:
    for name, form in expected.items():
        if name not in stored:
            raise ValueError(f"{path} has no leaf {name}, expected {form}")
        if stored[name] != form:
            raise ValueError(f"{path}: leaf {name} is {stored[name]}, expected {form}")
    if more := [name for name in stored if name not in expected]:
        raise ValueError(f"{path} has a leaf {more[0]}, {stored[more[0]]}, expected none there")
