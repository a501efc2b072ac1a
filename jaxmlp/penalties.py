"""Penalties on large weights: l2, l1, and a limit on each unit's incoming weights; biases are left alone.

One more is on the distance from given parameters, biases included.

A penalty is a pytree whose one leaf is its strength, so another strength never recompiles, and each member of a
population may have its own. Its gradient is written by hand. Sources: notes 000, 002 "Regularization", 004.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jaxmlp import norms, validate
from jaxmlp.network import MLP, Params
from jaxmlp.validate import Given

Strength = float | Sequence[float] | Sequence[Sequence[float]] | Num[Given, "..."]  # one for all layers, or one each
OfWeights = Callable[[Array, Array], Array]


class Kind(NamedTuple):
    """Three functions of a layer's weights and strength, both in at least float32.

    The cost gains `value`, the gradient gains `gradient`, and after each step the weights become `project`.
    """

    name: str
    value: OfWeights | None = None
    gradient: OfWeights | None = None
    project: OfWeights | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Penalty:
    """A kind of penalty and its strength, `()` or `(K,)`; in a `sweep` `()`, `(E,)`, `(1, K)` or `(E, K)`."""

    kind: Kind = field(metadata={"static": True})
    strength: Any

    def cost(self, params: Params) -> Float[Array, ""]:
        """The term it adds to the cost: the sum over the layers."""
        each = [self.kind.value(W, s) for W, s in self._layers(params)] if self.kind.value else []
        dtype = params[0].W.dtype
        return sum(each, norms.widen(jnp.zeros((), dtype))).astype(dtype)

    def gradient(self, params: Params, grads: Params) -> Params:
        """`grads` plus the gradient of `cost`."""
        if self.kind.gradient is None:
            return grads
        of = [self.kind.gradient(W, s) for W, s in self._layers(params)]
        return tuple(g._replace(W=(norms.widen(g.W) + own).astype(g.W.dtype)) for g, own in zip(grads, of, strict=True))

    def project(self, params: Params) -> Params:
        """The nearest weights that the penalty allows, after a step."""
        if self.kind.project is None:
            return params
        shortened = [self.kind.project(W, s) for W, s in self._layers(params)]
        return tuple(p._replace(W=norms.round_down(W, p.W.dtype)) for p, W in zip(params, shortened, strict=True))

    def check(self, net: MLP) -> None:
        """Refuses a network that the penalty does not fit."""

    def tell(self) -> Any:
        """The JSON that tells it from another of its kind."""
        return np.asarray(self.strength).tolist()

    def for_members(self, E: int, spread: Callable[[Array], Array]) -> "Penalty":
        """The penalty with an axis for E members in front, where `spread` gives a strength one."""
        return replace(self, strength=spread(self.strength))

    def _layers(self, params: Params) -> list[tuple[Array, Array]]:
        """Each layer's weights and strength, in at least float32: in float16 a usual strength is 0."""
        weights = [norms.widen(layer.W) for layer in params]
        s = jnp.asarray(self.strength).astype(weights[0].dtype)
        return list(zip(weights, jnp.broadcast_to(s, (len(params),)), strict=True))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuadraticPenalty(Penalty):
    """A penalty on the distance from `center`: its kind's functions take `theta - center` and `s precision`."""

    center: Params
    precision: Params

    def cost(self, params: Params) -> Float[Array, ""]:
        """The term it adds to the cost."""
        each = jax.tree.map(self.kind.value, *self._differences(params))  # pyright: ignore[reportArgumentType]
        return sum(jax.tree.leaves(each), norms.widen(jnp.zeros((), params[0].W.dtype))).astype(params[0].W.dtype)

    def gradient(self, params: Params, grads: Params) -> Params:
        """`grads` plus the gradient of `cost`."""
        own = jax.tree.map(self.kind.gradient, *self._differences(params))  # pyright: ignore[reportArgumentType]
        return jax.tree.map(lambda g, more: (norms.widen(g) + more).astype(g.dtype), grads, own)

    def check(self, net: MLP) -> None:
        """Refuses a network of other widths."""
        try:
            validate.params(net, self.center)
        except ValueError as error:
            raise ValueError(f"{self.kind.name}: {error}") from None

    def tell(self) -> Any:
        """The strength, and a checksum of the arrays."""
        held = [np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves((self.center, self.precision))]
        return {"strength": super().tell(), "checksum": zlib.crc32(b"".join(held))}

    def for_members(self, E: int, spread: Callable[[Array], Array]) -> "Penalty":
        """The same center and precision for each member."""
        own = lambda leaf: jnp.broadcast_to(leaf, (E, *leaf.shape))
        center, precision = jax.tree.map(own, (self.center, self.precision))
        return replace(self, strength=spread(self.strength), center=center, precision=precision)

    def _differences(self, params: Params) -> tuple[Params, Params]:
        """`theta - center` and `s precision`, in at least float32."""
        strengths = tuple(type(layer)(s, s) for layer, (_, s) in zip(params, self._layers(params), strict=True))
        apart = jax.tree.map(lambda p, c: norms.widen(p) - norms.widen(c), params, self.center)
        return apart, jax.tree.map(lambda s, h: s * norms.widen(h), strengths, self.precision)


