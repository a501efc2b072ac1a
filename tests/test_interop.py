"""Weights of other libraries: the same outputs here and there, and the same bits on the way back."""

import importlib.util
import os
import sys
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from problems import bits

import jaxmlp as jm

NET = jm.MLP((5, 7, 6, 3), "tanh", "identity")
SQUARE = jm.MLP((4, 4, 4), "relu")
X = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
FRAMEWORKS = ("pytorch", "flax", "equinox", "keras", "sklearn")


def make(net=NET, dtype=np.float32):
    rng = np.random.default_rng(1)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return tuple(jm.Layer(normal(o, i), normal(o)) for o, i in net.shapes)


def check_round_trip(weights, apply, params=None):
    """`weights` become parameters with the outputs `apply(X)`; where `params` are given, with their bits, too."""
    got = jm.params_from(NET, weights)
    np.testing.assert_allclose(jm.predict(NET, got, X), apply(X), rtol=0, atol=1e-6)
    if params is not None:
        assert jax.tree.map(bits, got) == jax.tree.map(bits, params)
    return got


def needs(framework):
    package = {"pytorch": "torch"}.get(framework, framework)
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@needs("pytorch")
def test_pytorch():
    import torch

    nn = torch.nn
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))
    apply = lambda X: model(torch.from_numpy(X)).detach().numpy()
    params = check_round_trip(model.state_dict(), apply)
    check_round_trip(model, apply, params)
    check_round_trip({f"module.{name}": array for name, array in model.state_dict().items()}, apply, params)
    before = jax.tree.map(bits, params)
    model.load_state_dict(jm.params_to(make(), "pytorch"))
    assert jax.tree.map(bits, params) == before  # a copy
    check_round_trip(model.state_dict(), apply, make())
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), make())
    tensors = jm.params_to(half, "pytorch", names=("a", "b", "c"))
    assert list(tensors)[:3] == ["a.weight", "a.bias", "b.weight"] and tensors["a.bias"].dtype == torch.bfloat16
    assert jax.tree.map(bits, jm.params_from(NET, tensors)) == jax.tree.map(bits, half)


@needs("flax")
def test_flax():
    from flax import linen

    class Network(linen.Module):
        @linen.compact
        def __call__(self, x):
            for n in (7, 6):
                x = linen.tanh(linen.Dense(n)(x))
            return linen.Dense(3)(x)

    model = Network()
    variables = model.init(jax.random.key(0), X)
    check_round_trip(variables, lambda X: model.apply(variables, X))
    check_round_trip(variables["params"], lambda X: model.apply(variables, X))
    ours = jm.params_to(make(), "flax")
    assert jax.tree.structure(ours) == jax.tree.structure(variables)
    check_round_trip(ours, lambda X: model.apply(ours, X), make())


@needs("flax")
def test_flax_nnx():
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for o, i in NET.shapes])

        def __call__(self, x):
            for layer in self.layers[:-1]:
                x = jnp.tanh(layer(x))
            return self.layers[-1](x)

    model = Network(nnx.Rngs(0))
    params = check_round_trip(nnx.state(model), model)
    check_round_trip(model, model, params)
    check_round_trip(nnx.to_pure_dict(nnx.state(model)), model, params)
    ours = jm.params_to(make(), "flax", names=("0", "1", "2"))["params"]
    nnx.update(model, {"layers": {int(name): layer for name, layer in ours.items()}})
    check_round_trip(model, model, make())


@needs("equinox")
def test_equinox():
    import equinox as eqx

    model = eqx.nn.Sequential([
        *(eqx.nn.Linear(5, 7, key=jax.random.key(0)), eqx.nn.Lambda(jnp.tanh)),
        *(eqx.nn.Linear(7, 6, key=jax.random.key(1)), eqx.nn.Lambda(jnp.tanh)),
        eqx.nn.Linear(6, 3, key=jax.random.key(2)),
    ])  # fmt: skip
    check_round_trip(model, jax.vmap(model))
    arrays = lambda m: [array for layer in m.layers[::2] for array in (layer.weight, layer.bias)]
    model = eqx.tree_at(arrays, model, jm.params_to(make(), "equinox"))
    check_round_trip(model, lambda X: eqx.filter_jit(lambda m, X: jax.vmap(m)(X))(model, X), make())


@needs("keras")
@pytest.mark.filterwarnings("ignore")
def test_keras(monkeypatch):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        import keras

        layers = [keras.layers.Dense(n, activation=f) for n, f in ((7, "tanh"), (6, "tanh"), (3, None))]
        model = keras.Sequential([keras.layers.Input((5,)), *layers])
        apply = lambda X: np.asarray(model(X))
        params = check_round_trip(model.get_weights(), apply)
        check_round_trip(model, apply, params)
        model.set_weights(jm.params_to(make(), "keras"))
        check_round_trip(model.get_weights(), apply, make())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scikit_learn(dtype):
    from sklearn.neural_network import MLPRegressor

    with jax.enable_x64(dtype == "float64"):
        data = X.astype(dtype)
        model = MLPRegressor(hidden_layer_sizes=(7, 6), activation="tanh", max_iter=2).fit(data, data[:, :3])
        got = jm.params_from(NET, model)
        assert got[0].W.dtype == dtype
        np.testing.assert_allclose(jm.predict(NET, got, data), model.predict(data), rtol=0, atol=1e-6)
        assert jax.tree.map(bits, jm.params_from(NET, (model.coefs_, model.intercepts_))) == jax.tree.map(bits, got)
        ours = make(dtype=dtype)
        model.coefs_, model.intercepts_ = jm.params_to(ours, "sklearn")
        assert jax.tree.map(bits, jm.params_from(NET, model)) == jax.tree.map(bits, ours)
        np.testing.assert_allclose(jm.predict(NET, ours, data), model.predict(data), rtol=0, atol=1e-6)


