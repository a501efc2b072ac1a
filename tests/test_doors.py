"""The first argument of public functions: no class for a network, no array for a trace."""

import jax
import numpy as np
import pytest
from problems import NET, SGD, examples

import jaxmlp as jm

pytestmark = pytest.mark.wrong_arguments

X, Y = examples(6)
KEY = jax.random.key(0)
PARAMS = jm.init(NET, KEY)
_, TAPE = jm.forward(NET, PARAMS, X[0])

OF_NETS = {
    "init": lambda net: jm.init(net, KEY),
    "predict": lambda net: jm.predict(net, PARAMS, X),
    "cost": lambda net: jm.cost(net, PARAMS, X, Y),
    "value_and_grad": lambda net: jm.value_and_grad(net, PARAMS, X, Y),
    "backprop": lambda net: jm.backprop(net, PARAMS, X, Y),
    "forward": lambda net: jm.forward(net, PARAMS, X[0]),
    "backward": lambda net: jm.backward(net, PARAMS, TAPE, np.ones(2, np.float32)),
    "output_delta": lambda net: jm.output_delta(net, TAPE, Y[0]),
    "output_loss": lambda net: jm.output_loss(net, TAPE, Y[0]),
    "tail_loss": lambda net: jm.tail_loss(net, PARAMS, 1, np.ones(5, np.float32), Y[0]),
    "sample_labels": lambda net: jm.sample_labels(net, X[:, :2], KEY),
    "check_gradients": lambda net: jm.check_gradients(net, PARAMS, X, Y),
    "dropout_masks": lambda net: jm.dropout_masks(net, KEY, 0.5, 3),
    "as_function": lambda net: jm.as_function(net),
    "in_chunks": lambda net: jm.in_chunks(jm.mean_gradient, net, PARAMS, X, Y, size=2),
    "hvp": lambda net: jm.hvp(net, PARAMS, X, Y, PARAMS),
    "hessian_root": lambda net: jm.hessian_root(net, TAPE, Y[0]),
    "ntk": lambda net: jm.ntk(net, PARAMS, X),
    "influence": lambda net: jm.influence(net, PARAMS, (X, Y), (X, Y), progress=False),
    "laplace": lambda net: jm.laplace(net, PARAMS, X, Y),
    "mup": lambda net: jm.mup(net, 5, SGD),
    "mup_weights": lambda net: jm.mup_weights(net, 5),
    "save": lambda net: jm.save("net", net, PARAMS),
    "fit": lambda net: jm.fit(net, PARAMS, (X, Y), optimizer=SGD, epochs=1, key=KEY, progress=False),
    "sweep": lambda net: jm.sweep(net, (X, Y), optimizer=SGD, epochs=1, keys=KEY, progress=False),
}


@pytest.mark.parametrize("door", OF_NETS)
@pytest.mark.parametrize("net", [jm.MLP, PARAMS, X, None], ids=["the class", "params", "an array", "None"])
def test_what_is_no_network_is_named(door, net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"net is (the class MLP|an? tuple|an? ndarray|an? NoneType|<class|None|array|\(|\[)"
    ):
        OF_NETS[door](net)


def test_a_network_goes_into_any_program_as_it_is():
    """It is static: a caller who forgets `static_argnums` gets the same result, and another network another program."""
    expected = jm.cost(NET, PARAMS, X, Y)
    cost = jax.jit(jm.cost)
    assert float(cost(NET, PARAMS, X, Y)) == pytest.approx(float(expected), rel=1e-6)
    assert jax.tree.leaves(NET) == [] and jax.tree.map(lambda x: x, {"net": NET})["net"] is NET
    other = jm.MLP(NET.sizes, "relu", "softmax", "cross_entropy")
    assert float(cost(other, PARAMS, X, Y)) == pytest.approx(float(jm.cost(other, PARAMS, X, Y)), rel=1e-6)
    assert float(cost(other, PARAMS, X, Y)) != float(expected)


OF_TRACES = {
    "mean_gradient": jm.mean_gradient,
    "per_example_gradients": jm.per_example_gradients,
    "delta_norms": jm.delta_norms,
    "layer_norms": jm.layer_norms,
    "per_example_norms": jm.per_example_norms,
    "second_moment": jm.second_moment,
    "variance": jm.variance,
    "noise_scale": jm.noise_scale,
    "gradient_gram": jm.gradient_gram,
    "kronecker_factors": jm.kronecker_factors,
    "clipped_gradient": lambda trace: jm.clipped_gradient(trace, 1.0),
    "private_gradient": lambda trace: jm.private_gradient(trace, 1.0, 1.0, KEY),
    "alignment": lambda trace: jm.alignment(trace, jm.backprop(NET, PARAMS, X, Y)),
    "a reference": lambda trace: jm.alignment(jm.backprop(NET, PARAMS, X, Y), trace),
    "by its name": lambda trace: jm.mean_gradient(trace=trace),
}


@pytest.mark.parametrize("readout", OF_TRACES)
def test_what_is_no_trace_is_named(readout):
    for wrong in (X, PARAMS, None, jm.Trace, NET):
        with pytest.raises(ValueError, match=r"trace is an? \w+, expected a Trace such as jaxmlp.backprop gives"):
            OF_TRACES[readout](wrong)
