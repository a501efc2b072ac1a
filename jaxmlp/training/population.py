"""Many networks of one shape in one compiled program: a `vmap` of the epoch over states, several epochs a call."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from jaxmlp import trees
from jaxmlp.initializers import Initializer
from jaxmlp.network import TINY, Params, init
from jaxmlp.training._epoch import Metrics, epoch, start
from jaxmlp.training.sharding import MEMBER, along, length
from jaxmlp.training.state import Data, Plan, Regularisation, TrainState

# A call takes so many epochs that what starting it costs does not show: of networks for XOR hundreds, of MNIST one.
OPERATIONS_A_CALL, EPOCHS_A_CALL = 5e8, 1000


class Members(NamedTuple):
    """What tells members apart; each array has a member axis in front."""

    keys: PRNGKeyArray
    hyper: dict[str, Array]
    regularisation: Regularisation
    patience: Array
    average: Array | None = None
    scale: Array | None = None  # of the initial weights
    params: Params | None = None  # the initial ones; None: drawn


@partial(jax.jit, static_argnames=("plan", "axes", "initial"))
def started(
    plan: Plan, axes: Data, initial: str | Initializer, members: Members, data: Data, shared: PRNGKeyArray | None
) -> TrainState:
    """The states before the first epoch; `axes` are the member axes of `data`, `shared` is the training key of all."""

    def one(member: Members, data: Data) -> TrainState:
        params = member.params
        if params is None:
            dtype = data.X.dtype if jnp.issubdtype(data.X.dtype, jnp.floating) and plan.preprocess is None else None
            params = init(plan.net, member.keys, initial, dtype=dtype)
        if member.scale is not None:
            params = tuple(layer._replace(W=member.scale.astype(layer.W.dtype) * layer.W) for layer in params)
        key = member.keys if shared is None else shared
        return start(plan, params, data, key, member.hyper, member.patience, None, member.regularisation,
                     member.average)  # fmt: skip

    members = along(plan.mesh, MEMBER, members)
    states = jax.vmap(one, (0, axes), spmd_axis_name=_axis_of(plan, len(members.keys)))(members, data)
    return along(plan.mesh, MEMBER, states)


def _axis_of(plan: Plan, members: int) -> str | None:
    """The mesh's axis that the members lie along, if it divides them."""
    devices = length(plan.mesh, MEMBER)
    return MEMBER if devices > 1 and members % devices == 0 else None


@partial(jax.jit, static_argnames=("plan", "axes", "most"), donate_argnames="states")
def advanced(
    plan: Plan, axes: Data, most: int, states: TrainState, data: Data, shared: PRNGKeyArray | None, n: Array
) -> tuple[TrainState, Metrics, Any, Array]:
    """`n <= most` epochs of all members: states, metrics `(most, E)`, the shared key, and how many there were.

    It ends early when every member has stopped; the metrics of one that has are NaN. `shared` stands for the states'
    keys.
    """
    # Where products are written out, entry by entry, a CPU's vectors run along members that come last in memory; a
    # larger product is a call for all members at once, or one each, and wants them first.
    axis = -1 if max(math.prod(shape) for shape in plan.net.shapes) <= TINY else 0

    def one(state: TrainState, data: Data, key: PRNGKeyArray | None) -> tuple[TrainState, Metrics]:
        after, scores = epoch(plan, state, data, key=key)
        if key is not None:
            after = after._replace(key=state.key)  # unused; to split it is a quarter of a tiny network's step
        return after, {name: jnp.where(state.stopped, jnp.nan, score) for name, score in scores.items()}

    def all_of_them(states: TrainState, shared: PRNGKeyArray | None) -> tuple[TrainState, Metrics]:
        key = None if shared is None else jax.random.split(shared)[1]  # as `epoch_key`
        each = jax.vmap(one, (axis, axes, None), (axis, 0), spmd_axis_name=_axis_of(plan, len(states.epoch)))
        return each(states, data, key)

    def body(carry):
        i, states, shared, history = carry
        states, scores = all_of_them(states, shared)
        shared = None if shared is None else jax.random.split(shared)[0]
        return i + 1, states, shared, {name: history[name].at[i].set(score) for name, score in scores.items()}

    moved = lambda source, to: lambda array: jnp.moveaxis(array, source, to) if array.ndim > 1 else array
    states = jax.tree.map(moved(0, axis), states)
    _, like = jax.eval_shape(all_of_them, states, shared)
    history = {name: jnp.full((most, *score.shape), jnp.nan, score.dtype) for name, score in like.items()}
    going_on = lambda carry: (carry[0] < n) & ~carry[1].stopped.all()
    first = (jnp.zeros((), jnp.int32), states, shared, history)
    done, states, shared, history = jax.lax.while_loop(going_on, body, first)
    return jax.tree.map(moved(axis, 0), states), history, shared, done


