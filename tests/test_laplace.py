"""Laplace posteriors against their dense definition: Jacobians by autodiff, matrices and evidence by NumPy."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import scipy.linalg
import scipy.stats
from jax.flatten_util import ravel_pytree
from problems import NET, TABLE, Problem, examples, tree_error

import jaxmlp as jm

PRIOR, NOISE = 1.7, 0.3
REGRESSION = Problem((3, 4, 2), ("tanh",), "identity", "squared_error", 6, weighted=True)
PROBLEMS = [TABLE[2], TABLE[5], REGRESSION, Problem((3, 4, 2), ("silu",), "sigmoid", "binary_cross_entropy", 6)]
STRUCTURES = ["kronecker", "diagonal", "last_layer", "full"]


@pytest.fixture(autouse=True)
def double(x64):
    pass


def fit(problem, structure, **settings):
    params, X, Y, _, weights, _ = problem.make()
    noise = NOISE if problem.loss == "squared_error" else None
    return jm.laplace(problem.net, params, X, Y, structure, PRIOR, noise_variance=noise, weights=weights, **settings)


@functools.cache
def made(problem):
    params, X, _, rows, weights, _ = problem.make()
    net = problem.net
    parts = oracles.linearize(
        problem.hidden, problem.output, problem.loss, net.output == net.loss.canonical, params, X, rows
    )
    return params, X, rows, np.ones(problem.m) if weights is None else np.asarray(weights), parts


@functools.cache
def outputs(problem):
    """The outputs before the last activation, and minus the log-likelihood where the loss has no noise."""
    params, X, rows, w, _ = made(problem)
    last = lambda x: oracles.network(problem.hidden, "identity", params, x)
    cost = lambda X: oracles.cost(problem.hidden, problem.output, problem.loss, params, X, rows, w)
    z, mean = jax.jit(lambda X: (jax.vmap(last)(X), cost(X)))(X)
    return np.asarray(z), float(w.sum() * mean)


def precision_of(problem, structure):
    """The posterior's precision as a matrix over the parameters that have one."""
    params, X, _, w, (_, J, H) = made(problem)
    noise = NOISE if problem.loss == "squared_error" else 1.0
    n = J.shape[-1]
    G = np.einsum("m,mkp,mkc,mcq->pq", w, J, H, J)
    if structure == "diagonal":
        G = np.diag(np.diag(G))
    if structure == "last_layer":
        n = params[-1].W.size + params[-1].b.size
        G = G[-n:, -n:]
    if structure == "kronecker":
        blocks = []
        for a, layer in zip(oracles.layer_inputs(problem.hidden, params, X), oracles.by_layers(J, params), strict=True):
            B = np.einsum("m,mko,mkc,mcp->op", w, layer[..., -1], H, layer[..., -1])
            A = np.einsum("m,mi,mj->ij", w / w.sum(), a[:, :-1], a[:, :-1])
            blocks += [np.kron(B, A), B]
        G = scipy.linalg.block_diag(*blocks)
    return G / noise + PRIOR * np.eye(n)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_predictions_and_evidence_are_the_dense_ones(problem, structure):
    params, X, _, w, (_, J, _) = made(problem)
    posterior = fit(problem, structure)
    P = precision_of(problem, structure)
    J = J[..., -len(P) :]
    covariance = np.einsum("mkp,pq,mcq->mkc", J, np.linalg.inv(P), J)
    variance = np.diagonal(covariance, axis1=1, axis2=2)
    z, loss = outputs(problem)
    squash = oracles.ACTIVATIONS[problem.output]
    log_likelihood = -loss
    if problem.loss == "squared_error":
        got = posterior.predict(X)
        np.testing.assert_allclose(got.mean, z, rtol=1e-10)
        np.testing.assert_allclose(got.variance, variance, rtol=1e-8)
        log_likelihood = log_likelihood / NOISE - w.sum() * z.shape[1] * np.log(2 * np.pi * NOISE) / 2
    else:
        expected = jax.jit(jax.vmap(squash))(z / np.sqrt(1 + np.pi / 8 * variance))
        if problem.output == "softmax":
            odds = np.zeros_like(z)
            for k, j in np.ndindex(z.shape[1], z.shape[1]):
                apart = variance[:, k] + variance[:, j] - 2 * covariance[:, k, j]
                odds[:, k] += np.exp((z[:, j] - z[:, k]) / np.sqrt(1 + np.pi / 8 * apart))
            expected = 1 / odds / (1 / odds).sum(1, keepdims=True)
        np.testing.assert_allclose(posterior.predict(X), expected, rtol=1e-8)
    theta = np.asarray(ravel_pytree(params)[0])[-len(P) :]
    log_prior = (len(P) * np.log(PRIOR) - PRIOR * theta @ theta) / 2
    expected = log_likelihood + log_prior - np.linalg.slogdet(P)[1] / 2
    np.testing.assert_allclose(posterior.log_evidence, expected, rtol=1e-10)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_precision_and_draws_have_the_structure(structure, key):
    problem = REGRESSION
    params, *_ = made(problem)
    posterior, P = fit(problem, structure), precision_of(problem, structure)
    got = posterior.precision
    if structure == "diagonal":
        got = np.diag(ravel_pytree(got)[0])
    if structure == "kronecker":
        dense = []
        for (A, G), values in got:
            U = np.kron(G, A)
            whole = np.asarray(U.T * np.ravel(values) @ U)  # over [W b]
            o, i = values.shape
            of_W = np.arange(o * i).reshape(o, i)
            order = np.concatenate([of_W[:, :-1].ravel(), of_W[:, -1]])
            dense.append(whole[np.ix_(order, order)])
        got = scipy.linalg.block_diag(*dense)
    np.testing.assert_allclose(got, P, rtol=1e-8, atol=1e-10)
    draws = posterior.sample(key, 20_000)
    assert jax.tree.map(jnp.shape, draws) == jax.tree.map(lambda leaf: (20_000, *leaf.shape), params)
    rows = oracles.as_rows(draws)
    np.testing.assert_allclose(rows.mean(0), ravel_pytree(params)[0], atol=5 * rows.std(0).max() / np.sqrt(20_000))
    n, C = len(P), np.linalg.inv(P)
    spread = np.sqrt((np.outer(np.diag(C), np.diag(C)) + C**2) / 20_000)
    assert (np.abs(np.cov(rows[:, -n:].T) - C) <= 5 * spread).all()
    assert rows[:, :-n].size == 0 or np.ptp(rows[:, :-n], axis=0).max() == 0


