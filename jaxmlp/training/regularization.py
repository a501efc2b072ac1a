"""The regularization of a run: penalties, dropout, smoothed labels and noise on the inputs.

All strengths are traced: another strength never recompiles. Sources: notes 002, "Regularization" and "Dropout
Regularization"; Szegedy et al. 2016 for smoothed labels.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxmlp._forward import Masks
from jaxmlp.dropout import dropout_masks
from jaxmlp.network import MLP, Params
from jaxmlp.penalties import Penalty


class Regularization(NamedTuple):
    """The strengths of a run; None where one is not used."""

    penalties: tuple[Penalty, ...] = ()
    keep: Float[Array, "*K"] | None = None  # dropout: one probability, or the inputs' and each hidden layer's
    label_smoothing: Float[Array, ""] | None = None  # the share of a label that is spread over all classes
    input_noise: Float[Array, ""] | None = None  # deviation of the Gaussian noise on the network's inputs

    @property
    def random(self) -> bool:
        """Whether each step draws for it."""
        return self.keep is not None or self.input_noise is not None

    def cost(self, params: Params) -> Float[Array, ""]:
        """The sum that the penalties add to the cost."""
        return sum([penalty.cost(params) for penalty in self.penalties], jnp.zeros((), params[0].W.dtype))

    def gradient(self, params: Params, grads: Params) -> Params:
        """`grads` plus the gradient of `cost`."""
        for penalty in self.penalties:
            grads = penalty.gradient(params, grads)
        return grads

    def project(self, params: Params) -> Params:
        """The weights after a step, within the limits of the penalties."""
        for penalty in self.penalties:
            params = penalty.project(params)
        return params

    def add_noise(self, key: PRNGKeyArray | None, X: Float[Array, "b i"]) -> Float[Array, "b i"]:
        """`x + s epsilon`, epsilon from `N(0, 1)`."""
        if self.input_noise is None:
            return X
        assert key is not None
        return X + self.input_noise.astype(X.dtype) * jax.random.normal(key, X.shape, X.dtype)

    def smooth(self, net: MLP, Y: Array, dtype: Any) -> Array:
        """`(1 - s) y + s / k`, k the number of classes (2 for a single output)."""
        if self.label_smoothing is None:
            return Y
        share, k = self.label_smoothing.astype(dtype), net.sizes[-1]
        if net.loss.takes_classes(Y, ndim=1):
            Y = jax.nn.one_hot(Y, k, dtype=dtype)
        return (1 - share) * Y.astype(dtype) + share / (k if net.loss.targets == "distribution" else 2)

    def draw_masks(self, net: MLP, key: PRNGKeyArray | None, m: int, dtype: Any) -> Masks | None:
        """Dropout's masks for a batch of m; None without dropout."""
        if self.keep is None:
            return None
        assert key is not None
        return dropout_masks(net, key, self.keep, m, dtype)
