"""House prices: a network beside linear least squares on 546 real sales; errors in dollars.

Rows 6 and 12 of the notes' systems (notes 003, regression; 002, "Housing Price Prediction"). The output is linear, the
loss the squared error. The training houses give the scale of inputs and prices, the dev houses choose the network's
best epoch, and the run repeats over random 60/20/20 splits. Expect a network without a hidden layer to predict within
10 dollars of least squares. Expect a network with a hidden layer to have about 60% of the error of guessing the mean
price. Its error is within 10% of that of least squares, because the houses are few and their features mostly add up.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments._descent import descend
from experiments.output import Output
from jaxmlp import metrics, plotting
from jaxmlp.data import read_csv, split, standardize
from jaxmlp.data.csv import Kind


@dataclass(frozen=True)
class Settings:
    hidden: int = 8  # units of the hidden layer
    activation: str = "tanh"  # activation of the hidden layer
    epochs: int = 150
    batch_size: int = 32
    learning_rate: float = 3e-3  # rate of Adam
    splits: int = 10  # random splits; the table has their mean
    quick: bool = False  # 2 splits


FILE = Path(__file__).parent / "data" / "housing" / "windsor.csv"
NUMBERS = ("lotsize", "bedrooms", "bathrms", "stories", "garagepl")
YES_NO = ("driveway", "recroom", "fullbase", "gashw", "airco", "prefarea")
PARTS = ("train", "dev", "test")
DESCENT = optax.sgd(0.3)  # for the network without a hidden layer: nearly the best constant rate


def load() -> tuple[np.ndarray, np.ndarray]:
    """The features `(546, 11)` and the prices `(546,)` in dollars."""
    kinds: dict[str, Kind] = {name: "yes_no" if name in YES_NO else "number" for name in ("price", *NUMBERS, *YES_NO)}
    table = read_csv(FILE, kinds)
    return table.matrix(NUMBERS + YES_NO), table.columns["price"].astype(np.float32)


def run(settings: Settings, out: Output) -> dict[str, float]:
    if settings.splits < 1:
        raise ValueError(f"splits is {settings.splits}, expected at least 1")
    X, Y = load()
    optimizer, rounds = optax.adam(settings.learning_rate), []
    for seed in range(2 if settings.quick else settings.splits):
        key = jax.random.key(seed)
        parts = dict(zip(PARTS, split(key, len(X)), strict=True))
        rounds.append((parts, _predictions(settings, optimizer, key, X, Y, parts)))
    errors = {name: [_errors(each[name], Y, parts) for parts, each in rounds] for name in rounds[0][1]}
    title = f"root mean squared error in dollars, mean of {len(rounds)} splits (deviation); |error| and R^2 on test"
    out.table(title, [_row(name, each) for name, each in errors.items()])
    test = {name: np.asarray([each["test"].rmse for each in errors[name]]) for name in errors}
    _, squares, linear, network = errors
    apart = max(float(np.abs(each[linear] - each[squares]).max()) for _, each in rounds)
    out.say(f"{linear} and {squares} predict prices at most {apart:.2f} dollars apart")
    parts, predictions = rounds[0]
    out.numbers("test", {"price": Y[parts["test"]], **{k: p[parts["test"]] for k, p in predictions.items()}})
    out.picture("predicted", _picture(Y, parts, {k: predictions[k] for k in (squares, network)}, errors))
    out.close()
    guess = np.mean([each["test"].rmse for each in errors["mean price"]])
    return {"apart": apart, "test": float(test[network].mean()), "over_guess": float(test[network].mean() / guess),
            "over_least_squares": float(test[network].mean() / test[squares].mean())}  # fmt: skip


def _predictions(settings: Settings, optimizer, key, X, Y, parts) -> dict[str, np.ndarray]:
    """The prices of all houses by each model, which learns from the training houses."""
    train, dev, _ = parts.values()
    of_x, of_y = standardize(X[train]), standardize(Y[train])
    Z, T = of_x(X), of_y(Y)
    padded = np.column_stack([X, np.ones(len(X))]).astype(np.float64)
    squares = padded @ np.linalg.lstsq(padded[train], Y[train], rcond=None)[0]
    linear = jm.MLP((X.shape[1], 1))  # identity and squared error are the defaults
    params, _ = descend(linear, DESCENT, 500, jm.init(linear, key, weights="zeros"), Z[train], T[train])
    net = jm.MLP((X.shape[1], settings.hidden, 1), settings.activation)
    result = jm.fit(net, jm.init(net, key, weights="lecun"), (Z[train], T[train]), optimizer=optimizer, key=key,
                    epochs=settings.epochs, batch_size=settings.batch_size, validation=(Z[dev], T[dev]),
                    progress=False)  # fmt: skip
    dollars = lambda net, params: np.asarray(of_y.inverse(jm.predict(net, params, Z)[:, 0]))
    name = "-".join(map(str, net.sizes))
    return {"mean price": np.full(len(Y), Y[train].mean()), "least squares": squares,
            f"{X.shape[1]}-1 by descent": dollars(linear, params),
            f"{name}, {settings.activation}": dollars(net, result.params)}  # fmt: skip


_regression_errors = jax.jit(metrics.regression_errors)


def _errors(Y_hat, Y, parts) -> dict[str, metrics.RegressionErrors]:
    """The errors on each part, in dollars."""
    column = jnp.asarray(Y_hat, jnp.float32)[:, None]
    return {part: jax.tree.map(float, _regression_errors(column[i], Y[i])) for part, i in parts.items()}


def _row(name: str, each) -> dict[str, str]:
    with_deviation = lambda values: f"{np.mean(values):,.0f} ({np.std(values):,.0f})"
    test = [e["test"] for e in each]
    return {
        "model": name,
        **{part: with_deviation([e[part].rmse for e in each]) for part in PARTS},
        "test, |error|": with_deviation([e.mae for e in test]),
        "test, R^2": f"{np.mean([e.r2 for e in test]):.3f}",
    }


def _picture(Y, parts, predictions, errors):
    figure, axes = plotting.figure(1, len(predictions), size=(4.4, 4.2), sharex=True, sharey=True)
    ends = np.asarray([0, 200])
    styles = (("train", "o", "lightgray", 14), ("dev", "s", plotting.SKY, 14), ("test", "D", plotting.RED, 16))
    for ax, (name, Y_hat) in zip(axes, predictions.items(), strict=True):
        ax.plot(ends, ends, color="black", linewidth=1, label="right")
        for part, marker, color, size in styles:
            i = parts[part]
            ax.scatter(Y[i] / 1000, Y_hat[i] / 1000, s=size, marker=marker, color=color, edgecolor="black",
                       linewidth=0.3, label=part)  # fmt: skip
        ax.set(xlabel="price (thousands of dollars)", xlim=ends, ylim=ends, aspect="equal")
        ax.set_title(f"{name}: {errors[name][0]['test'].rmse:,.0f} dollars on test", fontsize="medium")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("predicted (thousands of dollars)")
    axes[0].legend(fontsize="small", loc="upper left")
    return figure
