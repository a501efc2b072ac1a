"""Many devices, here eight virtual ones: the numbers of one device, to rounding, and the work divided."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from internals import Data, Plan, epoch, put_data, start
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from problems import tree_error

import jaxmlp as jm

NET = jm.MLP((6, 16, 8, 2), hidden="tanh", output="softmax", loss="cross_entropy")
SGD = optax.sgd(0.3, momentum=0.9)

pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs 8 devices, virtual or not")


def mesh(**axes):
    n = int(np.prod(list(axes.values())))
    return Mesh(np.asarray(jax.devices()[:n]).reshape(*axes.values()), tuple(axes))


def examples(m, seed):
    X = np.random.default_rng(seed).normal(size=(m, 6)).astype(np.float32)
    return X, (X[:, 0] * X[:, 1] > 0).astype(np.int32)


def fit(mesh=None, data=None, **options):
    """Everything that is drawn, averaged or kept per parameter at once."""
    options = {"optimizer": SGD, "epochs": 2, "batch_size": 32, "keep": 0.9, "input_noise": 0.1, "average": 0.9,
               "monitor": True} | options  # fmt: skip
    return jm.fit(NET, jm.init(NET, jax.random.key(0)), examples(200, 0) if data is None else data, mesh=mesh,
                  key=jax.random.key(1), validation=examples(50, 1), progress=False, **options)  # fmt: skip


def assert_same(one, other):
    """To the rounding that sums in another order leave; 1e-5 is the documented limit for float32."""
    assert tree_error(jax.device_get(one.params), jax.device_get(other.params)) < 1e-5
    assert one.best_epoch == other.best_epoch
    for name, column in one.history.items():
        if name != "seconds":
            np.testing.assert_allclose(column, other.history[name], rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def on_one_device():
    with jax.numpy_dtype_promotion("strict"):
        return fit()


@pytest.mark.parametrize("axes", [{"data": 1}, {"data": 8}, {"data": 2, "model": 4}])
def test_a_mesh_of_any_size_gives_the_numbers_of_one_device(axes, on_one_device):
    """The same examples, masks and noise whatever the mesh; layers in pairs along `model`, with all that is theirs."""
    result = fit(mesh(**axes))
    assert_same(result, on_one_device)
    model = "model" if axes.get("model", 1) > 1 else None
    state = result.state
    for tree in (state.params, state.opt_state[0].trace, state.best.params, state.average.total):
        assert [layer.W.sharding.spec for layer in tree] == ([P(model), P(None, model), P()] if model else [P()] * 3)


def test_explicit_axes_are_taken_as_well(on_one_device):
    """jax.make_mesh's are explicit by default: what is not said there would have to be said everywhere."""
    assert_same(fit(jax.make_mesh((8,), ("data",))), on_one_device)


def test_curvature_is_summed_over_the_mesh():
    """K-FAC's factors, and the quadratic model, are those of the whole batch."""
    options = {"optimizer": jm.kfac(NET, damping=0.1, adapt_every=2, factors_every=2, inverses_every=4),
               "monitor": False, "epochs": 1}  # fmt: skip
    one, many = fit(None, **options), fit(mesh(data=4, model=2), **options)
    assert tree_error(many.params, one.params) <= 1e-3  # the least of a model magnifies rounding
    assert tree_error(many.state.opt_state.average, one.state.opt_state.average) <= 1e-4


FEWER = {"average": None, "monitor": False}  # which do not depend on how a batch is drawn


def test_coins_on_a_mesh():
    """Poisson's batches are filled up to what the devices divide."""
    coins = {"sampling": "poisson"} | FEWER
    assert_same(fit(mesh(data=4), **coins), fit(**coins))


def test_ragged_shares_on_a_mesh():
    ragged = {"shares": 8, "batch_size": 24, "weights": np.linspace(0, 2, 200, dtype=np.float32)} | FEWER
    assert_same(fit(mesh(data=8), **ragged), fit(**ragged))


def test_streams_on_a_mesh():
    """Batches that its devices do not divide are filled up with examples of weight 0."""
    X, Y = examples(100, 0)
    w = np.linspace(0.5, 2, 100, dtype=np.float32)
    batches = [tuple(a[i : i + 30] for a in ((X, Y, w) if i else (X, Y))) for i in range(0, 100, 30)]
    plain = {"data": batches, "batch_size": None, "keep": None, "input_noise": None} | FEWER
    assert_same(fit(mesh(data=8), **plain), fit(**plain))


