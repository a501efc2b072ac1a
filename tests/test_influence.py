"""Influence against its dense definition: gradients and Jacobians by autodiff, matrices by NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from problems import NET, TABLE, Problem, examples

import jaxmlp as jm
from jaxmlp.methods.inverse_curvature import How, draw_projections

PROBLEMS = [TABLE[0], TABLE[2], TABLE[3], TABLE[5], TABLE[7]]  # every loss, canonical and not, weighted and not


@pytest.fixture(autouse=True)
def double(x64):
    pass


def influence(*args, **settings):
    return np.asarray(jm.influence(*args, progress=False, **settings))


@functools.cache
def made(problem):
    """`(params, train, test, weights)` and of both sets what `oracles.linearize` gives, each once."""
    params, X, Y, rows, weights, _ = problem.make()
    _, X_test, Y_test, rows_test, *_ = dataclasses.replace(problem, seed=1, m=3).make()
    net = problem.net
    of = lambda X, rows: oracles.linearize(
        problem.hidden, problem.output, problem.loss, net.output == net.loss.canonical, params, X, rows
    )
    share = np.full(problem.m, 1 / problem.m) if weights is None else np.asarray(weights / weights.sum())
    return params, (X, Y), (X_test, Y_test), weights, share, of(X, rows), of(X_test, rows_test)[0]


def gauss_newton(problem):
    _, _, _, _, share, (_, J, H), _ = made(problem)
    return np.einsum("m,mkp,mkc,mcq->pq", share, J, H, J)


def kronecker(problem):
    """A and G of each layer."""
    params, (X, _), _, _, share, (_, J, H), _ = made(problem)
    inputs = oracles.layer_inputs(problem.hidden, params, X)
    deltas = [layer[..., -1] for layer in oracles.by_layers(J, params)]  # the bias's Jacobian
    A = [np.einsum("m,mi,mj->ij", share, a, a) for a in inputs]
    G = [np.einsum("m,mko,mkc,mcp->op", share, delta, H, delta) for delta in deltas]
    return list(zip(A, G, strict=True))


def dense(problem, method, damping):
    """Each layer's part of the scores, `(K, m, n)`."""
    choose = lambda mean: damping if damping is not None else 0.1 * mean if mean > 0 else 1.0
    params, _, _, _, share, (g, J, H), g_test = made(problem)
    layers, tests = oracles.by_layers(share[:, None] * g, params), oracles.by_layers(g_test, params)
    if method == "exact":
        G = gauss_newton(problem)
        of_layers, start = [], 0
        for W, b in params:
            n = W.size + b.size
            of_layers += [choose(np.diag(G)[start : start + n].mean())] * n
            start += n
        tests = oracles.by_layers(np.linalg.solve(G + np.diag(of_layers), g_test.T).T, params)
    elif method != "tracin":
        solved = []
        for l, ((A, G), test) in enumerate(zip(kronecker(problem), tests, strict=True)):
            if method == "kfac":
                mean = lambda x: np.trace(x) / len(x)
                own = choose(mean(A) * mean(G))
                pi = np.sqrt(mean(A) / mean(G)) if mean(G) > 0 else 1.0
                A, G = A + pi * np.sqrt(own) * np.eye(len(A)), G + np.sqrt(own) / pi * np.eye(len(G))
                solved.append(np.linalg.solve(G, test) @ np.linalg.inv(A))
                continue
            U, V = np.linalg.eigh(G)[1], np.linalg.eigh(A)[1]
            along = np.einsum("op,mkoi,iq->mkpq", U, oracles.by_layers(J, params)[l], V)
            moments = np.einsum("m,mkpq,mkc,mcpq->pq", share, along, H, along)
            solved.append(np.einsum("op,npq,iq->noi", U, (U.T @ test @ V) / (moments + choose(moments.mean())), V))
        tests = solved
    return np.stack([np.einsum("moi,noi->mn", a, b) for a, b in zip(layers, tests, strict=True)])


