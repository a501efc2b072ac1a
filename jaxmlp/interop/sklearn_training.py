"""The epochs of an estimator: each is one compiled program over an order of examples that NumPy has drawn."""

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmlp import optimizers
from jaxmlp.interop.sklearn_optimizers import Constant, Kfac, Penalized, PenalizedState, Sgd, adam
from jaxmlp.network import MLP, Params
from jaxmlp.programs import compiled
from jaxmlp.training.regularization import Regularization
from jaxmlp.training.sampling import Drawn, gather
from jaxmlp.training.state import Data, Plan, TrainState
from jaxmlp.training.step import descend

SMALLEST_RATE = 1e-6  # of the adaptive schedule


def choose_solver(estimator: Any, net: MLP) -> tuple[Any, dict[str, float]]:
    """The optimizer, or a factory of it and the numbers that it takes."""
    make, numbers = _name_solver(estimator.solver, net, bool(estimator.nesterovs_momentum))
    if estimator.learning_rate != "constant" and "learning_rate" not in numbers:
        raise ValueError(
            f"learning_rate is {estimator.learning_rate!r}, but solver takes no rate: expected a factory such as "
            "optax.sgd, which takes another learning_rate in each epoch"
        )
    parameters = {"learning_rate": "learning_rate_init"}
    return make, {name: float(getattr(estimator, parameters.get(name, name))) for name in numbers}


def _name_solver(solver: Any, net: MLP, nesterov: bool) -> tuple[Any, tuple[str, ...]]:
    """The optimizer or its factory, and the names of the numbers that it takes."""
    if isinstance(solver, optax.GradientTransformation):
        return solver, ()
    if solver == "sgd":
        return Sgd(nesterov), ("learning_rate", "momentum")
    if solver == "adam":
        return adam, ("learning_rate", "beta_1", "beta_2", "epsilon")
    if solver == "kfac":
        return Kfac(net), ("learning_rate", "momentum")
    try:
        takes = inspect.signature(solver).parameters.values()
    except ValueError:
        raise ValueError(f"solver is {solver!r}, expected a name, an optax transformation, or a factory") from None
    takes_rate = any(p.name == "learning_rate" or p.kind is p.VAR_KEYWORD for p in takes)
    return (solver, ("learning_rate",)) if takes_rate else (Constant(solver), ())


def _check_solver(net: MLP, solver: Any, numbers: dict[str, Any], params: Params) -> None:
    """Refuses a solver that is no optax transformation, or fails on these parameters."""
    try:
        optimizers.check_factory(solver, numbers)
        optimizers.check(net, solver, numbers, params)
    except ValueError as error:
        raise ValueError(f"solver: {error}") from None


class Memory:
    """What an estimator keeps between calls of `partial_fit`: the optimizer's numbers and state, as NumPy's arrays."""

    def __init__(self, numbers: dict[str, float], schedule: str, power_t: float, seed: int):
        self.numbers, self.schedule, self.power_t, self.seed = dict(numbers), schedule, power_t, seed
        self.first_rate = self.learning_rate
        self.epochs = 0
        self.leaves: list[np.ndarray] | None = None  # of the optimizer's state; None before the first epoch

    @property
    def learning_rate(self) -> float:
        """The rate of the epoch that comes."""
        return float(self.numbers.get("learning_rate", math.nan))

    def end_epoch(self, seen: int) -> None:
        """Sets the next rate, after `seen` examples in all epochs."""
        if self.schedule == "invscaling":
            self.numbers["learning_rate"] = self.first_rate / (seen + 1) ** self.power_t

    def is_over(self, message: str, verbose: Any) -> bool:
        """Whether a cost that does not fall ends the fit; the adaptive schedule divides the rate by 5 instead."""
        over = self.schedule != "adaptive" or self.learning_rate <= SMALLEST_RATE
        if self.schedule != "adaptive":
            message += " Stopping."
        elif over:
            message += " Learning rate too small. Stopping."
        else:
            self.numbers["learning_rate"] = self.learning_rate / 5
            message += f" Setting learning rate to {self.learning_rate:f}"
        if verbose:
            print(message)
        return over


