"""K-FAC against dense algebra in float64, and in `fit`, `sweep`, chains and checkpoints."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from oracles import as_rows
from problems import KEYS, NET, Problem, examples, fit, sweep, tree_error

import jaxmlp as jm
from jaxmlp.curvature import ggn_forms
from jaxmlp.maps import transform_gradient
from jaxmlp.methods.periodic import every

PROBLEM = Problem((3, 4, 2), ("tanh",), "softmax", "cross_entropy", 7, weighted=True)
MASKED = Problem((3, 5, 4, 2), ("silu", "tanh"), "sigmoid", "binary_cross_entropy", 6, masked=True, weighted=True)
RATE, MOMENTUM, DAMPING, DECAY = 0.3, 0.8, 0.05, 0.6


def homogeneous(layer):
    return np.concatenate([layer.W, np.asarray(layer.b)[..., None]], axis=-1)


def run(problem, optimizer, steps=3, **told):
    """The updates of a few steps of a loop of one's own, the trace of each, and the last state."""
    net = problem.net
    params, X, Y, _, weights, masks = problem.make()
    J = lambda p: jm.cost(net, p, X, Y, weights=weights, masks=masks)

    @jax.jit
    def step(params, state, key):
        trace = jm.backprop(net, params, X, Y, masks=masks)
        grads = jm.mean_gradient(trace, weights)
        updates, state = optimizer.update(grads, state, params, trace=trace, weights=weights, key=key, value=J(params),
                                          value_fn=J, **told)  # fmt: skip
        return optax.apply_updates(params, updates), state, (params, trace, grads, updates)

    state, seen = optimizer.init(params), []
    for number in range(steps):
        params, state, each = step(params, state, jax.random.key(number))
        seen.append((*each, state))
    return seen, weights, J


@functools.partial(jax.jit, static_argnums=(0, 1))
def restart(net, curvature, params, trace, key, weights):
    start = jm.hessian_root if curvature == "gauss_newton" else jm.output_delta
    labels = jm.sample_labels(net, trace.output, key) if curvature == "fisher" else trace.labels
    again = jm.restart(net, params, trace, labels, start=start)
    return jm.per_example_gradients(again), jm.kronecker_factors(again, weights)


def factors_of(problem, params, trace, curvature, number, weights):
    """The examples' gradients from the curvature's start, and each layer's factors."""
    each, factors = restart(problem.net, curvature, params, trace, jax.random.key(number), weights)
    return each, [[np.asarray(x) for x in layer] for layer in factors]


@pytest.mark.parametrize("curvature", ["fisher", "gauss_newton", "empirical"])
def test_the_update_is_the_dense_solution_by_averaged_factors(x64, curvature):
    """Factors in each step, inverses in every second; bias-corrected averages; momentum; decoupled weight decay."""
    optimizer = jm.kfac(PROBLEM.net, RATE, momentum=MOMENTUM, damping=DAMPING, decay=DECAY, curvature=curvature,
                        factors_every=1, inverses_every=2, weight_decay=0.1)  # fmt: skip
    seen, weights, _ = run(PROBLEM, optimizer)
    average, weight, last = [[0, 0], [0, 0]], 0, [0, 0]
    for number, (params, trace, grads, updates, _) in enumerate(seen):
        _, fresh = factors_of(PROBLEM, params, trace, curvature, number, weights)
        average = [[DECAY * v + (1 - DECAY) * x for v, x in zip(*pair, strict=True)]
                   for pair in zip(average, fresh, strict=True)]  # fmt: skip
        weight = DECAY * weight + 1 - DECAY
        if number % 2 == 0:
            used = [[x / weight for x in layer] for layer in average]
        for l, (p, g, got) in enumerate(zip(params, grads, updates, strict=True)):
            A, G = used[l]
            pi = np.sqrt((np.trace(A) / len(A)) / (np.trace(G) / len(G)))
            A, G = A + pi * DAMPING**0.5 * np.eye(len(A)), G + DAMPING**0.5 / pi * np.eye(len(G))
            direction = np.linalg.solve(np.kron(G, A), homogeneous(g).ravel()).reshape(homogeneous(g).shape)
            direction[:, :-1] += 0.1 * p.W
            last[l] = -RATE * direction + MOMENTUM * last[l]
            assert tree_error(homogeneous(got), last[l]) <= 1e-8


