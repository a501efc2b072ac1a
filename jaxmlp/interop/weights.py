"""Weights of PyTorch, Flax, Equinox, Keras and scikit-learn, to and from a network's parameters."""

import importlib
import os
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxmlp import arrays, validate
from jaxmlp.doors import article, takes_network
from jaxmlp.interop.named_arrays import Found, Named, hint_entries, read_layers, to_numpy
from jaxmlp.network import MLP, Layer, Params

Framework = Literal["pytorch", "flax", "equinox", "keras", "sklearn"]
ORIENTATION = {"pytorch": "weight", "flax": "kernel", "equinox": "weight", "keras": "kernel", "sklearn": "kernel"}
AXES = {"weight": "(out, in)", "kernel": "(in, out)"}


@takes_network
def params_from(
    net: MLP, weights: Any, *, framework: Framework | None = None, missing_biases: Literal["zeros"] | None = None
) -> Params:
    """The parameters `W (out, in)`, `b (out,)` of a network, from weights of another library.

    A name tells the orientation: `kernel (in, out)`, `weight (out, in)`. Matrices without such a name share one, which
    those that are not square tell. Layers whose names differ in a number are ordered by it, the others stay in the
    order in which they come. A file sorts its names: where that is not the layers' order, pass a dict in their order.

    Args:
        net: the network, whose activations the weights do not tell.
        weights: a state dict or module of PyTorch; the variables of Flax, or a state of `flax.nnx`; a module of
            Equinox; a model of Keras or its `get_weights()`; a fitted MLP of scikit-learn or `(coefs_, intercepts_)`; a
            list of arrays; or the name of a safetensors file. Pickles are never read.
        framework: whose orientation matrices without a name have, "pytorch", "flax", "equinox", "keras" or "sklearn".
        missing_biases: "zeros" for layers without biases; else they are an error.
    Returns:
        The parameters, a copy. They keep their bits, NaN included; float64 is rounded to float32 where JAX has it off.
    Raises:
        ValueError: where names, shapes, dtypes or the number of layers do not fit, or nothing tells the orientation of
            a square matrix or the order of two layers.
        FileNotFoundError: where there is no such file.
    Example:
        >>> weights = {"fc1.weight": np.ones((64, 784), np.float32), "fc1.bias": np.zeros(64, np.float32),
        ...            "fc2.weight": np.ones((10, 64), np.float32), "fc2.bias": np.zeros(10, np.float32)}
        >>> [layer.W.shape for layer in jm.params_from(net, weights)]
        [(64, 784), (10, 64)]
    """
    if framework is not None:
        validate.one_of(framework, tuple(ORIENTATION), "framework")
    if missing_biases is not None:
        validate.one_of(missing_biases, ("zeros",), "missing_biases")
    orientation = ORIENTATION[framework] if framework else None
    try:
        return _build(net, read_layers(weights), orientation, missing_biases is not None)
    except ValueError as error:
        if isinstance(weights, str | os.PathLike) and str(weights) not in str(error):
            raise ValueError(f"{weights}: {error}") from None
        if hint := hint_entries(weights):
            raise ValueError(f"{error}{hint}") from None
        raise


def _build(net: MLP, layers: list[Found], orientation: str | None, zeros: bool) -> Params:
    """The parameters, if the layers fit the network."""
    if len(layers) != net.depth or any(layer.W is None for layer in layers):
        _refuse_layers(net, layers)
    named = [layer.W for layer in layers if layer.W]
    kinds = _orient(net, named, orientation)
    made, dtypes = [], {}
    for W, (_, b), kind, (n_out, _) in zip(named, layers, kinds, net.shapes, strict=True):
        if b is None and not zeros:
            raise ValueError(
                f"weights has no bias beside {W.name}, expected one of shape {(n_out,)}; missing_biases='zeros' "
                "takes zeros"
            )
        b = b or W._replace(array=np.zeros(n_out, W.array.dtype))
        if b.array.shape != (n_out,):
            raise ValueError(f"{b.name} has shape {b.array.shape}, expected {(n_out,)}")
        matrix = W.array if kind == "weight" else W.array.T
        made.append(Layer(_to_jax(matrix, W.name, dtypes), _to_jax(b.array, b.name, dtypes)))
    return tuple(made)


def _refuse_layers(net: MLP, layers: list[Found]) -> None:
    """Names the layers that came, and the shapes that were expected."""
    for layer in layers:
        if layer.W is None and layer.b is not None:
            raise ValueError(f"weights has {layer.b.name} of shape {layer.b.array.shape} and no weights beside it")
    came = ", ".join(f"{layer.W.name} {layer.W.array.shape}" for layer in layers if layer.W)
    layer_s = "layer" if len(layers) == 1 else "layers"
    raise ValueError(
        f"weights has {len(layers)} {layer_s}, {came}; expected {net.depth}, for W {', '.join(map(str, net.shapes))}"
    )


