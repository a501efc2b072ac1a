"""Networks, activations, losses and results survive pickle, copy and other processes, and stay what they were."""

import copy
import functools
import multiprocessing
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import NET, examples, fit, search, sweep

import jaxmlp as jm


def softsign(z):
    return z / (1 + jnp.abs(z))


def softsign_df(z):
    return 1 / (1 + jnp.abs(z)) ** 2


@jax.custom_jvp
def stepped(z):
    return jnp.tanh(z)


stepped.defjvp(lambda z, dz: (jnp.tanh(z[0]), dz[0]))
jitted = jax.jit(softsign)


def absolute(a, y):
    return jnp.abs(a - y).sum()


def absolute_df(a, y):
    return jnp.sign(a - y)


class Bounded(jm.Activation):
    """A class of a user's own."""


OWN = jm.Activation("softsign", softsign, softsign_df, range=(-1, 1), kinks=(0,))
NETS = (
    jm.MLP((2, 3, 1)),
    jm.MLP((2, 3, 4, 2), ("elu", "gelu"), "sigmoid", "binary_cross_entropy", "bfloat16"),
    jm.MLP((2, 3, 2), OWN, "softmax", "cross_entropy"),
    jm.MLP((2, 3, 2), OWN, OWN, jm.Loss("absolute", absolute, absolute_df)),
    jm.MLP((2, 3, 2), jm.Activation("stepped", stepped, softsign_df)),
    jm.MLP((2, 3, 2), jm.Activation("jitted", jitted, softsign_df)),
    jm.MLP((2, 3, 2), Bounded("relu", softsign, softsign_df)),  # a name that jaxmlp uses, too
    jm.MLP((2, 3, 2), jm.Activation("erf", jax.scipy.special.erf, softsign_df)),
)
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.mark.parametrize("net", NETS, ids=repr)
def test_a_copy_of_a_network_is_equal_to_it(net):
    pickled = [pickle.loads(pickle.dumps(net, protocol)) for protocol in PROTOCOLS]
    for made in (*pickled, copy.copy(net), copy.deepcopy(net), copy.deepcopy({"nets": [net]})["nets"][0]):
        assert made == net and hash(made) == hash(net) and repr(made) == repr(net)
        assert [type(f) for f in made.activations] == [type(f) for f in net.activations]


def test_a_named_one_comes_back_as_itself():
    for named in (*jm.activations.NAMED.values(), *jm.losses.NAMED.values(), jm.rules.backprop):
        assert copy.deepcopy(named) is named
        assert all(pickle.loads(pickle.dumps(named, protocol)) is named for protocol in PROTOCOLS)


def test_what_no_module_holds_is_copied_and_not_pickled():
    net = jm.MLP((2, 3, 2), jm.Activation("partial", functools.partial(softsign), lambda z: softsign_df(z)))
    assert copy.deepcopy(net) == net
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(net)


def test_a_copy_compiles_no_second_program(compilations):
    @functools.partial(jax.jit, static_argnames="net")
    def anyones(net, params, X):
        return jm.predict(net, params, X)

    params = jm.init(NET, jax.random.key(0))
    X, _ = examples()
    anyones(NET, params, X)
    compilations.clear()
    for net in (copy.deepcopy(NET), pickle.loads(pickle.dumps(NET))):
        anyones(net, params, X)
        jm.as_function(net)
    assert not [name for name in compilations if name == "anyones"]
    assert jm.as_function(copy.deepcopy(NET)) is jm.as_function(NET)


def is_the_same(net):
    return net == NETS[0], net.hidden[0] is jm.activations.relu


def test_networks_go_to_another_process_and_come_back():
    code = "import pickle, sys; nets = pickle.load(sys.stdin.buffer); pickle.dump(nets, sys.stdout.buffer)"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(NETS[:2]), capture_output=True, check=True)
    assert pickle.loads(done.stdout) == NETS[:2]


def test_joblib_takes_networks():
    joblib = pytest.importorskip("joblib")
    assert joblib.Parallel(2, "threading")(joblib.delayed(is_the_same)(net) for net in NETS[:1]) == [(True, True)]
    assert multiprocessing.reduction.ForkingPickler.loads(
        multiprocessing.reduction.ForkingPickler.dumps(NETS[3])
    ) == NETS[3]  # fmt: skip


def test_results_are_pickled_and_shown_in_a_line():
    params, data = jm.init(NET, jax.random.key(0)), examples(20)
    made = {
        "Trace": jm.backprop(NET, params, *data),
        "Report": jm.check_gradients(NET, params, *data, entries=2),
        "Circuit": jm.circuit(lambda x, y: jnp.tanh(x * y), 1.0, 2.0),
        "Result": fit(params, optimizer=optax.sgd(0.1, momentum=0.9), validation=data),
        "SweepResult": sweep(),
        "SearchResult": search({"learning_rate": [0.1, 0.2]}, epochs=1),
    }
    for name, result in made.items():
        again = pickle.loads(pickle.dumps(result))
        assert repr(again) == repr(result) and str(again) == str(result)
        assert repr(result).startswith(f"{name}(") and len(repr(result)) < 300 and "\n" not in repr(result)
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(result), strict=True):
            assert isinstance(a, type(result)) or np.array_equal(a, b)
    assert repr(made["Trace"]) == "Trace(20 examples of 3-5-2, float32)"
    assert repr(made["SweepResult"]).startswith("SweepResult(4 members; best: member=")
    retrained = pickle.loads(pickle.dumps(made["SearchResult"])).retrain(epochs=1, progress=False)
    assert np.array_equal(retrained.params[0].W, made["SearchResult"].retrain(epochs=1, progress=False).params[0].W)
