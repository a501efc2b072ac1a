"""Will it be a top seller? A 4-3-1 network on data made by three hidden factors, which nobody tells it.

Row 12 of the notes' systems (note 002, "Demand Prediction": "we don't have to explicitly decide what other features
such as affordability, awareness & so on. The ANN figures it out"). Price, shipping cost, marketing and material decide
affordability, awareness and perceived quality, and those the probability of a top seller; the label is drawn. The best
possible cost is that of the true probability. Expect the 4-3-1 network to miss it by less than a tenth of what logistic
regression does, and each factor to correlate by more than 0.9, up to the sign, with a hidden unit of its own.
"""

import itertools
from dataclasses import dataclass

import jax
import numpy as np
import optax

import jaxmlp as jm
from experiments._descent import descend
from experiments.output import Output
from jaxmlp import plotting
from jaxmlp.data import split, standardise


@dataclass(frozen=True)
class Settings:
    examples: int = 50_000  # 60% to learn from, 20% to choose a start by, 20% to test on
    starts: int = 3  # networks trained from different random weights; the best on the dev examples is shown
    epochs: int = 40
    batch_size: int = 256
    learning_rate: float = 0.02  # at the start; it falls to 0 along a cosine
    key: int = 0
    quick: bool = False  # 20,000 examples, 2 starts, 25 epochs