def members_of(data: Data, axes: Data, index: np.ndarray) -> Data:
    """The examples of some members."""
    own = {name: getattr(data, name)[index] for name, axis in axes._asdict().items() if axis is not None}
    return data._replace(**own)


@jax.jit
def _kept(states: TrainState) -> Params:
    def one(state: TrainState) -> Params:
        if state.best is None:
            return state.evaluated
        none = state.best.epoch == 0
        return jax.tree.map(lambda last, best: jnp.where(none, last, best), state.evaluated, state.best.params)

    return jax.vmap(one)(states)


@dataclass
class Population:
    """Members of one shape as far as they are trained."""

    plan: Plan
    axes: Data  # 0 where `data` has a member axis, else None
    data: Data
    states: TrainState
    shared: PRNGKeyArray | None  # the states' key, where all have the same
    history: list[dict[str, np.ndarray]] = field(default_factory=list)  # of each call, `(epochs, E)` a column

    @classmethod
    def enter(
        cls,
        plan: Plan,
        axes: Data,
        initial: str | Initializer,
        members: Members,
        data: Data,
        shared: PRNGKeyArray | None,
    ) -> "Population":
        """Members before their first epoch."""
        states = started(plan, axes, initial, members, data, shared)
        # `start` splits a key in two, the state's first.
        return cls(plan, axes, data, states, None if shared is None else jax.random.split(shared)[0])

    def train(self, epochs: int, report: Callable[[int, dict[str, np.ndarray]], None]) -> None:
        """That many epochs more, fewer if all stop; `report` is called with the number of those done and the last."""
        weights = sum(math.prod(shape) for shape in self.plan.net.shapes)
        operations = 6 * weights * self.plan.steps * self.plan.batch_size * len(self.states.epoch)
        most = int(min(max(OPERATIONS_A_CALL // operations, 1), EPOCHS_A_CALL))
        done = 0
        while done < epochs:
            n = min(most, epochs - done)
            self.states, history, self.shared, count = advanced(
                self.plan, self.axes, most, self.states, self.data, self.shared, jnp.asarray(n, jnp.int32)
            )
            count = int(count)
            done += count
            if count:
                self.history.append({name: np.asarray(column[:count]) for name, column in history.items()})
                report(done, {name: column[-1] for name, column in self.history[-1].items()})
            if count < n:
                break

    def select(self, index: np.ndarray) -> "Population":
        """Only these members, with what is theirs."""
        of = lambda tree: jax.tree.map(lambda array: array[index], tree)
        data = members_of(self.data, self.axes, index)
        rows = [{name: column[:, index] for name, column in part.items()} for part in self.history]
        return Population(self.plan, self.axes, data, of(self.states), self.shared, rows)

    def on_host(self) -> "Population":
        """The same with the states in NumPy, which leaves the device's memory to the next population."""
        states = jax.tree.map(lambda array: array if trees.is_key(array) else np.asarray(array), self.states)
        return replace(self, states=states)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The whole history, `(epochs, E)` a column."""
        return {name: np.concatenate([part[name] for part in self.history]) for name in self.history[0]}

    @property
    def params(self) -> Params:
        """Each member's best weights on the validation examples; without any its last."""
        return _kept(self.states)

    @property
    def scores(self) -> np.ndarray:
        """Each member's best score on the validation examples, or its last cost; of one that diverged infinite."""
        diverged = np.asarray(self.states.diverged)
        if self.states.best is not None:
            score = np.asarray(self.states.best.score)
        else:
            row = np.maximum(np.asarray(self.states.epoch) + diverged - 1, 0)
            score = self.columns["cost"][row, np.arange(len(row))]
        return np.where(diverged | ~np.isfinite(score), np.inf, score)
