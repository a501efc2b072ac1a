"""Saves and loads networks as safetensors files, with a checksum, without pickle; a write is atomic.

Any reader of safetensors finds the arrays `W1, b1, .., WK, bK` in the file. The metadata has one entry, `jaxmlp`, in
JSON. It holds a format number, the kind of file and its description, and a SHA-256 checksum. The checksum is taken of
the whole file with 64 zeros in the place of the checksum. Source: https://huggingface.co/docs/safetensors, "Format".
"""

import dataclasses
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxmlp import activations, losses, validate
from jaxmlp.activations import Activation
from jaxmlp.losses import Loss
from jaxmlp.network import MLP, Layer, Params

FilePath = str | os.PathLike[str]

FORMAT = 1
NO_DIGEST = "0" * 64
PART = ".part"  # the ending of an unfinished file
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
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
    write(path, tensors, {"kind": "network", "net": _describe(net)})


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
    net = _build_network(about["net"], own, path)
    array = lambda name: to_jax(tensors[name], f"{path}: {name}")
    return net, tuple(Layer(array(f"W{l}"), array(f"b{l}")) for l in range(1, net.depth + 1))


def _describe(net: MLP) -> dict[str, Any]:
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


def _build_network(fields: dict[str, Any], own: Sequence[Activation | Loss], path: FilePath) -> MLP:
    """The network with these fields; names become functions of jaxmlp or `own`."""
    if later := set(fields) - {field.name for field in dataclasses.fields(MLP)}:
        raise ValueError(f"{path} has the network's {', '.join(sorted(later))}, expected fields of this jaxmlp's MLP")
    if not isinstance(own, Sequence) or not all(isinstance(f, Activation | Loss) for f in own):
        raise ValueError(f"own is {own!r}, expected a tuple of Activation and Loss")
    known = _collect_functions(own, "own")
    used = [("activation", name) for name in (*fields["hidden"], fields["output"])] + [("loss", fields["loss"])]
    missing = [f"the {kind} {name!r}" for kind, name in dict.fromkeys(used) if name not in known[kind]]
    if missing:
        raise ValueError(f"{path} uses {' and '.join(missing)}, not among jaxmlp's, expected in own=(...)")
    *hidden, output, loss = (known[kind][name] for kind, name in used)
    return MLP(**{**fields, "hidden": hidden, "output": output, "loss": loss})


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
    array = np.asarray(leaf, order="C")
    if array.dtype.name not in DTYPES.values():
        raise ValueError(f"{name} has dtype {array.dtype}, expected one of {', '.join(DTYPES.values())}")
    return array


def to_jax(array: np.ndarray, name: str) -> jax.Array:
    """A NumPy array as a JAX array of the same dtype; errors call it `name`."""
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"{name} has dtype {array.dtype}, which JAX has switched off; jax.config.update('jax_enable_x64', True)"
        )
    return jnp.asarray(array)


def write(path: FilePath, tensors: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Writes arrays and their description `about`, which is JSON, with a checksum of the whole file."""
    description = json.dumps({"sha256": NO_DIGEST, "format": FORMAT, **about})
    raw = safetensors.numpy.save(tensors, {"jaxmlp": description})
    digest = hashlib.sha256(raw).hexdigest()
    _replace(Path(os.path.realpath(path)), raw.replace(NO_DIGEST.encode(), digest.encode(), 1))


def read(path: FilePath, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads the arrays and the description of a file of `write`, and checks every byte."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file of jaxmlp's")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there, expected a file of jaxmlp's with a {kind}") from None
    return decode(raw, kind, str(path))


def decode(raw: bytes, kind: str, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description in the bytes of a file; errors call the file `name`."""
    try:
        views = safetensors.deserialize(raw)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{name} is truncated, corrupt or no safetensors file: {error}") from None
    try:
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        about = json.loads(header["__metadata__"]["jaxmlp"])
        digest, version = str(about.pop("sha256")), about.pop("format")
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(f"{name} is corrupt, or a safetensors file that jaxmlp did not write") from None
    found = hashlib.sha256(raw.replace(digest.encode(), NO_DIGEST.encode(), 1)).hexdigest()
    if found != digest:
        raise ValueError(f"{name} is corrupt: its SHA-256 is {found}, expected {digest}")
    if version != FORMAT:
        raise ValueError(f"{name} has format {version}, expected {FORMAT}, which this jaxmlp reads")
    if about["kind"] != kind:
        raise ValueError(f"{name} holds a {about['kind']}, expected a {kind}")
    return {
        tensor: np.frombuffer(view["data"], jnp.dtype(DTYPES[view["dtype"]])).reshape(view["shape"])
        for tensor, view in views
    }, about


def _replace(path: Path, raw: bytes) -> None:
    """Writes another file to the disk, then renames it to `path`: a crash leaves the old file or the new one, whole."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file's name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not there, expected a folder for {path.name}")
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        with part.open("xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # other systems cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # writes the new name to the disk
        finally:
            os.close(folder)