def test_the_work_is_divided_and_a_step_waits_for_the_others_once():
    """Eight devices do about an eighth each of what one does, and all that passes between them is one sum a step."""
    net = jm.MLP((64, 128, 10), output="softmax", loss="cross_entropy")

    def compiled(mesh, shares=1):
        plan = Plan(net, optax.sgd(0.1), 64, 4, accuracy=True, mesh=mesh, shares=shares)
        data = Data(jnp.zeros((256, 64)), jnp.zeros(256, jnp.int32))
        data = put_data(plan.mesh, data, by_share=shares > 1)
        state = jax.jit(start, static_argnums=0)(plan, jm.init(net, jax.random.key(0)), data, jax.random.key(1))
        return jax.jit(epoch, static_argnums=0).lower(plan, state, data).compile()

    one = compiled(None).cost_analysis()["flops"]
    for shares in (1, 8):
        eight = compiled(mesh(data=8), shares)
        assert eight.cost_analysis()["flops"] < one / 4
        text = eight.as_text()
        assert text.count(" all-reduce(") == 1
        assert not any(f" {name}(" in text for name in ("all-gather", "all-to-all", "collective-permute"))


def test_a_checkpoint_goes_on_on_another_mesh(tmp_path, on_one_device):
    fit(mesh(data=8), epochs=1, checkpoints=tmp_path)
    assert_same(fit(mesh(data=2, model=4), checkpoints=tmp_path), on_one_device)


def sweep(mesh=None, members=8, **options):
    """The first of eight members."""
    rates = np.linspace(0.01, 0.5, 8)[:members]
    return jm.sweep(
        NET, examples(200, 0), keys=jax.random.split(jax.random.key(0), 8)[:members], optimizer=optax.sgd, epochs=2,
        hyper={"learning_rate": rates, "momentum": 0.9}, batch_size=40, keep=0.9, patience=5,
        validation=examples(50, 1), mesh=mesh, progress=False, **options,
    )  # fmt: skip


def test_members_along_a_mesh():
    """Eight members on four devices; six on two, filled up to eight; the result shows the six."""
    one = sweep()
    for members, axes, at_once in ((8, {"member": 4}, None), (6, {"member": 2, "data": 2, "model": 2}, 4)):
        many = sweep(mesh(**axes), members, members_at_once=at_once)
        expected = jax.tree.map(lambda leaf, n=members: leaf[:n], jax.device_get(one.params))
        assert tree_error(jax.device_get(many.params), expected) < 1e-5
        np.testing.assert_allclose(many.history["cost"], one.history["cost"][:, :members], rtol=1e-5)
        assert many.scores.shape == (members,) and many.member(5).params[0].W.shape == (16, 6)
        if at_once is None:
            assert (
                many.last_params[0].W.sharding.spec == many.states.opt_state[0].trace[0].W.sharding.spec == P("member")
            )


def test_a_search_along_a_mesh():
    """Of 4 settings 4, 2 and 1 are left, which the devices do not always divide."""
    space = {"learning_rate": jm.log_uniform(1e-3, 1)}
    found = [
        jm.search(space, NET, examples(200, 0), key=jax.random.key(0), optimizer=optax.sgd, validation=examples(50, 1),
                  trials=4, budget=8, batch_size=40, mesh=on, progress=False)
        for on in (None, mesh(member=4))
    ]  # fmt: skip
    np.testing.assert_allclose(found[0].scores, found[1].scores, rtol=1e-5)
    assert found[0].best == found[1].best


BAD = {
    "a mesh is expected": ({"mesh": "all"}, "mesh is 'all', expected a jax.sharding.Mesh"),
    "another axis": ({"mesh": {"batch": 2}}, "mesh has the axes batch, expected .*data, model"),
    "members are a sweep's": ({"mesh": {"member": 2}}, "mesh has the axes member"),
    "no layer is divided": ({"mesh": {"model": 5}}, "5 devices, which divide the width of no .* \\(16\\)"),
    "a batch is not divided": ({"mesh": {"data": 3}}, "batch_size is 32, expected a multiple of the 3 devices"),
    "shares on devices": ({"mesh": {"data": 4}, "shares": 2}, "shares is 2, expected a multiple of the 4 devices"),
    "shares of a batch": ({"shares": 5}, "batch_size is 32, expected a multiple of the 5 shares"),
    "unequal shares": ({"shares": 16}, "200 examples, expected a multiple of its 16 shares.*the last 8"),
    "coins for all": ({"shares": 2, "sampling": "poisson"}, "shares is 2, expected 1 with sampling='poisson'"),
    "a stream's shares": ({"shares": 2, "data": [examples(4, 0)], "batch_size": None}, "shares is given"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_meshes_and_shares_are_named(name):
    options, message = BAD[name]
    options = dict(options)
    on = options.pop("mesh", None)
    with pytest.raises(ValueError, match=message):
        fit(mesh(**on) if isinstance(on, dict) else on, **options)
