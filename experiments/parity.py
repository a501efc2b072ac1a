"""Deep against shallow: the parity of n bits by weights set by hand, and by training.

Row 30 of the notes' systems (note 002, "Why deep representations?"). Three networks have weights set by hand. A tree of
XORs is about log2 n deep and has about 2n units. One hidden layer of AND gates joined by an OR needs 2^(n-1) units, one
for each odd input. One hidden layer of thresholds, which count, needs only n: the exponential bound holds for AND and
OR gates alone. Expect each network to be exact on all 2^n inputs up to n = 16. Then ReLU networks with 2n units a layer
train from random starts. Expect at most half of those with one hidden layer to get every input right, and nearly all
of those with two or more. Expect nearly all with one wide hidden layer, which has as many weights as the deepest one.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
import optax

import jaxmlp as jm
from experiments.output import Output
from jaxmlp import plotting
from jaxmlp.network import Params

AT_ONCE = 1024  # inputs whose activations memory holds together, with 2^15 units each


@dataclass(frozen=True)
class Settings:
    largest: int = 16  # the most bits of the networks set by hand
    bits: int = 8  # bits of the trained networks
    depths: tuple[int, ...] = (1, 2, 3, 4)  # numbers of hidden layers of the trained networks
    starts: int = 20  # random starts of each trained network
    steps: int = 4000  # steps of Adam, each on 32 inputs drawn with replacement
    learning_rate: float = 0.01
    key: int = 0
    quick: bool = False  # 2, 6 and 10 bits by hand; 4 starts of 6 bits in training, without the wide network


Network = tuple[jm.MLP, Params]


def inputs(n: int) -> np.ndarray:
    """All rows of n bits, `(2^n, n)`."""
    return ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(np.float32)


def tree_of_xors(n: int) -> Network:
    """A pair of bits with the sum `s` has the XOR `relu(s) - 2 relu(s - 1)`; a single bit passes through `relu`."""
    layers, bits = [], np.eye(n)  # the bits that remain, each a combination of the units below
    while len(bits) > 1:
        pairs = len(bits) // 2
        sums, left = bits[: 2 * pairs : 2] + bits[1 : 2 * pairs : 2], bits[2 * pairs :]
        layers.append((np.concatenate([sums, sums, left]), np.repeat([0, -1, 0], [pairs, pairs, len(left)])))
        units = np.eye(2 * pairs + len(left))
        bits = np.concatenate([units[:pairs] - 2 * units[pairs : 2 * pairs], units[2 * pairs :]])
    return _build(n, [*layers, (bits, np.zeros(1))], "relu", "identity")


def one_for_each_odd_input(n: int) -> Network:
    """An AND gate for each odd input p, `step((2p - 1) . x - |p| + 1/2)`, which is 1 at p alone; and their OR."""
    odd = inputs(n)[inputs(n).sum(1) % 2 == 1]
    return _build(n, [(2 * odd - 1, 0.5 - odd.sum(1)), (np.ones((1, len(odd))), [-0.5])], "step", "step")


def thresholds(n: int) -> Network:
    """Unit k is 1 where at least k bits are 1; the alternating sum of the first s units is the parity of s."""
    k = np.arange(1, n + 1)
    return _build(n, [(np.ones((n, n)), 0.5 - k), ((-1.0) ** (k - 1)[None], [0])], "step", "identity")


BY_HAND: dict[str, Callable[[int], Network]] = {
    "tree of XORs": tree_of_xors,
    "one unit for each odd input": one_for_each_odd_input,
    "n thresholds": thresholds,
}


def _build(n: int, layers: Sequence, hidden: str, output: str) -> Network:
    net = jm.MLP((n, *(len(W) for W, _ in layers)), hidden, output)
    return net, tuple(jm.Layer(*(jax.numpy.asarray(array, "float32") for array in layer)) for layer in layers)


def hidden_units(net: jm.MLP) -> int:
    return sum(net.sizes[1:-1])


def count_wrong(net: jm.MLP, params: Params) -> int:
    """The number of inputs whose output is not exactly the parity."""
    X = inputs(net.sizes[0])
    Y_hat = [np.asarray(jm.predict(net, params, part)) for part in np.split(X, max(1, len(X) // AT_ONCE))]
    return int(np.sum(np.concatenate(Y_hat)[:, 0] != X.sum(1) % 2))


def run(settings: Settings, out: Output) -> dict[str, float]:
    if not (2 <= settings.largest <= 16 and 2 <= settings.bits <= 10):
        raise ValueError(f"largest and bits are {settings.largest} and {settings.bits}, expected 2 to 16 and 2 to 10")
    if min(settings.starts, settings.steps // 10, *settings.depths, len(settings.depths)) < 1:
        raise ValueError(f"starts, steps and depths are {settings.starts}, {settings.steps} and {settings.depths}, "
                         "expected at least 1, 10 and 1")  # fmt: skip
    numbers, bits, starts = range(2, settings.largest + 1), settings.bits, settings.starts
    if settings.quick:
        numbers, bits, starts = (2, 6, 10), 6, 4
    units, mistakes = _by_hand(numbers, out)
    shares = _train(settings, bits, starts, out)
    out.numbers("units", {"n": numbers, **{name.replace(" ", "_"): u for name, u in units.items()}})
    out.picture("parity", _picture(numbers, units, bits, starts, shares))
    out.close()
    return {"mistakes": mistakes, "shallowest": shares[str(min(settings.depths))],
            "deepest": shares[str(max(settings.depths))]}  # fmt: skip


def _by_hand(numbers: Sequence[int], out: Output) -> tuple[dict[str, list[int]], int]:
    """The hidden units of each network for each n, and the number of all their mistakes."""
    rows, units, mistakes, began = [], {name: [] for name in BY_HAND}, 0, time.perf_counter()
    for n in numbers:
        row = {"n": str(n), "inputs": f"{2**n:,}"}
        for name, build in BY_HAND.items():
            net, params = build(n)
            units[name].append(hidden_units(net))
            row[name] = f"{units[name][-1]:,} units, {net.depth - 1} deep, {(found := count_wrong(net, params))} wrong"
            mistakes += found
        rows.append(row)
    out.table(f"weights set by hand, on all inputs ({time.perf_counter() - began:.1f} s)", rows)
    out.say("AND gates joined by an OR need 2^(n-1) units; thresholds count, and need n units in one layer.")
    return units, mistakes


def _train(settings: Settings, bits: int, starts: int, out: Output) -> dict[str, float]:
    """For each network the share of its starts that end with every input right."""
    width, rows, shares = 2 * bits, [], {}
    networks = {str(depth): (width,) * depth for depth in settings.depths}
    if not settings.quick:
        weights = sum(layer.W.size for layer in _start(bits, networks[str(max(settings.depths))], 0)[1])
        networks["1, wide"] = (round(weights / (bits + 1)),)
    for name, hidden in networks.items():
        began = time.perf_counter()
        right = np.asarray([_accuracy(settings, bits, hidden, settings.key + k) for k in range(starts)])
        shares[name] = float((right == 1).mean())
        rows.append({"hidden layers": name, "units": "-".join(map(str, hidden)), "solved": f"{shares[name]:.0%}",
                     "mean accuracy": f"{right.mean():.2%}", "worst": f"{right.min():.2%}",
                     "seconds": f"{time.perf_counter() - began:.1f}"})  # fmt: skip
    out.table(f"parity of {bits} bits, trained: {starts} starts each, {settings.steps:,} steps of Adam at rate "
              f"{settings.learning_rate:g}", rows)  # fmt: skip
    return shares


def _start(bits: int, hidden: tuple[int, ...], key: int) -> Network:
    net = jm.MLP((bits, *hidden, 1), "relu", "sigmoid", "binary_cross_entropy")
    return net, jm.init(net, jax.random.key(key), weights="he")


def _accuracy(settings: Settings, bits: int, hidden: tuple[int, ...], key: int) -> float:
    """The share of all inputs (as -1 and 1) that are right after training from one start."""
    X = inputs(bits)
    Y, X = X.sum(1) % 2, 2 * X - 1
    net, params = _start(bits, hidden, key)
    result = jm.fit(net, params, (X, Y), optimizer=optax.adam, hyper={"learning_rate": settings.learning_rate},
                    steps=settings.steps, sampling="replacement", batch_size=min(32, len(X)),
                    validate_every=settings.steps // 10, key=jax.random.key(key), progress=False)  # fmt: skip
    return float(jm.metrics.accuracy(jm.predict(net, result.last_params, X), Y))


def _picture(numbers: Sequence[int], units: dict[str, list[int]], bits: int, starts: int, shares: dict[str, float]):
    figure, (left, right) = plotting.figure(1, 2, size=(5.2, 3.8))
    for (name, counts), color, mark in zip(units.items(), plotting.PALETTE, "os^", strict=False):
        left.semilogy(numbers, counts, mark + "-", color=color, markersize=4, label=name)
    left.set(xlabel="bits n", ylabel="hidden units")
    left.set_title("set by hand, exact on all $2^n$ inputs", fontsize="medium")
    left.grid(alpha=0.3)
    left.legend(fontsize="small")
    bars = right.bar(list(shares), [100 * share for share in shares.values()], color=plotting.BLUE)
    right.bar_label(bars, fmt="%.0f%%", fontsize="small")
    right.set(xlabel="hidden layers", ylabel="starts with every input right (%)", ylim=(0, 112))
    right.set_title(f"trained, {bits} bits, {2 * bits} units a layer, {starts} starts", fontsize="medium")
    return figure
