"""XOR from 1,000 random starts at once: a 2-3-1 network solves it, a perceptron cannot.

Row 10 of the notes' systems (note 002, "Neural Network Implementation: the XOR Gate"). All starts are one
`jm.sweep`. Expect at least 99% of the 2-3-1 networks to solve XOR from weights of deviation 0.3, and none from the
notes' deviation of 0.01 in as many steps. Expect no perceptron to get more than 3 of the 4 examples right.
"""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments.output import Output
from jaxmlp import plotting
from jaxmlp.network import Params

X = np.asarray([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
Y = np.asarray([[0], [1], [1], [0]], np.float32)

WHY = """a perceptron says 1 where w0 + w1 x1 + w2 x2 >= 0. XOR needs
  (0,0) -> 0:  w0           <  0
  (0,1) -> 1:  w0      + w2 >= 0
  (1,0) -> 1:  w0 + w1      >= 0
  (1,1) -> 0:  w0 + w1 + w2 <  0
the second and third add up to 2 w0 + w1 + w2 >= 0, the first and fourth to 2 w0 + w1 + w2 < 0: no w satisfies both."""


@dataclass(frozen=True)
class Settings:
    starts: int = 1000  # networks trained at once
    steps: int = 5000  # full-batch steps
    learning_rate: float = 2.0
    deviation: float = 0.3  # deviation of the initial weights
    key: int = 0
    quick: bool = False  # 100 starts


def train(net: jm.MLP, deviation: float, settings: Settings, starts: int) -> tuple[Params, np.ndarray]:
    """Trains `starts` networks: the parameters with a leading axis, and each step's cost `(steps, starts)`."""
    many = jm.sweep(net, (X, Y), keys=jax.random.split(jax.random.key(settings.key), starts), optimizer=optax.sgd,
                    hyper={"learning_rate": settings.learning_rate}, initial=jax.nn.initializers.normal(deviation),
                    epochs=settings.steps, progress=False)  # fmt: skip
    return many.params, many.history["cost"]


def count_right(net: jm.MLP, params: Params) -> np.ndarray:
    """The number of the four examples that each network gets right."""
    Y_hat = jax.vmap(lambda p: jm.predict(net, p, X))(params)
    return np.asarray(jnp.sum((Y_hat > 0.5) == (jnp.asarray(Y)[None] > 0.5), axis=(1, 2)))


def run(settings: Settings, out: Output) -> dict[str, float]:
    if min(settings.starts, settings.steps) < 1 or settings.deviation == 0.01:
        raise ValueError(f"starts, steps and deviation are {settings.starts}, {settings.steps}, {settings.deviation}; "
                         "expected at least 1 of each, and a deviation other than 0.01, which runs too")  # fmt: skip
    starts = 100 if settings.quick else settings.starts
    hidden = jm.MLP((2, 3, 1), hidden="sigmoid", output="sigmoid", loss="binary_cross_entropy")
    single = jm.MLP((2, 1), output="sigmoid", loss="binary_cross_entropy")
    rows, shares, kept, trained = [], {}, {}, {}
    for name, net, deviation in (("2-3-1", hidden, settings.deviation), ("2-3-1", hidden, 0.01),
                                 ("2-1", single, settings.deviation)):  # fmt: skip
        began = time.perf_counter()
        params, costs = train(net, deviation, settings, starts)
        counts = count_right(net, params)
        shares[name, deviation] = float((counts == 4).mean())
        kept[f"{name}, deviation {deviation:g}"] = costs
        trained[name, deviation] = params, counts
        rows.append({"network": name, "deviation": f"{deviation:g}", "solved": f"{(counts == 4).mean():.1%}",
                     "most of 4 right": str(counts.max()), "median cost": f"{np.median(costs[-1]):.4f}",
                     "seconds": f"{time.perf_counter() - began:.1f}"})  # fmt: skip
    out.table(f"{starts:,} starts, {settings.steps:,} full-batch steps, rate {settings.learning_rate:g}", rows)
    out.say(WHY)
    out.numbers("median_cost", {"step": range(1, settings.steps + 1), **{k: np.median(c, 1) for k, c in kept.items()}})
    params, counts = trained["2-3-1", settings.deviation]
    _pictures(out, hidden, params, counts, kept)
    out.close()
    return {"solved": shares["2-3-1", settings.deviation], "small_solved": shares["2-3-1", 0.01],
            "perceptron_most": int(trained["2-1", settings.deviation][1].max())}  # fmt: skip


def _pictures(out: Output, net, params, counts, kept) -> None:
    first = int(np.argmax(counts))
    member = jax.tree.map(lambda a: a[first], params)
    out.picture("decision_boundary", plotting.decision_boundary(net, member, X, Y))
    figure, ax = plotting.figure(size=(6, 3.8))
    for (name, costs), color, style in zip(kept.items(), plotting.PALETTE, ("-", "-", ":"), strict=False):
        low, middle, high = np.percentile(costs, [5, 50, 95], axis=1)
        step = np.arange(1, len(costs) + 1)
        ax.plot(step, middle, style, color=color, label=name)
        ax.fill_between(step, low, high, color=color, alpha=0.2, linewidth=0)
    ax.set(xlabel="full-batch step", ylabel="cost (mean loss)", xscale="log", yscale="log")
    ax.set_title("median over the starts, band from 5% to 95%", fontsize="medium")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    out.picture("cost", figure)