def test_doubles_are_rounded_where_jax_has_them_switched_off():
    weights = [np.asarray(array, np.float64) + 1e-12 for layer in make() for array in layer]
    got = jm.params_from(NET, weights)
    assert {array.dtype for array in jax.tree.leaves(got)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("net", [NET, SQUARE], ids=str)
@pytest.mark.parametrize("framework", [f for f in FRAMEWORKS if f != "pytorch"])
def test_each_form_comes_back_bit_for_bit(framework, net):
    given = make(net)
    got = jm.params_from(net, jm.params_to(given, framework), framework=framework)
    assert jax.tree.map(bits, got) == jax.tree.map(bits, given)


def numbers(*shape, start=0.0):
    return np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)


def test_layers_are_ordered_by_number_and_else_as_they_come():
    net = jm.MLP((2, *[2] * 10, 2))
    weight = lambda n: {"weight": np.full((2, 2), n, np.float32), "bias": np.full(2, n, np.float32)}
    order = lambda weights, net=net: [int(layer.b[0]) for layer in jm.params_from(net, weights)]
    flat = lambda names: OrderedDict((f"{k}.{p}", a) for n, k in enumerate(names) for p, a in weight(n).items())
    names = [f"fc{n}" for n in (1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9)]
    assert order(flat(names)) == [0, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2]
    assert order({"params": {name: weight(int(name[2:])) for name in names}}) == list(range(1, 12))
    three = jm.MLP((2, 2, 2, 2))
    assert order(flat(["encoder", "a", "decoder"]), three) == [0, 1, 2]
    assert order(flat(["blocks.0.fc1", "blocks.1.fc1", "blocks.0.fc2"]), three) == [0, 2, 1]
    assert order(flat(["dense", "dense_2", "dense_1"]), three) == [0, 2, 1]
    with pytest.raises(ValueError, match=r"weights has 'a' and 'b' of one shape \(2, 2\), and no number tells"):
        jm.params_from(three, {name: weight(0) for name in ("a", "b", "c")})


def test_one_matrix_that_is_not_square_tells_the_orientation_of_a_list():
    net = jm.MLP((4, 4, 3))
    W1, b1, W2, b2 = numbers(4, 4), numbers(4), numbers(3, 4), numbers(3)
    for weights, expected in (([W1, b1, W2, b2], W1), ([W1, b1, W2.T, b2], W1.T), ([(W1, b1), (W2, b2)], W1)):
        assert bits(jm.params_from(net, weights)[0].W) == bits(expected)
    assert bits(jm.params_from(net, {"W1": W1, "b1": b1, "W2": W2.T, "b2": b2})[0].W) == bits(W1.T)
    assert bits(jm.params_from(net, ([W1, W2.T], [b1, b2]))[0].W) == bits(W1.T)


