"""Networks on disk: safetensors with the description in the metadata, checksummed, replaced in one step, no pickle.

Any reader of safetensors finds the arrays `W1, b1, .., WK, bK` in the file. The metadata's one entry, `jaxmlp`, is
JSON: a SHA-256 of the whole file as it is with 64 zeros in the checksum's place, a format number, and what the kind of
file needs to say. Format: https://huggingface.co/docs/safetensors, "Format".
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
PART = ".part"  # the ending of a file that is being written
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64",
    "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
ALWAYS_WRITTEN = ("sizes", "hidden", "output", "loss")  # other fields of MLP only where they differ from their default


def save(path: FilePath, net: MLP, params: Params) -> None:
    """Writes the network and its parameters, bit for bit; a file that is there is replaced in one step.

    Activations and losses are stored by name: `load` needs those of your own. Raises ValueError for one that has the
    name of a built-in and is another.

        jm.save("digits.safetensors", net, params)
    """
    validate.params(net, params)
    tensors = {}
    for l, layer in enumerate(params, start=1):
        tensors[f"W{l}"], tensors[f"b{l}"] = host(layer.W, f"W of layer {l}"), host(layer.b, f"b of layer {l}")
    write(path, tensors, {"kind": "network", "net": _described(net)})


def load(path: FilePath, own: Sequence[Activation | Loss] = ()) -> tuple[MLP, Params]:
    """The network and the parameters that `save` wrote; `own` holds the activations and losses that are not jaxmlp's.

    Raises FileNotFoundError, and ValueError for a file that is truncated, corrupt, or of another kind, for a function
    that is not in `own`, and for float64 where JAX has it switched off.

        net, params = jm.load("digits.safetensors", own=(cube,))
    """
    tensors, about = read(path, "network")
    net = _net(about["net"], own, path)
    array = lambda name: device(tensors[name], f"{path}: {name}")
    return net, tuple(Layer(array(f"W{l}"), array(f"b{l}")) for l in range(1, net.depth + 1))


def _described(net: MLP) -> dict[str, Any]:
    """The fields of `net` as JSON, functions by their names."""
    _known((*net.activations, net.loss), "net")
    plain = lambda value: value.name if isinstance(value, Activation | Loss) else value
    default = MLP(net.sizes)
    fields = {field.name: getattr(net, field.name) for field in dataclasses.fields(net)}
    return {
        name: [plain(entry) for entry in value] if isinstance(value, tuple) else plain(value)
        for name, value in fields.items()
        if name in ALWAYS_WRITTEN or value != getattr(default, name)
    }


def _net(fields: dict[str, Any], own: Sequence[Activation | Loss], path: FilePath) -> MLP:
    """The network of these fields, its names looked up among jaxmlp's functions and `own`."""
    if later := set(fields) - {field.name for field in dataclasses.fields(MLP)}:
        raise ValueError(f"{path} tells the network's {', '.join(sorted(later))}, which this jaxmlp does not know")
    if not isinstance(own, Sequence) or not all(isinstance(f, Activation | Loss) for f in own):
        raise ValueError(f"own is {own!r}, expected a tuple of Activation and Loss")
    known = _known(own, "own")
    used = [("activation", name) for name in (*fields["hidden"], fields["output"])] + [("loss", fields["loss"])]
    missing = [f"the {kind} {name!r}" for kind, name in dict.fromkeys(used) if name not in known[kind]]
    if missing:
        raise ValueError(f"{path} uses {' and '.join(missing)}, not among jaxmlp's: expected in own=(...)")
    *hidden, output, loss = (known[kind][name] for kind, name in used)
    return MLP(**{**fields, "hidden": hidden, "output": output, "loss": loss})


def _known(functions: Sequence[Activation | Loss], argument: str) -> dict[str, dict[str, Any]]:
    """jaxmlp's activations and losses and these, by name."""
    known: dict[str, dict[str, Any]] = {"activation": dict(activations.NAMED), "loss": dict(losses.NAMED)}
    for f in functions:
        kind = "activation" if isinstance(f, Activation) else "loss"
        if known[kind].setdefault(f.name, f) != f:
            raise ValueError(
                f"{argument} has a function {f.name!r} that is not jaxmlp's {kind} of that name, or two of that name; "
                "expected a name for each: a file holds names only"
            )
    return known


def host(leaf: Any, what: str) -> np.ndarray:
    """A leaf as a NumPy array that a file can hold."""
    if not validate.concrete(leaf):
        raise ValueError(f"{what} is traced, expected numbers: save outside jit")
    array = np.asarray(leaf, order="C")
    if array.dtype.name not in DTYPES.values():
        raise ValueError(f"{what} has dtype {array.dtype}, expected one of {', '.join(DTYPES.values())}")
    return array


def device(array: np.ndarray, what: str) -> jax.Array:
    """A NumPy array as one of JAX, which keeps its dtype."""
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"{what} has dtype {array.dtype}, which JAX has switched off; jax.config.update('jax_enable_x64', True)"
        )
    return jnp.asarray(array)


def write(path: FilePath, tensors: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Writes arrays and what is told about them, with a checksum over all of it."""
    told = json.dumps({"sha256": NO_DIGEST, "format": FORMAT, **about})
    raw = safetensors.numpy.save(tensors, {"jaxmlp": told})
    digest = hashlib.sha256(raw).hexdigest()
    _replace(Path(os.path.realpath(path)), raw.replace(NO_DIGEST.encode(), digest.encode(), 1))


def read(path: FilePath, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `write` wrote, after every byte of it is checked."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a file of jaxmlp's")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there, expected a file of jaxmlp's with a {kind}") from None
    return decode(raw, kind, str(path))


def decode(raw: bytes, kind: str, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and what is told about them in the bytes of a file; `name` is told in errors."""
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
    """Writes beside `path`, down to the disk, then renames: whatever happens, what is at `path` is whole."""
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
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too, is on the disk
        finally:
            os.close(folder)
