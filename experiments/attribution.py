"""Which training digits made a prediction: influence, judged by retraining without them.

A network of 0.11 M weights learns 5,000 digits. `jm.influence` says for each of 500 test digits how much its loss would
rise without each training digit. One `sweep` then retrains the network on 100 random halves of the digits, with several
keys each, and the linear datamodelling score (Park et al. 2023) is the rank correlation, over the halves, between the
loss of a test digit that the scores foretell and its mean over the keys; the mean over the test digits. 0 is chance.
Expect at least 0.25 by EK-FAC from one network, 0.40 from ten, and less by TracIn. Last, a share of the labels is wrong
on purpose. A network learns a wrong label by heart, for no other example teaches it: its loss would rise without the
example. Expect at least 85% of the labels of the largest influence on their own loss to be wrong, more than by the
norm of the gradient, and as many as by the loss.
"""

from dataclasses import dataclass, replace
from functools import cache
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import rankdata

import jaxmlp as jm
from experiments import datasets
from experiments.output import Output
from experiments.per_example import plant
from jaxmlp import plotting
from jaxmlp.data import scale_pixels


@dataclass(frozen=True)
class Settings:
    data: str = "mnist"  # mnist, fashion_mnist, or a folder with the four IDX files
    examples: int = 5000  # training examples
    tests: int = 500  # test examples
    hidden: tuple[int, ...] = (128, 64)  # widths of the hidden layers
    halves: int = 100  # random halves of the training examples that networks are retrained on
    keys: int = 3  # networks for each half, and of those the scores are read from
    members: int = 10  # networks on all examples
    epochs: int = 12  # of every training
    batch_size: int = 100  # examples in a step
    at_once: int = 50  # networks that train together
    learning_rate: float = 0.05  # at the start; it falls to 0 along a cosine
    damping: float = 0.01  # of the curvature
    planted: float = 0.05  # share of the labels that are wrong on purpose, in the last part
    key: int = 0
    quick: bool = False  # fewer of everything, and two methods


METHODS: tuple[tuple[str, Any, bool], ...] = (  # the last scores are shown
    ("TracIn", "tracin", False), ("TracIn", "tracin", True), ("K-FAC", "kfac", False), ("K-FAC", "kfac", True),
    ("random projections", "projected", True), ("EK-FAC", "ekfac", False), ("EK-FAC", "ekfac", True),
)  # fmt: skip
TERMS = 8  # of the sum of products in place of EK-FAC's division: scores correlate by 0.998, and cost a fraction
SMALL = {"examples": 300, "tests": 40, "hidden": (16,), "halves": 16, "keys": 2, "members": 2, "epochs": 8,
         "batch_size": 25, "at_once": 2}  # fmt: skip


def run(settings: Settings, out: Output) -> dict[str, float]:
    s = replace(settings, **SMALL) if settings.quick else settings
    pictures = datasets.load(s.data)
    datasets.check_amount("examples", s.examples, len(pictures.X))
    datasets.check_amount("tests", s.tests, len(pictures.X_test) - 1)  # the last part takes others
    train = pictures.X[: s.examples], pictures.Y[: s.examples]
    test = pictures.X_test[: s.tests], pictures.Y_test[: s.tests]
    net = jm.MLP((pictures.X[0].size, *s.hidden, len(pictures.classes)), "relu", "softmax", "cross_entropy")
    whole = _train(net, train, s, np.ones((s.members, s.examples), np.float32), s.members)
    halves = _draw_halves(s)
    began = perf_counter()
    retrained = _train(net, train, s, np.repeat(halves, s.keys, axis=0), s.keys)
    seconds = perf_counter() - began
    losses = _losses(net, retrained, test).reshape(s.halves, s.keys, s.tests)
    found, scores = _judge(net, whole, train, test, halves, losses, s, out)
    out.say(f"{len(losses) * s.keys} networks were retrained in {seconds:.0f} s; the losses of two parts of the keys "
            f"agree by {_agree(losses):.3f}")  # fmt: skip
    out.picture("digits", _show(scores, train, test, pictures.classes))
    found |= _find_planted(net, pictures, s, out)
    out.close()
    return found | {"seconds": seconds}


def _judge(net, whole, train, test, halves, losses, s: Settings, out: Output) -> tuple[dict[str, float], np.ndarray]:
    """Each method's linear datamodelling score, and EK-FAC's scores from all networks."""
    found, rows, scores = {}, [], np.empty(0)
    for words, method, several in METHODS[1:4:2] if s.quick else METHODS:
        began = perf_counter()
        n = s.members if several else 1
        how: dict[str, Any] = {} if method == "tracin" else {"damping": s.damping}
        how |= {"key": jax.random.key(s.key)} if method == "projected" else {}
        how |= {"terms": TERMS} if method == "ekfac" else {}
        params = jax.tree.map(lambda leaf, n=n: leaf[:n], whole)
        scores = np.asarray(
            jm.influence(net, params, train, test, method, preprocess=scale_pixels, progress=False, **how)
        )
        each = _correlate(halves, scores, losses.mean(1))
        found[f"{method}, {'all' if several else 'one'}"] = float(each.mean())
        rows.append({"method": words, "networks": str(n), "score": f"{each.mean():.3f}",
                     "middle half of the test digits": "{:.2f} to {:.2f}".format(*np.quantile(each, [0.25, 0.75])),
                     "seconds": f"{perf_counter() - began:.1f}"})  # fmt: skip
    out.table(f"linear datamodelling score over {s.halves} halves of {s.examples:,} digits, {s.keys} networks each, "
              f"for {s.tests} test digits", rows)  # fmt: skip
    return found, scores