def test_a_part_of_the_batch_gives_the_curvature_and_all_of_it_the_gradient(x64):
    settings = {"momentum": 0, "damping": DAMPING, "curvature": "empirical", "factors_every": 1}
    seen, weights, _ = run(PROBLEM, jm.kfac(PROBLEM.net, RATE, subsample=3, **settings), 1)
    _, trace, grads, updates, _ = seen[0]
    part = jax.tree.map(lambda a: a[::3], trace)
    M = jm.factor_power(jm.kronecker_factors(part, weights[::3]), -1, DAMPING)
    assert tree_error(updates, jax.tree.map(lambda g: -RATE * g, transform_gradient(M, grads))) <= 1e-10


@pytest.mark.parametrize("eigenbasis", [False, True])
def test_a_batch_in_which_no_example_counts_leaves_the_curvature_alone(eigenbasis):
    """The first batch, too, which finds no curvature yet."""
    optimizer = jm.kfac(PROBLEM.net, RATE, damping=DAMPING, curvature="empirical", factors_every=1, inverses_every=1,
                        adapt_every=1, eigenbasis=eigenbasis)  # fmt: skip
    params, X, Y, _, weights, masks = PROBLEM.make()
    J = lambda p, weights: jm.cost(PROBLEM.net, p, X, Y, weights=weights, masks=masks)

    @jax.jit
    def update(state, weights):
        trace = jm.backprop(PROBLEM.net, params, X, Y, masks=masks)
        told = {"trace": trace, "weights": weights, "value": J(params, weights), "value_fn": lambda p: J(p, weights)}
        return optimizer.update(jm.mean_gradient(trace, weights), state, params, **told)

    start, empty = optimizer.init(params), jnp.zeros_like(weights)
    updates, state = update(start, empty)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
    for before in (start, update(start, weights)[1]):
        _, state = update(before, empty)
        kept = lambda state: (state.average, state.damping)
        for old, new in zip(*map(jax.tree.leaves, (kept(before), kept(state))), strict=True):
            np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("eigenbasis", [False, True])
def test_half_precision_learns_the_curvature_of_float32(eigenbasis):
    """Squares of error signals that float16 has no numbers for, and squares of inputs beyond its largest."""
    net = jm.MLP((1, 1))
    optimizer = jm.kfac(net, RATE, damping=1e-6, curvature="empirical", eigenbasis=eigenbasis)

    @jax.jit
    def learn(params, X, Y):
        trace = jm.backprop(net, params, X, Y)
        told = {"trace": trace, "value": trace.losses.mean(), "weights": jnp.ones_like(trace.losses)}
        updates, state = optimizer.update(jm.mean_gradient(trace), optimizer.init(params), params, **told)
        return updates, state.average, state.moments

    given = (jm.Layer(jnp.zeros((1, 1)), jnp.zeros(1)),), jnp.asarray([[300.0], [1.0]]), jnp.asarray([[1e-4], [-9e-5]])
    half = jax.tree.map(lambda x: x.astype(jnp.float16), given)
    (updates, *got), (exact, *want) = learn(*half), learn(*jax.tree.map(lambda x: x.astype(jnp.float32), half))
    assert tree_error(got, want) <= 1e-3 and updates[0].W.dtype == jnp.float16
    assert tree_error(jax.tree.map(np.float32, updates), exact) <= 1e-2


def test_the_eigenbasis_divides_by_second_moments(x64):
    optimizer = jm.kfac(PROBLEM.net, RATE, momentum=0, damping=DAMPING, decay=DECAY, curvature="empirical",
                        factors_every=1, inverses_every=4, eigenbasis=True)  # fmt: skip
    seen, weights, _ = run(PROBLEM, optimizer)
    share = np.asarray(weights) / np.asarray(weights).sum()
    for number, (params, trace, grads, updates, _) in enumerate(seen):
        each, fresh = factors_of(PROBLEM, params, trace, "empirical", number, weights)
        if number == 0:
            values, U = zip(*[zip(*map(np.linalg.eigh, layer), strict=True) for layer in fresh], strict=True)
            moments = [np.outer(of_G, of_A) for of_A, of_G in values]
        else:
            for l, g in enumerate(map(homogeneous, each)):
                along = np.einsum("op,moi,iq->mpq", U[l][1], g, U[l][0])
                moments[l] = DECAY * moments[l] + (1 - DECAY) * np.einsum("m,mpq->pq", share, along**2)
        for l, (g, got) in enumerate(zip(grads, updates, strict=True)):
            along = U[l][1].T @ homogeneous(g) @ U[l][0] / (moments[l] + DAMPING)
            assert tree_error(homogeneous(got), -RATE * U[l][1] @ along @ U[l][0].T) <= 1e-8


