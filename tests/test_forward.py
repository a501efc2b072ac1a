"""One example, batches of them, masks, the tail as a loss, and preprocessing."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from problems import TABLE

import jaxmlp as jm

table = pytest.mark.parametrize("problem", TABLE, ids=str)


@pytest.fixture(autouse=True)
def double(x64):
    pass


@table
def test_forward_is_the_obvious_network(problem):
    params, X, _, _, _, masks = problem.make()
    for i, x in enumerate(X):
        mask = None if masks is None else tuple(m[i] for m in masks)
        y_hat, tape = jm.forward(problem.net, params, x, mask)
        expected = oracles.network(problem.hidden, problem.output, params, x, mask)
        np.testing.assert_allclose(y_hat, expected, rtol=1e-12)
        assert [z.shape for z in tape.pre_activations] == [(n,) for n in problem.sizes[1:]]
        assert [a.shape for a in tape.inputs] == [(n,) for n in problem.sizes[:-1]]


@table
def test_a_batch_equals_its_stacked_examples(problem):
    params, X, Y, _, _, _ = problem.make()
    singles = jnp.stack([jm.forward(problem.net, params, x)[0] for x in X])
    np.testing.assert_allclose(jm.predict(problem.net, params, X), singles, rtol=1e-14)
    losses = [jm.output_loss(problem.net, jm.forward(problem.net, params, x)[1], y) for x, y in zip(X, Y, strict=True)]
    np.testing.assert_allclose(jm.backprop(problem.net, params, X, Y).losses, losses, rtol=1e-14)


@table
def test_cost_is_the_obvious_weighted_mean(problem):
    params, X, Y, rows, weights, masks = problem.make()
    got = jm.cost(problem.net, params, X, Y, weights=weights, masks=masks)
    expected = oracles.cost(problem.hidden, problem.output, problem.loss, params, X, rows, weights, masks)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_both_orientations_of_the_notes_give_the_same_numbers():
    """`f(W x + b)` and, with the examples as rows, `f(X W^T + b)`."""
    net = jm.MLP((4, 3, 3), hidden="sigmoid")
    params = jm.init(net, jax.random.key(0), biases="small_normal")
    X = jax.random.normal(jax.random.key(1), (5, 4))
    A = jax.nn.sigmoid(X @ params[0].W.T + params[0].b[None])
    np.testing.assert_allclose(jm.predict(net, params, X), A @ params[1].W.T + params[1].b[None], rtol=1e-13)


@table
def test_the_tail_is_the_same_loss_at_every_layer(problem):
    """`l_t(o_t) = l_(t+1)(o_(t+1)) = ... = loss`, row 27 of the notes' systems."""
    params, X, Y, _, _, masks = problem.make()
    mask = None if masks is None else tuple(m[0] for m in masks)
    _, tape = jm.forward(problem.net, params, X[0], mask)
    loss = jm.output_loss(problem.net, tape, Y[0])
    for layer, z in enumerate(tape.pre_activations, start=1):
        np.testing.assert_allclose(jm.tail_loss(problem.net, params, layer, z, Y[0], mask), loss, rtol=1e-13)


def test_preprocess_scales_bytes_inside():
    net = jm.MLP((4, 3, 2), output="softmax", loss="cross_entropy")
    params = jm.init(net, jax.random.key(0))
    pictures = np.asarray([[[0, 255], [51, 102]], [[1, 2], [3, 4]]], np.uint8)
    Y = np.asarray([0, 1])
    scaled = jnp.asarray(pictures.reshape(2, 4) / np.float32(255), jnp.float64)
    scale = jm.data.scale_pixels
    np.testing.assert_allclose(jm.predict(net, params, pictures, preprocess=scale), jm.predict(net, params, scaled),
                               rtol=1e-6)  # fmt: skip
    J, grads = jm.value_and_grad(net, params, pictures, Y, preprocess=scale)
    J_scaled, grads_scaled = jm.value_and_grad(net, params, scaled, Y)
    np.testing.assert_allclose(J, J_scaled, rtol=1e-6)
    for got, expected in zip(jax.tree.leaves(grads), jax.tree.leaves(grads_scaled), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)
