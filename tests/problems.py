"""What many tests are about: networks with data, small enough for the slow oracles, and a task to train on."""

from dataclasses import dataclass, field

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm

SMOOTH = ("identity", "sigmoid", "tanh", "softplus", "gelu", "silu")
HIDDEN = (*SMOOTH, "relu", "leaky_relu", "elu")
PAIRS = (
    ("identity", "squared_error"),
    ("tanh", "squared_error"),
    ("relu", "squared_error"),
    ("sigmoid", "squared_error"),
    ("softmax", "squared_error"),
    ("sigmoid", "binary_cross_entropy"),
    ("softmax", "binary_cross_entropy"),
    ("softmax", "cross_entropy"),
    ("sigmoid", "cross_entropy"),
)


@dataclass(frozen=True)
class Problem:
    """A network, parameters, and a batch; `rows` are the labels as rows, whatever `Y` is."""

    sizes: tuple[int, ...]
    hidden: tuple[str, ...]
    output: str
    loss: str
    m: int
    seed: int = 0
    dtype: str = "float64"
    weighted: bool = False
    masked: bool = False
    integer_classes: bool = False
    net: jm.MLP = field(init=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "net", jm.MLP(self.sizes, self.hidden, self.output, self.loss))

    def __str__(self):
        extras = "-".join(name for name in ("weighted", "masked", "integer_classes") if getattr(self, name))
        widths = "x".join(map(str, self.sizes))
        return f"{widths}-{'-'.join(self.hidden)}-{self.output}-{self.loss}-m{self.m}-{self.dtype}-{extras}"

    def make(self):
        """`(params, X, Y, rows, weights, masks)` as arrays of this problem's dtype."""
        rng = np.random.default_rng(self.seed)
        as_float = lambda values: jnp.asarray(np.asarray(values, self.dtype))
        # Biases that are not 0 keep ReLU's pre-activations off its kink.
        params = tuple(
            jm.Layer(as_float(rng.normal(size=(o, i)) / np.sqrt(i)), as_float(rng.normal(size=o) / 2))
            for o, i in self.net.shapes
        )
        k = self.sizes[-1]
        X = as_float(rng.normal(size=(self.m, self.sizes[0])))
        labels = rng.integers(0, k, self.m)
        if self.loss == "squared_error":
            rows = rng.normal(size=(self.m, k))
        elif self.loss == "binary_cross_entropy":
            rows = rng.integers(0, 2, (self.m, k))
        elif self.integer_classes:
            rows = np.eye(k)[labels]
        else:
            rows = rng.dirichlet(np.ones(k), self.m)
        Y = jnp.asarray(labels) if self.integer_classes else as_float(rows)
        weights = as_float(rng.uniform(0.1, 2, self.m)) if self.weighted else None
        masks = None
        if self.masked:
            masks = tuple(as_float((rng.random((self.m, n)) < 0.8) / 0.8) for n in self.sizes[:-1])
        return params, X, Y, as_float(rows), weights, masks


TABLE = (
    Problem((3, 2), (), "identity", "squared_error", 4),
    Problem((3, 1), (), "sigmoid", "binary_cross_entropy", 1),
    Problem((4, 3, 2), ("tanh",), "softmax", "cross_entropy", 5, integer_classes=True),
    Problem((2, 2, 1), ("sigmoid",), "sigmoid", "squared_error", 3, weighted=True),
    Problem((3, 1, 2), ("softplus",), "softmax", "squared_error", 1),
    Problem((3, 4, 3), ("gelu",), "softmax", "binary_cross_entropy", 4, weighted=True),
    Problem((4, 5, 3, 2), ("silu", "tanh"), "sigmoid", "binary_cross_entropy", 6, masked=True),
    Problem((3, 4, 1, 4, 3), ("tanh", "relu", "sigmoid"), "softmax", "cross_entropy", 5, weighted=True),
    Problem((2, 3, 3, 3, 2), ("elu", "leaky_relu", "silu"), "sigmoid", "cross_entropy", 4, weighted=True, masked=True),
)

