"""What training adds against large weights: l2, l1, and a limit on each unit's incoming weights; biases are left alone.

A penalty is a pytree whose one leaf is its strength, so that another strength does not compile again and each member of
a population may have its own. Sources: notes 000, 002 "Regularization", 004; Srivastava et al. 2014 for max-norm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import validate
from jaxmlp._forward import Masks
from jaxmlp.network import MLP, Params
from jaxmlp.validate import Given

Strength = float | Sequence[float] | Float[Given, "*K"]  # one for all layers, or one each
OfWeights = Callable[[Array, Array], Array]


class Kind(NamedTuple):
    """Of a layer's weights and strength: `value` joins the cost, `gradient` the gradient, `project` follows a step."""

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
        """What it adds to the cost: the sum over the layers."""
        each = [self.kind.value(layer.W, s) for layer, s in self._layers(params)] if self.kind.value else []
        return sum(each, jnp.zeros((), params[0].W.dtype))

    def gradient(self, params: Params, grads: Params) -> Params:
        """`grads` and the gradient of `cost`."""
        if self.kind.gradient is None:
            return grads
        of = [self.kind.gradient(layer.W, s) for layer, s in self._layers(params)]
        return tuple(g._replace(W=g.W + own) for g, own in zip(grads, of, strict=True))

    def project(self, params: Params) -> Params:
        """The weights after a step, brought back to where the penalty allows them."""
        if self.kind.project is None:
            return params
        return tuple(layer._replace(W=self.kind.project(layer.W, s)) for layer, s in self._layers(params))

    def _layers(self, params: Params):
        s = jnp.asarray(self.strength).astype(params[0].W.dtype)
        return list(zip(params, jnp.broadcast_to(s, (len(params),)), strict=True))


def _shortened(W: Float[Array, "o i"], limit: Float[Array, ""]) -> Float[Array, "o i"]:
    squares = jnp.einsum("oi,oi->o", W, W)
    return W * jnp.where(squares > limit**2, limit * jax.lax.rsqrt(jnp.maximum(squares, limit**2)), 1)[:, None]


_L2 = Kind("l2", value=lambda W, s: s / 2 * jnp.sum(W**2), gradient=lambda W, s: s * W)
_L1 = Kind("l1", value=lambda W, s: s * jnp.sum(jnp.abs(W)), gradient=lambda W, s: s * jnp.sign(W))
_MAX_NORM = Kind("max_norm", project=_shortened)


def l2(strength: Strength) -> Penalty:
    """`s/2 sum_l ||W^l||^2`, gradient `s W`; `strength` is s, or one s for each layer.

    The notes' cost `lambda/(2m) sum ||W||^2` (002) is `l2(lambda / m)`, their step `w - eta (v + lambda w)` (004) is
    `l2(lambda)`. Under plain SGD of rate eta it is weight decay by `eta s` a step. Adam and RMSprop scale it as they
    scale the gradient; decay that they leave alone is `optax.adamw`'s (Loshchilov and Hutter 2019).
    """
    return Penalty(_L2, _checked(strength, "strength"))


def l1(strength: Strength) -> Penalty:
    """`s sum_l sum |W^l|`, gradient `s sign(W)`, 0 at 0; `strength` is s, or one s for each layer."""
    return Penalty(_L1, _checked(strength, "strength"))


def max_norm(limit: Strength) -> Penalty:
    """After each step `W_j <- W_j min(1, c / ||W_j||)`, `W_j` the incoming weights of unit j: no longer than `limit`.

    `limit` is c, or one c for each layer. It adds nothing to the cost.
    """
    return Penalty(_MAX_NORM, _checked(limit, "limit", positive=True))


def _checked(given: Any, name: str, positive: bool = False) -> Any:
    values = validate.array(given, name).astype(float)
    if values.ndim > 2:
        raise ValueError(f"{name} has shape {values.shape}, expected a number, or one for each layer")
    if validate.concrete(values):
        low = float(np.min(values)) if values.size else np.nan
        if not np.isfinite(np.asarray(values)).all() or low < 0 or (positive and low == 0):
            raise ValueError(f"{name} is {given}, expected numbers {'above' if positive else 'of at least'} 0")
    return values


def checked(net: Any, given: Any) -> tuple[Penalty, ...]:
    """`given`, one penalty or several, as a tuple of those that fit `net`."""
    each = several(given)
    for penalty in each:
        if jnp.shape(penalty.strength) not in ((), (net.depth,)):
            raise ValueError(
                f"{penalty.kind.name} has {jnp.size(penalty.strength)} strengths, expected one or {net.depth}"
            )
    return each


def several(given: Any) -> tuple[Penalty, ...]:
    """One penalty or several, as a tuple."""
    each = (given,) if isinstance(given, Penalty) else tuple(given) if isinstance(given, list | tuple) else None
    if each is None or not all(isinstance(penalty, Penalty) for penalty in each):
        raise ValueError(f"penalties is {given!r}, expected penalties such as jaxmlp.l2(1e-4), or a tuple of them")
    return each


Keep = float | Sequence[float] | Float[Array, "*K"]
LEVELS = 2**16  # keep is rounded to a multiple of 1 / LEVELS: 16 random bits an entry are half the price of 32


def dropout_masks(net: MLP, key: PRNGKeyArray, keep: Keep, m: int, dtype: Any = None) -> Masks:
    """Masks `(m, n_l)` for the inputs and each hidden layer: `1/keep` with probability `keep`, else 0.

    `keep` is one probability for all, or K of them, the inputs' first: `(0.8, 0.5, 0.5)`; it may be traced. An entry's
    mean is 1, so that prediction needs no masks. Any key will do: on a CPU threefry's bits cost the least, on an
    accelerator those of `jax.random.key(0, impl="rbg")`. Raises ValueError for a probability outside (0, 1].
    """
    keep, m = checked_keep(net, keep), validate.whole(m, "m")
    dtype = validate.float_dtype(dtype)
    widths, keep = net.sizes[:-1], jnp.broadcast_to(keep, (net.depth,))
    bits = _random_bits(validate.key(key), m * sum(widths)).reshape(m, sum(widths))
    ends = np.cumsum((0, *widths))
    masks = []
    for l, p in enumerate(keep.astype(dtype)):
        below = jnp.round(p * LEVELS).astype(jnp.uint32)
        kept = bits[:, ends[l] : ends[l + 1]].astype(jnp.uint32) < below
        masks.append(jnp.where(kept, 1 / p, jnp.zeros((), dtype)))
    return tuple(masks)


def _random_bits(key: PRNGKeyArray, n: int) -> Array:
    """n random numbers of 16 bits, two from each of 32."""
    words = jax.random.bits(key, (-(-n // 2),), jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:n]


def checked_keep(net: MLP, keep: Any) -> Float[Array, "*K"]:
    """`keep`, if it is one probability or one for the inputs and each hidden layer."""
    values = validate.array(keep, "keep")
    if values.shape not in ((), (net.depth,)):
        raise ValueError(f"keep has shape {values.shape}, expected a number or {net.depth}: the inputs' first")
    if validate.concrete(values):
        known = np.asarray(values)
        if not ((known > 0) & (known <= 1)).all():
            raise ValueError(f"keep is {keep}, expected probabilities above 0 and at most 1")
    return values.astype(jnp.result_type(float))