@cache
def _make_optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """One object for all trainings, which then share their programs."""
    return optax.sgd(optax.cosine_decay_schedule(learning_rate, steps), 0.9)


def _train(net: jm.MLP, train, s: Settings, weights: np.ndarray, keys: int):
    """The last weights of a network for each row of `weights`; the rows take the keys in turn, and share batches."""
    in_turn = jnp.tile(jax.random.split(jax.random.key(s.key), keys), len(weights) // keys)
    optimizer = _make_optimizer(s.learning_rate, s.epochs * -(-s.examples // s.batch_size))
    at_once = min(len(weights), s.at_once)
    return jm.sweep(net, train, keys=in_turn, optimizer=optimizer, epochs=s.epochs, weights=weights,
                    batch_size=s.batch_size, preprocess=scale_pixels, members_at_once=at_once).last_params  # fmt: skip


def _draw_halves(s: Settings) -> np.ndarray:
    rng = np.random.default_rng(s.key)
    halves = np.zeros((s.halves, s.examples), np.float32)
    for half in halves:
        half[rng.permutation(s.examples)[: s.examples // 2]] = 1
    return halves


def _losses(net: jm.MLP, params, test) -> np.ndarray:
    """`(E, n_test)`."""
    one = jax.jit(lambda params: jm.backprop(net, params, *test, preprocess=scale_pixels).losses)
    return np.asarray(jax.lax.map(one, params))


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _correlate(halves: np.ndarray, scores: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """For each test digit the rank correlation of foretold and measured losses."""
    foretold = -halves @ scores
    return np.asarray([_rank_correlation(a, b) for a, b in zip(foretold.T, losses.T, strict=True)])


def _agree(losses: np.ndarray) -> float:
    first, last = losses[:, ::2].mean(1), losses[:, 1::2].mean(1)
    return float(np.mean([_rank_correlation(a, b) for a, b in zip(first.T, last.T, strict=True)]))


def _show(scores: np.ndarray, train, test, classes):
    """Some test digits, each with the training digits that help it most and harm it most."""
    chosen = np.linspace(0, scores.shape[1] - 1, 4).astype(int)
    images, titles = [], []
    for j in chosen:
        order = np.argsort(-scores[:, j])
        images += [test[0][j], *train[0][order[:4]], *train[0][order[::-1][:4]]]
        titles.append(f"test: {classes[test[1][j]]}")
        titles += [f"helps: {classes[train[1][i]]}\n{scores[i, j]:.1e}" for i in order[:4]]
        titles += [f"harms: {classes[train[1][i]]}\n{scores[i, j]:.1e}" for i in order[::-1][:4]]
    return plotting.pictures(np.stack(images), titles, columns=9)


def _find_planted(net: jm.MLP, pictures, s: Settings, out: Output) -> dict[str, float]:
    """Plants wrong labels, and looks for them by influence, by gradient norms and by losses."""
    X, held_out = pictures.X[: s.examples], slice(s.tests, 5 * s.tests)
    Y, wrong = plant(pictures.Y[: s.examples], s.planted, len(pictures.classes), s.key)
    members = _train(net, (X, Y), s, np.ones((s.members, s.examples), np.float32), s.members)
    others = pictures.X_test[held_out], pictures.Y_test[held_out]
    scores = jm.influence(net, members, (X, Y), others, "kfac", damping=s.damping, preprocess=scale_pixels,
                          progress=False)  # fmt: skip
    harm = -np.asarray(scores).mean(1)
    loss, norm, own = (np.asarray(each).mean(0) for each in _look_at_each(net, members, X, Y, s.damping))
    signs = {
        "influence on its own loss": own,
        f"harm to {len(others[0]):,} other digits": harm,
        "norm of the gradient": norm,
        "loss": loss,
        "chance": np.random.default_rng(s.key).random(len(wrong)),
    }
    k = int(wrong.sum())
    shares = [float(wrong[np.argsort(-sign)[:k]].mean()) for sign in signs.values()]
    out.table(f"{k} wrong labels planted among {s.examples:,}, means over {s.members} networks", [
        {"the largest": words, "are planted (precision at k)": f"{share:.1%}"}
        for words, share in zip(signs, shares, strict=True)
    ])  # fmt: skip
    worst = np.argsort(-own)[:32]
    titles = [f"label {pictures.classes[Y[i]]}{' (planted)' if wrong[i] else ''}" for i in worst]
    out.picture("suspect", plotting.pictures(X[worst], titles))
    names = ("precision, own", "precision, harm", "precision, norm", "precision, loss", "chance")
    return dict(zip(names, shares, strict=True))


def _look_at_each(net: jm.MLP, members, X: np.ndarray, Y: np.ndarray, damping: float) -> tuple[jax.Array, ...]:
    """Losses, gradient norms and the influence of each example on its own loss by K-FAC, `(E, m)` each.

    The influence, `g . (H + damping I)^-1 g / m`, is the squared norm in a trace that the inverse's root maps.

    Source: Pruthi et al. 2020, section 4.1, for influence on the own loss as a sign of wrong labels.
    """

    @jax.jit
    def look(params, X, Y):
        trace = jm.backprop(net, params, X, Y, preprocess=scale_pixels)
        curvature = jm.backprop(net, params, X, Y, preprocess=scale_pixels, start=jm.hessian_root)
        root = jm.factor_power(jm.kronecker_factors(curvature), -0.5, damping)
        own = jm.per_example_norms(jm.transform(trace, root)) ** 2 / len(X)
        return trace.losses, jm.per_example_norms(trace), own

    return jax.lax.map(lambda params: look(params, X, Y), members)