def _shorten(W: Float[Array, "o i"], limit: Float[Array, ""]) -> Float[Array, "o i"]:
    squares, exponent = norms.sum_squares(W)
    limit = jnp.minimum(limit * norms.power_of_two(-exponent, squares.dtype), 2.0**32)  # above any scaled norm
    factor = jnp.where(squares > limit**2, limit * jax.lax.rsqrt(jnp.maximum(squares, limit**2)), 1)
    return W * factor[:, None]


_L2 = Kind("l2", value=lambda W, s: s / 2 * jnp.sum(W**2), gradient=lambda W, s: s * W)
_L1 = Kind("l1", value=lambda W, s: s * jnp.sum(jnp.abs(W)), gradient=lambda W, s: s * jnp.sign(W))
_QUADRATIC = Kind("quadratic", value=lambda d, h: jnp.sum(h * d**2) / 2, gradient=lambda d, h: h * d)
_MAX_NORM = Kind("max_norm", project=_shorten)


def l2(strength: Strength) -> Penalty:
    """The penalty of squared weights.

    `s/2 sum_l ||W^l||^2`, gradient `s W`. The notes' cost `lambda/(2m) sum ||W||^2` (002) is `l2(lambda / m)`, their
    step `w - eta (v + lambda w)` (004) is `l2(lambda)`. Under plain SGD of rate eta it is weight decay by `eta s` a
    step. Adam and RMSprop scale it as they scale the gradient; `optax.adamw` decays weights without that scaling
    (Loshchilov and Hutter 2019).

    Args:
        strength: s, or one s for each layer; in a `sweep` also one for each member.
    Raises:
        ValueError: where a strength is below 0 or not finite.
    Example:
        >>> jm.l2(1e-4).cost(params).shape
        ()
    """
    return Penalty(_L2, _check_strength(strength, "strength"))


def l1(strength: Strength) -> Penalty:
    """The penalty of absolute weights: `s sum_l sum |W^l|`, gradient `s sign(W)`, 0 at 0.

    Args:
        strength: s, or one s for each layer; in a `sweep` also one for each member.
    Raises:
        ValueError: where a strength is below 0 or not finite.
    """
    return Penalty(_L1, _check_strength(strength, "strength"))


def max_norm(limit: Strength) -> Penalty:
    """A limit on the length of each unit's incoming weights; it adds nothing to the cost.

    After each step `W_j <- W_j min(1, c / ||W_j||)`, `W_j` the incoming weights of unit j.

    Args:
        limit: c, or one c for each layer; in a `sweep` also one for each member.
    Raises:
        ValueError: where a limit is not above 0 or not finite.

    Source: Srivastava et al. 2014, section 5.1.
    """
    return Penalty(_MAX_NORM, _check_strength(limit, "limit", positive=True))


