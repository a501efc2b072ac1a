"""What is asked of training beside the plain epoch, and what it costs: monitors, regularisation, streams."""

import jax
import numpy as np
import optax

import jaxmlp as jm
from jaxmlp.data import Batches, scale_pixels

BATCH_SIZE = 128
OPTIONS = {
    "monitors": {"monitor": True},
    "l2": {"penalties": jm.l2(1e-4)},
    "max-norm": {"penalties": jm.max_norm(2.0)},
    "dropout": {"keep": 0.8},
    "label smoothing": {"label_smoothing": 0.1},
    "input noise": {"input_noise": 0.1},
    "average": {"average": 0.99},
    "checkpoint each epoch": {"checkpoints": ""},
}


def table(net: jm.MLP, X: np.ndarray, Y: np.ndarray, rounds: int, folder: str) -> tuple[list[dict[str, str]], dict]:
    """An epoch with each option as a ratio to the plain one's time, alternated."""
    params, sgd = jm.init(net, jax.random.key(0)), optax.sgd(0.01)
    options: dict[str, dict] = {"plain": {}, "stream": {}, **OPTIONS}

    def seconds(name: str, number: int) -> float:
        """The median of an epoch's time in a short run, the first, with compilation, left out."""
        given = dict(options[name])
        if "checkpoints" in given:
            given["checkpoints"] = f"{folder}/{number}"
        data = Batches(X, Y, BATCH_SIZE, key=jax.random.key(2)) if name == "stream" else (X, Y)
        size = None if name == "stream" else BATCH_SIZE
        result = jm.fit(net, params, data, optimizer=sgd, epochs=4, batch_size=size, key=jax.random.key(1),
                        preprocess=scale_pixels, progress=False, **given)  # fmt: skip
        return float(np.median(result.history["seconds"][1:]))

    times: dict[str, list[float]] = {name: [] for name in options}
    for number in range(rounds + 1):
        for name in list(options)[:: 1 if number % 2 else -1]:
            times[name].append(seconds(name, number))
    ratios = {name: np.asarray(each[1:]) / np.asarray(times["plain"][1:]) for name, each in times.items()}
    rows = []
    for name, ratio in ratios.items():
        low, high = np.percentile(ratio, [25, 75])
        rows.append({"an epoch with": name, "ms": f"{1e3 * np.median(times[name][1:]):.1f}",
                     "ratio": f"{np.median(ratio):.3f}", "quartiles": f"{low:.2f} to {high:.2f}"})  # fmt: skip
    return rows, {f"epoch with {name}": float(np.median(r)) for name, r in ratios.items()}
