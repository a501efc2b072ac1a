"""L-BFGS over all weights as one vector, by SciPy, with the hand-written gradient in float64."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float
from sklearn.exceptions import ConvergenceWarning

from jaxmlp import penalties, rules
from jaxmlp._backward import gradient_pass
from jaxmlp._forward import mean
from jaxmlp.network import MLP, Layer, Params
from jaxmlp.programs import compiled
from jaxmlp.training.regularization import Regularization
from jaxmlp.validate import Examples


def minimize(
    net: MLP, coefs: list, intercepts: list, examples: Examples, alpha: float, share: float,
    smoothing: float | None, options: dict[str, Any],
) -> tuple[list[np.ndarray], list[np.ndarray], float, int]:  # fmt: skip
    """The weights and biases at the minimum, the cost there, and the number of iterations.

    Args:
        examples: in NumPy arrays.
        share: the part of the mean loss in the cost that is reported.
        smoothing: the share of each label that is spread over all classes, None for no classes.
        options: `maxfun`, `maxiter` and `gtol` of SciPy.
    """
    start = np.hstack([array.ravel() for array in [*coefs, *intercepts]]).astype(np.float64)
    with jax.enable_x64(True):
        wide = lambda array: None if array is None else np.asarray(array, np.float64)
        examples = Examples(wide(examples.X), examples.Y, wide(examples.weights))  # pyright: ignore
        numbers = jax.device_put((examples, *map(np.float64, (alpha, share)), smoothing and np.float64(smoothing)))

        def cost(theta: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = _value_and_grad(net, theta, *numbers)
            return float(value), np.array(gradient)

        found = scipy.optimize.minimize(cost, start, method="L-BFGS-B", jac=True, options=options)
    n_iter = min(found.nit, options["maxiter"])
    if found.status != 0:
        _warn(found, n_iter, options["maxiter"])
    layers = _split(net, found.x)
    return [np.array(W) for W, _ in layers], [np.array(b) for _, b in layers], float(found.fun), n_iter


@compiled("net")
def _value_and_grad(net, theta, examples, alpha, share, smoothing):
    """The cost `share J + alpha/2 sum_l ||W^l||^2 / n` and the gradient of `J + ..`, as one vector."""
    params = tuple(Layer(W.T, b) for W, b in _split(net, theta))
    Y = Regularization(label_smoothing=smoothing).smooth(net, examples.Y, theta.dtype)
    trace, grads = gradient_pass(net, params, examples._replace(Y=Y), rules.backprop, (None,) * (net.depth - 1))
    count = examples.X.shape[0] if examples.weights is None else examples.weights.sum()
    penalty = penalties.l2(alpha / count)
    value = share * mean(trace.losses, examples.weights) + penalty.cost(params)
    return value, _pack(penalty.gradient(params, grads))


def _pack(params: Params) -> Float[Array, " n"]:
    """All W `(in, out)`, row by row, then all b: scikit-learn's order."""
    return jnp.concatenate([W.T.ravel() for W, _ in params] + [b for _, b in params])


def _split(net: MLP, theta: Any) -> list[tuple[Any, Any]]:
    """The parts of the vector: W `(in, out)` and b of each layer."""
    ends = np.cumsum([n_out * n_in for n_out, n_in in net.shapes] + list(net.sizes[1:]))[:-1].tolist()
    parts = (jnp if isinstance(theta, jax.Array) else np).split(theta, ends)
    weights = [part.reshape(n_in, n_out) for part, (n_out, n_in) in zip(parts, net.shapes, strict=False)]
    return list(zip(weights, parts[net.depth :], strict=True))


def _warn(found: Any, n_iter: int, most: int) -> None:
    """scikit-learn's warning where SciPy reports no minimum."""
    message = f"lbfgs failed to converge after {n_iter} iteration(s) (status={found.status}):\n{found.message}\n"
    if n_iter == most:
        message += f"\nIncrease the number of iterations to improve the convergence (max_iter={most})."
    message += (
        "\nYou might also want to scale the data as shown in:\n"
        "    https://scikit-learn.org/stable/modules/preprocessing.html"
    )
    warnings.warn(message, ConvergenceWarning, stacklevel=6)
