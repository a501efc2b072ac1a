"""Ensembles: the mean of 1 to 64 networks that train together, on digits and on house prices.

`jm.sweep` trains networks that differ in their first weights alone. The tables have the mean of 1, 2, 4, .. of them,
over disjoint groups, and as many as `many.ensemble` chooses greedily on held-out examples. Expect the mean of 16
networks for MNIST to have at most 0.85 of a single network's error and a lower log loss, and 64 to add little. Expect
the greedy choice to be no worse than the best member on the held-out examples, and the networks to disagree most on the
digits that they get wrong. Calibration does not follow the error: single networks are nearly calibrated here, and a
mean is less sure than its members. On houses the mean gains a few percent; there 109 held-out houses are too few for a
greedy choice, and the plain mean is better.
"""

import time
from dataclasses import dataclass, replace

import jax
import numpy as np
import optax

import jaxmlp as jm
from experiments import datasets, housing
from experiments.output import Output
from experiments.uncertainty import calibration_error
from jaxmlp import plotting
from jaxmlp.data import scale_pixels, split, standardize


@dataclass(frozen=True)
class Settings:
    networks: int = 64  # that train together
    hidden: int = 64  # units of the digits' networks
    epochs: int = 10  # on the digits
    batch_size: int = 128
    learning_rate: float = 1e-3  # rate of Adam on the digits
    held_out: int = 10_000  # training digits to choose members by
    splits: int = 5  # random splits of the houses
    key: int = 0
    quick: bool = False  # 4 networks of 16 units, 5,000 digits, 1 split of the houses


def run(settings: Settings, out: Output) -> dict[str, float]:
    s = settings
    if min(s.networks, s.hidden, s.epochs, s.batch_size, s.held_out, s.splits) < 1:
        raise ValueError(f"{s} has a number below 1, expected at least 1 of each")
    if s.quick:
        s = replace(s, networks=4, hidden=16, epochs=4, held_out=1000, splits=1)
    digits, found = _digits(s, out)
    houses, more = _houses(s, out)
    out.picture("sizes", _picture(digits | houses))
    out.close()
    return found | more


def _sizes(s: Settings) -> list[int]:
    """1, 2, 4, .. up to the number of networks."""
    return [2**i for i in range(s.networks.bit_length())]


def _group(outputs: np.ndarray, n: int) -> np.ndarray:
    """The mean outputs of disjoint groups of n networks."""
    return np.stack([outputs[i : i + n].mean(0) for i in range(0, len(outputs) - n + 1, n)])


Curves = dict[str, dict[str, list]]  # by score: sizes, means, deviations, and those of the greedy choice


def _digits(s: Settings, out: Output) -> tuple[Curves, dict[str, float]]:
    pictures = datasets.load("mnist")
    X, Y = (array[-5000:] if s.quick else array for array in (pictures.X, pictures.Y))
    train, dev = (X[: -s.held_out], Y[: -s.held_out]), (X[-s.held_out :], Y[-s.held_out :])
    test, truth = pictures.X_test, pictures.Y_test
    net = jm.MLP((784, s.hidden, 10), "relu", "softmax", "cross_entropy")
    given = {"keys": jax.random.split(jax.random.key(s.key), s.networks), "optimizer": optax.adam(s.learning_rate),
             "batch_size": s.batch_size, "preprocess": scale_pixels}  # fmt: skip
    began = time.perf_counter()
    many = jm.sweep(net, train, validation=dev, epochs=s.epochs, **given)
    out.say(f"{s.networks} networks {'-'.join(map(str, net.sizes))}, {s.epochs} epochs of {len(train[0]):,} digits, "
            f"trained together in {time.perf_counter() - began:.0f} s")  # fmt: skip
    outputs, of_dev = (np.asarray(many.predict(pictures)) for pictures in (test, dev[0]))
    mean_of = lambda outputs, members, shares: np.tensordot(shares, outputs[members], 1)  # as many.predict_mean has it
    sizes, rows, held_out = _sizes(s), [], []
    plain = {n: [_score(p, truth) for p in _group(outputs, n)] for n in sizes}
    mean = lambda name, n: float(np.mean([each[name] for each in plain[n]]))
    deviation = lambda name, n: float(np.std([each[name] for each in plain[n]]))
    greedy = {}
    for n in sizes:
        members, shares = many.ensemble(dev, size=n)
        greedy[n] = _score(mean_of(outputs, members, shares), truth)
        held_out.append(_score(mean_of(of_dev, members, shares), dev[1])["log loss"])
        ms = "" if s.quick else f"{1000 * _seconds_a_step(net, train, given, n):.2f}"
        rows.append({"networks": str(n), "error": f"{mean('error', n):.2%} ± {100 * deviation('error', n):.2f}",
                     "log loss": f"{mean('log loss', n):.4f}", "calibration": f"{mean('calibration error', n):.2%}",
                     "ms a step": ms, "greedy: members": str(len(members)), "error ": f"{greedy[n]['error']:.2%}",
                     "log loss ": f"{greedy[n]['log loss']:.4f}", "held out": f"{held_out[-1]:.4f}"})  # fmt: skip
    out.table(f"{len(test):,} test digits: the mean of networks, and as many as are chosen greedily of "
              f"{s.networks}, with their log loss on the {len(dev[0]):,} digits held out", rows)  # fmt: skip
    information = np.asarray(many.disagreement(test).mutual_information)
    right = outputs.mean(0).argmax(1) == truth
    ratio = float(information[~right].mean() / information[right].mean())
    out.say(f"the networks' disagreement, the mutual information, is {ratio:.0f} times as large on the digits that "
            "their mean gets wrong as on the others")  # fmt: skip
    units = {"error": (" (%)", 100), "log loss": (" (nats)", 1), "calibration error": (" (%)", 100)}
    curves = {f"MNIST, {name}{unit}": {"sizes": sizes, "mean": [factor * mean(name, n) for n in sizes],
                                       "deviation": [factor * deviation(name, n) for n in sizes],
                                       "greedy": [factor * greedy[n][name] for n in sizes]}
              for name, (unit, factor) in units.items()}  # fmt: skip
    most = min(16, sizes[-1])
    return curves, {"error": mean("error", 1), "ratio": mean("error", most) / mean("error", 1),
                    "log loss ratio": mean("log loss", most) / mean("log loss", 1), "information": ratio,
                    "greedy over best, held out": held_out[-1] / float(many.scores.min())}  # fmt: skip


