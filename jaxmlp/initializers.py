"""Initial weights: normal, with mean 0 and a variance that depends on the layer's widths.

Sources: notes 002, "Random Initialization" and "Choice of Weight Initialization"; 004 ("close to the zero vector");
LeCun et al. 1998, Glorot and Bengio 2010, He et al. 2015. The notes call `1/n_in` Xavier. Here, as elsewhere,
"xavier" is Glorot's `2/(n_in + n_out)`, and `1/n_in` is "lecun".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp import validate

# A function of jax.nn.initializers, or one like them: (key, shape, dtype) -> array, with shape = (n_in, n_out).
Initializer = Callable[..., Array]

VARIANCES: dict[str, Callable[[int, int], float]] = {
    "zeros": lambda n_in, n_out: 0.0,
    "small_normal": lambda n_in, n_out: 0.01**2,
    "lecun": lambda n_in, n_out: 1 / n_in,
    "xavier": lambda n_in, n_out: 2 / (n_in + n_out),
    "he": lambda n_in, n_out: 2 / n_in,
}


class Normal(NamedTuple):
    """An initializer of this variance, whose draws are those of the names."""

    variance: float

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, int], dtype: jnp.dtype) -> Float[Array, "i o"]:
        n_in, n_out = shape
        return _draw_normal(self.variance, key, (n_out, n_in), dtype).T


class ByLayer(NamedTuple):
    """An initializer for the weights of each layer of one network; `init` takes the one of the layer."""

    sizes: tuple[int, ...]  # of the network
    each: tuple[Initializer, ...]

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
        """Refuses a shape alone, which does not tell the layer."""
        raise ValueError(f"these initializers are for the weights of a network of widths {self.sizes}")


def for_each_layer(how: str | Initializer, sizes: tuple[int, ...], argument: str) -> tuple[str | Initializer, ...]:
    """The way to draw the weights of each layer: one for all, unless they are given by layer."""
    if not isinstance(how, ByLayer):
        return (how,) * (len(sizes) - 1)
    if how.sizes != sizes:
        raise ValueError(f"{argument} are for a network of widths {how.sizes}, expected {sizes}")
    return how.each


def draw(
    how: str | Initializer, key: PRNGKeyArray, n_in: int, n_out: int, dtype: jnp.dtype, argument: str
) -> Float[Array, "o i"]:
    """Draws `W (n_out, n_in)`: `how` is a name of `VARIANCES`, or an initializer, whose result is transposed."""
    if isinstance(how, str):
        variance = validate.look_up(how, VARIANCES, Callable, argument)(n_in, n_out)
        return _draw_normal(variance, key, (n_out, n_in), dtype)
    if not callable(how):
        raise ValueError(
            f"{argument} is {how!r}, expected a name or a function such as jax.nn.initializers.he_normal()"
        )
    try:
        W = how(key, (n_in, n_out), dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{argument}: the initializer fails on a key, {(n_in, n_out)} and {dtype}: {error}") from None
    if not isinstance(W, jax.Array):
        made = type(W).__name__
        raise ValueError(
            f"{argument}: the initializer gave a {made}, expected an array; call it first, as in he_normal()"
        )
    if W.shape != (n_in, n_out):
        raise ValueError(f"{argument}: the initializer gave shape {W.shape}, expected {(n_in, n_out)}")
    if W.dtype != dtype:
        raise ValueError(
            f"{argument}: the initializer gave {W.dtype}, expected {dtype}, the third argument of its call"
        )
    return W.T


def _draw_normal(variance: float, key: PRNGKeyArray, shape: tuple[int, int], dtype: jnp.dtype) -> Float[Array, "o i"]:
    if variance == 0:
        return jnp.zeros(shape, dtype)  # a draw takes the longest of all to compile
    # The barrier keeps XLA from moving the deviation into the draw, which then rounds in another way.
    normal = jax.lax.optimization_barrier(jax.random.normal(key, shape, dtype))
    # The deviation is rounded to the dtype first: a float64 number must not widen a float32 weight.
    return normal * jnp.asarray(variance**0.5, dtype)
