"""Losses of one example, their derivatives, and the start of the delta recursion.

A loss `L(y_hat, y)` is a sum over the outputs. With its canonical output activation (identity with squared error,
sigmoid with binary cross-entropy, softmax with cross-entropy) it is computed from the pre-activation `z` in log space,
and `delta = dL/dz` is `y_hat - y`. A loss with logarithms and another output that tells its log odds o (softmax with
binary cross-entropy, sigmoid with cross-entropy) is computed from these, with `delta = (do/dz)^T dL/do`. With any other
output, `delta = J(z)^T dL/dy_hat`. Sources: notes 000,
"Backpropagation in this network"; 002, "Calculating the loss"; 003, softmax with cross-entropy.

Erratum: note 003 prints the squared error with a minus sign and without the 1/2; with `L = 1/2 sum (y_hat - y)^2`
its result `delta = y_hat - y` holds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jaxmlp import activations
from jaxmlp.activations import Activation
from jaxmlp.norms import widen
from jaxmlp.pickling import Description
from jaxmlp.validate import Given

OfOutput = Callable[[Array, Array], Array]


class OfLogOdds(NamedTuple):
    """A loss with logarithms as a function `f(o, y)` of an output's log odds, and its derivatives in each o.

    `gauss_newton` is `d2L/da^2 (da/do)^2`, the part of `d2f` that is never negative: see `Activation.log_odds`.
    """

    f: OfOutput
    df: OfOutput
    d2f: OfOutput
    gauss_newton: OfOutput


@dataclass(frozen=True)
class Loss(Description):
    """`f(y_hat, y)`, the loss of one example, and its derivatives `df`, `d2f` in each output.

    `y_hat` and `y` are `(k,)`, and so are the derivatives; f gives one number.

    Args:
        name: printed by `MLP` and by errors.
        d2f: for curvature only.
        domain: the interval that must hold every output.
        targets: the kind of Y: "real" numbers, "unit" numbers in [0, 1], or a "distribution" over the classes (integer
            classes, or rows of probabilities).
        canonical: the output activation for which `dL/dz = y_hat - y`.
        from_z: `from_z(z, y)`, the same loss from the canonical output's pre-activation.
        root: `root(y_hat)`, rows `r_c` with `sum_c r_c r_c^T = d2L/dz^2`, for curvature only.
        sample: `sample(key, y_hat)` draws a label from the distribution whose negative log-likelihood the loss is.
        of_log_odds: the same loss from the log odds of an output in (0, 1).
    Example:
        >>> absolute = jm.Loss("absolute", lambda a, y: jnp.abs(a - y).sum(), lambda a, y: jnp.sign(a - y))
        >>> jm.MLP((3, 2), loss=absolute)
        MLP(3-2, hidden=none, output=identity, loss=absolute)
    """

    name: str
    f: OfOutput
    df: OfOutput
    d2f: OfOutput | None = None
    domain: tuple[float, float] = (-math.inf, math.inf)
    targets: Literal["real", "unit", "distribution"] = "real"
    canonical: Activation | None = None
    from_z: OfOutput | None = None
    root: Callable[[Array], Array] | None = None
    sample: Callable[[Array, Array], Array] | None = None
    of_log_odds: OfLogOdds | None = None

    def value(self, output: Activation, z: Float[Array, " k"], y: Float[Array, " k"]) -> Float[Array, ""]:
        """`L(f(z), y)`, from z in log space where `output` is the canonical one or tells its log odds."""
        if output == self.canonical and self.from_z is not None:
            value = self.from_z(z, y)
        elif self.of_log_odds and output.log_odds:
            value = self.of_log_odds.f(output.log_odds.f(z), y)
        else:
            value = self.f(output(z), y)
        return value.astype(z.dtype)

    def delta(
        self, output: Activation, z: Float[Array, " k"], y_hat: Float[Array, " k"], y: Float[Array, " k"]
    ) -> Float[Array, " k"]:
        """`delta^K = dL/dz^K`: `y_hat - y` for the canonical output, else `J^T` times the loss's derivative.

        That is `dL/do` where the output tells its log odds o, and `dL/dy_hat` elsewhere.
        """
        if output == self.canonical:
            return y_hat - y
        if self.of_log_odds and output.log_odds:
            return output.log_odds.pull(z, self.of_log_odds.df(output.log_odds.f(z), y)).astype(z.dtype)
        return output.pull(z, self.df(y_hat, y).astype(z.dtype))

    def target(self, y: Num[Given, "..."], y_hat: Float[Array, " k"]) -> Float[Array, " k"]:
        """One example's label as `(k,)` numbers of y_hat's dtype; an integer class becomes a one-hot row."""
        if self.takes_classes(y, ndim=0):
            return jax.nn.one_hot(y, y_hat.shape[-1], dtype=y_hat.dtype)
        return jnp.asarray(y).astype(y_hat.dtype).reshape(y_hat.shape)

    def takes_classes(self, y: Any, ndim: int) -> bool:
        """Whether `y`, with `ndim` axes, holds integer classes."""
        return self.targets == "distribution" and y.ndim == ndim and jnp.issubdtype(y.dtype, jnp.integer)


def _times(y, x):
    """`y x` with `0 inf = 0`, for a logarithm x that is infinite where its y is 0."""
    return jnp.where(y == 0, 0, y * jnp.where(y == 0, 0, x))


def _weighted_log(y, a):
    """`y log a` with `0 log 0 = 0`; the derivative in `a` is 0 there, too."""
    return jnp.where(y == 0, 0, y * jnp.log(jnp.where(y == 0, 1, a)))


def _ratio(y, a):
    """`y / a` with `0 / 0 = 0`."""
    return jnp.where(y == 0, 0, y / jnp.where(y == 0, 1, a))


_a, _not_a = jax.nn.sigmoid, lambda o: jax.nn.sigmoid(-o)  # `a` and `1 - a`, each with all its digits
_minus_log_a, _minus_log_not_a = lambda o: jax.nn.softplus(-o), jax.nn.softplus
_of_both = OfLogOdds(
    f=lambda o, y: jnp.sum(_times(y, _minus_log_a(o)) + _times(1 - y, _minus_log_not_a(o))),
    df=lambda o, y: (1 - y) * _a(o) - y * _not_a(o),
    d2f=lambda o, y: _a(o) * _not_a(o),
    gauss_newton=lambda o, y: (1 - y) * _a(o) ** 2 + y * _not_a(o) ** 2,
)
_of_class = OfLogOdds(
    f=lambda o, y: jnp.sum(_times(y, _minus_log_a(o))),
    df=lambda o, y: -y * _not_a(o),
    d2f=lambda o, y: y * _a(o) * _not_a(o),
    gauss_newton=lambda o, y: y * _not_a(o) ** 2,
)

squared_error = Loss(
    "squared_error",
    f=lambda y_hat, y: jnp.sum((y_hat - y) ** 2) / 2,
    df=lambda y_hat, y: y_hat - y,
    d2f=lambda y_hat, y: jnp.ones_like(y_hat),
    canonical=activations.identity,
    root=lambda y_hat: jnp.eye(y_hat.shape[0], dtype=y_hat.dtype),
    sample=lambda key, y_hat: y_hat + jax.random.normal(key, y_hat.shape, widen(y_hat).dtype).astype(y_hat.dtype),
)
binary_cross_entropy = Loss(
    "binary_cross_entropy",
    f=lambda a, y: -jnp.sum(_weighted_log(y, a) + _weighted_log(1 - y, 1 - a)),
    df=lambda a, y: _ratio(1 - y, 1 - a) - _ratio(y, a),
    d2f=lambda a, y: _ratio(1 - y, (1 - a) ** 2) + _ratio(y, a**2),
    domain=(0, 1),
    targets="unit",
    canonical=activations.sigmoid,
    from_z=_of_both.f,  # z are sigmoid's log odds
    root=lambda a: jnp.diag(jnp.sqrt(a * (1 - a))),
    sample=lambda key, a: jax.random.bernoulli(key, widen(a)).astype(a.dtype),  # float16 has few numbers to draw
    of_log_odds=_of_both,
)
cross_entropy = Loss(
    "cross_entropy",
    f=lambda a, y: -jnp.sum(_weighted_log(y, a)),
    df=lambda a, y: -_ratio(y, a),
    d2f=lambda a, y: _ratio(y, a**2),
    domain=(0, 1),
    targets="distribution",
    canonical=activations.softmax,
    from_z=lambda z, y: -jnp.sum(_times(y, jax.nn.log_softmax(z))),
    root=lambda p: jnp.sqrt(p)[:, None] * (jnp.eye(p.shape[0], dtype=p.dtype) - p[None]),
    sample=lambda key, p: jax.random.categorical(key, jnp.log(widen(p))),
    of_log_odds=_of_class,
)

NAMED = {loss.name: loss for loss in (squared_error, binary_cross_entropy, cross_entropy)}