def _score(p: np.ndarray, Y: np.ndarray) -> dict[str, float]:
    """The scores of probabilities."""
    log_loss = -np.log(np.maximum(p[np.arange(len(Y)), Y], np.finfo(np.float32).tiny)).mean()
    return {"error": float((p.argmax(1) != Y).mean()), "log loss": float(log_loss),
            "calibration error": calibration_error(p, Y)}  # fmt: skip


def _seconds_a_step(net: jm.MLP, train, given, n: int) -> float:
    """The seconds of one step of n networks: what three more epochs of 10,000 digits take."""
    X, Y = train[0][:10_000], train[1][:10_000]
    seconds = []
    for epochs in (1, 1, 4):  # the first compiles
        began = time.perf_counter()
        jm.sweep(net, (X, Y), epochs=epochs, progress=False, **given | {"keys": given["keys"][:n]})
        seconds.append(time.perf_counter() - began)
    return max(seconds[2] - seconds[1], 0) / (3 * -(-len(X) // given["batch_size"]))


def _houses(s: Settings, out: Output) -> tuple[Curves, dict[str, float]]:
    X, Y = housing.load()
    net, adam, sizes = jm.MLP((X.shape[1], 8, 1), "tanh"), optax.adam(3e-3), _sizes(s)
    errors, greedy, dev_ratios = {n: [] for n in sizes}, {n: [] for n in sizes}, []
    for seed in range(s.splits):
        key = jax.random.key(s.key + seed)
        parts = split(key, len(X))
        of_x, of_y = standardize(X[parts[0]]), standardize(Y[parts[0]])
        (Z, T), (Z_dev, T_dev), (Z_test, _) = ((of_x(X[i]), of_y(Y[i])) for i in parts)
        many = jm.sweep(net, (Z, T), keys=jax.random.split(key, s.networks), optimizer=adam, epochs=150, batch_size=32,
                        initial="lecun", validation=(Z_dev, T_dev), progress=False)  # fmt: skip
        dollars = lambda outputs, of_y=of_y: np.asarray(of_y.inverse(outputs[..., 0]))
        rmse = lambda prices, i=parts[2]: float(np.sqrt(np.mean((prices - Y[i]) ** 2)))
        outputs = np.asarray(many.predict(Z_test))
        for n in sizes:
            members, shares = many.ensemble((Z_dev, T_dev), size=n)
            errors[n] += [rmse(dollars(each)) for each in _group(outputs, n)]
            greedy[n].append(rmse(dollars(np.tensordot(shares, outputs[members], 1))))
        mean = np.asarray(many.predict_mean(Z_dev, members, shares))[:, 0]
        dev_ratios.append(float(np.mean((mean - T_dev) ** 2) / 2 / many.scores.min()))
    rows = [{"networks": str(n), "mean of them": f"{np.mean(errors[n]):,.0f}", "greedy": f"{np.mean(greedy[n]):,.0f}"}
            for n in sizes]  # fmt: skip
    out.table(f"root mean squared error in dollars on test houses, mean of {s.splits} splits", rows)
    curves = {"houses, error (dollars)": {"sizes": sizes, "mean": [np.mean(errors[n]) for n in sizes],
              "deviation": None, "greedy": [np.mean(greedy[n]) for n in sizes]}}  # fmt: skip
    last = sizes[-1]
    return curves, {"houses, ratio": float(np.mean(errors[last]) / np.mean(errors[1])),
                    "houses, greedy over best, held out": max(dev_ratios)}  # fmt: skip


def _picture(curves: Curves):
    """Each score against the number of networks; bars are deviations between groups."""
    figure, axes = plotting.figure(2, 2, size=(4.4, 3.2), sharex=True)
    for (name, of), ax in zip(curves.items(), axes.flat, strict=True):
        ax.errorbar(of["sizes"], of["mean"], of["deviation"], fmt="o-", color=plotting.BLUE, capsize=3,
                    label="mean of so many, by groups")  # fmt: skip
        ax.plot(of["sizes"], of["greedy"], "s--", color=plotting.ORANGE, label="so many, chosen greedily of all")
        ax.set_xscale("log", base=2)
        ax.set_xticks(of["sizes"], [str(n) for n in of["sizes"]])
        ax.set_ylabel(name)
        ax.grid(alpha=0.3)
    for ax in axes[1]:
        ax.set_xlabel("networks")
    axes[0, 0].legend(fontsize="small")
    return figure