LIST = [numbers(3, 4), numbers(3), numbers(2, 3), numbers(2)]
NAMED = {f"{name}.{part}": LIST[2 * l + at] for l, name in enumerate(("fc1", "fc2")) for at, part in
         enumerate(("weight", "bias"))}  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (NAMED | {"fc2.weight": numbers(3, 2)}, r"fc2.weight has shape \(3, 2\), expected \(out, in\) \(2, 3\)"),
        ({"kernel": numbers(3, 4), "bias": numbers(3)}, r"weights has 1 layer, kernel \(3, 4\); expected 2, for W"),
        (NAMED | {"fc2.bias": numbers(3)}, r"fc2.bias has shape \(3,\), expected \(2,\)"),
        ({k: v for k, v in NAMED.items() if k != "fc1.bias"}, r"no bias beside fc1.weight, expected one of .* \(3,\)"),
        ({k: v for k, v in NAMED.items() if k != "fc1.weight"}, r"fc1.bias of shape \(3,\) and no weights beside it"),
        (NAMED | {"bn.running_mean": numbers(3)}, r"weights has bn.running_mean of shape \(3,\), expected names that"),
        (NAMED | {"fc3.weight": numbers(2, 2)}, r"weights has 3 layers, .*fc3.weight \(2, 2\); expected 2"),
        (NAMED | {"fc1.kernel": numbers(4, 3)}, "weights has fc1.weight and fc1.kernel, expected one of them"),
        (NAMED | {"epoch": 3}, "epoch is an int, expected arrays with names, or lists of them"),
        (NAMED | {"fc1.bias": np.arange(3)}, "fc1.bias has dtype int64, expected a floating-point type"),
        (NAMED | {"fc2.bias": np.zeros(2, np.float16)}, "fc2.bias has dtype float16, fc1.weight float32, expected one"),
        ([LIST[0], LIST[1], LIST[2].T, LIST[3]], r"weights\[0\] \(3, 4\) is \(out, in\) and weights\[2\] \(3, 2\) is"),
        ([*LIST[:2], numbers(5, 3), LIST[3]], r"weights\[2\] has shape \(5, 3\), expected \(out, in\) \(2, 3\) or"),
        (LIST[::2], r"no bias beside weights\[0\], expected one of shape \(3,\); missing_biases='zeros'"),
        ([LIST[1], *LIST], r"weights has weights\[0\] and weights\[2\], expected one of them for a layer"),
        ({}, "weights is a dict without arrays in it, expected those of each layer"),
        (None, "weights is a NoneType without arrays"),
        (numbers(3, 4), "weights is a ndarray without arrays in it"),
        ({"rngs": jax.random.key(0)}, "rngs is a key, expected weights"),
        (7, "weights is an int, expected arrays with names"),
        ({"epoch": 3, "model": NAMED}, r"epoch is an int, expected arrays .*; pass weights\['model'\]$"),
        ({"net": NAMED, "ema": NAMED}, r"weights has 4 layers, .*; pass weights\['net'\] or weights\['ema'\]$"),
        ({"net": {"fc1.weight": numbers(1, 1)}}, r"weights has 1 layer, .*, \(2, 3\)$"),
        (iter(LIST), "weights is a list_iterator, expected arrays with names, or lists of them: pass a list or dict"),
        ("model.pt", r"model.pt is a pickle by its ending .pt, .*expected a safetensors file"),
        ("absent.safetensors", "absent.safetensors is not there, expected a safetensors file"),
    ],
)
def test_what_does_not_fit_is_named(weights, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        jm.params_from(jm.MLP((4, 3, 2)), weights)


def test_arguments_are_checked():
    square = [numbers(4, 4), numbers(4)] * 2
    with pytest.raises(ValueError, match=r"weights\[0\] has shape \(4, 4\), which is square, so .* both fit"):
        jm.params_from(SQUARE, square)
    assert bits(jm.params_from(SQUARE, square, framework="keras")[0].W) == bits(square[0].T)
    assert bits(jm.params_from(SQUARE, square, framework="pytorch")[0].W) == bits(square[0])
    zeros = jm.params_from(SQUARE, square[::2], framework="pytorch", missing_biases="zeros")
    assert not np.any(zeros[1].b)
    for call, message in (
        (lambda: jm.params_from(SQUARE, square, framework="kears"), "framework is 'kears', .*did you mean 'keras'"),
        (lambda: jm.params_from(SQUARE, square, missing_biases="ones"), "missing_biases is 'ones', expected one of"),
        (lambda: jm.params_from(make(), square), "net is a tuple, expected an MLP"),
        (lambda: jm.params_to(make(), "torch"), "framework is 'torch', expected one of 'pytorch'"),
        (lambda: jm.params_to("keras", make()), r"framework is \(Layer\(.{,100}\), expected one of 'pytorch'"),
        (lambda: jm.params_from(NET, [np.ma.masked_equal(numbers(7, 5), 1)]), r"weights\[0\] is masked in places"),
        (lambda: jm.params_to(NET, "keras"), "params is a MLP, expected a tuple of layers"),
        (lambda: jm.params_to(make()[::2], "keras"), r"params: layer 2 has W \(3, 6\)"),
        (lambda: jm.params_to(make(), "flax", names=("a", "a", "b")), "expected 3 different names, one for each layer"),
        (lambda: jm.params_to(make(), "keras", names=("a", "b", "c")), "expected None: 'keras' has no names"),
        (lambda: jax.jit(lambda p: jm.params_to(p, "keras"))(make()), "W of params is traced, expected numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_safetensors_files_of_others(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({f"module.{name}": array for name, array in NAMED.items()}, path)
    net = jm.MLP((4, 3, 2))
    assert bits(jm.params_from(net, path)[1].W) == bits(LIST[2])
    assert bits(jm.params_from(net, str(path))[0].W) == bits(LIST[0])
    with pytest.raises(ValueError, match=r"model.safetensors: module.fc1.weight has shape \(3, 4\), expected"):
        jm.params_from(jm.MLP((3, 3, 2)), path)
    told = r"a safetensors file that jaxmlp did not write; it holds 'module.fc1.bias' \(3,\), .*jaxmlp.params_from\(net"
    with pytest.raises(ValueError, match=told):
        jm.load(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model.safetensors is truncated, corrupt or no safetensors file"):
        jm.params_from(net, path)


def test_no_library_is_imported_by_jaxmlp():
    import subprocess

    code = "import sys, jaxmlp; print(*[m for m in ('torch', 'flax', 'equinox', 'keras', 'onnx') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.strip() == ""
