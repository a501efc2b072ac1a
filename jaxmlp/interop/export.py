"""Writes a trained network as a file that others run: ONNX, and StableHLO for any process with JAX."""

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp

from jaxmlp import checked_files, paths, validate
from jaxmlp._forward import network_inputs, propagate
from jaxmlp.checked_files import FilePath
from jaxmlp.data.scaling import scale_pixels
from jaxmlp.interop import onnx_graph
from jaxmlp.network import MLP, Params

PLATFORMS = ("cpu", "cuda", "tpu")


class Format(NamedTuple):
    """How to write files of one ending, and the package that this takes; the ending is the name of an extra, too."""

    write: Callable[[MLP, Params, bool], bytes]
    package: str


def export(path: FilePath, net: MLP, params: Params, *, pixels: bool = False) -> None:
    """Writes a network as a program that runs without jaxmlp, from `X (batch, n_0)` to `Y_hat (batch, n_K)`.

    The ending of the name chooses the format, and an extra of its name installs what writes it. `.onnx` is read by ONNX
    Runtime and others. `.stablehlo` is run by `jax.export.deserialize(bytearray(raw)).call(X)` on a CPU, on CUDA's GPUs
    and on TPUs, in products of the precision that `jax.default_matmul_precision` had here. The batch may have any size.
    The write is atomic.

    Args:
        path: the file, new or to replace, `name.onnx` or `name.stablehlo`.
        net: the network; activations of your own and `products` go to `.stablehlo` only.
        params: its parameters, in whose dtype X and Y_hat are; float32 for `.onnx`.
        pixels: whether X are uint8 and divided by 255 inside, as `jm.data.scale_pixels` does.
    Raises:
        ValueError: where an argument does not fit, the parameters are traced, or ONNX has no form for the network.
        FileNotFoundError: where the folder does not exist.
        ImportError: where the extra is not installed.
    Example:
        >>> jm.export("digits.stablehlo", net, params)
        >>> with open("digits.stablehlo", "rb") as file:
        ...     program = jax.export.deserialize(bytearray(file.read()))
        >>> bool(jnp.allclose(program.call(X), jm.predict(net, params, X), atol=1e-6))
        True
    """
    form = FORMATS.get(ending := paths.check(path).suffix)
    if form is None:
        raise ValueError(f"path is {str(path)!r} with the ending {ending!r}, expected {' or '.join(FORMATS)}")
    validate.params(net, params)
    if not isinstance(pixels, bool):
        raise ValueError(f"pixels is {pixels!r}, expected True or False")
    if not all(map(validate.concrete, jax.tree.leaves(params))):
        raise ValueError("params are traced, expected numbers: export outside jit")
    if importlib.util.find_spec(form.package) is None:
        raise ImportError(f"{form.package} is not installed: python3 -m pip install 'jaxmlp[{ending[1:]}]'")
    checked_files.replace_file(path, form.write(net, params, pixels))


def _to_stablehlo(net: MLP, params: Params, pixels: bool) -> bytes:
    """The network as a serialized program of `jax.export`."""
    dtype, preprocess = params[0].W.dtype, scale_pixels if pixels else None

    def predict(X):
        return jax.vmap(lambda x: propagate(net, params, x)[0])(network_inputs(X, preprocess, dtype))

    (batch,) = jax.export.symbolic_shape("batch")
    X = jax.ShapeDtypeStruct((batch, net.sizes[0]), jnp.uint8 if pixels else dtype)
    return bytes(jax.export.export(jax.jit(predict), platforms=PLATFORMS)(X).serialize())


FORMATS = {".onnx": Format(onnx_graph.write, "onnx"), ".stablehlo": Format(_to_stablehlo, "flatbuffers")}