def test_full_on_a_linear_model_is_bayesian_linear_regression():
    """Bishop 2006, section 3.3 and 3.5; the mean is that of the posterior."""
    rng = np.random.default_rng(0)
    X, X_test = rng.normal(size=(30, 4)), rng.normal(size=(5, 4))
    Phi, Phi_test = (np.hstack([x, np.ones((len(x), 1))]) for x in (X, X_test))
    Y = Phi @ rng.normal(size=5) + 0.4 * rng.normal(size=30)
    P = PRIOR * np.eye(5) + Phi.T @ Phi / NOISE
    mean = np.linalg.solve(P, Phi.T @ Y) / NOISE
    params = (jm.Layer(jnp.asarray(mean[None, :4]), jnp.asarray(mean[4:])),)
    posterior = jm.laplace(jm.MLP((4, 1)), params, X, Y, "full", PRIOR, noise_variance=NOISE)
    got = posterior.predict(X_test)
    np.testing.assert_allclose(got.mean[:, 0], Phi_test @ mean, rtol=1e-10)
    variance = np.einsum("mi,ij,mj->m", Phi_test, np.linalg.inv(P), Phi_test)
    np.testing.assert_allclose(got.variance[:, 0], variance, rtol=1e-10)
    marginal = scipy.stats.multivariate_normal(cov=NOISE * np.eye(30) + Phi @ Phi.T / PRIOR)
    np.testing.assert_allclose(posterior.log_evidence, marginal.logpdf(Y), rtol=1e-10)


@pytest.mark.parametrize("structure", ["kronecker", "full"])
@pytest.mark.parametrize("problem", [REGRESSION, TABLE[2]], ids=str)
def test_tuning_finds_the_largest_evidence(problem, structure):
    posterior = fit(problem, structure)
    tuned = posterior.tune()
    assert tuned.log_evidence > posterior.log_evidence
    moved = [{"prior_precision": tuned.prior_precision * f} for f in (0.99, 1.01)]
    if problem.loss == "squared_error":
        moved += [{"noise_variance": tuned.noise_variance * f} for f in (0.99, 1.01)]
    else:
        assert tuned.noise_variance == 1
    for settings in moved:
        assert replace(tuned, **settings).log_evidence < tuned.log_evidence


