"""Any pytree: bit for bit there and back, whole or refused, also when the writer is killed."""

import enum
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import DTYPES, bits, random_bits

import jaxmlp as jm
from jaxmlp import files
from jaxmlp.trees import read_tree, write_tree


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


def test_a_leaf_that_the_file_holds_as_another_kind_is_read_as_what_is_held(tmp_path):
    big, order = np.arange(3, dtype=">f4"), enum.IntEnum("Order", "first")
    write_tree(tmp_path / "tree", {"big": big, "enum": order.first})
    for like in (big, np.zeros(3, np.float32)):
        got, _ = read_tree(tmp_path / "tree", like={"big": like, "enum": np.int64(0)})
        assert (got["big"] == big).all() and got["enum"] == 1


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
    with pytest.raises(ValueError, match=r"about is .*, expected a dict of JSON: .* not JSON serializable"):
        write_tree(tmp_path / "tree", {}, about={"a": leaf if leaf is print else {1}})


WRITERS = """
import os, random, signal, sys, time
import numpy as np
from jaxmlp.trees import read_tree, write_tree

path, tree = sys.argv[1], lambda number: {"a": np.full(500_000, number, np.float32), "number": number}
write_tree(path, tree(0))
seen, random = set(), random.Random(0)
for _ in range(25):
    before = os.stat(path).st_mtime_ns
    child = os.fork()
    if not child:
        number = max(seen, default=0)
        while True:
            write_tree(path, tree(number := number + 1))
    while os.stat(path).st_mtime_ns == before:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.03))
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
        [sys.executable, "-c", WRITERS, tmp_path / "tree"], capture_output=True, text=True, timeout=120
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


LEAVES = {"['a']": "float32 (3,)", "['k']": "key<fry> ()", "['n']": "int"}
TOLD = {"leaves": LEAVES, "scalars": {"['n']": 4}, "keys": {"['k']": "threefry2x32"}, "about": {}}


@pytest.mark.parametrize(
    ("stored", "tensors"),
    [
        ({}, {}),
        ({"leaves": None}, {}),
        ({"leaves": []}, {}),
        ({"scalars": 3}, {}),
        ({"keys": []}, {}),
        ({"about": ...}, {}),
        ({"scalars": {"['n']": "4"}}, {}),
        ({"scalars": {"['n']": True}}, {}),
        ({"scalars": {"['n']": [4]}}, {}),
        ({"scalars": {}}, {}),
        ({"scalars": {"['n']": 4, "['m']": 5}}, {}),
        ({"scalars": {"['n']": 4, "['a']": 5}}, {}),
        ({"keys": {"['k']": "no implementation"}}, {}),
        ({"keys": {"['k']": 5}}, {}),
        ({"keys": {"['k']": "rbg"}}, {}),
        ({"keys": {}}, {}),
        ({"keys": {"['k']": "threefry2x32", "['a']": "threefry2x32"}}, {}),
        ({"leaves": LEAVES | {"['a']": {"a": 1}}}, {}),
        ({}, {"['a']": np.ones(4, np.float32)}),
        ({}, {"['a']": np.ones(3, np.int32)}),
        ({}, {"['a']": None}),
        ({}, {"['b']": np.ones(3, np.float32)}),
        ({}, {"['k']": np.ones(3, np.uint32)}),
        ({}, {"['k']": np.ones(2, np.float32)}),
    ],
)
def test_what_is_behind_a_right_checksum_is_checked_all_the_same(tmp_path, stored, tensors):
    path, like = tmp_path / "tree", {"a": jnp.ones(3), "k": jax.random.key(0), "n": 4}
    told = {name: value for name, value in (TOLD | stored).items() if value is not ...}
    arrays = {"['a']": np.ones(3, np.float32), "['k']": np.zeros(2, np.uint32)} | tensors
    files.write(path, {name: array for name, array in arrays.items() if array is not None}, {"kind": "tree", **told})
    if not stored and not tensors:
        assert read_tree(path, like)[0]["n"] == 4
        return
    with pytest.raises(ValueError, match=r"tree (describes no tree: |: leaf|has no leaf)"):
        read_tree(path, like)


def test_a_network_is_no_leaf_that_is_left_out(tmp_path):
    with pytest.raises(ValueError, match=r"leaf \['net'\] has dtype object, expected one of float64"):
        write_tree(tmp_path / "tree", {"net": jm.MLP((1, 1))})
