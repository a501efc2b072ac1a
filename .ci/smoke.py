"""Use the installed package: its own files, a fit, a round trip through a file."""

import importlib.metadata
import importlib.resources
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax

import jaxmlp as jm

assert Path(jm.__file__).parent.parent.name == "site-packages", jm.__file__
assert jm.__version__ == importlib.metadata.version("jaxmlp")
files = importlib.resources.files("jaxmlp")
assert (files / "py.typed").is_file()

X = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
Y = (np.linalg.norm(X, axis=1) < 1.2).astype(np.int32)
net = jm.MLP((2, 16, 2), hidden="tanh", output="softmax", loss="cross_entropy")
params = jm.init(net, jax.random.key(0))
assert jm.check_gradients(net, params, X[:20], Y[:20]).passed
result = jm.fit(
    net, params, (X, Y), optimizer=optax.adam(0.01), epochs=30, batch_size=20, key=jax.random.key(1), progress=False
)
accuracy = float(jm.metrics.accuracy(jm.predict(net, result.params, X), Y))
assert accuracy > 0.9, accuracy

with tempfile.TemporaryDirectory() as folder:
    jm.save(Path(folder) / "net.safetensors", net, result.params)
    loaded, weights = jm.load(Path(folder) / "net.safetensors")
assert loaded == net
assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(weights), jax.tree.leaves(result.params), strict=True))
print(f"jaxmlp {jm.__version__} from the wheel: {accuracy:.0%} of the examples right after 30 epochs")
