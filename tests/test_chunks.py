"""A readout in chunks is that of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import TABLE, tree_error

import jaxmlp as jm
from jaxmlp.chunks import map_chunks


@pytest.fixture(autouse=True)
def double(x64):
    pass


def read(trace, weights=None):
    """Four means at once."""
    means = (readout(trace, weights) for readout in (jm.mean_gradient, jm.second_moment, jm.kronecker_factors))
    return *means, jm.clipped_gradient(trace, 0.4, weights)


@pytest.mark.parametrize(
    ("problem", "sizes"), [(TABLE[3], (1, 2, 3, 8)), (TABLE[6], (2, 4)), (TABLE[8], (3,))], ids=str
)
def test_chunks_give_the_whole_batchs_result(problem, sizes):
    """Chunks that divide the batch of 3, 6 or 4 examples and chunks that do not, of one example, and of all or more."""
    params, X, Y, _, weights, masks = problem.make()
    trace = jm.backprop(problem.net, params, X, Y, masks=masks)
    whole = jax.jit(read)(trace, weights)
    for size in sizes:
        got = jm.in_chunks(read, problem.net, params, X, Y, size, weights=weights, masks=masks)
        assert tree_error(got, whole) <= 1e-12
    with pytest.raises(ValueError, match="size is 0, expected at least 1"):
        jm.in_chunks(read, problem.net, params, X, Y, 0)


def test_chunks_take_another_start():
    problem = TABLE[5]
    params, X, Y, _, weights, _ = problem.make()
    whole = jm.ggn_diagonal(problem.net, params, X, Y, weights=weights)
    got = jm.in_chunks(jm.second_moment, problem.net, params, X, Y, 3, weights=weights, start=jm.hessian_root)
    assert tree_error(got, whole) <= 1e-12
    with pytest.raises(ValueError, match="start is 3, expected a function of the network, a tape and a label"):
        jm.in_chunks(jm.second_moment, problem.net, params, X, Y, 3, start=3)


def test_a_function_of_each_entry_is_mapped_in_chunks():
    batch = {"a": jnp.arange(14.0).reshape(7, 2), "b": jnp.arange(7.0)}
    function = lambda chunk: chunk["a"].sum(1) + chunk["b"]
    for size in (1, 3, 7, 10):
        got = jax.jit(lambda batch, size=size: map_chunks(function, batch, size))(batch)
        np.testing.assert_array_equal(got, function(batch))


@pytest.mark.parametrize("weighted", [False, True])
def test_many_examples_in_half_precision(weighted):
    """70,000 examples, whose number and whose sums are infinite in float16."""
    net = jm.MLP((1, 1))
    params = (jm.Layer(jnp.ones((1, 1), jnp.float16), jnp.ones(1, jnp.float16)),)
    X, Y = jnp.ones((70_000, 1), jnp.float16), jnp.zeros((70_000, 1), jnp.float16)
    weights = jnp.ones(70_000, jnp.float16) if weighted else None
    got = jm.in_chunks(jm.mean_gradient, net, params, X, Y, 20_000, weights=weights)
    assert got[0].W.dtype == jnp.float16
    np.testing.assert_array_equal(got[0].W, [[2]])
    if weighted:  # of padding alone, which only jit lets in, the mean is 0
        none = jax.jit(lambda w: jm.in_chunks(jm.mean_gradient, net, params, X, Y, 20_000, weights=w))(0 * weights)
        np.testing.assert_array_equal(none[0].W, [[0]])