class Training:
    """The state between epochs.

    An epoch does not take the state's memory: where Ctrl-C ends a fit within an epoch, the state before it is whole.
    """

    def __init__(
        self, net: MLP, memory: Memory, optimizer: Penalized, params: Params, data: Data,
        regularization: Regularization, batch_size: int, alpha: float,
    ):  # fmt: skip
        m, dtype = len(data.X), params[0].W.dtype
        self.memory, self.m, self.alpha, self.dtype = memory, m, alpha, dtype
        self.plan = Plan(net, optimizer, batch_size=batch_size, steps=math.ceil(m / batch_size))
        # jnp.asarray would compile a program for each shape; JAX may share the memory, to which a fit does not write.
        self.data: Data = jax.device_put(data)
        opt_state = self._restore(optimizer, net, params)
        self.state = _start(self.plan, params, opt_state, self._hyper(), regularization, memory)

    @property
    def params(self) -> Params:
        """The weights after the last epoch."""
        return self.state.params

    def run(self, order: np.ndarray) -> float:
        """An epoch in this order; the sum of the examples' costs."""
        steps, b = self.plan.steps, self.plan.batch_size
        missing = steps * b - self.m
        index = np.pad(order.astype(np.int32), (0, missing)).reshape(steps, b)
        counted = (np.arange(steps * b) < self.m).reshape(steps, b) if missing else None
        state = self.state._replace(hyper=self._hyper())
        state, total = _run_epoch(self.plan, state, self.data, Drawn(index, counted))  # pyright: ignore
        total = float(total)  # waits for the epoch
        self.state = state
        self.memory.epochs += 1
        return total

    def remember(self) -> None:
        """Keeps the optimizer's state in the memory."""
        self.memory.leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(self.state.opt_state)]

    def _hyper(self) -> dict[str, Any]:
        numbers = {name: np.asarray(value, self.dtype) for name, value in self.memory.numbers.items()}
        return numbers | {"alpha": np.asarray(self.alpha, self.dtype), "examples": np.asarray(self.m, np.int32)}

    def _restore(self, optimizer: Penalized, net: MLP, params: Params) -> Any:
        """The optimizer's state: the memory's, or that before the first step."""
        hyper = self._hyper()
        if self.memory.leaves is None and optimizer.make is not adam and not isinstance(optimizer.make, Sgd):
            own = {name: hyper[name] for name in self.memory.numbers}
            _check_solver(net, optimizer.make, own, params)
        fresh = optimizer(**hyper).init(params)
        if self.memory.leaves is None:
            return fresh
        leaves, form = jax.tree.flatten(fresh)
        return form.unflatten([old.astype(new.dtype) for new, old in zip(leaves, self.memory.leaves, strict=True)])


def _start(
    plan: Plan, params: Params, opt_state: Any, hyper: Any, regularization: Regularization, memory: Memory
) -> TrainState:
    """The state before the first epoch; nothing in it judges a run, as the estimator does."""
    array: Any = np.asarray  # nothing of it compiles
    number, flag = array(0, params[0].W.dtype), array(False)
    return TrainState(
        params=params,
        opt_state=opt_state,
        rule_state=(None,) * (plan.net.depth - 1),
        key=array(memory.seed, np.uint32),  # a program makes the key of it
        epoch=array(memory.epochs, np.int32),
        hyper=hyper,
        regularization=regularization,
        first_cost=number,
        first_scale=number,
        patience=array(-1, np.int32),
        stopped=flag,
        diverged=flag,
        best=None,
        average=None,
    )  # pyright: ignore


@compiled("plan")
def _run_epoch(plan, state, data, drawn):
    """The state after an epoch, and the sum of the examples' costs."""
    seed, key = state.key, jax.random.key(state.key)
    if state.regularization.random:
        keys = jax.random.split(jax.random.fold_in(key, state.epoch), plan.steps)
        drawn = drawn._replace(key=keys)

    def batch_of(entry: Drawn) -> Any:
        return gather(plan, data, entry)._replace(count=None)  # a batch descends `sum w g / sum w`

    seen, total, inner = state.opt_state
    opt_state = PenalizedState(jnp.zeros_like(seen), jnp.zeros_like(total), inner)
    state, _ = descend(plan, state._replace(key=key, opt_state=opt_state), drawn, batch_of)
    return state._replace(key=seed, epoch=state.epoch + 1), state.opt_state.total
