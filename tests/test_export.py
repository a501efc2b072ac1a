"""Exported programs: others run them and get the same outputs."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmlp as jm
from jaxmlp import activations
from jaxmlp.interop.sklearn_network import exp, poisson

pytest.importorskip("flatbuffers")
pytest.importorskip("onnx")

HIDDEN = [name for name in activations.NAMED if name != "softmax"]
cube = jm.Activation("cube", lambda z: z**3, lambda z: 3 * z**2)
# Each activation stands in a hidden layer of `NET` or is the output of a network of its own.
NET = jm.MLP((5, *[7] * len(HIDDEN), 4), HIDDEN, "softmax", "cross_entropy")
OUTPUTS = [jm.MLP((5, 6, 3), "tanh", name) for name in (*HIDDEN, "softmax")] + [jm.MLP((5, 6, 3), "tanh", exp, poisson)]
BATCHES = (1, 1000)


def make(net, seed=0, dtype=np.float32):
    """Parameters with biases, and 1,000 examples."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    params = tuple(jm.Layer(normal(o, i) / np.asarray(np.sqrt(i), dtype), normal(o)) for o, i in net.shapes)
    return params, rng.normal(size=(1000, net.sizes[0])).astype(dtype)


def run_onnx(path, X):
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [session.run(["Y_hat"], {"X": X[:m]})[0] for m in BATCHES]


def check_onnx(path, net, params, X, atol=1e-6, **given):
    import onnx

    jm.export(path, net, params, pixels="preprocess" in given)
    onnx.checker.check_model(str(path), full_check=True)
    expected = np.asarray(jm.predict(net, params, X, **given))
    for m, got in zip(BATCHES, run_onnx(path, X), strict=True):
        assert got.shape == (m, net.sizes[-1]) and got.dtype == params[0].W.dtype
        np.testing.assert_allclose(got, expected[:m], rtol=0, atol=atol)


@pytest.mark.parametrize("net", [NET, *OUTPUTS], ids=lambda net: f"{net.hidden[-1].name}-{net.output.name}")
def test_onnx_runtime_gives_the_outputs_of_every_activation(tmp_path, net):
    check_onnx(tmp_path / "net.onnx", net, *make(net))


@pytest.mark.parametrize("hidden", HIDDEN)
def test_onnx_runtime_agrees_far_from_0_too(tmp_path, hidden):
    """The network is the activation itself, so that no sum hides a difference."""
    net = jm.MLP((1, 1, 1), hidden)
    one = jm.Layer(jnp.ones((1, 1)), jnp.zeros(1))
    X = np.concatenate([[0, -0.0, 100, -100, 1e-4], np.linspace(-12, 12, 995)]).astype(np.float32)[:, None]
    check_onnx(tmp_path / "net.onnx", net, (one, one), X, atol=2e-6)


def test_pixels_are_scaled_inside(tmp_path):
    net = jm.MLP((5, 6, 3), "relu")
    params, _ = make(net)
    X = np.random.default_rng(1).integers(0, 256, (1000, 5), np.uint8)
    jm.export(tmp_path / "net.stablehlo", net, params, pixels=True)
    program = jax.export.deserialize(bytearray((tmp_path / "net.stablehlo").read_bytes()))
    expected = jm.predict(net, params, X, preprocess=jm.data.scale_pixels)
    np.testing.assert_allclose(program.call(X), expected, rtol=0, atol=1e-6)
    check_onnx(tmp_path / "net.onnx", net, params, X, preprocess=jm.data.scale_pixels)


RUN = """
import sys
import jax, numpy as np
folder = sys.argv[1]
for n in range(int(sys.argv[2])):
    program = jax.export.deserialize(bytearray(open(f"{folder}/{n}.stablehlo", "rb").read()))
    assert program.platforms == ("cpu", "cuda", "tpu"), program.platforms
    X = np.load(f"{folder}/{n}.X.npy")
    np.savez(f"{folder}/{n}.npz", *[program.call(X[:m]) for m in (1, 1000)])
assert not [name for name in sys.modules if name.startswith("jaxmlp")]
"""


def test_a_process_without_jaxmlp_runs_stablehlo(tmp_path):
    own = jm.MLP((5, 6, 3), cube)
    nets = [NET, own, OUTPUTS[0]]  # an output is computed as a hidden layer is
    expected = []
    for n, net in enumerate(nets):
        params, X = make(net)
        jm.export(tmp_path / f"{n}.stablehlo", net, params)
        np.save(tmp_path / f"{n}.X.npy", X)
        expected.append(np.asarray(jm.predict(net, params, X)))
    command = [sys.executable, "-c", RUN, str(tmp_path), str(len(nets))]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True)
    for n, Y_hat in enumerate(expected):
        with np.load(tmp_path / f"{n}.npz") as got:
            for m, name in zip(BATCHES, got.files, strict=True):
                np.testing.assert_allclose(got[name], Y_hat[:m], rtol=0, atol=1e-6 * max(1, np.abs(Y_hat).max()))


def test_what_cannot_be_exported_is_named(tmp_path):
    net = jm.MLP((5, 6, 3), cube)
    params, _ = make(net)
    plain = jm.MLP((5, 6, 3))
    onnx, other = tmp_path / "net.onnx", tmp_path / "net.stablehlo"
    with pytest.raises(ValueError, match=r"net has the activation 'cube' of your own, expected jaxmlp's for .onnx"):
        jm.export(onnx, net, params)
    with pytest.raises(ValueError, match="net has the activation 'relu' of your own"):
        jm.export(onnx, jm.MLP((5, 6, 3), jm.Activation("relu", jnp.tanh, jnp.tanh)), params)
    with pytest.raises(ValueError, match=r"net has products='bfloat16', expected None for .onnx"):
        jm.export(onnx, jm.MLP((5, 6, 3), products="bfloat16"), params)
    with pytest.raises(
        ValueError, match=r"params have dtype bfloat16, expected float32 for .onnx; .stablehlo takes any"
    ):
        jm.export(onnx, plain, jax.tree.map(lambda a: a.astype(jnp.bfloat16), params))
    with pytest.raises(ValueError, match=r"path is '.*net.h5' with the ending '.h5', expected .onnx or .stablehlo"):
        jm.export(tmp_path / "net.h5", plain, params)
    with pytest.raises(ValueError, match="pixels is 255, expected True or False"):
        jm.export(other, plain, params, pixels=255)
    with pytest.raises(ValueError, match=r"params: layer 1 has W \(6, 5\)"):
        jm.export(other, jm.MLP((4, 6, 3)), params)
    with pytest.raises(ValueError, match="net is a tuple, expected an MLP"):
        jm.export(other, params, params)
    with pytest.raises(ValueError, match="params are traced, expected numbers: export outside jit"):
        jax.jit(lambda params: jm.export(other, plain, params))(params)
    with pytest.raises(FileNotFoundError, match=r"absent is not there, expected a folder for net.stablehlo"):
        jm.export(tmp_path / "absent" / "net.stablehlo", plain, params)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("extra", "package"), [("onnx", "onnx"), ("stablehlo", "flatbuffers")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, extra, package):
    monkeypatch.setitem(sys.modules, package, None)
    net = jm.MLP((5, 6, 3))
    with pytest.raises(ImportError, match=rf"{package} is not installed: python3 -m pip install 'jaxmlp\[{extra}\]'"):
        jm.export(tmp_path / f"net.{extra}", net, make(net)[0])
