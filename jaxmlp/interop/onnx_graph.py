"""The network as a graph of ONNX: a Gemm and an activation for each layer.

Opset 20 is the first with Gelu. An operator that ONNX does not have is written out. `onnx` is imported with the first
graph. Source: https://onnx.ai/onnx/operators.
"""

import importlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmlp import activations
from jaxmlp.activations import Activation
from jaxmlp.network import MLP, Params

OPSET, IR = 20, 9  # the intermediate representation of onnx 1.15, which brought the opset
MOST = 2**31 - 2**20  # bytes in a file of protobuf, with room for what is not weights
# Each activation as operators in a row; `z` is the pre-activation, `a` the result of the operator before.
OPERATORS: dict[str, list[tuple[str, list[str], dict[str, Any]]]] = {
    "identity": [("Identity", ["z"], {})],
    "sigmoid": [("Sigmoid", ["z"], {})],
    "tanh": [("Tanh", ["z"], {})],
    "relu": [("Relu", ["z"], {})],
    "leaky_relu": [("LeakyRelu", ["z"], {"alpha": 0.01})],
    "elu": [("Elu", ["z"], {"alpha": 1.0})],
    "softplus": [("Softplus", ["z"], {})],
    "gelu": [("Gelu", ["z"], {"approximate": "tanh"})],
    "silu": [("Sigmoid", ["z"], {}), ("Mul", ["z", "a"], {})],
    "step": [("GreaterOrEqual", ["z", "zero"], {}), ("CastLike", ["a", "z"], {})],
    "sign": [("Sign", ["z"], {})],
    "softmax": [("Softmax", ["z"], {"axis": -1})],
    "exp": [("Exp", ["z"], {})],
}


def write(net: MLP, params: Params, pixels: bool) -> bytes:
    """The serialized graph, whose input is `X (batch, n_0)` and whose output `Y_hat (batch, n_K)`."""
    _check(net, params)
    onnx: Any = importlib.import_module("onnx")  # which an extra installs
    helper, kinds = onnx.helper, onnx.TensorProto
    nodes = _make_nodes(net, pixels, helper.make_node, kinds.FLOAT)
    constants = {"zero": np.zeros((), np.float32), "scale": np.asarray(np.float32(1 / 255))}
    for l, (W, b) in enumerate(params, start=1):
        constants |= {f"W{l}": np.asarray(W), f"b{l}": np.asarray(b)}
    used = {name for node in nodes for name in node.input}
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items() if name in used]
    X = helper.make_tensor_value_info("X", kinds.UINT8 if pixels else kinds.FLOAT, ["batch", net.sizes[0]])
    Y_hat = helper.make_tensor_value_info("Y_hat", kinds.FLOAT, ["batch", net.sizes[-1]])
    graph = helper.make_graph(nodes, "jaxmlp", [X], [Y_hat], tensors)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="jaxmlp").SerializeToString()


def _make_nodes(net: MLP, pixels: bool, node: Callable[..., Any], float32: int) -> list[Any]:
    """The operators from `X` to `Y_hat`, in the order in which they run."""
    nodes, a = [], "X"
    if pixels:
        nodes = [node("Cast", ["X"], ["pixels"], to=float32), node("Mul", ["pixels", "scale"], [a := "a0"])]
    for l, f in enumerate(net.activations, start=1):
        nodes.append(node("Gemm", [a, f"W{l}", f"b{l}"], [f"z{l}"], transB=1))
        a = ""
        for at, (operator, inputs, attributes) in enumerate(OPERATORS[f.name], start=1):
            given = [{"z": f"z{l}", "a": a}.get(name, name) for name in inputs]
            last = at == len(OPERATORS[f.name])
            a = f"{operator}{l}" if not last else "Y_hat" if l == net.depth else f"a{l}"
            nodes.append(node(operator, given, [a], **attributes))
    return nodes


def _check(net: MLP, params: Params) -> None:
    """Refuses what ONNX cannot express."""
    for f in net.activations:
        if not _is_ours(f):
            raise ValueError(
                f"net has the activation {f.name!r} of your own, expected jaxmlp's for .onnx; .stablehlo takes any"
            )
    if net.products is not None:
        raise ValueError(f"net has products={net.products!r}, expected None for .onnx, which rounds no products")
    if (dtype := params[0].W.dtype) != jnp.float32:  # ONNX Runtime has some operators for float32 only
        raise ValueError(f"params have dtype {dtype}, expected float32 for .onnx; .stablehlo takes any")
    if (size := sum(W.nbytes + b.nbytes for W, b in params)) > MOST:
        raise ValueError(f"params have {size:,} bytes, expected at most {MOST:,} for .onnx")


def _is_ours(f: Activation) -> bool:
    """Whether this is jaxmlp's activation of that name."""
    if f.name == "exp":  # of an estimator
        from jaxmlp.interop.sklearn_network import exp  # SciPy is slow to import, and needed here alone

        return f == exp
    return activations.NAMED.get(f.name) == f
