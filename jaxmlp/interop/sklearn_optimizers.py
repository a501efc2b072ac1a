"""scikit-learn's optimizers as optax transformations, and its L2 term around any optimizer.

All are factories: they compare equal where their settings do, and the numbers they are called with are traced. So a
grid search over rates, momenta and penalties compiles nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmlp import optimizers, penalties
from jaxmlp.methods.kfac import kfac
from jaxmlp.network import MLP, Layer, Params
from jaxmlp.optimizers import Objective, Optimizer


class PenalizedState(NamedTuple):
    """What `Penalized` keeps; the first two are those of one epoch."""

    seen: Any  # the number of examples in the steps so far
    total: Any  # the sum of the steps' costs, penalty included, each times the number of its examples
    inner: Any  # the optimizer's own state


@dataclass(frozen=True)
class Penalized:
    """An optimizer under scikit-learn's cost of a batch, `J + alpha/2 sum_l ||W^l||^2 / n`.

    n is the number of the batch's examples, or the sum of their weights. So a batch counts its penalty once, whatever
    its size.

    Args:
        make: an optax transformation, or a factory.
        share: the part of J that is reported: 1, or `1/k` for a squared error. scikit-learn descends the sum over the k
            outputs and reports the mean.
    """

    make: Optimizer
    share: float = 1.0

    def __call__(self, alpha: Any, examples: Any, **own: Any) -> optax.GradientTransformationExtraArgs:
        """The transformation; `examples` is the number of all training examples."""
        made = self.make if isinstance(self.make, optax.GradientTransformation) else self.make(**own)

        def init(params: Any) -> PenalizedState:
            # NumPy's zeros compile nothing.
            return PenalizedState(np.zeros((), np.int32), np.zeros((), params[0].W.dtype), made.init(params))

        def update(grads: Any, state: Any, params: Any = None, *, value, value_fn, grad_fn, trace, weights, key, net):
            count = jnp.asarray(trace.losses.shape[0], alpha.dtype) if weights is None else weights.sum()
            penalty = penalties.l2(alpha / jnp.where(count == 0, 1, count))
            added = penalty.cost(params)
            objective = Objective(
                value=value + added,
                value_fn=lambda p: value_fn(p) + penalty.cost(p),
                grad_fn=lambda p: penalty.gradient(p, grad_fn(p)),
                trace=trace,
                weights=weights,
                key=key,
                net=net,
            )
            updates, inner = optimizers.update(made, penalty.gradient(params, grads), state.inner, params, objective)
            n = jnp.minimum(trace.losses.shape[0], examples - state.seen)  # the last batch is filled up
            total = state.total + n.astype(added.dtype) * (self.share * value + added)
            return updates, PenalizedState(state.seen + n, total, inner)

        return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Sgd:
    """`v <- momentum v - rate g`, then `theta <- theta + v`; with Nesterov's momentum `theta + momentum v - rate g`.

    The velocity holds the rate of the steps that made it.
    """

    nesterov: bool

    def __call__(self, learning_rate: Any, momentum: Any) -> optax.GradientTransformation:
        """The transformation."""
        step = lambda v, g: momentum * v - learning_rate * g

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            velocity = jax.tree.map(step, state, updates)
            return jax.tree.map(step, velocity, updates) if self.nesterov else velocity, velocity

        return optax.GradientTransformation(_zeros, update)


class AdamState(NamedTuple):
    """The number of steps, and the averages of the gradient and of its square."""

    count: Any
    m: Params
    v: Params


def adam(learning_rate: Any, beta_1: Any, beta_2: Any, epsilon: Any) -> optax.GradientTransformation:
    """`-rate sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon)`: the biases are corrected beside epsilon.

    Source: Kingma and Ba 2014, the end of section 2, as scikit-learn has it.
    """

    def init(params: Any) -> AdamState:
        return AdamState(np.zeros((), np.int32), _zeros(params), _zeros(params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        m = jax.tree.map(lambda m, g: beta_1 * m + (1 - beta_1) * g, state.m, updates)
        v = jax.tree.map(lambda v, g: beta_2 * v + (1 - beta_2) * g**2, state.v, updates)
        t = (state.count + 1).astype(learning_rate.dtype)
        rest = lambda beta: -jnp.expm1(t * jnp.log1p(beta - 1))  # 1 - beta^t with all its digits in float32
        rate = learning_rate * jnp.sqrt(rest(beta_2)) / rest(beta_1)
        return jax.tree.map(lambda m, v: -rate * m / (jnp.sqrt(v) + epsilon), m, v), AdamState(state.count + 1, m, v)

    return optax.GradientTransformation(init, update)


@dataclass(frozen=True)
class Kfac:
    """`jm.kfac` of a network."""

    net: MLP

    def __call__(self, learning_rate: Any, momentum: Any) -> optax.GradientTransformation:
        """The transformation."""
        return kfac(self.net, learning_rate, momentum=momentum)


@dataclass(frozen=True)
class Constant:
    """A factory that takes no number."""

    make: Callable[[], optax.GradientTransformation]

    def __call__(self) -> optax.GradientTransformation:
        """The transformation."""
        return self.make()


def _zeros(params: Any) -> Any:
    zeros: Any = lambda array: np.zeros(array.shape, array.dtype)
    return tuple(Layer(zeros(W), zeros(b)) for W, b in params)
