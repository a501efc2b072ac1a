"""`fit` on batches that are read as it goes: the same steps as on arrays, in bounded memory, and its mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from internals import stream_module
from problems import NET, examples, fit, gradient, tree_error

import jaxmlp as jm


def batches(size, m=22):
    X, Y = examples(m)
    return [(X[i : i + size], Y[i : i + size]) for i in range(0, m, size)]


def test_each_batch_is_a_step_the_ragged_last_one_included(params, monkeypatch):
    monkeypatch.setattr(stream_module, "PART_STEPS", 2)  # 4 and 4, 4 and 4, 4, 2: parts of several lengths and shapes
    got = fit(params, batches(4), epochs=2)
    assert tree_error(got.params, oracles.sgd(params, batches(4) * 2, 0.1, gradient)) <= 5e-6
    X, Y = examples(22)
    whole = fit(params, [(X, Y)], epochs=2, validation=(X, Y))
    arrays = fit(params, (X, Y), epochs=2, batch_size=22, validation=(X, Y))
    assert tree_error(whole.params, arrays.params) <= 1e-6
    for name in ("cost", "accuracy", "validation_cost"):
        np.testing.assert_allclose(whole.history[name], arrays.history[name], rtol=1e-5)
    assert whole.best_epoch == arrays.best_epoch


def test_a_batch_may_have_weights_which_count_as_they_are(params):
    w = np.linspace(0, 2, 22).astype(np.float32)
    weighted = [(X, Y, w[4 * i : 4 * i + 4]) for i, (X, Y) in enumerate(batches(4))]
    loss = lambda p, X, Yw: jnp.mean(jm.backprop(NET, p, X, Yw[0]).losses * Yw[1])
    steps = [(X, (Y, w)) for X, Y, w in weighted]
    expected = oracles.sgd(params, steps, 0.1, jax.jit(jax.grad(loss)))
    assert tree_error(fit(params, weighted).params, expected) <= 1e-5
    X, Y, w = weighted[0]
    with pytest.raises(ValueError, match="data: weights of batch 0 have a sum that float32 cannot hold"):
        fit(params, [(X, Y, np.full_like(w, 1e38))])


def test_each_epoch_reads_anew_and_is_told_its_number(params):
    class Loader:
        told, read = [], 0

        def set_epoch(self, number):
            self.told.append(number)

        def __iter__(self):
            self.read += 1
            return iter([list(batch) for batch in batches(11)])  # lists, as PyTorch's loaders give

    loader = Loader()
    fit(params, loader, epochs=3)
    assert loader.told == [0, 1, 2] and loader.read == 3


def test_dropout_differs_from_batch_to_batch_and_repeats_with_the_key(params):
    same = [(examples(4)[0], examples(4)[1])] * 3
    run = lambda key: fit(params, same, keep=0.5, optimizer=optax.sgd(0.0), key=key).history["cost"][0]
    assert run(jax.random.key(1)) == run(jax.random.key(1)) != run(jax.random.key(2))


def test_labels_may_be_true_and_false(params):
    given = [(X, Y == 1) for X, Y in batches(11)]
    assert tree_error(fit(params, given).params, fit(params, batches(11)).params) == 0


def test_what_goes_wrong_while_reading_is_raised(params):
    class Exhausted:
        def __init__(self):
            self.times = 0

        def __iter__(self):
            self.times += 1
            return iter(batches(11) if self.times < 2 else [])

    class Broken:
        def __iter__(self):
            yield from batches(11)
            raise OSError("the disk is gone")

    with pytest.raises(ValueError, match=r"data gave no batches in epoch 2; expected an object that starts anew"):
        fit(params, Exhausted(), epochs=2)
    with pytest.raises(OSError, match="the disk is gone"):
        fit(params, Broken())
    with pytest.raises(ValueError, match=r"data gives no batches, expected at least one \(X, Y\)"):
        fit(params, [])
    with pytest.raises(ValueError, match=r"Y of batch 1 holds the class 7, expected classes 0 to 1"):
        fit(params, [examples(22), (examples(22)[0], np.full(22, 7))])
    with pytest.raises(ValueError, match=r"data: X of batch 1 has 4 features, the network takes"):
        fit(params, [examples(22), (np.zeros((22, 4), np.float32), examples(22)[1])])


MEMORY = """
import json, resource, sys
import jax, numpy as np, optax
import jaxmlp as jm

