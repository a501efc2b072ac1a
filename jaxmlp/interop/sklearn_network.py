"""The network of an estimator: its parts by scikit-learn's names, its first weights, and its outputs."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.scipy.special import xlogy

from jaxmlp._forward import _predict
from jaxmlp.activations import Activation
from jaxmlp.losses import Loss
from jaxmlp.network import MLP, Layer, Params

OURS = {"logistic": "sigmoid"}  # where a name of ours differs


def _poisson(y_hat, y):
    return jnp.sum(xlogy(y, y) - xlogy(y, y_hat) - y + y_hat)


def _poisson_of_log(z, y):
    return jnp.sum(xlogy(y, y) - y * z - y + jnp.exp(z))


def _poisson_df(y_hat, y):
    return 1 - y / y_hat


def _poisson_d2f(y_hat, y):
    return y / y_hat**2


def _poisson_root(y_hat):
    return jnp.diag(jnp.sqrt(y_hat))


def _poisson_sample(key, y_hat):
    return jax.random.poisson(key, y_hat).astype(y_hat.dtype)


exp = Activation("exp", jnp.exp, jnp.exp, jnp.exp, range=(0, math.inf))
poisson = Loss(  # half of the deviance
    "poisson",
    _poisson,
    _poisson_df,
    _poisson_d2f,
    domain=(0, math.inf),
    canonical=exp,
    from_z=_poisson_of_log,
    root=_poisson_root,
    sample=_poisson_sample,
)

# The output's activation decides the loss.
LOSSES: dict[str, tuple[str | Activation, str | Loss]] = {
    "softmax": ("softmax", "cross_entropy"),
    "logistic": ("sigmoid", "binary_cross_entropy"),
    "identity": ("identity", "squared_error"),
    "exp": (exp, poisson),
}


@lru_cache(maxsize=128)
def build(sizes: tuple[int, ...], hidden: str | Activation, output: str, products: Any) -> MLP:
    """The network of these widths; `hidden` and `output` as the estimator names them."""
    named = OURS.get(hidden, hidden) if isinstance(hidden, str) else hidden
    activation, loss = LOSSES[output]
    return MLP(sizes, named, activation, loss, products)


def draw_coefs(
    random: np.random.RandomState, sizes: tuple[int, ...], hidden: Any, dtype: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """scikit-learn's first weights: uniform up to `sqrt(6 / (n_in + n_out))`, and `sqrt(2 / ..)` for the sigmoid."""
    factor = 2.0 if hidden in ("logistic", "sigmoid") else 6.0
    coefs, intercepts = [], []
    for n_in, n_out in pairwise(sizes):
        bound = np.sqrt(factor / (n_in + n_out))
        coefs.append(random.uniform(-bound, bound, (n_in, n_out)).astype(dtype, copy=False))
        intercepts.append(random.uniform(-bound, bound, n_out).astype(dtype, copy=False))
    return coefs, intercepts


def to_params(coefs: Any, intercepts: Any, dtype: Any = None) -> Params:
    """The same weights as a network's, in NumPy arrays."""
    read = lambda array: np.asarray(array, dtype)
    return tuple(Layer(read(W).T, read(b)) for W, b in zip(coefs, intercepts, strict=True))  # pyright: ignore


def to_coefs(params: Params) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The same weights in scikit-learn's orientation (in, out); copies, to which a user may write."""
    return [np.array(np.asarray(W).T, order="C") for W, _ in params], [np.array(b) for _, b in params]


def _softmax(z: np.ndarray) -> np.ndarray:
    z -= z.max(axis=1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=1, keepdims=True)
    return z


# Each may write to its argument.
IN_PLACE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda z: z,
    "relu": lambda z: np.maximum(z, 0, out=z),
    "tanh": lambda z: np.tanh(z, out=z),
    "logistic": lambda z: scipy.special.expit(z, out=z),
    "sigmoid": lambda z: scipy.special.expit(z, out=z),
    "exp": lambda z: np.exp(z, out=z),
    "softmax": _softmax,
}


def is_fast(hidden: Any, products: Any) -> bool:
    """Whether NumPy computes this network's outputs: one row takes a tenth of the time of a compiled program's call."""
    return products is None and isinstance(hidden, str) and hidden in IN_PLACE


def propagate_fast(X: Any, coefs: list, intercepts: list, hidden: str, output: str) -> np.ndarray:
    """The outputs by NumPy; X may be sparse."""
    a = X
    for l, (W, b) in enumerate(zip(coefs, intercepts, strict=True), start=1):
        z = np.asarray(a @ W)
        z += b
        a = IN_PLACE[output if l == len(coefs) else hidden](z)
    return a


def propagate(net: MLP, coefs: list, intercepts: list, X: np.ndarray) -> np.ndarray:
    """The outputs by the network itself."""
    with jax.enable_x64(True) if X.dtype == np.float64 else nullcontext():  # L-BFGS leaves float64
        return np.array(_predict(net, to_params(coefs, intercepts, X.dtype), X, None))