def _orient(net: MLP, named: list[Named], default: str | None) -> list[str]:
    """Each layer's kind, "weight" (out, in) or "kernel" (in, out), by its name, or by shapes of all without a name."""
    untold = [(W, shape) for W, shape in zip(named, net.shapes, strict=True) if W.role == "untold"]
    votes: dict[str, Named] = {}
    for W, shape in untold:
        if W.array.shape not in (shape, shape[::-1]):
            raise ValueError(
                f"{W.name} has shape {W.array.shape}, expected (out, in) {shape} or (in, out) {shape[::-1]}"
            )
        if shape[0] != shape[1]:
            votes.setdefault("weight" if W.array.shape == shape else "kernel", W)
    if len(votes) > 1:
        told = " and ".join(f"{W.name} {W.array.shape} is {AXES[kind]}" for kind, W in votes.items())
        raise ValueError(f"{told}, expected one orientation")
    if untold and not votes and default is None:
        W, _ = untold[0]
        raise ValueError(
            f"{W.name} has shape {W.array.shape}, which is square, so (out, in) and (in, out) both fit; expected a "
            "name that ends in weight (out, in) or kernel (in, out), or framework="
        )
    kinds = []
    for W, shape in zip(named, net.shapes, strict=True):
        kind = W.role if W.role != "untold" else default or next(iter(votes))
        expected = shape if kind == "weight" else shape[::-1]
        if W.array.shape != expected:
            raise ValueError(f"{W.name} has shape {W.array.shape}, expected {AXES[kind]} {expected}")
        kinds.append(kind)
    return kinds


def _to_jax(array: np.ndarray, name: str, dtypes: dict[Any, str]):
    """A copy as a JAX array of the floating-point dtype of the arrays before, whose first names are in `dtypes`."""
    made = arrays.to_jax(np.array(array, order="C"), name)  # another library may change its own
    if not jnp.issubdtype(made.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {array.dtype}, expected a floating-point type")
    dtypes.setdefault(made.dtype, name)
    if len(dtypes) > 1:
        (first, other), *_ = dtypes.items()
        raise ValueError(f"{name} has dtype {made.dtype}, {other} {first}, expected one floating-point type")
    return made


def params_to(params: Params, framework: Framework, *, names: Sequence[str] | None = None) -> Any:
    """A network's parameters in the form that another library loads.

    | framework | result | loads it |
    |---|---|---|
    | "pytorch" | a state dict of tensors, `0.weight`, `0.bias`, `2.weight`, .. | `module.load_state_dict` |
    | "flax" | `{"params": {"Dense_0": {"kernel", "bias"}, ..}}` | `module.apply`; `nnx.update` takes the inner dict |
    | "equinox" | `[weight, bias, ..]` | `equinox.tree_at`, at each layer's weight and bias |
    | "keras" | `[kernel, bias, ..]` | `model.set_weights` |
    | "sklearn" | `(coefs, intercepts)` | `model.coefs_, model.intercepts_ = ..` |

    Args:
        params: the parameters.
        framework: the library.
        names: the layers' names in PyTorch and Flax; unless given, those of `nn.Sequential` with an activation after
            each layer, and `Dense_0`, `Dense_1`, ..
    Returns:
        NumPy arrays, copies with the same bits. PyTorch loads tensors only, so it is imported and gets tensors.
    Raises:
        ValueError: where an argument does not fit, or the parameters are traced.
        ImportError: where PyTorch is not installed.
    Example:
        >>> [array.shape for array in jm.params_to(params, "keras")]
        [(784, 64), (64,), (64, 10), (10,)]
    """
    validate.one_of(framework, tuple(ORIENTATION), "framework")
    _check_params(params)
    transposed = ORIENTATION[framework] == "kernel"
    pairs = [
        (np.array(W.T if transposed else W, order="C"), np.array(b))
        for W, b in ((to_numpy(W, "W of params"), to_numpy(b, "b of params")) for W, b in params)
    ]
    names = _name_layers(names, framework, len(pairs))
    if framework == "pytorch":
        tensors = {}
        for name, (W, b) in zip(names, pairs, strict=True):
            tensors |= {f"{name}.weight": _to_tensor(W), f"{name}.bias": _to_tensor(b)}
        return tensors
    if framework == "flax":
        return {"params": {name: {"kernel": W, "bias": b} for name, (W, b) in zip(names, pairs, strict=True)}}
    if framework == "sklearn":
        return [W for W, _ in pairs], [b for _, b in pairs]
    return [array for pair in pairs for array in pair]


def _check_params(params: Params) -> None:
    """Refuses what is no network's parameters, of any widths."""
    if not isinstance(params, tuple | list) or not params:
        raise ValueError(f"params is {article(type(params).__name__)}, expected a tuple of layers (W, b)")
    shapes: list[tuple[int, ...]] = [getattr(getattr(layer, "W", None), "shape", ()) for layer in params]
    for number, shape in enumerate(shapes, start=1):
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"params: layer {number} has W {shape}, expected a Layer(W, b) with W (out, in)")
    n_in, n_out = shapes[0][1], [shape[0] for shape in shapes]
    validate.params(MLP((n_in, *n_out)), params)


def _name_layers(names: Sequence[str] | None, framework: str, depth: int) -> list[str]:
    """The layers' names in PyTorch and Flax."""
    if names is None:
        return [str(2 * l) if framework == "pytorch" else f"Dense_{l}" for l in range(depth)]
    if framework not in ("pytorch", "flax"):
        raise ValueError(f"names is {names!r}, expected None: {framework!r} has no names")
    fine = isinstance(names, list | tuple) and all(isinstance(name, str) and name for name in names)
    if not fine or len(set(names)) != len(names) or len(names) != depth:
        raise ValueError(f"names is {names!r}, expected {depth} different names, one for each layer")
    return list(names)


def _to_tensor(array: np.ndarray) -> Any:
    try:
        torch = importlib.import_module("torch")  # only for those who ask for its tensors
    except ModuleNotFoundError:
        raise ImportError("torch is not installed: python3 -m pip install torch") from None
    if array.dtype == jnp.bfloat16:  # which PyTorch does not take from NumPy
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    return torch.from_numpy(array)