class Made:  # 1.2 GB a pass, made while it is read
    def __iter__(self):
        block = np.random.default_rng(0).integers(0, 256, (512, 784), dtype=np.uint8)
        for i in range(3000):
            yield np.roll(block, i, axis=0), np.arange(512, dtype=np.int32) % 10

net = jm.MLP((784, 8, 10), output="softmax", loss="cross_entropy")
run = lambda data, epochs: jm.fit(net, jm.init(net, jax.random.key(0)), data, optimizer=optax.sgd(0.01), epochs=epochs,
                                  key=jax.random.key(0), preprocess=jm.data.scale_pixels, progress=False)
anonymous = lambda: int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1]) // 1024
run([next(iter(Made()))] * 20, 2)  # all that is compiled and allocated once
before = anonymous()
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]) * 2**20 + data_size, -1)) if (data_size := int(
    next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) * 1024) else None
result = run(Made(), 1)
print(json.dumps({"grown": anonymous() - before, "cost": result.history["cost"][-1]}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_a_stream_larger_than_the_memory_it_is_allowed_stays_within_it():
    """1.2 GB of batches while the process may not allocate 300 MB more than it has."""
    done = subprocess.run([sys.executable, "-c", MEMORY, "300"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)
    assert seen["grown"] < 200 and np.isfinite(seen["cost"])


class Refilled:
    """A loader that fills the same arrays again and again."""

    def __iter__(self):
        x, y = np.empty((8, 3), np.float32), np.empty(8, np.int32)
        for i in range(0, 40, 8):
            x[:], y[:] = examples(40)[0][i : i + 8], examples(40)[1][i : i + 8]
            yield x, y


class Once:
    """A loader with one iterator for ever."""

    def __init__(self):
        self.iterator = iter([tuple(np.copy(a) for a in batch) for batch in Refilled()])

    def __iter__(self):
        return self.iterator


def test_no_batch_is_lost_or_overwritten(params):
    fresh = [tuple(np.copy(a) for a in batch) for batch in Refilled()]
    expected = fit(params, fresh, epochs=2, monitor=True)
    got = fit(params, Refilled(), epochs=2, monitor=True)
    assert tree_error(got.params, expected.params) == 0
    np.testing.assert_array_equal(got.history["delta_norm"], expected.history["delta_norm"])
    assert tree_error(fit(params, Once()).params, fit(params, fresh).params) == 0
    with pytest.raises(ValueError, match=r"data gave no batches in epoch 2; expected an object that starts anew"):
        fit(params, Once(), epochs=2)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (list(examples()), r"data is a list of two arrays, expected a tuple \(X, Y\)"),
        (examples()[0], r"data is a ndarray, expected a tuple \(X, Y\), or a re-iterable of batches"),
        ({"X": examples()[0], "Y": examples()[1]}, r"data is a dict, expected a tuple"),
        ((examples() for _ in range(3)), r"data is a generator, which can be read only once"),
        (
            type("Dataset", (), {"__getitem__": lambda self, i: examples()})(),
            "data is a Dataset, which gives examples one by one",
        ),
        (type("Nothing", (), {})(), r"data is a Nothing, expected a tuple"),
    ],
)
def test_data_in_another_container_is_named_before_its_batch_size(params, data, match):
    with pytest.raises(ValueError, match=match):
        fit(params, data, batch_size=4)


def test_a_streams_weights_beside_a_readout_are_refused(params):
    """They would scale the readout's result: a private one by private data."""
    X, Y = examples()
    clipped = lambda trace, weights, key: jm.clipped_gradient(trace, 1.0, weights)
    with pytest.raises(ValueError, match="data: batch 0 has weights, expected none with a readout"):
        fit(params, [(X, Y, np.full(10, 3.0, np.float32))], readout=clipped)
