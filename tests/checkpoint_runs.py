"""Two runs whose checkpoints, as jaxmlp 0.1.0 wrote them, are kept in `data/checkpoint_0_1_0`.

With the code of 0.1.0 first on the path, as `PYTHONPATH=... python3 tests/checkpoint_runs.py FOLDER`, this file wrote
that folder: of each run the checkpoint after 3 of its 6 epochs, and the weights after all 6 of them, never interrupted.
All numbers that a run starts from are sums of few powers of 2, so that every machine has the same and takes the run
for its own.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # compiled as the tests are
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        "--xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false"  # as in conftest.py
    )

import jax
import numpy as np
import optax

import jaxmlp as jm

NET = jm.MLP((3, 4, 2), hidden="tanh", output="softmax", loss="cross_entropy")
RNG = np.random.default_rng(0)
eighths = lambda *shape: RNG.integers(-8, 9, shape).astype(np.float32) / 8
PARAMS = tuple(jm.Layer(jax.numpy.asarray(eighths(o, i)), jax.numpy.asarray(eighths(o))) for o, i in NET.shapes)
X, X_DEV = eighths(20, 3), eighths(10, 3)
Y, Y_DEV = ((A[:, 0] + A[:, 1] > 0).astype(np.int32) for A in (X, X_DEV))
FEEDBACK = (jax.numpy.asarray(eighths(2, 4)),)
WEIGHTS = 1 + RNG.integers(0, 3, 20).astype(np.float32)

RUNS = {
    "settings": {
        "optimizer": optax.sgd,
        "hyper": {"learning_rate": 0.25, "momentum": 0.5},
        "penalties": (jm.l2(1 / 64), jm.max_norm(1.5)),
        "keep": (1.0, 0.75),
        "label_smoothing": 0.125,
        "input_noise": 0.0625,
        "average": 0.75,
        "weights": WEIGHTS,
        "class_weights": [1.0, 0.5],
        "patience": 5,
        "preprocess": lambda x: x / 2,
        "monitor": True,
    },
    "rule": {
        "optimizer": optax.sgd(0.25, momentum=0.5),
        "rule": jm.rules.kolen_pollack(0.125),
        "rule_state": FEEDBACK,
        "augment": lambda key, x: jax.numpy.where(jax.random.bernoulli(key), x, -x),
        "best_by": "accuracy",
    },
}


def fit(name, epochs=6, checkpoints=None):
    """The run of that name."""
    return jm.fit(
        NET, PARAMS, (X, Y), epochs=epochs, batch_size=8, key=jax.random.key(1), validation=(X_DEV, Y_DEV),
        checkpoints=checkpoints, progress=False, **RUNS[name],
    )  # fmt: skip


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    for name in RUNS:
        fit(name, 3, Path(sys.argv[1]) / name)
        jm.save(Path(sys.argv[1]) / f"{name}.safetensors", NET, fit(name).last_params)
