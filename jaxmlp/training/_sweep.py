"""`sweep`: many networks at once, each with its own key, settings, start, labels or share of the data.

Source for the whole run as one compiled program over a population: Lu et al. 2022, "Discovered policy optimisation",
its PureJaxRL.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PRNGKeyArray

from jaxmlp import metrics, rules, validate
from jaxmlp.initializers import VARIANCES, Initializer
from jaxmlp.network import MLP, Params
from jaxmlp.rules import Rule
from jaxmlp.training import members, processes, settings, sharding
from jaxmlp.training.population import Members, Population, members_of
from jaxmlp.training.regularization import Keep, Penalty
from jaxmlp.training.reporting import shown
from jaxmlp.training.state import Augment, Data, Optimizer, Plan, Readout
from jaxmlp.training.sweep_result import SweepResult, gathered
from jaxmlp.validate import Given, Preprocess

PerMember = float | Sequence[float] | Float[Given, "*E"]  # one for all members, or one each


def sweep(
    net: MLP | Sequence[MLP],
    data: tuple[Any, Any],
    *,
    keys: PRNGKeyArray,
    optimizer: Optimizer,
    epochs: int,
    hyper: dict[str, Any] | None = None,
    batch_size: int | None = None,
    initial: str | Initializer | Params = "he",
    scale: PerMember | None = None,
    validation: tuple[Any, ...] | None = None,
    best_by: Literal["cost", "accuracy"] = "cost",
    patience: int | Sequence[int] | None = None,
    weights: Float[Given, "*E m"] | None = None,
    penalties: Penalty | tuple[Penalty, ...] = (),
    keep: Keep | None = None,
    label_smoothing: PerMember | None = None,
    input_noise: PerMember | None = None,
    average: PerMember | None = None,
    augment: Augment | None = None,
    preprocess: Preprocess | None = None,
    rule: Rule = rules.backprop,
    readout: Readout | None = None,
    shared_order: bool = True,
    members_at_once: int | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> SweepResult:
    """Trains a population of E networks, all at once in one compiled program: `vmap` of what `fit` runs.

    What differs. Each of these is one for all members, or has a member axis `E` in front; they must agree on E:
    - `keys`: of `jax.random.key`. `net`: a list has one for each member; equal ones share a program.
    - `hyper`: the arguments of the factory `optimizer`. `scale`, `label_smoothing`, `input_noise`, `average`,
      `patience` (in whole epochs). `scale` multiplies the initial weights.
    - `penalties`, `keep`: `jm.l2([0, 1e-4])` are the strengths of two members; layer by layer they are `(E, K)`, or
      `(1, K)` for the same in all members.
    - `initial`: how weights are drawn, as `jm.init`'s `weights`; or parameters, or those of E networks stacked.
    - labels: `Y (E, m)` or `(E, m, k)`. `weights (E, m)` and `validation = (X, Y, weights (E, d))`: of 0 and 1 they
      give each member its share of the data. `jm.data.folds(key, m, k)` makes those of cross-validation.

    Member i is `fit(net, jm.init(net, keys[i]), data, key=keys[i], ...)` with its own settings, to rounding. With
    `shared_order` all draw in training from the first key, so that they see the same batches (and masks and noise):
    settings are compared under the same luck, and a batch is gathered, and multiplied by all first layers, once.
    Member i is then `fit(net, jm.init(net, keys[i]), data, key=keys[0], ...)`.

    A member that diverges is marked and keeps its last good weights, one whose patience is at its end stops; the
    others go on. `members_at_once` trains that many after each other, with the same numbers, where memory is small.
    `mesh`: of this process's devices; members along its axis `member`, batches and layers along `data` and `model`, as
    by `fit`. A sweep is not saved on the way.
    The other arguments are those of `fit`. Raises ValueError for bad input before anything is compiled.
    """
    entrants, varied = prepared(
        net, data, keys=keys, optimizer=optimizer, hyper=hyper, batch_size=batch_size, initial=initial, scale=scale,
        validation=validation, best_by=best_by, patience=patience, weights=weights, penalties=penalties, keep=keep,
        label_smoothing=label_smoothing, input_noise=input_noise, average=average, augment=augment,
        preprocess=preprocess, rule=rule, readout=readout, shared_order=shared_order, members_at_once=members_at_once,
        mesh=mesh,
    )  # fmt: skip
    epochs = validate.whole(epochs, "epochs")
    parts = []
    with shown(epochs * len(entrants), "epoch", progress) as show:
        for number, entrant in enumerate(entrants):
            population = entrant.enter()
            population.train(epochs, lambda done, row, before=number * epochs: show(before + done, summary(row)))
            parts.append((entrant.index, population if len(entrants) == 1 else population.on_host()))
    return gathered(parts, varied, stacked=isinstance(net, MLP))


class Entrant(NamedTuple):
    """Members that one call trains together: which they are, and what makes their population."""

    index: np.ndarray
    enter: Callable[[], Population]


def summary(row: dict[str, np.ndarray]) -> dict[str, float]:
    """What is shown of a population while it trains: the best of each column."""
    best = lambda name: np.nanmax if name.endswith("accuracy") else np.nanmin
    return {f"best {name}": float(best(name)(of)) for name, of in row.items() if not np.isnan(of).all()}


def prepared(
    net, data, *, keys, optimizer, hyper=None, batch_size=None, initial: Any = "he", scale=None, validation=None,
    best_by="cost", patience=None, weights=None, penalties=(), keep=None, label_smoothing=None, input_noise=None,
    average=None, augment=None, preprocess=None, rule=rules.backprop, readout=None, shared_order=True,
    members_at_once=None, mesh=None,
) -> tuple[list[Entrant], dict[str, Any]]:  # fmt: skip
    """What `sweep` is given, checked and grouped: by network, and by what is trained at once. And what differs."""
    axis, each = members.Axis(), members.nets(net)
    if not isinstance(net, MLP):
        axis.seen("net", len(each))
    keys = members.keys(keys, axis)
    numbers = members.hyper(hyper, axis)
    of = partial(members.number, axis=axis)
    optional = lambda given, name, **limits: None if given is None else of(given, name, **limits)
    distinct = list(dict.fromkeys(each))
    regularised = members.regularisation(distinct, penalties, keep, label_smoothing, input_noise, axis)
    average, scale = optional(average, "average", above=0, below=1), optional(scale, "scale")
    waits = members.patience(patience, axis)
    drawn = isinstance(initial, str) or callable(initial)
    if isinstance(initial, str):
        validate.one_of(initial, tuple(VARIANCES), "initial")
    params, stacked = (None, False) if drawn else members.initial_params(distinct, initial, axis)
    X, Y = settings.pair(data, "data")
    X = validate.array(X, "X")
    dtype = members.dtype_of(params, X, preprocess)
    examples = {n: members.data(n, (X, Y, weights), validation, dtype, preprocess, axis) for n in distinct}
    E = axis.members
    varied = members.differing(axis, each, numbers, regularised, average, scale, waits)

    spread = partial(members.spread, members=E)
    all_members = Members(
        keys=jnp.broadcast_to(keys, (E,)), hyper=spread(numbers, dtype=dtype),
        regularisation=spread(regularised, dtype=dtype), patience=spread(waits, dtype=jnp.int32),
        average=spread(average, dtype=dtype), scale=spread(scale, dtype=dtype), params=params if stacked else None,
    )  # fmt: skip
    shared = keys if keys.ndim == 0 else keys[0]
    entrants = []
    for one in distinct:
        held, axes = examples[one]
        m, Y = held.X.shape[0], held.Y if axes.Y is None else held.Y[0]
        plan = Plan(
            net=one,
            optimizer=settings.optimizer_of(optimizer, {name: np.ravel(v)[0] for name, v in numbers.items()} or hyper),
            batch_size=(size := settings.batch_size_of(batch_size, m, "shuffle")),
            steps=math.ceil(m / size),
            augment=settings.augmented(one, augment, held.X, preprocess),
            preprocess=preprocess,
            rule=rules.checked(rule),
            readout=readout,
            accuracy=metrics.predicts_classes(one, Y),
            best_by=validate.one_of(best_by, ("cost", "accuracy"), "best_by"),  # pyright: ignore[reportArgumentType]
            mesh=sharding.checked(mesh, one, (sharding.MEMBER, sharding.DATA, sharding.MODEL)),
        )
        if processes.several(mesh):
            raise ValueError("mesh has devices of other processes, expected this one's: each may have its own sweep")
        settings.check_divides(size, plan.mesh, 1, "shuffle")
        settings.check_together(plan, weights is not None, patience, validation)
        index = np.arange(E) if isinstance(net, MLP) else np.flatnonzero([n == one for n in each])
        entrants += [
            Entrant(part, partial(_enter, plan, axes, initial if drawn else "zeros", all_members, held,
                                  shared if shared_order else None, None if stacked else params, part))
            for part in _parts(index, members_at_once, sharding.length(mesh, sharding.MEMBER))
        ]  # fmt: skip
    return entrants, varied


def _parts(index: np.ndarray, at_once: int | None, devices: int) -> list[np.ndarray]:
    """`index` in parts of one length, at most `at_once`, that `devices` divide; filled up with the last entry."""
    n = 1 if at_once is None else math.ceil(len(index) / validate.whole(at_once, "members_at_once"))
    size = devices * math.ceil(len(index) / (n * devices))
    filled = np.pad(index, (0, n * size - len(index)), mode="edge")
    return list(filled.reshape(n, size))


def _enter(plan, axes, initial, all_members, data, shared, params, index) -> Population:
    """The population of the members `index`; `params`, if given, are what each starts from."""
    some = all_members
    if len(index) != len(some.patience) or (np.diff(index) != 1).any():
        some = jax.tree.map(lambda array: array[index], all_members)
        data = members_of(data, axes, index)
    if params is not None:
        copies = lambda array: jnp.broadcast_to(jnp.asarray(array), (len(index), *jnp.shape(array)))
        some = some._replace(params=jax.tree.map(copies, params))
    at = lambda array, axis: sharding.placed(plan.mesh, array, *([] if axis is None else [sharding.MEMBER]))
    data = Data(*map(at, data, axes))
    return Population.enter(plan, axes, initial, some, data, shared)
