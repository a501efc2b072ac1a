"""Hidden units find the hidden factors: a 4-3-1 network predicts which product will be a top seller.

Row 12 of the notes' systems (note 002, "Demand Prediction": "we don't have to explicitly decide what other features
such as affordability, awareness & so on. The ANN figures it out"). Price, shipping cost, marketing and material decide
affordability, awareness and perceived quality. These three decide the probability of a top seller, and the label is
drawn with it. The network sees none of the three. The best possible cost is that of the true probability. Expect the
4-3-1 network's excess over it to be less than a tenth of logistic regression's. Expect each factor to correlate by more
than 0.9, up to the sign, with a hidden unit of its own.
"""

import itertools
from dataclasses import dataclass, replace

import jax
import numpy as np
import optax

import jaxmlp as jm
from experiments._descent import descend
from experiments.output import Output
from jaxmlp import plotting
from jaxmlp.data import split, standardize
from jaxmlp.network import Params


@dataclass(frozen=True)
class Settings:
    examples: int = 50_000  # examples: 60% for training, 20% for choosing a start, 20% for the test
    starts: int = 3  # random starts; the dev examples choose the best
    epochs: int = 40
    batch_size: int = 256
    learning_rate: float = 0.02  # first rate; it falls to 0 along a cosine
    key: int = 0
    quick: bool = False  # 20,000 examples, 2 starts, 25 epochs


FEATURES = ("price", "shipping cost", "marketing", "material")
FACTORS = ("affordability", "awareness", "perceived quality")
NET = jm.MLP((4, 3, 1), "sigmoid", "sigmoid", "binary_cross_entropy")
REGRESSION = jm.MLP((4, 1), output="sigmoid", loss="binary_cross_entropy")


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
        sigmoid((price - 25) / 6 + 10 * (material - 0.5)),  # a higher price looks like better quality
    ], axis=1)  # fmt: skip
    return X.astype(np.float32), factors, sigmoid(5 * factors.sum(1) - 8)


def run(settings: Settings, out: Output) -> dict[str, float]:
    if settings.examples < 100 or settings.starts < 1:
        raise ValueError(f"examples and starts are {settings.examples}, {settings.starts}, expected at least 100 and 1")
    if settings.quick:
        settings = replace(settings, examples=20_000, starts=2, epochs=25)
    rng = np.random.default_rng(settings.key)
    X, factors, p = make(rng, settings.examples)
    Y = (rng.random(settings.examples) < p).astype(np.float32)
    train, dev, test = split(jax.random.key(settings.key), settings.examples)
    Z = standardize(X[train])(X)
    dev_costs, params = _learn(settings, (Z[train], Y[train]), (Z[dev], Y[dev]))
    start = jm.init(REGRESSION, jax.random.key(0))  # a convex cost: one start is enough
    regressed, _ = descend(REGRESSION, optax.sgd(2.0), 1000, start, Z[train], Y[train])
    probabilities = {
        "always the mean": np.full(len(test), Y[train].mean()),
        "logistic regression, 4-1": np.asarray(jm.predict(REGRESSION, regressed, Z[test]))[:, 0],
        "network, 4-3-1": np.asarray(jm.predict(NET, params, Z[test]))[:, 0],
        "the true probability": p[test],
    }
    costs = {name: _expected_cost(p[test], q) for name, q in probabilities.items()}
    best = costs["the true probability"]
    out.table(f"{len(test):,} test examples: the expected cost, and its excess over the best possible", [
        {"model": name, "cost": f"{cost:.4f}", "excess": f"{cost - best:.5f}",
         "mean |p - p_hat|": f"{np.abs(p[test] - probabilities[name]).mean():.4f}",
         "accuracy": f"{np.mean((probabilities[name] > 0.5) == Y[test]):.2%}"}
        for name, cost in costs.items()
    ])  # fmt: skip
    out.say("dev costs of the starts: " + ", ".join(f"{cost:.4f}" for cost in dev_costs))
    hidden = np.asarray(jm.backprop(NET, params, Z[test], Y[test]).inputs[1])
    correlation, order = _match(hidden, factors[test])
    out.table("correlation of the hidden factors with the hidden units, in matching order", [
        {"factor": factor, **{f"unit {unit + 1}": f"{c:+.3f}" for unit, c in zip(order, row, strict=True)}}
        for factor, row in zip(FACTORS, correlation, strict=True)
    ])  # fmt: skip
    out.picture("probabilities", _scatter(p[test], probabilities))
    out.picture("factors", _heat(correlation, order, np.asarray(params[0].W)[list(order)]))
    out.close()
    excess = {name: cost - best for name, cost in costs.items()}
    return {"excess": excess["network, 4-3-1"], "matched": float(np.abs(np.diag(correlation)).min()),
            "over_regression": excess["network, 4-3-1"] / excess["logistic regression, 4-1"]}  # fmt: skip


def _learn(settings: Settings, train, dev) -> tuple[list[float], Params]:
    """The cost of each start on the dev examples, and the weights of the best start."""
    steps = settings.epochs * -(-len(train[0]) // settings.batch_size)
    optimizer = optax.adam(optax.cosine_decay_schedule(settings.learning_rate, steps))
    costs, weights = [], []
    for seed in range(settings.starts):
        params = jm.init(NET, jax.random.key(seed), weights="lecun")
        result = jm.fit(NET, params, train, optimizer=optimizer, epochs=settings.epochs,
                        batch_size=settings.batch_size, key=jax.random.key(seed), progress=False)  # fmt: skip
        costs.append(float(jm.cost(NET, result.params, *dev)))
        weights.append(result.params)
    return costs, weights[int(np.argmin(costs))]


def _expected_cost(p: np.ndarray, q: np.ndarray) -> float:
    """The expected binary cross-entropy of probabilities q for labels drawn with probabilities p."""
    return float(-np.mean(p * np.log(q) + (1 - p) * np.log(1 - q)))


def _match(hidden: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Correlations of factors (rows) with hidden units (columns) in the best matching order, and this order."""
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
    """Left the correlation of each unit with the factors, right its weights."""
    figure, axes = plotting.figure(1, 2, size=(4.6, 3.4))
    units = [f"unit {unit + 1}" for unit in order]
    shown = (
        ("correlation with the factor", correlation.T, FACTORS, 1.0),
        ("weight of the standardized input", W, FEATURES, float(np.abs(W).max())),
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
