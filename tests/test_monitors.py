"""What is watched while a network learns, each against the slow way."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import tree_error

import jaxmlp as jm

NET = jm.MLP((3, 6, 5, 2), hidden=("relu", "tanh"), output="softmax", loss="cross_entropy")


def examples(m=40):
    X = np.random.default_rng(0).normal(size=(m, 3)).astype(np.float32)
    return jnp.asarray(X), jnp.asarray((X[:, 0] > 0).astype(np.int32))


def test_monitors_equal_the_slow_way_and_change_nothing(key):
    X, Y = examples()
    params = list(jm.init(NET, key))
    params[0] = params[0]._replace(b=params[0].b.at[:2].set(-100.0))  # two dead units
    params[1] = params[1]._replace(b=params[1].b.at[0].set(50.0))  # a saturated one
    params = tuple(params)
    run = lambda **options: jm.fit(NET, params, (X, Y), optimizer=optax.sgd(0.1), epochs=2, batch_size=40,
                                   key=jax.random.key(0), progress=False, penalties=jm.l2(0.01), **options)  # fmt: skip
    watched, plain = run(monitor=True), run()
    assert tree_error(watched.params, plain.params) == 0 and "dead" not in plain.history
    h, end = watched.history, watched.last_params
    assert {name: h[name].shape for name in ("delta_norm", "dead", "saturated", "update_ratio", "noise_scale")} == {
        "delta_norm": (2, 3), "dead": (2, 2), "saturated": (2, 2), "update_ratio": (2, 3), "noise_scale": (2,)
    }  # fmt: skip
    single = [jm.backprop(NET, end, X[i : i + 1], Y[i : i + 1]) for i in range(40)]
    norms = np.asarray([[np.linalg.norm(d) for d in trace.deltas] for trace in single])
    np.testing.assert_allclose(h["delta_norm"][-1], norms.mean(0), rtol=1e-5)
    z1, z2 = (np.concatenate([trace.pre_activations[l] for trace in single]) for l in (0, 1))
    assert h["dead"][-1][0] == pytest.approx((z1 <= 0).all(0).mean()) and h["dead"][-1][0] >= 2 / 6
    assert h["dead"][-1][1] == pytest.approx((np.tanh(z2) ** 2 == 1).all(0).mean())
    assert h["saturated"][-1][0] == 0 and h["saturated"][-1][1] == pytest.approx((np.abs(np.tanh(z2)) > 0.9).mean())
    whole = lambda p: jm.cost(NET, p, X, Y) + sum(0.005 * jnp.sum(layer.W**2) for layer in p)
    grads = jax.jit(jax.grad(whole))(end)
    ratios = [0.1 * np.linalg.norm(g.W) / np.linalg.norm(layer.W) for g, layer in zip(grads, end, strict=True)]
    np.testing.assert_allclose(h["update_ratio"][-1], ratios, rtol=1e-4)
    assert h["noise_scale"][-1] == pytest.approx(float(jm.noise_scale(jm.backprop(NET, end, X, Y))), rel=1e-4)


def test_a_network_without_hidden_layers_can_be_watched(key):
    net = jm.MLP((3, 2), output="softmax", loss="cross_entropy")
    seen = []
    result = jm.fit(net, jm.init(net, key), examples(), optimizer=optax.sgd(0.1), epochs=2, key=key, monitor=True,
                    progress=False, callback=lambda epoch, metrics: seen.append((epoch, metrics)))  # fmt: skip
    assert result.history["dead"].shape == (2, 0) and result.history["delta_norm"].shape == (2, 1)
    assert [epoch for epoch, _ in seen] == [1, 2] and seen[1][1]["cost"] == result.history["cost"][1]
    assert "epoch" not in seen[0][1] and len(seen[0][1]["update_ratio"]) == 1
