"""Networks with data, small enough for the slow oracles: a table, and random ones for hypothesis."""

from dataclasses import dataclass, field

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

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


def tree_error(got, expected) -> float:
    """The largest `||a - b|| / max(||a||, ||b||)` over the arrays of two trees; 0 for equal zeros."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape, (a.shape, b.shape)
        apart = np.linalg.norm(a - b)
        worst = max(worst, apart and apart / max(np.linalg.norm(a), np.linalg.norm(b)))
    return worst
