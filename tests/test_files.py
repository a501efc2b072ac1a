"""Files: bit for bit there and back, whole or refused."""

import json
import os
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import assume, given
from hypothesis import strategies as st
from problems import DTYPES, bits, random_bits

import jaxmlp as jm
from jaxmlp import activations, files
from jaxmlp.trees import write_tree

cube = jm.Activation("cube", lambda z: z**3, lambda z: 3 * z**2)
absolute = jm.Loss("absolute", lambda y_hat, y: jnp.abs(y_hat - y).sum(), lambda y_hat, y: jnp.sign(y_hat - y))


def random_params(net, seed: int, dtype: str = "float32"):
    rng = np.random.default_rng(seed)
    return tuple(jm.Layer(random_bits(rng, s, dtype), random_bits(rng, s[:1], dtype)) for s in net.shapes)


HIDDEN = [name for name in activations.NAMED if name != "softmax"]


@given(
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    hidden=st.lists(st.sampled_from([*HIDDEN, cube]), min_size=3, max_size=3),
    last=st.sampled_from([("softmax", "cross_entropy"), ("tanh", absolute), (cube, "squared_error")]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_a_network_comes_back_bit_for_bit(tmp_path, x64, sizes, hidden, last, dtype, seed):
    assume(last[0] != "softmax" or sizes[-1] > 1)
    net = jm.MLP(sizes, hidden[: len(sizes) - 2], *last)
    params = random_params(net, seed, dtype)
    jm.save(tmp_path / "net", net, params)
    loaded, got = jm.load(tmp_path / "net", own=(cube, absolute))
    assert loaded == net and hash(loaded) == hash(net)
    assert jax.tree.structure(got) == jax.tree.structure(params)
    assert all(isinstance(array, jax.Array) for array in jax.tree.leaves(got))
    assert jax.tree.map(bits, got) == jax.tree.map(bits, params)


def test_a_file_is_plain_safetensors_with_a_description(tmp_path):
    net = jm.MLP((3, 4, 2), hidden="tanh", output="softmax", loss="cross_entropy")
    path = tmp_path / "net.safetensors"
    for _ in range(2):
        jm.save(path, net, params := random_params(net, 0))
        first, raw = path.read_bytes(), path.read_bytes()
        assert raw == first  # the same network gives the same bytes
    arrays = safetensors.numpy.load_file(path)
    assert sorted(arrays) == ["W1", "W2", "b1", "b2"]
    assert bits(arrays["W2"]) == bits(params[1].W)
    with safetensors.safe_open(path, "np") as file:
        told = json.loads(file.metadata()["jaxmlp"])
    assert told["net"] == {"sizes": [3, 4, 2], "hidden": ["tanh"], "output": "softmax", "loss": "cross_entropy"}
    assert (told["format"], told["kind"]) == (1, "network")
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]  # nothing temporary is left


def test_functions_of_ones_own_are_asked_for(tmp_path):
    net = jm.MLP((2, 3, 3, 1), hidden=(cube, "relu"), loss=absolute)
    jm.save(tmp_path / "net", net, random_params(net, 0))
    assert jm.load(tmp_path / "net", own=[absolute, cube])[0] == net
    with pytest.raises(ValueError, match=r"net uses the activation 'cube' and the loss 'absolute', not among jaxmlp's"):
        jm.load(tmp_path / "net")
    with pytest.raises(ValueError, match="net uses the loss 'absolute'"):
        jm.load(tmp_path / "net", own=(cube,))
    with pytest.raises(ValueError, match=r"own is .*, expected a tuple of Activation and Loss"):
        jm.load(tmp_path / "net", own=cube)
    other = jm.Activation("cube", jnp.tanh, jnp.tanh)
    with pytest.raises(ValueError, match=r"own has a function 'cube' .* two of that name"):
        jm.load(tmp_path / "net", own=(cube, other))


@pytest.mark.parametrize(
    ("hidden", "loss"),
    [
        (jm.Activation("relu", jnp.tanh, jnp.tanh), "squared_error"),
        ((cube, jm.Activation("cube", jnp.tanh, jnp.tanh)), "squared_error"),
        ("relu", jm.Loss("squared_error", absolute.f, absolute.df)),
    ],
)
def test_a_name_that_is_another_functions_is_refused(tmp_path, hidden, loss):
    net = jm.MLP((2, 3, 3, 1), hidden, loss=loss)
    with pytest.raises(ValueError, match=r"net has a function '(relu|cube|squared_error)' that is not"):
        jm.save(tmp_path / "net", net, random_params(net, 0))
    assert not list(tmp_path.iterdir())


def test_float64_is_not_cut_to_float32(tmp_path):
    net = jm.MLP((2, 1))
    with jax.enable_x64(True):
        jm.save(tmp_path / "net", net, random_params(net, 0, "float64"))
    with pytest.raises(ValueError, match=r"net: W1 has dtype float64, which JAX has switched off; jax\.config\.update"):
        jm.load(tmp_path / "net")


def test_what_cannot_be_saved_is_named(tmp_path):
    net = jm.MLP((2, 1))
    params = random_params(net, 0)
    with pytest.raises(ValueError, match=r"params: layer 1 has W \(1, 2\) and b \(1,\), expected \(1, 3\)"):
        jm.save(tmp_path / "net", jm.MLP((3, 1)), params)
    with pytest.raises(ValueError, match="W of layer 1 is traced, expected numbers: save outside jit"):
        jax.jit(lambda params: jm.save(tmp_path / "net", net, params))(params)
    with pytest.raises(FileNotFoundError, match="absent is not there, expected a folder for net"):
        jm.save(tmp_path / "absent" / "net", net, params)
    with pytest.raises(ValueError, match="is a folder, expected a file's name"):
        jm.save(tmp_path, net, params)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    path, net = tmp_path_factory.mktemp("files") / "net", jm.MLP((2, 3, 1))
    jm.save(path, net, random_params(net, 0))
    return path.read_bytes()


def refused(raw: bytes) -> str:
    with pytest.raises(ValueError) as error:
        files.decode(raw, "network", "the file")
    return str(error.value)


def test_truncated_at_any_length_or_longer_a_file_is_refused(raw):
    files.decode(raw, "network", "the file")
    told = {refused(raw[:length])[:54] for length in range(len(raw))}
    assert told == {"the file is truncated, corrupt or no safetensors file:"}
    assert "no safetensors" in refused(raw + b"x")


def test_any_flipped_bit_is_found(raw):
    """Each bit of each byte: length, header, description, checksum, padding and numbers."""
    for place in range(len(raw)):
        for bit in range(8):
            flipped = bytearray(raw)
            flipped[place] ^= 1 << bit
            assert "corrupt" in refused(bytes(flipped))
    assert "the file is corrupt: its SHA-256 is" in refused(bytes(flipped))  # the last one is a number's


def test_foreign_missing_and_later_files_are_named(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match="file is not there, expected a file of jaxmlp's with a network"):
        jm.load(path)
    with pytest.raises(ValueError, match="is a folder, expected a file of jaxmlp's"):
        jm.load(tmp_path)
    for metadata in (None, {"jaxmlp": "[]"}, {"jaxmlp": "{"}, {"format": "pt"}):
        safetensors.numpy.save_file({"W": np.zeros(3)}, path, metadata)
        with pytest.raises(ValueError, match="file is corrupt, or a safetensors file that jaxmlp did not write"):
            jm.load(path)
    files.write(path, {}, {"kind": "network", "net": {"sizes": [1, 2], "skip": True}})
    with pytest.raises(ValueError, match="file has the network's skip, expected fields of this jaxmlp's MLP"):
        jm.load(path)
    files.write(path, {}, {"kind": "network", "format": 2})
    with pytest.raises(ValueError, match="file has format 2, expected 1, which this jaxmlp reads"):
        jm.load(path)
    write_tree(path, {})
    with pytest.raises(ValueError, match="file holds a tree, expected a network"):
        jm.load(path)


def describe(change=None, **fields):
    """The description of a network of 3-4-2, with a field changed; `...`: left out."""
    made = {"sizes": [3, 4, 2], "hidden": ["tanh"], "output": "identity", "loss": "squared_error"} | fields
    return {"net": {name: value for name, value in made.items() if value is not ...}} if change is None else change


ARRAYS = {"W1": (4, 3), "b1": (4,), "W2": (2, 4), "b2": (2,)}


@pytest.mark.parametrize(
    ("told", "changed"),
    [
        (describe(sizes=[3, 5, 2]), {}),
        (describe(sizes=[3, 4, 2, 2]), {}),
        (describe(sizes=[3.0, 4, 2]), {}),
        (describe(sizes=[True, 4, 2]), {}),
        (describe(sizes=[2]), {}),
        (describe(sizes=[3, 10**30, 2]), {}),
        (describe(sizes="342"), {}),
        (describe(sizes=...), {}),
        (describe(hidden=[[]]), {}),
        (describe(hidden="tanh"), {}),
        (describe(hidden=[]), {}),
        (describe(hidden=["tanh", "tanh"]), {}),
        (describe(hidden=["softmax"]), {}),
        (describe(hidden=[None]), {}),
        (describe(output="sigmoid", loss={}), {}),
        (describe(output=None), {}),
        (describe(output="relu", loss="cross_entropy"), {}),
        (describe(products="fast"), {}),
        (describe(products=[]), {}),
        (describe(change={}), {}),
        (describe(change={"net": 5}), {}),
        (describe(change={"net": [1]}), {}),
        (describe(), {"b2": None}),
        (describe(), {"W3": np.ones((2, 2), np.float32)}),
        (describe(), {"W1": np.ones((3, 4), np.float32)}),
        (describe(), {"W1": np.ones((4, 3), np.int32)}),
        (describe(), {"b2": np.ones(2, np.float16)}),
    ],
)
def test_what_is_behind_a_right_checksum_is_checked_all_the_same(tmp_path, told, changed):
    tensors = {name: np.ones(shape, np.float32) for name, shape in ARRAYS.items()} | changed
    files.write(
        tmp_path / "net", {name: a for name, a in tensors.items() if a is not None}, {"kind": "network", **told}
    )
    with pytest.raises(ValueError, match="net"):
        jm.load(tmp_path / "net")


def test_no_more_is_read_than_the_header_promises(tmp_path, raw):
    path = tmp_path / "net"
    for begin in (raw, b"", (2**40).to_bytes(8, "little"), (8).to_bytes(8, "little") + b"[" * 8):
        path.write_bytes(begin)
        os.truncate(path, 2**36)  # a hole, which no memory would hold
        with pytest.raises(ValueError, match="net is truncated, corrupt or no safetensors file"):
            jm.load(path)


def test_a_full_disk_is_named_and_leaves_no_part(tmp_path):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    net = jm.MLP((2, 1))
    jm.save(tmp_path / "net", net, params := random_params(net, 0))
    before = (tmp_path / "net").read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))
        with pytest.raises(OSError, match=r"File too large: '.*net'"):
            jm.save(tmp_path / "net", net, params)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
