"""Saves and loads networks: any reader of safetensors finds the arrays `W1, b1, .., WK, bK` in the file."""

import dataclasses
import itertools
import reprlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxmlp import activations, arrays, losses, validate
from jaxmlp.activations import Activation
from jaxmlp.checked_files import DTYPES, FilePath, read
from jaxmlp.checked_files import PART as PART
from jaxmlp.checked_files import decode as decode
from jaxmlp.checked_files import write as write
from jaxmlp.losses import Loss
from jaxmlp.network import MLP, Layer, Params

ALWAYS_WRITTEN = ("sizes", "hidden", "output", "loss")  # other fields only if they differ from their default


def save(path: FilePath, net: MLP, params: Params) -> None:
    """Writes a network and its parameters to a file, bit for bit.

    The write is atomic: at every moment the file is either the old one or the new one, whole. The file names
    activations and losses; it does not hold their code.

    Args:
        path: the file, new or to replace.
        net: the network.
        params: its parameters.
    Raises:
        ValueError: where the parameters do not fit the network or are traced, or a function of the network has the
            name of another one.
        FileNotFoundError: where the folder does not exist.
    Example:
        >>> jm.save("digits.safetensors", net, params)
        >>> loaded, _ = jm.load("digits.safetensors")
        >>> loaded == net
        True
    """
    validate.params(net, params)
    tensors = {}
    for l, layer in enumerate(params, start=1):
        tensors[f"W{l}"], tensors[f"b{l}"] = to_numpy(layer.W, f"W of layer {l}"), to_numpy(layer.b, f"b of layer {l}")
    write(path, tensors, {"kind": "network", "net": describe(net)})


def load(path: FilePath, own: Sequence[Activation | Loss] = ()) -> tuple[MLP, Params]:
    """Reads a network and its parameters from a file of `save`.

    Args:
        path: the file.
        own: activations and losses of the network that are not jaxmlp's.
    Returns:
        The network and its parameters, bit for bit.
    Raises:
        ValueError: where the file is truncated, corrupt or of another kind, where a function of the network is
            neither jaxmlp's nor in `own`, and for float64 if JAX has it switched off.
        FileNotFoundError: where there is no such file.
    Example:
        >>> cube = jm.Activation("cube", lambda z: z**3, lambda z: 3 * z**2)
        >>> own_net = jm.MLP((2, 3, 1), hidden=cube)
        >>> jm.save("cube.safetensors", own_net, jm.init(own_net, key))
        >>> jm.load("cube.safetensors", own=(cube,))[0] == own_net
        True
    """
    tensors, about = read(path, "network")
    net = build(about.get("net"), {name: array.shape for name, array in tensors.items()}, own, path)
    array = lambda name: to_jax(tensors[name], f"{path}: {name}")
    params = tuple(Layer(array(f"W{l}"), array(f"b{l}")) for l in range(1, net.depth + 1))
    try:
        validate.params(net, params)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return net, params


def describe(net: MLP) -> dict[str, Any]:
    """The fields of `net` as JSON, with names for functions."""
    _collect_functions((*net.activations, net.loss), "net")
    plain = lambda value: value.name if isinstance(value, Activation | Loss) else value
    default = MLP(net.sizes)
    fields = {field.name: getattr(net, field.name) for field in dataclasses.fields(net)}
    return {
        name: [plain(entry) for entry in value] if isinstance(value, tuple) else plain(value)
        for name, value in fields.items()
        if name in ALWAYS_WRITTEN or value != getattr(default, name)
    }


_described = describe  # the name that earlier scripts use