@pytest.mark.parametrize("method", ["tracin", "kfac", "ekfac", "exact"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_each_method_is_its_dense_definition(problem, method):
    params, train, test, weights, *_ = made(problem)
    for damping in (None,) if method == "tracin" else (None, 0.03):
        got = influence(problem.net, params, train, test, method, damping=damping, weights=weights, by_layer=True)
        expected = dense(problem, method, damping)
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())
    if problem is TABLE[7]:  # the network of most layers
        whole = influence(problem.net, params, train, test, method, damping=damping, weights=weights)
        np.testing.assert_allclose(whole, expected.sum(0), rtol=1e-8, atol=1e-8 * np.abs(expected).max())


def test_influence_on_the_own_loss_is_a_norm_in_a_mapped_trace():
    net, (params, (X, Y), *_) = TABLE[2].net, made(TABLE[2])

    @jax.jit
    def map_norms(X, Y):
        root = jm.factor_power(jm.kronecker_factors(jm.backprop(net, params, X, Y, start=jm.hessian_root)), -0.5, 0.03)
        return jm.per_example_norms(jm.transform(jm.backprop(net, params, X, Y), root))

    expected = np.asarray(map_norms(X, Y)) ** 2 / len(X)
    got = influence(net, params, (X, Y), (X, Y), "kfac", damping=0.03)
    np.testing.assert_allclose(np.diag(got), expected, rtol=1e-8)


def test_projected_is_the_dense_matrix_of_projected_gradients(key):
    problem = TABLE[7]
    params, train, test, weights, share, (g, J, H), g_test = made(problem)
    maps = draw_projections(problem.net, How("projected", None, "gauss_newton", key, 2, None), jnp.float64)
    project = lambda rows: np.concatenate(
        [(np.asarray(M.G) @ layer @ np.asarray(M.A).T).reshape(*rows.shape[:-1], -1)
         for M, layer in zip(maps, oracles.by_layers(rows, params), strict=True)], axis=-1)  # fmt: skip
    small = project(J)
    H_small = np.einsum("m,mkp,mkc,mcq->pq", share, small, H, small)
    expected = share[:, None] * project(g) @ np.linalg.solve(H_small + 0.1 * np.eye(len(H_small)), project(g_test).T)
    settings = dict(key=key, damping=0.1, weights=weights)
    got = influence(problem.net, params, train, test, "projected", size=2, **settings)
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max())
    whole = influence(problem.net, params, train, test, "projected", **settings)  # 16 directions: nothing is projected
    np.testing.assert_allclose(whole, dense(problem, "exact", 0.1).sum(0), rtol=1e-8)


def test_methods_agree_where_kronecker_factors_are_exact():
    """A linear layer with squared error, where G is the identity; and any linear layer with one example."""
    linear = TABLE[0]
    params, train, test, *_ = made(linear)
    exact = influence(linear.net, params, train, test, "exact", damping=0.2)
    np.testing.assert_allclose(influence(linear.net, params, train, test, "ekfac", damping=0.2), exact, rtol=1e-8)
    undamped = influence(linear.net, params, train, test, "exact", damping=0.0)
    np.testing.assert_allclose(influence(linear.net, params, train, test, "kfac", damping=0.0), undamped, rtol=1e-6)
    alone = Problem((3, 2), (), "softmax", "cross_entropy", 1)
    params, train, test, *_ = made(alone)
    for damping in (None, 0.2):
        exact = influence(alone.net, params, train, test, "exact", damping=damping)
        np.testing.assert_allclose(
            influence(alone.net, params, train, test, "ekfac", damping=damping), exact, rtol=1e-8
        )


def test_leaving_an_example_out_raises_the_test_loss_by_its_score():
    """The sign and the scale, on least squares: the scores are the first order of retraining without the example."""
    rng = np.random.default_rng(0)
    X, X_test = rng.normal(size=(400, 3)), rng.normal(size=(5, 3))
    Y = X @ [[1.0], [2.0], [-1.0]] + 0.3 * rng.normal(size=(400, 1))
    Y_test = X_test @ [[1.0], [2.0], [-1.0]] + 1.0
    homogeneous = lambda X: np.hstack([X, np.ones((len(X), 1))])

    def losses(keep):
        w = np.linalg.lstsq(homogeneous(X[keep]), Y[keep], rcond=None)[0]
        return w, 0.5 * ((homogeneous(X_test) @ w - Y_test) ** 2)[:, 0]

    w, before = losses(np.ones(400, bool))
    rises = np.stack([losses(np.arange(400) != left)[1] - before for left in range(40)])
    params = (jm.Layer(jnp.asarray(w[:3].T), jnp.asarray(w[3])),)
    net = jm.MLP((3, 1))
    scores = influence(net, params, (X, Y), (X_test, Y_test), "exact", damping=0.0)[:40]
    assert np.corrcoef(scores.ravel(), rises.ravel())[0, 1] > 0.999
    np.testing.assert_allclose(np.sum(scores * rises) / np.sum(scores**2), 1, atol=0.02)


