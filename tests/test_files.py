"""Files: bit for bit there and back, whole or refused, also when the writer is killed."""

import json
import subprocess
import sys
import textwrap
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import assume, given
from hypothesis import strategies as st

import jaxmlp as jm
from jaxmlp import activations, files
from jaxmlp.trees import read_tree, write_tree

cube = jm.Activation("cube", lambda z: z**3, lambda z: 3 * z**2)
absolute = jm.Loss("absolute", lambda y_hat, y: jnp.abs(y_hat - y).sum(), lambda y_hat, y: jnp.sign(y_hat - y))
DTYPES = ("float32", "float64", "bfloat16", "float16")


def bits(array) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, np.asarray(array).tobytes()


def random_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Every pattern of bits: NaNs with a payload, -0, subnormal numbers."""
    dtype = jnp.dtype(dtype)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)


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
    told = {refused(raw[:length])[:60] for length in range(len(raw))}
    assert told == {"the file is truncated, corrupt or no safetensors file: Error"}
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
    with pytest.raises(ValueError, match="file tells the network's skip, which this jaxmlp does not know"):
        jm.load(path)
    files.write(path, {}, {"kind": "network", "format": 2})
    with pytest.raises(ValueError, match="file has format 2, expected 1, which this jaxmlp reads"):
        jm.load(path)
    write_tree(path, {})
    with pytest.raises(ValueError, match="file holds a tree, expected a network"):
        jm.load(path)


class State(NamedTuple):
    params: dict
    key: object
    epoch: object
    best: object = None
    done: bool = False
    note: str = "a"


@given(
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=4),
    dtype=st.sampled_from([*DTYPES, "float8_e4m3fn", "int8", "uint8", "int32", "uint32", "int64"]),
    impl=st.sampled_from(["threefry2x32", "rbg", "unsafe_rbg"]),
    number=st.one_of(st.integers(), st.floats(), st.booleans(), st.text()),
    seed=st.integers(0, 99),
)
def test_any_tree_comes_back_bit_for_bit(tmp_path, x64, shapes, dtype, impl, number, seed):
    rng = np.random.default_rng(seed)
    arrays = [random_bits(rng, tuple(shape), dtype) for shape in shapes]
    keys = jax.random.split(jax.random.key(seed, impl=impl), 2)
    tree = State({"a": [jnp.asarray(a) for a in arrays], "b.c": arrays, "d": None}, (keys, keys[0]), number)
    write_tree(tmp_path / "tree", tree, about := {"step": seed, "text": "\u20ac\n", "list": [1, None]})
    got, told = read_tree(tmp_path / "tree", like=tree)
    assert told == about
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    plain = lambda leaf: jax.random.key_data(leaf) if hasattr(leaf, "dtype") and "key" in str(leaf.dtype) else leaf
    described = lambda leaf: (type(leaf), bits(plain(leaf)) if hasattr(leaf, "dtype") else repr(leaf))
    assert jax.tree.map(described, got) == jax.tree.map(described, tree)
    assert jax.random.key_impl(got.key[1]) == impl


def test_shapes_are_enough_for_the_structure(tmp_path, key):
    make = lambda key: {"key": key, "W": jax.random.normal(key, (2, 3))}
    write_tree(tmp_path / "tree", make(key))
    got, _ = read_tree(tmp_path / "tree", like=jax.eval_shape(make, key))
    assert bits(got["W"]) == bits(make(key)["W"])
    assert bits(jax.random.key_data(got["key"])) == bits(jax.random.key_data(key))


STORED = State({"W": np.zeros((2, 3), np.float32)}, np.zeros(2), 3, best=(np.float32(1), None))


W = STORED.params["W"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"params": {"W": W.T}}, r"leaf \.params\['W'\] is float32 \(2, 3\), expected float32 \(3, 2\)"),
        ({"params": {"W": W.astype("f2")}}, r"leaf \.params\['W'\] is float32 \(2, 3\), expected float16 \(2, 3\)"),
        ({"params": {"V": W}}, r"has no leaf \.params\['V'\], expected float32 \(2, 3\)"),
        ({"key": None}, r"has a leaf \.key, float64 \(2,\), expected none there"),
        ({"epoch": 3.0}, r"leaf \.epoch is int, expected float"),
        ({"done": np.bool_(False)}, r"leaf \.done is bool, expected bool \(\)"),
        ({"best": (np.float32(1), np.float32(1))}, r"has no leaf \.best\[1\], expected float32 \(\)"),
        ({"epoch": print}, r"leaf \.epoch is int, expected a builtin_function_or_method"),
        ({"key": jax.random.key(0)}, r"leaf \.key is float64 \(2,\), expected key<fry> \(\)"),
    ],
)
def test_the_first_leaf_that_differs_is_named(tmp_path, changed, message):
    write_tree(tmp_path / "tree", STORED)
    with pytest.raises(ValueError, match=r"tree:? " + message):
        read_tree(tmp_path / "tree", like=STORED._replace(**changed))


def test_a_key_of_another_implementation_is_not_taken(tmp_path, key):
    write_tree(tmp_path / "tree", {"key": key})
    with pytest.raises(ValueError, match=r"leaf \['key'\] is key<fry> \(\), expected key<rbg> \(\)"):
        read_tree(tmp_path / "tree", like={"key": jax.random.key(0, impl="rbg")})


@pytest.mark.parametrize("leaf", [print, 1j, np.zeros(2, complex), np.asarray(["a"]), b"a"])
def test_leaves_that_no_file_holds_are_named(tmp_path, leaf):
    with pytest.raises(ValueError, match=r"leaf \['a'\] has dtype .*, expected one of float64, "):
        write_tree(tmp_path / "tree", {"a": leaf})
    with pytest.raises(ValueError, match=r"about is no JSON: .* not JSON serializable"):
        write_tree(tmp_path / "tree", {}, about={"a": leaf if leaf is print else {1}})


WRITERS = """
import os, random, signal, sys, time
import numpy as np
from jaxmlp.trees import read_tree, write_tree

path, tree = sys.argv[1], lambda number: {"a": np.full(500_000, number, np.float32), "number": number}
write_tree(path, tree(0))
seen, random = set(), random.Random(0)
for _ in range(25):
    child = os.fork()
    if not child:
        number = max(seen, default=0)
        while True:
            write_tree(path, tree(number := number + 1))
    time.sleep(random.uniform(0.005, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    got, _ = read_tree(path, tree(0))
    assert (got["a"] == got["number"]).all()
    seen.add(got["number"])
print(len(seen), len([name for name in os.listdir(os.path.dirname(path)) if name.endswith(".part")]))
"""


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path):
    """Killed 25 times while it overwrites: the file is the last whole one, and what is left over has another name."""
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WRITERS), tmp_path / "tree"], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    versions, left_over = map(int, ran.stdout.split())
    assert versions >= 3  # they did write
    assert left_over >= 3  # and were killed in the middle of it


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "tree"
    write_tree(path, {"a": 1})

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_tree(path, {"a": 2})
    assert read_tree(path, {"a": 0})[0] == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link_and_what_it_names_is_replaced(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    write_tree(target, {"a": 1})
    link.symlink_to(target)
    write_tree(link, {"a": 2})
    assert link.is_symlink() and read_tree(target, {"a": 0})[0] == {"a": 2}