def test_one_layer_with_exact_factors_lands_on_the_minimum_in_one_step(x64):
    problem = Problem((3, 2), (), "identity", "squared_error", 9)
    optimizer = jm.kfac(problem.net, 1.0, damping=1e-20, curvature="gauss_newton")
    seen, _, _ = run(problem, optimizer, 2)
    _, X, Y, _, _, _ = problem.make()
    expected = np.linalg.lstsq(np.column_stack([X, np.ones(9)]), Y, rcond=None)[0].T
    for got, line in zip(seen[1][0], [expected], strict=True):
        assert tree_error(homogeneous(got), line) <= 1e-8


def root_of_gauss_newton(problem, params, weights):
    """Rows `sqrt(w / sum w) r`, with dropout's masks."""
    _, X, Y, _, _, masks = problem.make()
    trace = jm.backprop(problem.net, params, X, Y, masks=masks, start=jm.hessian_root)
    rows = jax.jit(jm.per_example_gradients)(trace)
    flat = as_rows(rows, lead=2)
    return (np.sqrt(weights / weights.sum())[:, None, None] * flat).reshape(-1, flat.shape[-1])


def test_rate_and_momentum_of_the_quadratic_model(x64):
    """The coefficients solve the dense equations, dropout's masks in them; the damping follows the reduction ratio."""
    optimizer = jm.kfac(MASKED.net, damping=DAMPING, curvature="empirical", adapt_every=2, factors_every=1)
    seen, weights, J = run(MASKED, optimizer, 4)
    damping = DAMPING
    for number, (params, trace, grads, updates, state) in enumerate(seen):
        if number == 0:
            last = np.zeros_like(ravel_pytree(params)[0])
            continue
        last = np.asarray(ravel_pytree(seen[number - 1][3])[0])
        B = root_of_gauss_newton(MASKED, params, np.asarray(weights))
        model = B.T @ B + damping * np.eye(len(last))
        got, g = np.asarray(ravel_pytree(updates)[0]), np.asarray(ravel_pytree(grads)[0])
        # The model's gradient at its least value is orthogonal to both directions: to the step, and to the last one.
        left = model @ got + g
        assert abs(left @ got) <= 1e-8 * np.linalg.norm(left) * np.linalg.norm(got)
        assert abs(left @ last) <= 1e-8 * np.linalg.norm(left) * np.linalg.norm(last)
        v = jax.tree.map(lambda u: 2 * u + 1, updates)
        forms = ggn_forms(MASKED.net, params, trace, (updates, v), weights)
        both = np.stack([got, np.asarray(ravel_pytree(v)[0])])
        assert tree_error(forms, both @ B.T @ B @ both.T) <= 1e-10
        if number % 2 == 1:
            ratio = float(J(optax.apply_updates(params, updates)) - J(params)) / (g @ got + got @ model @ got / 2)
            damping *= (19 / 20) ** 2 if ratio > 3 / 4 else 1 if ratio >= 1 / 4 else (20 / 19) ** 2
        assert float(state.damping) == pytest.approx(damping, rel=1e-10)


def test_pairs_and_gradient_give_one_step_and_a_chain_before_it_counts(x64):
    settings = {"momentum": 0, "damping": DAMPING, "curvature": "empirical", "factors_every": 1}
    wide = Problem((30, 40, 20), ("tanh",), "softmax", "cross_entropy", 5, weighted=True)  # few examples: pairs
    kfac = jm.kfac(wide.net, RATE, **settings)
    plainly = optax.GradientTransformationExtraArgs(
        kfac.init, lambda g, s, p, **told: kfac.update(g, s, p, grad=g, plain=True, **told)
    )
    by_gradient, by_pairs = (run(wide, optimizer, 1)[0][0] for optimizer in (kfac, plainly))
    assert tree_error(by_pairs[3], by_gradient[3]) <= 1e-10
    halved = optax.chain(optax.scale(0.5), kfac)
    whole = optax.GradientTransformationExtraArgs(
        halved.init, lambda g, s, p, **told: halved.update(g, s, p, grad=g, plain=True, **told)
    )
    assert tree_error(run(wide, whole, 1)[0][0][3], jax.tree.map(lambda u: u / 2, by_gradient[3])) <= 1e-10