@pytest.mark.parametrize("method", ["kfac", "ekfac", "exact"])
def test_chunks_give_the_same_scores(method, monkeypatch):
    problem = TABLE[7]
    params, train, test, weights, *_ = made(problem)
    whole = influence(problem.net, params, train, test, method, weights=weights)
    monkeypatch.setattr("jaxmlp.methods.influence.ENTRIES", 1)
    for size in (2, 3):
        got = influence(problem.net, params, train, test, method, weights=weights, chunk_size=size)
        np.testing.assert_allclose(got, whole, rtol=1e-10, atol=1e-12 * np.abs(whole).max())


def test_terms_approach_the_exact_division():
    problem = Problem((4, 6, 3), ("tanh",), "softmax", "cross_entropy", 20)
    params, train, test, *_ = made(problem)
    whole = influence(problem.net, params, train, test)
    errors = []
    for terms in (1, 3, 6):
        got = influence(problem.net, params, train, test, terms=terms)
        errors.append(np.linalg.norm(got - whole) / np.linalg.norm(whole))
    assert errors[0] > errors[1] > errors[2] and errors[1] < 0.1 and errors[2] < 1e-10


def test_other_curvatures_are_those_of_their_labels(key):
    problem = TABLE[2]
    params, train, test, *_ = made(problem)
    each = jax.jit(lambda X, Y: jm.per_example_gradients(jm.backprop(problem.net, params, X, Y)))
    drawn = jm.sample_labels(problem.net, jm.predict(problem.net, params, train[0]), key)
    g, g_test = (oracles.as_rows(each(*data)) for data in (train, test))
    for curvature, labels in (("empirical", train[1]), ("fisher", drawn)):
        h = oracles.as_rows(each(train[0], labels))
        H = h.T @ h / len(h) + 0.1 * np.eye(h.shape[1])
        got = influence(problem.net, params, train, test, "exact", damping=0.1, curvature=curvature, key=key)
        np.testing.assert_allclose(got, g @ np.linalg.solve(H, g_test.T) / len(g), rtol=1e-8)


def test_several_networks_count_by_their_mean_and_checkpoints_by_their_rates(key):
    train, test = (tuple(map(jnp.asarray, examples(9, seed))) for seed in (0, 1))
    train, test = ((X.astype(jnp.float64), Y) for X, Y in (train, test))
    each = [jm.init(NET, k, dtype=jnp.float64) for k in jax.random.split(key, 3)]
    alone = np.stack([influence(NET, params, train, test) for params in each])
    for members in (each, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)):
        np.testing.assert_allclose(influence(NET, members, train, test), alone.mean(0), rtol=1e-10)
    rates = np.asarray([0.3, 0.2, 0.1])
    alone = np.stack([influence(NET, params, train, test, "tracin") for params in each])
    got = influence(NET, each, train, test, "tracin", rates=rates)
    large = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1.7e308), each[2])
    with pytest.raises(ValueError, match="network 1 gives scores that are not finite, expected networks that did not"):
        influence(NET, [each[0], large], train, test, "tracin")
    np.testing.assert_allclose(got, np.tensordot(rates, alone, 1), rtol=1e-10)


def test_pictures_are_preprocessed_and_float32_stays():
    X, Y = (np.arange(30, dtype=np.uint8).reshape(10, 3) * 8, examples()[1])
    scale = lambda x: x.astype(jnp.float32) / 255
    params = jm.init(NET, jax.random.key(0), dtype=jnp.float32)
    got = jm.influence(NET, params, (X, Y), (X[:2], Y[:2]), preprocess=scale, progress=False)
    floats = (X / 255).astype(np.float32)
    plain = jm.influence(NET, params, (floats, Y), (floats[:2], Y[:2]), progress=False)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, plain, rtol=1e-4)


