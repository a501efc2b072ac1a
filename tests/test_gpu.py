"""What only a GPU can show: `JAX_PLATFORMS=cuda,cpu python3 -m pytest -m gpu`."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import tree_error

import jaxmlp as jm

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU here")]

NET = jm.MLP((64, 128, 10), "tanh", "softmax", "cross_entropy")


def cpu():
    try:
        return jax.devices("cpu")[0]
    except RuntimeError:
        pytest.skip("JAX_PLATFORMS has no cpu to compare with")


def examples(m=256):
    X = np.random.default_rng(0).normal(size=(m, 64)).astype(np.float32)
    return X, np.abs(X).argmax(1).astype(np.int32) % 10


def test_the_gradient_passes_the_checks():
    X, Y = examples(32)
    assert jm.check_gradients(NET, jm.init(NET, jax.random.key(0)), X, Y, entries=40).passed


def test_an_epoch_is_that_of_the_cpu_to_rounding():
    """The same key draws the same batches, masks and noise; sums are taken in another order."""
    run = lambda: jm.fit(
        NET, jm.init(NET, jax.random.key(0)), examples(), optimizer=optax.sgd(0.1), epochs=1, batch_size=32, keep=0.8,
        input_noise=0.1, key=jax.random.key(1), progress=False,
    )  # fmt: skip
    here = run()
    assert {device.platform for device in here.params[0].W.devices()} == {"gpu"}
    with jax.default_device(cpu()):
        there = run()
    assert tree_error(here.params, there.params) < 1e-5


@pytest.mark.parametrize(("products", "least", "most"), [("tensorfloat32", 1e-6, 1e-2), ("bfloat16", 1e-5, 5e-2)])
def test_rounded_products_are_rounded_and_those_of_checks_are_not(products, least, most):
    X, Y = examples()
    params = jm.init(NET, jax.random.key(0))
    exact, rough = (jm.value_and_grad(net, params, X, Y)[1] for net in (NET, replace(NET, products=products)))
    with jax.default_device(cpu()):
        reference = jm.value_and_grad(NET, params, X, Y)[1]
    assert tree_error(exact, reference) < 3e-6  # sums are taken in another order; products of TF32 are off by 3e-4
    assert least < tree_error(rough, reference) < most


def test_masks_by_the_gpus_own_bits():
    masks = jm.dropout_masks(NET, jax.random.key(0, impl="rbg"), 0.5, 10_000)
    assert all(abs(float((mask > 0).mean()) - 0.5) < 0.01 for mask in masks)


def test_a_population_trains():
    many = jm.sweep(NET, examples(), keys=jax.random.split(jax.random.key(0), 64), optimizer=optax.sgd, epochs=20,
                    hyper={"learning_rate": 0.3}, batch_size=64, progress=False)  # fmt: skip
    assert bool(jnp.isfinite(many.history["cost"]).all()) and (many.history["cost"][-1] < many.history["cost"][0]).all()