def build(fields: Any, shapes: dict[str, tuple[int, ...]], own: Sequence[Activation | Loss], path: FilePath) -> MLP:
    """The network with these fields, whose arrays `W1, b1, ..` have these shapes; names become functions."""
    if not isinstance(own, Sequence) or not all(isinstance(f, Activation | Loss) for f in own):
        raise ValueError(f"own is {own!r}, expected a tuple of Activation and Loss")
    _check_fields(fields, path)
    _check_shapes(fields["sizes"], shapes, path)
    known = _collect_functions(own, "own")
    used = [("activation", name) for name in (*fields["hidden"], fields["output"])] + [("loss", fields["loss"])]
    missing = [f"the {kind} {name!r}" for kind, name in dict.fromkeys(used) if name not in known[kind]]
    if missing:
        raise ValueError(f"{path} uses {' and '.join(missing)}, not among jaxmlp's, expected in own=(...)")
    *hidden, output, loss = (known[kind][name] for kind, name in used)
    try:
        return MLP(**{**fields, "hidden": hidden, "output": output, "loss": loss})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} describes no network: {error}") from None


def _check_fields(fields: Any, path: FilePath) -> None:
    """Refuses what is no description of a network: a file may be wrong behind a right checksum."""
    if not isinstance(fields, dict):
        raise ValueError(f"{path} describes no network: net is {reprlib.repr(fields)}, expected its fields")
    if later := set(fields) - {field.name for field in dataclasses.fields(MLP)}:
        raise ValueError(f"{path} has the network's {', '.join(sorted(later))}, expected fields of this jaxmlp's MLP")
    is_name = lambda value: isinstance(value, str)
    fits = {
        "sizes": lambda value: isinstance(value, list) and len(value) > 1 and all(type(n) is int for n in value),
        "hidden": lambda value: isinstance(value, list) and all(map(is_name, value)),
        "output": is_name,
        "loss": is_name,
    }
    for name in ALWAYS_WRITTEN:
        if not fits[name](fields.get(name)):
            raise ValueError(f"{path} describes no network: {name} is {reprlib.repr(fields.get(name))}")


def _check_shapes(sizes: list[int], found: dict[str, tuple[int, ...]], path: FilePath) -> None:
    """Refuses a file whose arrays are not those of a network of these widths, before it is built."""
    expected = {f"b{l}": (n,) for l, n in enumerate(sizes[1:], start=1)}
    expected |= {f"W{l}": (n_out, n_in) for l, (n_in, n_out) in enumerate(itertools.pairwise(sizes), start=1)}
    for name in sorted(expected.keys() | found.keys()):
        if (shape := found.get(name, "none")) != (fits := expected.get(name, "none")):
            raise ValueError(f"{path}: the shape of {name} is {shape}, expected {fits}")


def _collect_functions(functions: Sequence[Activation | Loss], argument: str) -> dict[str, dict[str, Any]]:
    """The activations and the losses by name: jaxmlp's and `functions`."""
    known: dict[str, dict[str, Any]] = {"activation": dict(activations.NAMED), "loss": dict(losses.NAMED)}
    for f in functions:
        kind = "activation" if isinstance(f, Activation) else "loss"
        if known[kind].setdefault(f.name, f) != f:
            raise ValueError(
                f"{argument} has a function {f.name!r} that is not jaxmlp's {kind}, or two of that name, expected one "
                "function for each name: a file holds only names"
            )
    return known


def to_numpy(leaf: Any, name: str) -> np.ndarray:
    """A leaf as a NumPy array that a file can hold; errors call it `name`."""
    if not validate.concrete(leaf):
        raise ValueError(f"{name} is traced, expected numbers: save outside jit")
    array = np.asarray(arrays.as_numpy(leaf, name), order="C")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.name not in DTYPES.values():
        raise ValueError(f"{name} has dtype {array.dtype}, expected one of {', '.join(DTYPES.values())}")
    return array


def to_jax(array: np.ndarray, name: str) -> jax.Array:
    """A NumPy array as a JAX array of the same dtype; errors call it `name`."""
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"{name} has dtype {array.dtype}, which JAX has switched off; jax.config.update('jax_enable_x64', True)"
        )
    return jax.device_put(array, may_alias=False)