def test_narrow_parameters_have_scores_of_float32(key):
    X, Y = examples()
    params = jm.init(NET, key, dtype=jnp.float32)
    half, X_half = (jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree) for tree in (params, jnp.asarray(X)))
    for method in ("kfac", "ekfac", "exact"):
        got = jm.influence(NET, half, (X_half, Y), (X_half[:2], Y[:2]), method, progress=False)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, influence(NET, params, (X, Y), (X[:2], Y[:2]), method), rtol=0.1, atol=0.02)


def test_chunks_are_reported(key, capsys):
    X, Y = examples()
    params = jm.init(NET, key, dtype=jnp.float32)
    jm.influence(NET, params, (X, Y), (X[:2], Y[:2]), "tracin", chunk_size=4)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in lines] == [["chunk", f"{n}/3"] for n in (1, 2, 3)]


@pytest.mark.wrong_arguments
def test_what_influence_refuses(key, compilations):
    X, Y = examples()
    params = jm.init(NET, key, dtype=jnp.float32)
    compilations.clear()
    train, test = (X, Y), (X[:2], Y[:2])
    lost = (jm.Layer(params[0].W, params[0].b + jnp.nan), params[1])
    wide = jm.MLP((3, 6000, 2), "tanh", "softmax", "cross_entropy")
    call = lambda *args, **settings: lambda: jm.influence(NET, params, *args, **settings)
    for make, message in (
        (call(X, test), r"train is a ndarray, expected a tuple \(X, Y\)"),
        (call(train, (X,)), r"test is a tuple of 1, expected a tuple \(X, Y\)"),
        (call((X[:, :2], Y), test), "train X has 2 features, the network takes 3"),
        (call(train, (X[:2], Y)), r"test Y has shape \(10,\), expected \(2, 2\) or \(2,\)"),
        (call(train, test, "ekfak"), "method is 'ekfak', .*did you mean 'ekfac'"),
        (call(train, test, damping=-1.0), "damping is -1.0, expected a finite number of at least 0"),
        (call(train, test, "tracin", damping=0.1), "damping is 0.1, but method is 'tracin'"),
        (call(train, test, rates=[0.1]), r"rates is \[0.1\], but method is 'ekfac': expected none, or 'tracin'"),
        (call(train, test, "tracin", rates=[0.1, 0.2]), r"rates has shape \(2,\), expected one for each of the 1 par"),
        (call(train, test, size=3), "size is 3, but method is 'ekfac': expected none, or 'projected'"),
        (call(train, test, "kfac", terms=3), "terms is 3, but method is 'kfac': expected none, or 'ekfac'"),
        (call(train, test, by_layer="no"), "by_layer is 'no', expected True or False"),
        (call(train, test, terms=0), "terms is 0, expected at least 1"),
        (call(train, test, "projected"), "key is None, but method 'projected' with curvature 'gauss_newton' draws"),
        (call(train, test, curvature="fisher"), "key is None, but method 'ekfac' with curvature 'fisher' draws"),
        (call(train, test, curvature="hessian"), "curvature is 'hessian', expected one of 'gauss_newton', 'fisher'"),
        (call(train, test, chunk_size=0), "chunk_size is 0, expected at least 1"),
        (call(train, test, weights=np.ones(3)), r"weights has shape \(3,\), expected one weight for each of the 10"),
        (lambda: jm.influence(NET, [params, lost, params, lost], train, test),
         "params of network 1, 3 of 4 hold NaN or infinity, expected networks that did not diverge"),
        (lambda: jm.influence(NET, [], train, test), "params is 0 layers, expected a tuple of 2 layers"),
        (lambda: jm.influence(NET, [params, params[:1]], train, test), "params is 1 layers, expected a tuple of 2"),
        (lambda: jm.influence(wide, jm.init(wide, key, dtype=jnp.float32), train, test, "exact"),
         "method is 'exact', which needs a matrix of width 36,002, expected at most 20,000"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            make()
    assert "_score" not in compilations
