"""Populations as predictors: outputs, means, the greedy choice, disagreement, and one file, against NumPy."""

import copy
import itertools
import pickle
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import ensembles_module
from problems import NET, bits, examples

import jaxmlp as jm

X, Y = examples(30, seed=7)
OTHER = jm.MLP((3, 4, 2), "relu", "softmax", "cross_entropy")


def random_members(net, E, seed):
    """A population of random networks, made by hand."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(E, *shape)).astype(np.float32))
    params, last = (tuple(jm.Layer(draw(o, i), draw(o)) for o, i in net.shapes) for _ in range(2))
    none, epochs, scores = np.zeros(E, bool), np.arange(1, 1 + E), rng.random(E).astype(np.float32)
    history = {"epoch": epochs, "cost": rng.random((E, E)).astype(np.float32)}
    return jm.SweepResult(params, last, history, None, none, none, scores, epochs, {}, None, net)


@pytest.fixture(scope="module")
def many():
    """Four members; the second diverged."""
    settings = {"learning_rate": np.linspace(0.1, 0.4, 4)}
    return replace(random_members(NET, 4, 1), diverged=np.arange(4) == 1, settings=settings)


@pytest.fixture(scope="module")
def mixed(many):
    """Members of two shapes, as a sweep of a list of networks joins them."""
    of_each, other = many.params, random_members(OTHER, 2, 0).params
    at = lambda params, i: jax.tree.map(lambda a: a[i], params)
    params = [at(of_each, 0), at(other, 0), at(of_each, 2), at(other, 1)]
    names = {"net": np.asarray(["3-5-2 tanh", "3-4-2 relu", "3-5-2 tanh", "3-4-2 relu"]), "l2": np.ones((4, 2))}
    return replace(many, params=params, last_params=params[2:] + params[:2], net=(NET, OTHER, NET, OTHER),
                   settings=names, diverged=np.zeros(4, bool), best_epoch=np.asarray([1, 4, 2, 3]))  # fmt: skip


def outputs(many, X=X):
    """Each member's outputs by `jm.predict`, in float64."""
    nets = many.net if isinstance(many.net, tuple) else [many.net] * len(many.scores)
    each = [jm.predict(net, many.member(i).params, X, preprocess=many.preprocess) for i, net in enumerate(nets)]
    return np.asarray(each, np.float64)


# What members predict.


def test_members_predict_what_predict_gives_in_parts_of_any_size(many, mixed, monkeypatch):
    for population, at_once in ((many, 2**24), (many, 450), (mixed, 1)):  # all; 3 members; one of each at a time
        monkeypatch.setattr(ensembles_module, "AT_ONCE", at_once)
        expected = outputs(population)
        np.testing.assert_allclose(population.predict(X), expected, atol=1e-6)
        np.testing.assert_allclose(population.predict(X, [3, 0, -1]), expected[[3, 0, 3]], atol=1e-6)
        mean = population.predict_mean(X, [3, 0, 2], [1, 0, 3])
        np.testing.assert_allclose(mean, (expected[3] + 3 * expected[2]) / 4, atol=1e-6)


def test_the_preprocess_of_training_is_that_of_predictions(many):
    whole = np.random.default_rng(0).integers(-4, 5, (30, 3))
    halved = (whole / 2).astype(np.float32)
    trained = replace(many, preprocess=lambda x: x.astype(np.float32) / 2)
    np.testing.assert_allclose(trained.predict(whole), many.predict(halved), atol=1e-6)
    np.testing.assert_allclose(many.predict(whole, preprocess=trained.preprocess), many.predict(halved), atol=1e-6)
    assert trained.ensemble((whole, Y), 1).members == many.ensemble((halved, Y), 1).members


