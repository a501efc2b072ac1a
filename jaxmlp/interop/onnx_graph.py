"""The network as a graph of ONNX: a Gemm and an activation for each layer.

Opset 20 is the first with Gelu. An operator that ONNX does not have is written out. `onnx` is imported with the first
graph. Source: https://onnx.ai/onnx/operators.
"""

import importlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxmlp import activations
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
}


def write(net: MLP, params: Params, pixels: bool) -> bytes:
    """The serialized graph, whose input is `X (batch, n_0)` and whose output `Y_hat (batch, n_K)`."""
    _check(net, params)
    try:
        onnx = importlib.import_module("onnx")
    except ImportError:
        raise ImportError("onnx is not installed: python3 -m pip install 'jaxmlp[onnx]'") from None
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    constants, nodes = {"zero": np.float32(0), "scale": np.float32(1 / 255)}, []
    a = "X"
    if pixels:
        nodes += [helper.make_node("Cast", [a], ["pixels"], to=kind)]
        nodes += [helper.make_node("Mul", ["pixels", "scale"], [a := "a0"])]
    for l, (layer, f) in enumerate(zip(params, net.activations, strict=True), start=1):
        constants[f"W{l}"], constants[f"b{l}"] = np.asarray(layer.W), np.asarray(layer.b)
        nodes.append(helper.make_node("Gemm", [a, f"W{l}", f"b{l}"], [f"z{l}"], transB=1))
        last = "Y_hat" if l == net.depth else f"a{l}"
        a = _add_activation(nodes, helper, f.name, f"z{l}", last)
    used = {name for node in nodes for name in node.input}
    tensors = [
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items() if name in used
    ]
    X = helper.make_tensor_value_info("X", onnx.TensorProto.UINT8 if pixels else kind, ["batch", net.sizes[0]])
    Y_hat = helper.make_tensor_value_info("Y_hat", kind, ["batch", net.sizes[-1]])
    graph = helper.make_graph(nodes, "jaxmlp", [X], [Y_hat], tensors)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="jaxmlp").SerializeToString()


def _add_activation(nodes: list[Any], helper: Any, name: str, z: str, last: str) -> str:
    """Appends the operators of an activation, the last of which gives `last`."""
    operators, a = OPERATORS[name], ""
    for at, (operator, inputs, attributes) in enumerate(operators):
        given = [{"z": z, "a": a}.get(part, part) for part in inputs]
        a = last if at == len(operators) - 1 else f"{operator}_{z}"
        nodes.append(helper.make_node(operator, given, [a], **attributes))
    return last


def _check(net: MLP, params: Params) -> None:
    """Refuses what ONNX cannot express."""
    for f in net.activations:
        if activations.NAMED.get(f.name) != f:
            raise ValueError(
                f"net has the activation {f.name!r} of your own, expected jaxmlp's for .onnx; .stablehlo takes any"
            )
    if net.products is not None:
        raise ValueError(f"net has products={net.products!r}, expected None for .onnx, which rounds no products")
    if (dtype := params[0].W.dtype) != jnp.float32:  # ONNX Runtime has some operators for float32 only
        raise ValueError(f"params have dtype {dtype}, expected float32 for .onnx; .stablehlo takes any")
    if (size := sum(W.nbytes + b.nbytes for W, b in params)) > MOST:
        raise ValueError(f"params have {size:,} bytes, expected at most {MOST:,} for .onnx")