FEATURES = ("price", "shipping cost", "marketing", "material")
FACTORS = ("affordability", "awareness", "perceived quality")


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def make(rng: np.random.Generator, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features `(m, 4)`, the hidden factors `(m, 3)` and the probability of a top seller `(m,)`.

    Price 5 to 50 dollars, shipping 0 to 15 dollars, marketing 0 to 100 thousand dollars, material 0 to 1 (the best).
    """
    X = rng.uniform((5, 0, 0, 0), (50, 15, 100, 1), size=(m, 4))
    price, shipping, marketing, material = X.T
    factors = np.stack([
        sigmoid((35 - price - shipping) / 3),
        sigmoid((marketing - 40) / 6),
        sigmoid((price - 25) / 6 + 10 * (material - 0.5)),  # what costs more is thought better
    ], axis=1)  # fmt: skip
    return X.astype(np.float32), factors, sigmoid(5 * factors.sum(1) - 8)


def run(settings: Settings, out: Output) -> dict[str, float]:
    if settings.examples < 100 or settings.starts < 1:
        raise ValueError(f"examples and starts are {settings.examples}, {settings.starts}, expected at least 100 and 1")
    m, starts, epochs = settings.examples, settings.starts, settings.epochs
    if settings.quick:
        m, starts, epochs = 20_000, 2, 25
    rng = np.random.default_rng(settings.key)
    X, factors, p = make(rng, m)
    Y = (rng.random(m) < p).astype(np.float32)
    train, dev, test = split(jax.random.key(settings.key), m)
    Z = standardise(X[train])(X)
    steps = epochs * -(-len(train) // settings.batch_size)
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, steps))

    net = jm.MLP((4, 3, 1), "sigmoid", "sigmoid", "binary_cross_entropy")

    def learnt(seed):
        """Weights, after their cost on the dev examples."""
        params = jm.init(net, jax.random.key(seed), weights="lecun")
        result = jm.fit(net, params, (Z[train], Y[train]), optimizer=optimizer, epochs=epochs,
                        batch_size=settings.batch_size, key=jax.random.key(seed), progress=False)  # fmt: skip
        return float(jm.cost(net, result.params, Z[dev], Y[dev])), result.params

    tried = [learnt(seed) for seed in range(starts)]
    _, params = min(tried, key=lambda each: each[0])
    regression = jm.MLP((4, 1), output="sigmoid", loss="binary_cross_entropy")  # its cost is convex: one start will do
    regressed, _ = descend(regression, optax.sgd(2.0), 1000, jm.init(regression, jax.random.key(0)), Z[train], Y[train])
    probabilities = {
        "always the mean": np.full(len(test), Y[train].mean()),
        "logistic regression, 4-1": np.asarray(jm.predict(regression, regressed, Z[test]))[:, 0],
        "network, 4-3-1": np.asarray(jm.predict(net, params, Z[test]))[:, 0],
        "the true probability": p[test],
    }
    costs = {name: _expected_cost(p[test], q) for name, q in probabilities.items()}
    best = costs["the true probability"]
    out.table(f"{len(test):,} test examples: the expected cost, and what it has over the best possible", [
        {"model": name, "cost": f"{cost:.4f}", "over the best": f"{cost - best:.5f}",
         "mean |p - p_hat|": f"{np.abs(p[test] - probabilities[name]).mean():.4f}",
         "accuracy": f"{np.mean((probabilities[name] > 0.5) == Y[test]):.2%}"}
        for name, cost in costs.items()
    ])  # fmt: skip
    out.say("dev costs of the starts: " + ", ".join(f"{cost:.4f}" for cost, *_ in tried))
    hidden = np.asarray(jm.backprop(net, params, Z[test], Y[test]).inputs[1])
    correlation, order = _matched(hidden, factors[test])
    out.table("correlation of the hidden factors with the hidden units, each beside its own", [
        {"factor": factor, **{f"unit {unit + 1}": f"{c:+.3f}" for unit, c in zip(order, row, strict=True)}}
        for factor, row in zip(FACTORS, correlation, strict=True)
    ])  # fmt: skip
    out.picture("probabilities", _scatter(p[test], probabilities))
    out.picture("factors", _heat(correlation, order, np.asarray(params[0].W)[list(order)]))
    out.close()
    excess = {name: cost - best for name, cost in costs.items()}
    return {"excess": excess["network, 4-3-1"], "matched": float(np.abs(np.diag(correlation)).min()),
            "over_regression": excess["network, 4-3-1"] / excess["logistic regression, 4-1"]}  # fmt: skip


def _expected_cost(p: np.ndarray, q: np.ndarray) -> float:
    """The binary cross-entropy of probabilities q, in expectation over labels drawn with probabilities p."""
    return float(-np.mean(p * np.log(q) + (1 - p) * np.log(1 - q)))


def _matched(hidden: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Correlations of factors (rows) with hidden units (columns), in the order that matches them best."""
    n = factors.shape[1]
    every = np.corrcoef(factors.T, hidden.T)[:n, n:]
    order = max(itertools.permutations(range(n)), key=lambda units: sum(abs(every[i, u]) for i, u in enumerate(units)))
    return every[:, order], order


def _scatter(p, probabilities):
    figure, axes = plotting.figure(1, 2, size=(4, 3.9), sharex=True, sharey=True)
    for ax, name in zip(axes, ("logistic regression, 4-1", "network, 4-3-1"), strict=True):
        ax.plot([0, 1], [0, 1], color="black", linewidth=1)
        ax.scatter(p[:2000], probabilities[name][:2000], s=4, color=plotting.BLUE, alpha=0.4, linewidth=0)
        ax.set(xlabel="true probability of a top seller", title=name, aspect="equal", xlim=(0, 1), ylim=(0, 1))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("predicted probability")
    return figure


def _heat(correlation, order, W):
    """Left what each unit correlates with, right what it is made of."""
    figure, axes = plotting.figure(1, 2, size=(4.6, 3.4))
    units = [f"unit {unit + 1}" for unit in order]
    shown = (
        ("correlation with the factor", correlation.T, FACTORS, 1.0),
        ("weight of the standardised input", W, FEATURES, float(np.abs(W).max())),
    )
    for ax, (label, values, names, reach) in zip(axes, shown, strict=True):
        image = ax.imshow(values, cmap=plotting.DIVERGING, vmin=-reach, vmax=reach)
        ax.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize="small")
        ax.set_yticks(range(len(units)), units)
        for (i, k), value in np.ndenumerate(values):
            ax.text(k, i, f"{value:+.2f}", ha="center", va="center", fontsize="small",
                    color="white" if abs(value) > 0.65 * reach else "black")  # fmt: skip
        figure.colorbar(image, ax=ax, label=label, shrink=0.8)
    return figure
