"""Many networks of one shape in one compiled program: a `vmap` of the epoch over states, several epochs a call."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from jaxmlp import trees
from jaxmlp.initializers import Initializer
from jaxmlp.network import Params
from jaxmlp.products import TINY
from jaxmlp.programs import compiled
from jaxmlp.training import packing
from jaxmlp.training._epoch import Metrics, begin, epoch
from jaxmlp.training.sharding import MEMBER, along, length, put
from jaxmlp.training.state import Data, Plan, Run, TrainState, split_key

# A call takes enough epochs to hide the cost of starting it: of networks for XOR hundreds, of MNIST one.
OPERATIONS_A_CALL, EPOCHS_A_CALL = 5e8, 1000


@compiled("plan", "axes", "initial")
def begin_all(plan: Plan, axes: Data, initial: str | Initializer, runs: Run, data: Data) -> TrainState:
    """The states before the first epoch; `runs` have a member axis in front, `axes` are the member axes of `data`."""
    runs = along(plan.mesh, MEMBER, runs)
    one = lambda run, data: begin(plan, run, data, initial)
    states = jax.vmap(one, (0, axes), spmd_axis_name=_axis_of(plan, len(runs.key)))(runs, data)
    return along(plan.mesh, MEMBER, states)


def _axis_of(plan: Plan, members: int) -> str | None:
    """The mesh's axis for members, if it divides them."""
    devices = length(plan.mesh, MEMBER)
    return MEMBER if devices > 1 and members % devices == 0 else None


@compiled("plan", "axes", "most", donate="states")
def advance(
    plan: Plan,
    axes: Data,
    most: int,
    states: TrainState,
    data: Data,
    shared: PRNGKeyArray | None,
    limits: tuple[Array, Array],
) -> tuple[TrainState, Metrics, Array, Any, Array]:
    """Epochs of all members: states, metrics `(most, E)`, running, the shared key, the number of epochs.

    `limits` are the number of epochs, at most `most`, and that of running members at which it ends early: 0 where every
    member has stopped. `running (most, E)` says which members trained in an epoch; the others' metrics mean nothing.
    `shared` replaces the states' keys.
    """
    n, fewest = limits
    # A CPU's vectors run along members that come last in memory where products are written out, entry by entry. A
    # larger product is one call for all members, or one each, and wants them first.
    axis = -1 if max(math.prod(shape) for shape in plan.net.shapes) <= TINY else 0

    def one(state: TrainState, data: Data, shared: PRNGKeyArray | None) -> tuple[TrainState, Metrics]:
        if shared is None:
            return epoch(plan, state, data)
        if plan.readout is None:  # all draw as a run by this key does
            after, scores = epoch(plan, state._replace(key=shared), data)
        else:
            after, scores = epoch(plan, state, data, key=split_key(shared)[1])
        return after._replace(key=state.key), scores  # to split each member's is a quarter of a tiny network's step

    def all_of_them(states: TrainState, shared: PRNGKeyArray | None) -> tuple[TrainState, Metrics]:
        each = jax.vmap(one, (axis, axes, None), (axis, 0), spmd_axis_name=_axis_of(plan, len(states.epoch)))
        return each(states, data, shared)

    def body(carry):
        i, states, shared, history, running = carry
        running = running.at[i].set(~states.stopped)
        states, scores = all_of_them(states, shared)
        shared = None if shared is None else split_key(shared)[0]
        history = {name: history[name].at[i].set(score) for name, score in scores.items()}
        return i + 1, states, shared, history, running

    move = lambda source, to: lambda array: jnp.moveaxis(array, source, to) if array.ndim > 1 else array
    states = jax.tree.map(move(0, axis), states)
    _, like = jax.eval_shape(all_of_them, states, shared)
    history = {name: jnp.zeros((most, *score.shape), score.dtype) for name, score in like.items()}
    is_running = lambda carry: (carry[0] < n) & ((~carry[1].stopped).sum(dtype=jnp.int32) > fewest)
    first = (jnp.zeros((), jnp.int32), states, shared, history, jnp.zeros((most, len(states.epoch)), bool))
    done, states, shared, history, running = jax.lax.while_loop(is_running, body, first)
    return jax.tree.map(move(axis, 0), states), history, running, shared, done