def quadratic_penalty(params: Params, precision: Params | float, strength: Strength = 1.0) -> Penalty:
    """The penalty of the distance from given parameters: `s/2 sum precision (theta - params)^2`, biases included.

    With the curvature of an earlier task as the precision it is elastic weight consolidation. That curvature is the
    mean of the examples' squared gradients, `second_moment`, and not the square of their mean.

    Args:
        params: the center, such as the parameters that an earlier task left.
        precision: numbers of at least 0 in the structure of `params`, or one for all entries.
        strength: s, or one s for each layer; in a `sweep` also one for each member. Another strength, center or
            precision never recompiles.
    Raises:
        ValueError: where an argument does not fit, or a number is below 0 or not finite.
    Example:
        >>> precision = jm.in_chunks(jm.second_moment, net, params, X, Y, 10, start=jm.hessian_root)
        >>> penalty = jm.quadratic_penalty(params, precision, strength=100.0)
        >>> result = jm.fit(net, params, (X[:10], Y[:10]), optimizer=optax.sgd(0.1), epochs=1, key=key,
        ...                 penalties=penalty, progress=False)
        >>> bool(penalty.cost(params) < penalty.cost(result.params))
        True

    Source: Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks".
    """
    strength = _check_strength(strength, "strength")
    if not isinstance(params, tuple | list) or not all(hasattr(layer, "W") and hasattr(layer, "b") for layer in params):
        raise ValueError(f"params is {type(params).__name__}, expected a tuple of layers (W, b)")
    center = jax.tree.map(lambda leaf: validate.array(leaf, "params"), tuple(params))
    precision = tuple(precision) if isinstance(precision, list) else precision
    if jax.tree.structure(precision).num_leaves < 2:
        number = validate.number(precision, "precision", least=0)
        precision = jax.tree.map(lambda leaf: jnp.full_like(leaf, number, norms.wide(leaf.dtype)), center)
    elif jax.tree.map(np.shape, precision) != jax.tree.map(np.shape, center):
        raise ValueError("precision has another structure than params, expected a number, or one for each of theirs")
    check = lambda leaf, like: validate.numbers(leaf, "precision", least=0).astype(norms.wide(like.dtype))
    return QuadraticPenalty(_QUADRATIC, strength, center, jax.tree.map(check, precision, center))


def _check_strength(given: Any, name: str, positive: bool = False) -> Any:
    values = validate.array(given, name).astype(float)
    if values.ndim > 2:
        raise ValueError(f"{name} has shape {values.shape}, expected a number, or one for each layer")
    if validate.concrete(values):
        low = float(np.min(values)) if values.size else np.nan
        if not np.isfinite(np.asarray(values)).all() or low < 0 or (positive and low == 0):
            raise ValueError(f"{name} is {given}, expected numbers {'above' if positive else 'of at least'} 0")
    return values


def name_each(given: tuple[Penalty, ...]) -> dict[str, Penalty]:
    """Each penalty by its kind's name; a second of one kind is `l2 (2)`."""
    named: dict[str, Penalty] = {}
    for penalty in given:
        same = sum(other.kind == penalty.kind for other in named.values())
        named[penalty.kind.name + (f" ({same + 1})" if same else "")] = penalty
    return named


def as_tuple(given: Any) -> tuple[Penalty, ...]:
    """One penalty or several, as a tuple."""
    each = (given,) if isinstance(given, Penalty) else tuple(given) if isinstance(given, list | tuple) else None
    if each is None or not all(isinstance(penalty, Penalty) for penalty in each):
        raise ValueError(f"penalties is {given!r}, expected penalties such as jaxmlp.l2(1e-4), or a tuple of them")
    return each