def test_disagreement_is_the_variance_and_the_mutual_information(many, mixed, monkeypatch):
    shares = np.asarray([0.5, 0.2, 0.3])
    for population, at_once in ((many, 2**24), (mixed, 20)):
        monkeypatch.setattr(ensembles_module, "AT_ONCE", at_once)
        p = outputs(population)[[3, 0, 2]]
        mean = np.einsum("e,emk->mk", shares, p)
        spread = np.einsum("e,emk->mk", shares, (p - mean) ** 2)
        divergence = np.einsum("e,emk,emk->m", shares, p, np.log(p / mean))  # the same as the entropies' difference
        made = population.disagreement(X, [3, 0, 2], shares)
        np.testing.assert_allclose(made.mean, mean, rtol=1e-5)
        np.testing.assert_allclose(made.spread, spread, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(made.mutual_information, divergence, atol=1e-6)
        alone = population.disagreement(X, [2])
        assert not np.asarray(alone.spread).any() and not np.asarray(alone.mutual_information).any()


def test_members_that_diverged_have_no_part_in_a_mean_unless_they_are_named(many):
    each = outputs(many)
    np.testing.assert_allclose(many.predict_mean(X), each[[0, 2, 3]].mean(0), atol=1e-6)
    np.testing.assert_allclose(many.predict_mean(X, range(4)), each.mean(0), atol=1e-6)


# The greedy choice.


def caruana(losses_of_mean, candidates, size, replace=True):
    """Ensemble selection the slow way: members chosen, and the loss of each prefix."""
    chosen, losses = [], []
    for _ in range(size):
        left = [i for i in candidates if replace or i not in chosen]
        best = min(left, key=lambda i: losses_of_mean([*chosen, i]))
        chosen.append(best)
        losses.append(losses_of_mean(chosen))
    return chosen[: int(np.argmin(losses)) + 1], losses


CASES = {
    "classes": (NET, Y, lambda p, Y: -np.log(p[np.arange(len(Y)), Y])),
    "rows": (jm.MLP((3, 2), output="softmax", loss="binary_cross_entropy"), np.eye(2, dtype=np.float32)[Y],
             lambda p, Y: -(Y * np.log(p) + (1 - Y) * np.log(1 - p)).sum(1)),
    "numbers": (jm.MLP((3, 2), "tanh"), X[:, :2], lambda p, Y: ((p - Y) ** 2).sum(1) / 2),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_greedy_choice_is_that_of_caruana(case):
    net, labels, loss = CASES[case]
    population, weights = random_members(net, 4, seed=7), np.linspace(0.1, 2, 30).astype(np.float32)
    each = outputs(population)
    mean_loss = lambda chosen: np.average(loss(each[chosen].mean(0), labels), weights=weights)
    for again in (True, False):
        chosen, losses = caruana(mean_loss, range(4), 4, again)
        members, shares = population.ensemble((X, labels, weights), size=4, replace=again)
        assert members.tolist() == list(dict.fromkeys(chosen))
        np.testing.assert_allclose(shares, [chosen.count(i) / len(chosen) for i in members])
        mean = np.asarray(population.predict_mean(X, members, shares), np.float64)
        assert np.average(loss(mean, labels), weights=weights) == pytest.approx(min(losses), rel=1e-5)
        assert len(chosen) > 1 and min(losses) <= losses[0]  # the case is one where a mean helps


def test_accuracy_chooses_the_mean_with_the_most_right(many):
    each = outputs(many)
    right = lambda chosen: -np.mean(each[chosen].mean(0).argmax(1) == Y)
    chosen, losses = caruana(right, [0, 2, 3], 5)
    members, _ = many.ensemble((X, Y), size=5, by="accuracy")
    assert members.tolist() == list(dict.fromkeys(chosen))
    assert -np.mean(np.asarray(many.predict_mean(X, *many.ensemble((X, Y), 5))).argmax(1) == Y) <= losses[0] + 0.1


def test_a_loss_of_a_mean_keeps_its_digits_where_members_round_to_0_and_1():
    """Members that give the true class `e^-200`, `e^-150` and `e^-400`; the last is the better one on the others."""
    net = jm.MLP((1, 2), output="softmax", loss="cross_entropy")
    at = lambda first, second: (jm.Layer(jnp.asarray([[first], [0.0]]), jnp.asarray([second, 0.0])),)
    members = [at(-300.0, 100.0), at(-250.0, 100.0), at(-500.0, 100.0)]  # z = W x + b, at x = 1 and x = 0
    population = random_members(net, 3, 0)
    population = replace(population, params=jax.tree.map(lambda *a: jnp.stack(a), *members))
    x, y = np.asarray([[1], [0]], np.float32), np.asarray([0, 0])
    assert not np.asarray(population.predict(x))[:, 0, 0].any()  # e^-150 is 0 in float32
    assert population.ensemble((x, y), size=4).members.tolist() == [1]  # any other only makes it worse
    left = replace(population, diverged=np.asarray([False, True, False]))
    assert left.ensemble((x, y), size=4).members.tolist() == [0]


def test_a_member_that_diverged_is_never_chosen_and_the_best_prefix_is_kept(many):
    as_good = replace(many, params=jax.tree.map(lambda a: a[jnp.asarray([0, 3, 2, 3])], many.params))
    assert as_good.diverged.tolist() == [False, True, False, False]
    best = many.member(np.argmin([jm.cost(NET, as_good.member(i).params, X, Y) for i in (0, 2, 3)]) + 1).params
    for size, again in itertools.product((1, 2, 3), (True, False)):
        members, shares = as_good.ensemble((X, Y), size=size, replace=again)
        assert 1 not in members and shares.sum() == pytest.approx(1) and len(set(members)) == len(members) <= size
        mean = np.asarray(as_good.predict_mean(X, members, shares))
        assert -np.log(mean[np.arange(30), Y]).mean() <= float(jm.cost(NET, best, X, Y)) + 1e-6


# When all diverge.


def test_there_is_no_best_member_when_all_diverged(many):
    lost = replace(many, scores=np.full(4, np.inf), diverged=np.ones(4, bool))
    with pytest.raises(ValueError, match="scores are all infinite: 4 of 4 members diverged; expected a lower"):
        _ = lost.best
    with pytest.raises(ValueError, match="all 4 members diverged, expected at least one that did not"):
        lost.ensemble((X, Y), size=2)
    with pytest.raises(ValueError, match="all 4 members diverged"):
        lost.predict_mean(X)
    assert repr(lost) == "SweepResult(4 members; 4 diverged; best: none)"
    assert len(str(lost).splitlines()) == 5 and lost.predict(X).shape == (4, 30, 2)


# Files, pickles and copies.


def same(a, b):
    """Whether two populations have the same bits in every field but `states`."""
    for name in set(vars(a)) - {"states", "net", "preprocess"}:
        one, other = (jax.tree_util.tree_flatten_with_path(getattr(x, name))[0] for x in (a, b))
        assert [path for path, _ in one] == [path for path, _ in other], name
        assert [bits(leaf) for _, leaf in one] == [bits(leaf) for _, leaf in other], name
    return list(a.history) == list(b.history) and list(a.settings) == list(b.settings) and a.net == b.net


def test_a_file_holds_a_population_bit_for_bit(many, mixed, tmp_path):
    for population in (many, mixed):
        population.save(tmp_path / "many")
        again = jm.SweepResult.load(tmp_path / "many")
        assert same(population, again) and again.states is None and again.preprocess is None
        assert (repr(again), str(again)) == (repr(population), str(population))
        assert np.array_equal(again.predict(X), population.predict(X))
        assert again.member(2).state is None and again.member(2).best_epoch == population.member(2).best_epoch
    assert [path.name for path in tmp_path.iterdir()] == ["many"]


def test_a_file_asks_for_functions_of_ones_own(tmp_path):
    cube = jm.Activation("cube", lambda z: z**3, lambda z: 3 * z**2)
    population = replace(random_members(jm.MLP((3, 2, 2), cube), 2, 0), preprocess=lambda x: x / 2)
    population.save(tmp_path / "many")
    with pytest.raises(ValueError, match="many uses the activation 'cube', not among jaxmlp's"):
        jm.SweepResult.load(tmp_path / "many")
    again = jm.SweepResult.load(tmp_path / "many", own=[cube])
    with pytest.raises(ValueError, match="preprocess is unknown: the members trained with one"):
        again.predict(X)
    assert np.array_equal(again.predict(X, preprocess=lambda x: x / 2), population.predict(X))


def test_a_file_that_is_no_population_says_what_it_is(many, tmp_path):
    path = tmp_path / "many.safetensors"
    jm.save(path, NET, many.member(0).params)
    with pytest.raises(ValueError, match=r"many.safetensors holds a network, expected a population"):
        jm.SweepResult.load(path)
    with pytest.raises(FileNotFoundError, match="absent is not there, expected a folder for many"):
        many.save(tmp_path / "absent" / "many")
    many.save(path)
    with pytest.raises(ValueError, match=r"many.safetensors holds a population, expected a network"):
        jm.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=r"many.safetensors is truncated, corrupt or no safetensors file"):
        jm.SweepResult.load(path)
    path.write_bytes(whole[:-7] + b"forged!")
    with pytest.raises(ValueError, match=r"many.safetensors is corrupt: its SHA-256 is"):
        jm.SweepResult.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, a: t.update(scores=t["scores"][:3]), r"is .* beside 3 members"),
        (lambda t, a: t.pop("scores"), "it has no scores of members"),
        (lambda t, a: t.pop("diverged"), "it has no diverged"),
        (lambda t, a: t.update(epochs=t["epochs"] + 9), "epochs is .*, expected epochs of the history"),
        (lambda t, a: t.update(more=t["epochs"]), "it has more, expected none of that name"),
        (lambda t, a: a.update(history=3), "history is 3, expected names"),
        (lambda t, a: a["history"].remove("epoch"), "its history has no epoch or no cost"),
        (lambda t, a: t.update({"history.cost": t["history.cost"][:2]}), r"history.cost has shape \(2, 4\)"),
        (lambda t, a: a.update(texts={"learning_rate": ["a"]}), "expected a text for each of 4 members"),
        (lambda t, a: a.update(nets=[]), r"nets is \[\], expected networks"),
        (lambda t, a: a.update({"net of each": [0, 0, 0, 1]}), "net of each is .*, expected the number of a network"),
        (lambda t, a: t.update({"params.W1": t["params.W1"][:, :2]}), r"the shape of W1 is \(2, 3\)"),
        (lambda t, a: t.update({"last_params.b2": t["last_params.b2"][:, :1]}), "last_params: .* layer 2 has W"),
        (lambda t, a: a.update(preprocess=1), "preprocess is 1, expected whether there was one"),
    ],
)
def test_a_right_checksum_proves_nothing(change, message, many, tmp_path):
    many.save(tmp_path / "many")
    tensors, about = jm.files.read(tmp_path / "many", "population")
    change(tensors, about)
    jm.files.write(tmp_path / "many", tensors, about)
    with pytest.raises(ValueError, match=message) as error:
        jm.SweepResult.load(tmp_path / "many")
    assert "many" in str(error.value)