def select_data(data: Data, axes: Data, index: np.ndarray | int) -> Data:
    """The examples of some members, or of one."""
    own = {name: getattr(data, name)[index] for name, axis in axes._asdict().items() if axis is not None}
    return data._replace(**own)


def place_data(mesh: Mesh | None, data: Data, axes: Data) -> Data:
    """Each array on every device, or along the members where it has a member axis."""
    return Data(
        *(put(mesh, array, *([] if axis is None else [MEMBER])) for array, axis in zip(data, axes, strict=True))
    )


@jax.jit
def _take(states: TrainState, index: Array | np.ndarray) -> TrainState:
    """The states of some members, in one program."""
    return jax.tree.map(lambda array: array[index], states)


@jax.jit
def _best_params(states: TrainState) -> Params:
    def one(state: TrainState) -> Params:
        if state.best is None:
            return state.evaluated
        none = state.best.epoch == 0
        return jax.tree.map(lambda last, best: jnp.where(none, last, best), state.evaluated, state.best.params)

    return jax.vmap(one)(states)


def _to_host(states: TrainState) -> TrainState:
    return jax.tree.map(lambda array: array if trees.is_key(array) else np.asarray(array), states)


def _write(states: TrainState, index: np.ndarray, some: TrainState) -> TrainState:
    """The states with those of some members replaced, in NumPy."""

    def one(array: Any, part: Any) -> Any:
        if trees.is_key(array):
            return array.at[index].set(part)
        array = np.array(array)
        array[index] = part
        return array

    return jax.tree.map(one, states, some)


class Keeper(ABC):
    """Saves a population on the way."""

    every: int  # epochs between two states

    @abstractmethod
    def is_due(self, done: int) -> bool:
        """Whether a state is to be saved after so many epochs."""

    @abstractmethod
    def save(self, population: "Population") -> None:
        """Saves it."""


