"""The records of training: the static `Plan`, a `Run`'s traced values, the `Data`, and the `TrainState`.

Everything that changes is in the state, so resuming is saving it, and a population is a `vmap` over it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Num, PRNGKeyArray

from jaxmlp import norms, rules
from jaxmlp.network import MLP, Params
from jaxmlp.optimizers import Optimizer
from jaxmlp.rules import Rule
from jaxmlp.trace import Trace
from jaxmlp.training.regularization import Regularization
from jaxmlp.validate import Preprocess

Sampling = Literal["shuffle", "replacement", "poisson"]
Readout = Callable[[Trace, Float[Array, " m"] | None, PRNGKeyArray], Params]
Augment = Callable[[PRNGKeyArray, Array], Array]

FIRST_EXAMPLES = 1024  # the first cost, by which divergence is judged, is the mean over about so many examples


@dataclass(frozen=True)
class Plan:
    """All that is compiled in: two runs with equal plans share one program."""

    net: MLP
    optimizer: Optimizer  # an optax transformation, or a factory that takes the state's `hyper`
    batch_size: int
    steps: int  # optimizer steps in one epoch
    sampling: Sampling = "shuffle"  # every example once an epoch; drawn with replacement; or each with its own coin
    augment: Augment | None = None  # (key, x) -> x, of one stored example, in training only
    preprocess: Preprocess | None = None
    rule: Rule = rules.backprop
    readout: Readout | None = None  # (trace, weights, key) -> the gradient to descend; None: mean_gradient
    accuracy: bool = False  # whether classes are predicted
    best_by: Literal["cost", "accuracy"] = "cost"
    monitor: bool = False
    mesh: Mesh | None = None  # of devices; None: wherever the arrays are
    shares: int = 1  # the data's equal parts, each shuffled by itself; a batch has as many examples of each

    def transformation(self, hyper: dict[str, Any]) -> optax.GradientTransformation:
        """The optimizer with these hyperparameters."""
        return self.optimizer if isinstance(self.optimizer, optax.GradientTransformation) else self.optimizer(**hyper)

    @property
    def at_start(self) -> "Plan":
        """The plan without what an epoch alone uses, so that one program starts the runs of many plans."""
        if self.readout is not None:  # is tried on the forms of a batch
            return self
        return replace(self, batch_size=1, steps=1, sampling="shuffle", augment=None, accuracy=False, best_by="cost",
                       monitor=False)  # fmt: skip


class Run(NamedTuple):
    """The values in which runs of one program may differ: traced. In a population each has a member axis in front."""

    key: PRNGKeyArray  # for all that training draws
    params: Params | None = None  # before the first step; None: drawn from `weights_key`
    weights_key: PRNGKeyArray | None = None
    scale: Float[Array, "*E"] | None = None  # multiplies the initial weights
    hyper: dict[str, Any] | None = None  # the optimizer factory's arguments
    own_key: PRNGKeyArray | None = None  # for what a member draws alone where all share their batches
    regularization: Regularization = Regularization()
    patience: int | Int[Array, "*E"] = -1  # how many epochs without a better validation score end the run; -1: none do
    average: float | Float[Array, "*E"] | None = None  # the decay of an average of the weights
    rule_state: tuple[Any, ...] | None = None  # None: drawn


class Data(NamedTuple):
    """Training examples with their weights, and validation examples; None where there are none.

    Of a stream of batches, the training examples are the first batch.
    """

    X: Num[Array, "m ..."]
    Y: Num[Array, "m ..."]
    weights: Float[Array, " m"] | None = None  # of mean 1: a batch divides by the number of its examples
    X_dev: Num[Array, "d ..."] | None = None
    Y_dev: Num[Array, "d ..."] | None = None
    weights_dev: Float[Array, " d"] | None = None


class Best(NamedTuple):
    """The weights with the best score on the validation examples so far."""

    params: Params
    score: Float[Array, ""]  # lower is better: the cost, or minus the accuracy
    epoch: Int[Array, ""]  # 1 is the first; 0: none yet


class Average(NamedTuple):
    """An exponentially weighted average of the weights, `v_t = beta v_(t-1) + (1 - beta) theta_t` from `v_0 = 0`.

    `weight` is the same average of ones, `1 - beta^t`, which corrects its bias. Source: notes 002, the last page.
    """

    decay: Float[Array, ""]  # beta
    total: Params
    weight: Float[Array, ""]

    @classmethod
    def start(cls, params: Params, decay: Any) -> "Average":
        """The average before the first step."""
        dtype = norms.wide(params[0].W.dtype)  # 0.999 is 1 in bfloat16
        total = jax.tree.map(lambda theta: jnp.zeros(theta.shape, dtype), params)
        return cls(jnp.asarray(decay, dtype), total, jnp.zeros((), dtype))

    def after(self, params: Params) -> "Average":
        """The average with the weights of one more step in it."""
        mix = lambda v, theta: self.decay * v + (1 - self.decay) * jnp.asarray(theta, v.dtype)
        return Average(self.decay, jax.tree.map(mix, self.total, params), mix(self.weight, 1))

    def correct_bias(self, params: Params) -> Params:
        """`v_t / (1 - beta^t)`; before the first step `params`."""
        some = self.weight > 0
        weight = jnp.where(some, self.weight, 1)
        one = lambda v, theta: jnp.where(some, (v / weight).astype(theta.dtype), theta)
        return jax.tree.map(one, self.total, params)


class TrainState(NamedTuple):
    """Everything that training changes."""

    params: Params
    opt_state: Any
    rule_state: tuple[Any, ...]
    key: PRNGKeyArray
    epoch: Int[Array, ""]  # how many are done
    hyper: dict[str, Any]  # the optimizer factory's arguments
    regularization: Regularization
    first_cost: Float[Array, ""]  # at the start or with all weights 0, whichever is more
    first_scale: Float[Array, ""]  # the mean |loss| there
    patience: Int[Array, ""]  # how many epochs without a better validation score end the run; -1: none do
    stopped: Array  # bool: an epoch changes nothing any more
    diverged: Array  # bool: and params are the last good ones
    best: Best | None  # None without validation
    average: Average | None  # None unless asked for

    @property
    def evaluated(self) -> Params:
        """The weights that validation scores: the average's where there is one."""
        return self.params if self.average is None else self.average.correct_bias(self.params)

    @property
    def regularisation(self) -> Regularization:
        """The same as `regularization`, in the spelling of earlier scripts."""
        return self.regularization


def split_key(key: PRNGKeyArray) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """The key that goes on, and one to draw from now: by `start` for the rule's state, then in each epoch."""
    going_on, now = jax.random.split(key)
    return going_on, now
