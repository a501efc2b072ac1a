"""Published results of fully connected networks, and ours by the protocol that each row states.

The settings were chosen with 50,000 training and 10,000 held-out examples; `--held-out 10000` repeats this. The final
runs train on all 60,000 examples and score the weights of the last epoch on the test set, never the best epoch there.
Expect every row to reach its score; otherwise the exit status is 1. The error of a single run, about 1%, has a sampling
noise of 0.1 points.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np

import jaxmlp as jm
from experiments import datasets, xor
from experiments._literature import ROWS, Row
from experiments.output import NotReached, Output
from jaxmlp import metrics, plotting
from jaxmlp.data import scale_pixels

PICTURES = 60_000  # training examples of each set


@dataclass(frozen=True)
class Settings:
    rows: tuple[str, ...] = ()  # names of rows or parts of names; all rows if empty
    seeds: int = 0  # runs of each row; 0 for the row's own number
    held_out: int = 0  # training examples to hold out and to score, as for choosing settings; 0 scores the test set
    workers: int = 2  # runs side by side, where one alone cannot use all cores
    quick: bool = False  # a few short rows, with one run of each on digits: half a minute


def run(settings: Settings, out: Output) -> dict[str, float]:
    chosen = _choose_rows(settings)
    table, measured, began = [], {}, time.perf_counter()
    for row in chosen:
        started = time.perf_counter()
        scores = _score_seeds(row, settings)
        seconds = time.perf_counter() - started
        mean, deviation = float(np.mean(scores)), float(np.std(scores))
        measured[row.name] = scores
        seeds = _runs(row, settings)
        table.append({"network": row.name, "protocol": row.note, "published": row.published,
                      "to reach": f"{'at most' if row.score == 'error' else 'at least'} {row.bound:.1%}",
                      "measured": f"{mean:.2%} {row.score}",
                      "deviation": "" if row.score == "solved" or seeds == 1 else f"{deviation:.2%}",
                      "runs": f"{seeds:,}", "seconds": f"{seconds:.0f}",
                      "reached": "yes" if row.is_reached_by(mean) else "NO"})  # fmt: skip
        out.say("  ".join(f"{name} {value}" for name, value in table[-1].items() if name != "protocol" and value))
    where = f"{settings.held_out:,} held-out examples" if settings.held_out else "the test set"
    where += ", of spirals and XOR on the points they learn" * any(row.data in ("spirals", "xor") for row in chosen)
    minutes = (time.perf_counter() - began) / 60
    out.table(f"published scores, and ours on {where}; {minutes:.1f} minutes on {_machine()}", table)
    out.numbers("scores", {"row": [row.name for row in chosen for _ in measured[row.name]],
                           "score": [s for row in chosen for s in measured[row.name]]})  # fmt: skip
    _picture(out, chosen, measured)
    out.close()
    if missed := [row["network"] for row in table if row["reached"] == "NO"]:
        raise NotReached(f"{len(missed)} of {len(table)} published figures are not reached: {'; '.join(missed)}")
    return {row.name: float(np.mean(measured[row.name])) for row in chosen}


def _choose_rows(settings: Settings) -> list[Row]:
    if settings.seeds < 0 or settings.workers < 1 or not 0 <= settings.held_out < PICTURES:
        raise ValueError(f"seeds, workers and held_out are {settings.seeds}, {settings.workers}, {settings.held_out}; "
                         f"expected at least 0, at least 1, and 0 to {PICTURES - 1}")  # fmt: skip
    known = [row for row in ROWS if row.quick or not settings.quick]
    for part in settings.rows:
        if not any(part.lower() in row.name.lower() for row in known):
            where = " with quick" if settings.quick else ""
            raise ValueError(f"rows has {part!r}, expected{where} parts of {', '.join(repr(r.name) for r in known)}")
    return [row for row in known if not settings.rows or any(p.lower() in row.name.lower() for p in settings.rows)]


def _runs(row: Row, settings: Settings) -> int:
    return settings.seeds or (1 if settings.quick and row.data == "mnist" else row.seeds)


def _machine() -> str:
    device = jax.devices()[0]
    return f"{device.device_kind} ({jax.device_count()}), jax {jax.__version__}"


def _score_seeds(row: Row, settings: Settings) -> list[float]:
    """The score of each seed."""
    seeds = _runs(row, settings)
    if row.data == "xor":
        params, _ = xor.train(row.net, 0.3, xor.Settings(steps=row.epochs), seeds)
        return (xor.count_right(row.net, params) == 4).astype(float).tolist()
    X, Y, X_test, Y_test = _examples(row, settings.held_out)
    labels = np.eye(row.net.sizes[-1], dtype=np.float32)[Y] if row.one_hot else Y
    descent = row.descent(row.epochs * -(-len(X) // row.batch_size))  # one object, so that it is compiled once
    preprocess = scale_pixels if X.dtype == np.uint8 else None
    side_by_side = row.side_by_side and seeds > 1

    def score(seed: int) -> float:
        key = jax.random.key(seed)
        params = jm.init(row.net, key, weights=row.weights)
        batch_size = min(row.batch_size, len(X))
        result = jm.fit(row.net, params, (X, labels), optimizer=descent, epochs=row.epochs, batch_size=batch_size,
                        key=key, preprocess=preprocess, progress=not side_by_side and row.epochs < 500,
                        **row.options)  # fmt: skip
        Y_hat = jm.predict(row.net, result.params, X_test, preprocess=preprocess)
        accuracy = float(np.mean(np.asarray(metrics.classes(Y_hat)) == Y_test))
        return 1 - accuracy if row.score == "error" else accuracy

    if not side_by_side:
        return [score(seed) for seed in range(seeds)]
    with ThreadPoolExecutor(settings.workers) as pool:
        return list(pool.map(score, range(seeds)))


def _examples(row: Row, held_out: int):
    """The training examples, and the examples to score."""
    if row.data == "spirals":
        X, Y = spirals()
        return X, Y, X, Y
    pictures = datasets.load(row.data)
    if held_out:
        parts = slice(None, -held_out), slice(-held_out, None)
        return pictures.X[parts[0]], pictures.Y[parts[0]], pictures.X[parts[1]], pictures.Y[parts[1]]
    return pictures.X, pictures.Y, pictures.X_test, pictures.Y_test


def spirals() -> tuple[np.ndarray, np.ndarray]:
    """Two spirals of 97 points each, `(194, 2)`, three times around. Source: Lang and Witbrock 1988."""
    i = np.arange(97)
    radius, angle = 6.5 * (104 - i) / 104, i * np.pi / 16
    one = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1)
    return np.concatenate([one, -one]).astype(np.float32), np.repeat(np.asarray([1, 0], np.int32), 97)


def _picture(out: Output, rows: list[Row], measured: dict[str, list[float]]) -> None:
    """The error of each run over the row's largest allowed error: a ratio up to 1 is good enough."""
    figure, ax = plotting.figure(size=(8, 1.2 + 0.4 * len(rows)))
    for number, row in enumerate(rows):
        error = lambda score, row=row: score if row.score == "error" else 1 - score
        scores = np.asarray(measured[row.name])
        values = [scores.mean()] if row.score == "solved" else scores
        limit = max(error(row.bound), 1e-3)
        ratios = [error(value) / limit for value in values]
        label = None if number else "a run"
        ax.plot(ratios, [number] * len(ratios), "o", color=plotting.PALETTE[0], alpha=0.6, label=label)
        ax.plot(np.mean(ratios), number, "|", color="black", markersize=16, label="mean" if not number else None)
    ax.axvline(1, color="gray", linestyle="--", label="to reach")
    ax.set_yticks(range(len(rows)), [row.name for row in rows])
    ax.set_xlabel("share of wrong answers / largest share allowed")
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.3)
    ax.legend(fontsize="small")
    out.picture("results", figure)