@dataclass
class Population:
    """Members of one shape, after some epochs."""

    plan: Plan
    axes: Data  # 0 where `data` has a member axis, else None
    data: Data
    states: TrainState
    shared: PRNGKeyArray | None  # replaces the states' keys, where members share their batches
    history: list[dict[str, np.ndarray]] = field(default_factory=list)  # of each call, `(epochs, E)` a column
    index: np.ndarray | None = None  # the members that a program trains; None: all. The others have stopped.

    @classmethod
    def begin(
        cls, plan: Plan, axes: Data, initial: str | Initializer, runs: Run, data: Data, shared: PRNGKeyArray | None
    ) -> "Population":
        """Members before their first epoch; `shared` is the key of them all, where they share their batches."""
        states = begin_all(plan.at_start, axes, initial, runs, data)
        return cls(plan, axes, data, states, None if shared is None else split_key(shared)[0])

    @property
    def done(self) -> int:
        """The number of epochs."""
        return sum(len(part["cost"]) for part in self.history)

    def train(
        self,
        epochs: int,
        report: Callable[[int, dict[str, np.ndarray]], None],
        keeper: Keeper | None = None,
    ) -> None:
        """Trains that many epochs more, fewer if all stop; calls `report` with the number done and the last metrics."""
        done, devices = self.done, length(self.plan.mesh, MEMBER)
        end = done + epochs
        operations = (
            6 * sum(math.prod(shape) for shape in self.plan.net.shapes) * self.plan.steps * self.plan.batch_size
        )
        members, stopped = len(self.states.epoch), np.asarray(self.states.stopped)
        index = np.arange(members) if self.index is None else self.index
        states, data = self._take_out(index)
        while done < end and not stopped.all():
            most = int(min(max(OPERATIONS_A_CALL // (operations * len(index)), 1), EPOCHS_A_CALL))
            n = min(most, end - done, *([] if keeper is None else [keeper.every - done % keeper.every]))
            # Where fewer run already, another one must stop first: a call trains for at least one epoch.
            running = len(stopped) - int(stopped.sum())
            fewest = min(packing.next_size(len(index), operations, end - done, devices), running - 1)
            limits = jnp.asarray(n, jnp.int32), jnp.asarray(fewest, jnp.int32)
            states, history, running, self.shared, count = advance(
                self.plan, self.axes, most, states, data, self.shared, limits
            )
            done += int(count)
            self._note(index, history, np.asarray(running[: int(count)]))
            report(done, {name: column[-1] for name, column in self.history[-1].items()})
            stopped = np.asarray(states.stopped)
            if not stopped.all() and len(stopped) - stopped.sum() <= fewest:
                self._put_back(index, states)
                index = index[packing.choose_members(stopped, devices)]
                states, data = self._take_out(index)
                stopped = np.asarray(states.stopped)
            if keeper is not None and (stopped.all() or keeper.is_due(done)):
                self._put_back(index, states)
                keeper.save(self)
        self._put_back(index, states)
        if len(index) < members:
            at = MEMBER if members % devices == 0 else None
            self.states = put(self.plan.mesh, jax.tree.map(jnp.asarray, self.states), at)

    def _take_out(self, index: np.ndarray) -> tuple[TrainState, Data]:
        """States and data of the members that a program trains; the others' states wait on the host."""
        self.index = index
        if len(index) == len(self.states.epoch):
            return self.states, self.data
        self.states = _to_host(self.states)
        mesh = self.plan.mesh
        data = place_data(mesh, select_data(self.data, self.axes, index), self.axes)
        return put(mesh, _take(self.states, index), MEMBER), data

    def _put_back(self, index: np.ndarray, states: TrainState) -> None:
        whole = len(index) == len(self.states.epoch)
        self.states = states if whole else _write(self.states, index, states)

    def _note(self, index: np.ndarray, history: Metrics, trained: np.ndarray) -> None:
        """Adds the epochs of a call, `trained (epochs, len(index))`, to the history: NaN where a member has stopped."""
        columns = {}
        for name, column in history.items():
            of = np.where(trained, np.asarray(column[: len(trained)]), np.nan)
            columns[name] = np.full((len(of), len(self.states.epoch)), np.nan, of.dtype)
            columns[name][:, index] = of
        self.history.append(columns)

    def select(self, index: np.ndarray) -> "Population":
        """The population of these members only."""
        data = select_data(self.data, self.axes, index)
        rows = [{name: column[:, index] for name, column in part.items()} for part in self.history]
        return Population(self.plan, self.axes, data, _take(self.states, index), self.shared, rows)

    def move_to_host(self) -> "Population":
        """The same with the states in NumPy, so that the device's memory is free for the next population."""
        return replace(self, states=_to_host(self.states))

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The whole history, `(epochs, E)` a column."""
        return {name: np.concatenate([part[name] for part in self.history]) for name in self.history[0]}

    @property
    def params(self) -> Params:
        """Each member's best weights on the validation examples; without any, its last."""
        return _best_params(self.states)

    @property
    def scores(self) -> np.ndarray:
        """Each member's best score on the validation examples, or its last cost; infinite where it diverged."""
        diverged = np.asarray(self.states.diverged)
        if self.states.best is not None:
            score = np.where(np.asarray(self.states.best.epoch) > 0, np.asarray(self.states.best.score), np.inf)
        else:
            row = np.maximum(np.asarray(self.states.epoch) + diverged - 1, 0)
            score = self.columns["cost"][row, np.arange(len(row))]
        return np.where(diverged | ~np.isfinite(score), np.inf, score)