def test_a_pickle_leaves_out_what_it_cannot_hold_and_a_copy_keeps_it(many):
    own = jm.MLP((3, 5, 2), jm.Activation("own", lambda z: z, lambda z: 1 + 0 * z), "softmax", "cross_entropy")
    half = lambda x: x / 2
    held = replace(many, net=own, preprocess=half)
    for made in (copy.copy(held), copy.deepcopy(held)):
        assert made.net is own and made.preprocess is half and same(made, held)
    again = pickle.loads(pickle.dumps(held))
    assert again.net is None and repr(again) == repr(held)
    with pytest.raises(ValueError, match="net is None: this result does not know its network"):
        again.predict(X)
    with pytest.raises(ValueError, match="net is None"):
        again.save("nowhere")
    with pytest.raises(ValueError, match="preprocess is unknown"):
        replace(again, net=NET).predict(X)
    assert pickle.loads(pickle.dumps(many)).net == NET
    old = many.__class__.__new__(many.__class__)  # a pickle from before there was a `net`
    vars(old).update({name: value for name, value in vars(many).items() if name not in ("net", "preprocess")})
    assert old.net is None and repr(old) == repr(many)


# Wrong arguments.


@pytest.mark.wrong_arguments
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.predict(X[:, :2]), "X has 2 features, the network takes 3"),
        (lambda m: m.predict(X, members=[4]), r"members\[0\] is 4, expected 0 to 3, or -1 to -4 from the end"),
        (lambda m: m.predict(X, members=[0, 1.5]), r"members\[1\] is 1.5, expected a whole number"),
        (lambda m: m.predict(X, members=2), "members is 2, expected the numbers of members, such as"),
        (lambda m: m.predict((X, Y)), r"X is ragged, .* not a tuple of arrays of shapes \(30, 3\), \(30,\)"),
        (lambda m: m.predict(X, members=m.diverged), r"members is array\(.*, such as np.flatnonzero of these"),
        (lambda m: m.predict(X, members=[]), "members is empty, expected the number of at least one member"),
        (lambda m: m.predict_mean(X, shares=[1.0]), r"shares has shape \(1,\), expected one share for each of the 3"),
        (lambda m: m.predict_mean(X, [0], [-1.0]), r"shares is \[-1.0\], expected finite numbers of at least 0"),
        (lambda m: m.disagreement(X, [0, 2], [0, 0]), "shares are all 0, expected some above 0"),
        (lambda m: m.ensemble((X, Y), size=0), "size is 0, expected at least 1"),
        (lambda m: m.ensemble((X, Y), 4, replace=False), "size is 4, but 3 members did not diverge"),
        (lambda m: m.ensemble((X, Y), 2, by="cost"), "by is 'cost', expected one of 'loss', 'accuracy'"),
        (lambda m: m.ensemble(None, 2), r"validation is None, expected examples \(X, Y\)"),
        (lambda m: m.ensemble((X,), 2), r"validation is a tuple of 1, expected a tuple \(X, Y\)"),
        (lambda m: m.ensemble((X, Y + 1), 2), "validation Y holds the class 2, expected classes 0 to 1"),
        (lambda m: replace(m, net=(NET, NET)).predict(X), "net has 2 networks, expected one for each of the 4 members"),
    ],
)
def test_wrong_arguments_are_named(call, message, many):
    with pytest.raises(ValueError, match=message):
        call(many)


def test_members_that_do_not_go_together_are_refused():
    one, other = random_members(jm.MLP((3, 2)), 1, 0), random_members(jm.MLP((3, 1)), 1, 0)
    binary = jm.MLP((3, 2), output="sigmoid", loss="binary_cross_entropy")
    first = lambda net: jax.tree.map(lambda a: a[0], random_members(net, 1, 0).params)
    join = lambda *nets: replace(random_members(nets[0], 2, 0), net=nets, params=list(map(first, nets)))
    with pytest.raises(ValueError, match="members have 1 and 2 outputs, expected as many in each"):
        join(one.net, other.net).predict(X)
    with pytest.raises(ValueError, match="net has the losses binary_cross_entropy, squared_error, expected one loss"):
        join(one.net, binary).ensemble((X, X[:, :2]), size=1)
    with pytest.raises(ValueError, match="by is 'accuracy', but the network predicts no classes"):
        one.ensemble((X, X[:, :2]), size=1, by="accuracy")
