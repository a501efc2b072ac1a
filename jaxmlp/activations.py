"""Activation functions `a = f(z)` and, written by hand, their first and second derivatives.

They are those of `jax.nn`, by its names and with its defaults, and `step` and `sign`. The derivative of these two is 0,
so a rule trains through them: `rules.surrogate`. `z` is a pre-activation of any shape; all but softmax act entry by
entry. Sources: notes 002, "Activation functions", and 001, "ReLU activation"; leaky ReLU from Maas et al. 2013, ELU
from Clevert et al. 2016, GELU (the tanh form) from Hendrycks and Gimpel 2016, SiLU from Elfwing et al. 2018.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxmlp.pickling import Description

Elementwise = Callable[[Array], Array]


class LogOdds(NamedTuple):
    """`o = log(a / (1 - a))` of an output's values a in (0, 1), from z: there logarithms of a lose no digit.

    All are functions of one example's `z (k,)`, and J is the Jacobian of `f`; the last two are for curvature.
    """

    f: Elementwise  # o
    pull: Callable[[Array, Array], Array]  # `pull(z, error)`, J^T error
    jacobian: Elementwise  # J, (k, k)
    pull_derivative: Callable[[Array, Array, Array], Array]  # the derivative of `pull(z, error)` in z along dz


@dataclass(frozen=True)
class Activation(Description):
    """`a = f(z)` with its derivatives `df` (f') and `d2f` (f''), functions of `z` that act entry by entry.

    Args:
        name: printed by `MLP` and by errors.
        d2f: for Hessian-vector products only.
        range: the smallest and the largest value of f. A loss whose domain does not hold it refuses the output.
        kinks: the z at which f or f' jumps. Checks leave out and name the entries whose central difference crosses one.
        log_odds: for an output in (0, 1), so that losses with logarithms stay right where a rounds to 0 or 1.
    Example:
        >>> cube = jm.Activation("cube", lambda z: z**3, lambda z: 3 * z**2, lambda z: 6 * z)
        >>> jm.MLP((3, 4, 2), hidden=cube)
        MLP(3-4-2, hidden=cube, output=identity, loss=squared_error)
    """

    name: str
    f: Elementwise
    df: Elementwise
    d2f: Elementwise | None = None
    range: tuple[float, float] = (-math.inf, math.inf)
    kinks: tuple[float, ...] = ()
    log_odds: LogOdds | None = None

    def __call__(self, z: Float[Array, "*o"]) -> Float[Array, "*o"]:
        """`f(z)` in z's dtype: a constant of NumPy's float64 in f changes no dtype."""
        return self.f(z).astype(z.dtype)

    def pull(self, z: Float[Array, " o"], error: Float[Array, " o"]) -> Float[Array, " o"]:
        """`J(z)^T error`, which is dL/dz for `error = dL/da`; here J is diagonal, `diag(f'(z))`."""
        return self.df(z).astype(z.dtype) * error

    def pull_derivative(
        self, z: Float[Array, " o"], error: Float[Array, " o"], dz: Float[Array, " o"]
    ) -> Float[Array, " o"]:
        """The derivative of `pull(z, error)` in z along dz, `f''(z) dz error`, for second derivatives."""
        if self.d2f is None:
            raise ValueError(f"activation {self.name!r} has no d2f, expected one for Hessian products")
        return self.d2f(z).astype(z.dtype) * dz * error


class Softmax(Activation):
    """`a_i = e^(z_i) / sum_j e^(z_j)`, for outputs. `df` is the whole Jacobian, `J_ij = a_i (1[i=j] - a_j)`."""

    def pull(self, z: Float[Array, " k"], error: Float[Array, " k"]) -> Float[Array, " k"]:
        """`J(z)^T error = a * (error - a . error)`; J is symmetric and never formed."""
        a, error = jax.nn.softmax(z), _relative_to_largest(z, error)
        return a * (error - jnp.dot(a, error))

    def pull_derivative(
        self, z: Float[Array, " k"], error: Float[Array, " k"], dz: Float[Array, " k"]
    ) -> Float[Array, " k"]:
        """With `da = J dz`: `da * (error - a . error) - a (da . error)`."""
        a, da, error = jax.nn.softmax(z), self.pull(z, dz), _relative_to_largest(z, error)
        return da * (error - jnp.dot(a, error)) - a * jnp.dot(da, error)


def _relative_to_largest(z: Float[Array, " k"], error: Float[Array, " k"]) -> Float[Array, " k"]:
    """The error without its entry at the largest z. J takes no constant, and an a near 1 then cancels nothing."""
    return error - error[jnp.argmax(z)]


def _sigmoid_df(z):
    a = jax.nn.sigmoid(z)
    return a * (1 - a)


def _sigmoid_d2f(z):
    a = jax.nn.sigmoid(z)
    return a * (1 - a) * (1 - 2 * a)


def _tanh_df(z):
    a = jnp.tanh(z)
    return (1 - a) * (1 + a)  # 1 - a^2, without its cancellation where |a| is near 1


def _tanh_d2f(z):
    a = jnp.tanh(z)
    return -2 * a * (1 - a) * (1 + a)


_LEAK = 0.01  # the default slope of jax.nn.leaky_relu below 0


def _leaky_relu_df(z):
    return jnp.where(z >= 0, jnp.ones_like(z), jnp.full_like(z, _LEAK))


def _elu_df(z):
    return jnp.where(z > 0, jnp.ones_like(z), jnp.exp(jnp.minimum(z, 0)))  # the minimum keeps exp from overflowing


def _elu_d2f(z):
    return jnp.where(z > 0, jnp.zeros_like(z), jnp.exp(jnp.minimum(z, 0)))


_GELU_SCALE, _GELU_CUBIC = math.sqrt(2 / math.pi), 0.044715


def _gelu_parts(z):
    """`t = tanh(u)`, `u'` and `u''` of the inner polynomial `u = s (z + c z^3)`; beyond |z| = 10, t is +-1 exactly."""
    z = jnp.clip(z, -10, 10)
    t = jnp.tanh(_GELU_SCALE * (z + _GELU_CUBIC * z**3))
    return z, t, _GELU_SCALE * (1 + 3 * _GELU_CUBIC * z**2), _GELU_SCALE * 6 * _GELU_CUBIC * z


def _gelu_df(z):
    z, t, du, _ = _gelu_parts(z)
    return (1 + t) / 2 + z / 2 * (1 - t) * (1 + t) * du


def _gelu_d2f(z):
    z, t, du, d2u = _gelu_parts(z)
    return (1 - t) * (1 + t) * (du + z / 2 * d2u - z * t * du**2)


def _silu_df(z):
    a = jax.nn.sigmoid(z)
    return a * (1 + z * (1 - a))


def _silu_d2f(z):
    a = jax.nn.sigmoid(z)
    return a * (1 - a) * (2 + z * (1 - 2 * a))


def _softmax_jacobian(z):
    a = jax.nn.softmax(z)
    return jnp.diag(a) - jnp.outer(a, a)


def _split_largest(z: Float[Array, " k"]):
    """Softmax's z relative to its largest, which entry that is, and the others relative to the largest of these.

    The sum of e^z over all entries but the largest starts from the others alone; any other such sum holds a 1. Masked
    classes have a z of -inf.
    """
    is_top = jnp.arange(z.shape[0]) == jnp.argmax(z)
    z = z - jax.lax.stop_gradient(jnp.max(z))  # no result depends on it
    others = jnp.where(is_top, -jnp.inf, z)
    second = jax.lax.stop_gradient(jnp.max(others))
    others = jnp.where(jnp.isfinite(others), others - jnp.where(jnp.isfinite(second), second, 0), -jnp.inf)
    return z, is_top, others, second


def _softmax_odds(z):
    """`o_i = z_i - log sum_(j != i) e^(z_j)`."""
    z, is_top, others, second = _split_largest(z)
    rest = jnp.where(is_top, jnp.sum(jnp.exp(others)), jnp.sum(jnp.exp(z)) - jnp.exp(z))  # 0 without other classes
    return z - jnp.where(is_top, second, 0) - jnp.log(jnp.where(rest == 0, 1, rest))


def _pull_softmax_odds(z, error):
    """`J^T error` for `J_ij = 1[i=j] - q_ij`, `q_ij = e^(z_j) / sum_(l != i) e^(z_l)` with `q_ii = 0`, in O(k)."""
    z, is_top, others, _ = _split_largest(z)
    a, q = jax.nn.softmax(z), jnp.exp(others)
    q = q / jnp.maximum(jnp.sum(q), 1)  # of the largest
    each = jnp.where(is_top, 0, error / jnp.where(is_top, 1, 1 - a))
    largest = jnp.sum(jnp.where(is_top, error, 0))
    return jnp.where(is_top, largest, each - largest * q) - a * jnp.sum(each)


def _softmax_odds_jacobian(z):
    unit = jnp.eye(z.shape[0], dtype=z.dtype)
    return jax.vmap(lambda e: _pull_softmax_odds(z, e))(unit)


def _pull_softmax_odds_derivative(z, error, dz):
    """The sum of `error_i H_i dz`, H_i the Hessian `q_i q_i^T - diag(q_i)` of o_i."""
    q = jnp.eye(z.shape[0], dtype=z.dtype) - _softmax_odds_jacobian(z)
    return q.T @ (error * (q @ dz)) - (q.T @ error) * dz


identity = Activation("identity", lambda z: z, jnp.ones_like, jnp.zeros_like)
sigmoid = Activation(
    "sigmoid",
    jax.nn.sigmoid,
    _sigmoid_df,
    _sigmoid_d2f,
    range=(0, 1),
    log_odds=LogOdds(
        f=lambda z: z,
        pull=lambda z, error: error,
        jacobian=lambda z: jnp.eye(z.shape[0], dtype=z.dtype),
        pull_derivative=lambda z, error, dz: jnp.zeros_like(z),
    ),
)
tanh = Activation("tanh", jnp.tanh, _tanh_df, _tanh_d2f, range=(-1, 1))
relu = Activation(
    "relu", jax.nn.relu, lambda z: (z > 0).astype(z.dtype), jnp.zeros_like, range=(0, math.inf), kinks=(0,)
)
leaky_relu = Activation("leaky_relu", jax.nn.leaky_relu, _leaky_relu_df, jnp.zeros_like, kinks=(0,))
elu = Activation("elu", jax.nn.elu, _elu_df, _elu_d2f, range=(-1, math.inf), kinks=(0,))
softplus = Activation("softplus", jax.nn.softplus, jax.nn.sigmoid, _sigmoid_df, range=(0, math.inf))
gelu = Activation("gelu", jax.nn.gelu, _gelu_df, _gelu_d2f, range=(-0.2, math.inf))
silu = Activation("silu", jax.nn.silu, _silu_df, _silu_d2f, range=(-0.3, math.inf))
step = Activation("step", lambda z: (z >= 0).astype(z.dtype), jnp.zeros_like, jnp.zeros_like, range=(0, 1), kinks=(0,))
sign = Activation("sign", jnp.sign, jnp.zeros_like, jnp.zeros_like, range=(-1, 1), kinks=(0,))
softmax = Softmax(
    "softmax",
    jax.nn.softmax,
    _softmax_jacobian,
    range=(0, 1),
    log_odds=LogOdds(_softmax_odds, _pull_softmax_odds, _softmax_odds_jacobian, _pull_softmax_odds_derivative),
)

NAMED = {a.name: a for a in (identity, sigmoid, tanh, relu, leaky_relu, elu, softplus, gelu, silu, step, sign, softmax)}