def test_draws_of_the_outputs_are_near_their_distribution(key):
    problem = TABLE[2]
    _, X, _, _, (_, J, _) = made(problem)
    posterior = fit(problem, "kronecker")
    got = posterior.predict(X, samples=4000, key=key)
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-10)
    z, _ = outputs(problem)
    covariance = np.einsum("mkp,pq,mcq->mkc", J, np.linalg.inv(precision_of(problem, "kronecker")), J)
    draws = np.random.default_rng(0).normal(size=(4000, *z.shape))
    drawn = z + np.einsum("mck,smk->smc", np.linalg.cholesky(covariance), draws)
    expected = np.asarray(jax.nn.softmax(drawn)).mean(0)
    np.testing.assert_allclose(got, expected, atol=5 * 0.5 / np.sqrt(2000))


def test_chunks_and_pictures(key, monkeypatch):
    monkeypatch.setattr("jaxmlp.methods.normal_weights.CHUNK", 4)
    X, Y = (np.arange(30, dtype=np.uint8).reshape(10, 3) * 8, examples()[1])
    params = jm.init(NET, key, dtype=jnp.float32)
    scale = lambda x: x.astype(jnp.float32) / 255
    got = jm.laplace(NET, params, X, Y, preprocess=scale)
    floats = (X / 255).astype(np.float32)
    monkeypatch.setattr("jaxmlp.methods.normal_weights.CHUNK", 1000)
    plain = jm.laplace(NET, params, floats, Y)
    assert got.precision[0].values.dtype == jnp.float32 and tree_error(got.curvature, plain.curvature) <= 1e-5
    np.testing.assert_allclose(got.predict(X), plain.predict(floats), rtol=1e-4)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    narrow = jm.laplace(NET, half, floats.astype(jnp.bfloat16), Y)
    np.testing.assert_allclose(narrow.predict(floats.astype(jnp.bfloat16)), plain.predict(floats), atol=0.02)
    assert narrow.sample(key, 2)[0].W.dtype == jnp.bfloat16
    assert repr(got).startswith("Laplace(kronecker, prior_precision=1, noise_variance=1, log_evidence=-")


@pytest.mark.wrong_arguments
def test_what_laplace_refuses(key):
    X, Y = examples()
    params = jm.init(NET, key, dtype=jnp.float32)
    posterior = jm.laplace(NET, params, X, Y, "last_layer")
    line = jm.MLP((3, 1))
    weights = jm.init(line, key, dtype=jnp.float32)
    regression = jm.laplace(line, weights, X, X[:, :1], "full")
    wide = jm.MLP((3, 6000, 2), "tanh", "softmax", "cross_entropy")
    for make, message in (
        (lambda: jm.laplace(NET, params, X, Y, "kron"), "structure is 'kron', .*did you mean 'kronecker'"),
        (lambda: jm.laplace(NET, params, X, Y, prior_precision=0), "prior_precision is 0, expected a finite number ab"),
        (lambda: jm.laplace(NET, params, X, Y, noise_variance=2.0),
         "noise_variance is 2.0, but loss 'cross_entropy' has none: expected None"),
        (lambda: jm.laplace(line, weights, X, X[:, :1], noise_variance=-1), "noise_variance is -1, expected a finite"),
        (lambda: jm.laplace(NET, params, X[:, :2], Y), "X has 2 features, the network takes 3"),
        (lambda: jm.laplace(wide, jm.init(wide, key, dtype=jnp.float32), X, Y, "full"),
         "structure is 'full', which needs a matrix of width 36,002, expected at most 20,000"),
        (lambda: posterior.predict(X[:, :2]), "X has 2 features, the network takes 3"),
        (lambda: posterior.predict(X, samples=3), "samples is 3 and key is None, expected a key to draw by"),
        (lambda: posterior.predict(X, samples=0, key=key), "samples is 0, expected at least 1"),
        (lambda: regression.predict(X, samples=3, key=key), "samples is 3, but loss 'squared_error' has a mean and"),
        (lambda: posterior.sample(key, 0), "n is 0, expected at least 1"),
        (lambda: posterior.sample(3, 1), "key is 3, expected one key"),
        (lambda: jm.laplace(line, jax.tree.map(jnp.zeros_like, weights), X, X[:, :1]).tune(),
         "the weights or the curvature are all 0, expected some to choose a prior by"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make()