DEEP = Problem((4, 5, 6, 3, 2), ("tanh", "silu", "sigmoid"), "softmax", "cross_entropy", 5)


@st.composite
def random_problems(draw, dtypes=("float64", "float32"), hidden=HIDDEN):
    """Depth 1 to 6, widths 1 to 6, batches of 1 to 5, any activations, any pair of output and loss."""
    depth = draw(st.integers(1, 6))
    output, loss = draw(st.sampled_from(PAIRS))
    sizes = draw(st.lists(st.integers(1, 6), min_size=depth + 1, max_size=depth + 1))
    hypothesis.assume(not (output == "softmax" and sizes[-1] == 1))  # constantly 1: refused
    return Problem(
        sizes=tuple(sizes),
        hidden=tuple(draw(st.lists(st.sampled_from(hidden), min_size=depth - 1, max_size=depth - 1))),
        output=output,
        loss=loss,
        m=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 2**16)),
        dtype=draw(st.sampled_from(dtypes)),
        weighted=draw(st.booleans()),
        masked=draw(st.booleans()),
        integer_classes=loss == "cross_entropy" and draw(st.booleans()),
    )


NET = jm.MLP((3, 5, 2), hidden="tanh", output="softmax", loss="cross_entropy")  # the network that tests train
SGD = optax.sgd(0.1)  # one object: another one compiles again
KEYS = jax.random.split(jax.random.key(3), 4)  # of a sweep's members


def examples(m=10, seed=0):
    """`(X, Y)` for `NET`: two classes that a plane divides."""
    X = np.random.default_rng(seed).normal(size=(m, 3)).astype(np.float32)
    return X, (X[:, 0] + 0.5 * X[:, 1] > 0).astype(np.int32)


def fit(params, data=None, net=NET, **settings):
    """One epoch, unless `settings` say otherwise."""
    settings = {"optimizer": SGD, "key": jax.random.key(1), "epochs": 1, "progress": False} | settings
    return jm.fit(net, params, examples() if data is None else data, **settings)


def sweep(data=None, net=NET, **settings):
    """Five epochs of members that differ in what `settings` say; by default in their keys."""
    settings = {"optimizer": optax.sgd, "keys": KEYS, "epochs": 5, "batch_size": 6, "progress": False} | settings
    if settings["optimizer"] is optax.sgd:
        settings = {"hyper": {"learning_rate": 0.3}} | settings
    return jm.sweep(net, examples(20) if data is None else data, **settings)


def search(space, net=NET, data=None, **settings):
    """A search for as many epochs, or within the budget, that `settings` say."""
    settings = {"key": jax.random.key(0), "optimizer": optax.sgd, "validation": examples(15, 5), "progress": False,
                **({} if "batch_size" in space else {"batch_size": 6})} | settings  # fmt: skip
    return jm.search(space, net, examples(20) if data is None else data, **settings)


@jax.jit
def gradient(params, X, Y):
    """The mean gradient of `NET` by autodiff."""
    return jax.grad(lambda p: jm.cost(NET, p, X, Y))(params)


def shuffled_batches(key, m, size):
    """The indices of the batches that `fit` takes in its first epoch, derived as its documentation says."""
    after_start, _ = jax.random.split(key)
    order = jax.random.permutation(jax.random.split(after_start)[1], m)
    return [order[i : i + size] for i in range(0, m, size)]


def tree_error(got, expected) -> float:
    """The largest `||a - b|| / max(||a||, ||b||)` over the arrays of two trees; 0 for equal zeros."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, (a.shape, b.shape)
        apart = np.linalg.norm(a - b)
        worst = max(worst, apart and apart / max(np.linalg.norm(a), np.linalg.norm(b)))
    return worst


DTYPES = ("float32", "float64", "bfloat16", "float16")


def bits(array) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, np.asarray(array).tobytes()


def random_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Every pattern of bits: NaNs with a payload, -0, subnormal numbers."""
    dtype = jnp.dtype(dtype)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