def test_what_is_not_due_is_not_computed_in_a_population_either():
    done = []

    def one(count, x):
        def new():
            jax.debug.callback(lambda: done.append(1))
            return 2 * x

        return every(3, count, new, x)

    both = jax.jit(jax.vmap(jax.vmap(one)))
    x = jnp.ones((2, 2))
    jax.block_until_ready(both(jnp.full((2, 2), 4), x))
    jax.effects_barrier()
    assert not done
    got = both(jnp.array([[3, 4], [5, 6]]), x)  # where members are out of step, each has its own
    np.testing.assert_array_equal(got, [[2, 1], [1, 2]])
    jax.effects_barrier()
    assert done


KFAC = functools.partial(jm.kfac, NET, factors_every=2, inverses_every=2)


def test_members_have_their_own_rate_and_damping():
    """And draw the labels that a run of `fit` draws."""
    hyper = {"learning_rate": np.asarray([0.1, 0.3], np.float32), "damping": np.asarray([0.1, 1.0], np.float32)}
    many = sweep(optimizer=KFAC, keys=KEYS[:2], hyper=hyper)
    for i in range(2):
        own = {name: values[i] for name, values in hyper.items()}
        one = fit(jm.init(NET, KEYS[i]), examples(20), optimizer=KFAC, hyper=own, epochs=5, batch_size=6, key=KEYS[0])
        assert tree_error(many.member(i).params, one.params) <= 1e-4


def test_a_killed_run_goes_on_to_the_same_bits_with_dropout_penalties_and_ragged_batches(tmp_path):
    params = jm.init(NET, jax.random.key(0))
    optimizer = jm.kfac(NET, damping=0.1, adapt_every=2, factors_every=2, inverses_every=4)
    settings = {"optimizer": optimizer, "batch_size": 4, "keep": 0.9, "penalties": jm.l2(0.01)}
    whole = fit(params, epochs=4, **settings)
    fit(params, epochs=2, checkpoints=tmp_path, **settings)
    again = fit(params, epochs=4, checkpoints=tmp_path, **settings)
    assert tree_error(again.params, whole.params) == 0
    assert tree_error(again.state.opt_state, whole.state.opt_state) == 0
    others = fit(params, epochs=4, key=jax.random.key(7), **settings)
    assert np.isfinite(whole.history["cost"]).all() and tree_error(others.params, whole.params) > 0


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: jm.kfac(NET, "fast"), "learning_rate is 'fast', expected a finite number"),
        (lambda: jm.kfac(NET, -1), "learning_rate is -1, expected a finite number of at least 0"),
        (lambda: jm.kfac(NET, [0.1, 0.2]), r"learning_rate has shape \(2,\), expected one number"),
        (lambda: jm.kfac(NET, momentum=1), "momentum is 1, expected a finite number of at least 0 and below 1"),
        (lambda: jm.kfac(NET, eigenbasis="no"), "eigenbasis is 'no', expected True or False"),
        (lambda: jm.kfac(jm.MLP), "net is the class MLP"),
        (lambda: jm.kfac(NET, damping=0), "damping is 0, expected a finite number above 0"),
        (lambda: jm.kfac(NET, decay=1), "decay is 1, expected a finite number of at least 0 and below 1"),
        (lambda: jm.kfac(NET, factors_every=0), "factors_every is 0, expected at least 1"),
        (lambda: jm.kfac(NET, subsample=0.5), "subsample is 0.5, expected a whole number"),
        (lambda: jm.kfac(NET, curvature="hessian"), "curvature is 'hessian', expected"),
        (lambda: fit(jm.init(jm.MLP((3, 4, 2), output="softmax", loss="cross_entropy"), KEYS[0]),
                     net=jm.MLP((3, 4, 2), output="softmax", loss="cross_entropy"), optimizer=jm.kfac(NET)),
         "kfac is for the network .*3-5-2, .* expected the one that is trained, .*3-4-2"),
        (lambda: jm.kfac(NET).update(jm.init(NET, KEYS[0]), None, jm.init(NET, KEYS[0])),
         "kfac's update is called without trace, key, expected what jaxmlp.fit hands over"),
    ],
)  # fmt: skip
@pytest.mark.wrong_arguments
def test_what_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
