"""`sweep`: many networks at once, each with its own key, settings, start, labels or part of the data.

Source for the whole run as one compiled program over a population: Lu et al. 2022, "Discovered policy optimisation",
its PureJaxRL.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PRNGKeyArray

from jaxmlp import interrupts, metrics, rules, validate
from jaxmlp.dropout import Keep
from jaxmlp.initializers import VARIANCES, Initializer
from jaxmlp.network import MLP, Params
from jaxmlp.penalties import Penalty
from jaxmlp.rules import Rule
from jaxmlp.training import processes, reporting, sampling, settings, sharding
from jaxmlp.training.checkpoint import LAST
from jaxmlp.training.examples import Axis, ClassWeights, Reading, read_data
from jaxmlp.training.joining import join
from jaxmlp.training.population import Population, place_data, select_data
from jaxmlp.training.population_checkpoint import PopulationCheckpoints, describe
from jaxmlp.training.result import SweepResult
from jaxmlp.training.state import Augment, Data, Optimizer, Plan, Readout, Run
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
    class_weights: ClassWeights | None = None,
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
    checkpoints: str | Path | None = None,
    checkpoint_every: int = 1,
    progress: bool = True,
) -> SweepResult:
    """Trains a population of E networks, all at once in one compiled program: `vmap` of the epoch that `fit` runs.

    Member i is `fit(net, jm.init(net, keys[i]), data, key=keys[0], ...)` with its own settings, to rounding, and with
    `key=keys[i]` if not `shared_order`. A member that diverges is marked and keeps its last good weights, and one whose
    patience ends stops; the others go on, in a smaller program where that pays.

    Args: those of `fit`, and these. Each is one for all members or has a member axis `E` in front; all axes agree.
        net: a list has one network for each member; equal ones share a program.
        data: `Y` may be `(E, m)` or `(E, m, k)`.
        keys: of `jax.random.key`.
        hyper: the arguments of the factory `optimizer`, each a number or `(E,)`.
        initial: draws the weights, as `weights` of `jm.init`; or parameters, or those of E networks, stacked.
        scale: multiplies the initial weights.
        weights: `(m,)` or `(E, m)`. Weights of 0 and 1 give each member its part of the data, as do
            `validation=(X, Y, weights (E, d))`; `jm.data.folds(key, m, k)` makes those of cross-validation.
        penalties: `jm.l2([0, 1e-4])` holds the strengths of two members; by layer they are `(E, K)`, or `(1, K)`.
        keep: `(E,)`, or by layer `(E, K)` or `(1, K)`.
        label_smoothing, input_noise, average, patience: each a number or `(E,)`.
        shared_order: all members draw in training from the first key, so they see the same batches, masks and noise.
            Settings are then compared under the same luck, and a batch is gathered, and multiplied by all first layers,
            once. What a readout draws, such as private noise, is each member's own.
        members_at_once: trains that many at a time, with the same numbers, where memory is small.
        mesh: of this process's devices; members lie along its axis `member`, batches and layers as by `fit`.
        checkpoints: a folder; the same call goes on from it to the same bits. It has a folder for each program.
        checkpoint_every: epochs between two states; many where an epoch is short.
    Returns:
        A SweepResult; printed, it is a table, the best member first.
    Raises:
        ValueError: for bad input, before anything compiles.
    Example:
        >>> rates = jnp.geomspace(0.01, 1.0, 4)
        >>> many = jm.sweep(net, (X, Y), keys=key, optimizer=optax.sgd, hyper={"learning_rate": rates}, epochs=2,
        ...                 progress=False)
        >>> many.params[0].W.shape, many.history["cost"].shape
        ((4, 64, 784), (2, 4))
    """
    groups, varied = form_groups(locals())
    total, every = validate.whole(epochs, "epochs"), validate.whole(checkpoint_every, "checkpoint_every")
    reporting.check_outputs(None, None, checkpoints)
    if checkpoints is not None and (Path(checkpoints) / LAST).exists():
        raise ValueError(f"checkpoints is {str(checkpoints)!r}, which holds a run of fit, expected another folder")
    parts = []
    with (
        reporting.show(total * len(groups), "epoch", progress) as show,
        interrupts.hold(checkpoints is not None) as interrupted,
    ):
        for number, group in enumerate(groups):
            population, keeper = group.begin(), None
            report = lambda done, row, before=number * total: show(before + done, summarize(row))
            with ExitStack() as stack:
                if checkpoints is not None:
                    folder = Path(checkpoints).absolute() / f"{number + 1:03}"
                    told = describe(population, group.runs)
                    keeper = PopulationCheckpoints(folder, every, total, told, interrupted)
                    stack.enter_context(keeper.open(population))
                population.train(total - population.done, report, keeper)
            parts.append((group.index, population if len(groups) == 1 else population.move_to_host()))
    nets = net if isinstance(net, MLP) else tuple(net)
    return replace(join(parts, varied, stacked=isinstance(net, MLP)), net=nets, preprocess=preprocess)


class Group(NamedTuple):
    """Members that one program trains together."""

    index: np.ndarray  # their numbers; the fields below hold all members of their network
    plan: Plan
    axes: Data
    initial: str | Initializer
    runs: Run
    params: Params | None  # from which every member starts; None: each from its own
    data: Data
    shared: PRNGKeyArray | None

    def begin(self) -> Population:
        """The population before its first epoch."""
        index, plan, axes, initial, runs, params, data, shared = self
        if len(index) != len(runs.key) or (np.diff(index) != 1).any():
            runs, data = jax.tree.map(lambda array: array[index], runs), select_data(data, axes, index)
        if params is not None:
            copy = lambda array: jnp.broadcast_to(jnp.asarray(array), (len(index), *jnp.shape(array)))
            runs = runs._replace(params=jax.tree.map(copy, params))
        return Population.begin(plan, axes, initial, runs, place_data(plan.mesh, data, axes), shared)


def summarize(row: dict[str, np.ndarray]) -> dict[str, float]:
    """The best of each column over the members, to show while a population trains."""
    best = lambda name: np.nanmax if name.endswith("accuracy") else np.nanmin
    return {f"best {name}": float(best(name)(of)) for name, of in row.items() if not np.isnan(of).all()}


def form_groups(
    arguments: dict[str, Any], numbers: np.ndarray | None = None
) -> tuple[list[Group], dict[str, np.ndarray]]:
    """The checked arguments of `sweep`, grouped by network and by `members_at_once`; and the settings that vary.

    `numbers`: the members' own, by which those that share a key draw; 0, 1, .. unless given.
    """
    net, data, axis = arguments.pop("net"), arguments.pop("data"), Axis()
    nets = _read_nets(net, axis)
    distinct = tuple(dict.fromkeys(nets))
    given = settings.read(arguments, settings.Context(distinct, axis))
    params, stacked = _read_initial(distinct, given.initial, axis)
    dtype = choose_dtype(params, data, given.preprocess)
    settings.settle_optimizer(given, distinct, dtype)
    examples = {n: read_data(Reading(n, dtype, given.preprocess, axis), data, given) for n in distinct}
    E = axis.members
    first_key = given.keys if given.keys.ndim == 0 else given.keys[0]
    keys = jnp.broadcast_to(given.keys, (E,))
    run = settings.make_run(given, dtype, key=first_key if given.shared_order else keys, weights_key=keys)
    if given.readout is not None and given.shared_order:  # members that share a key differ by their number
        run = run._replace(own_key=jax.vmap(jax.random.fold_in)(keys, jnp.arange(E) if numbers is None else numbers))
    elif given.readout is not None:
        _refuse_equal_keys(keys)
    runs = _broadcast_to_members(run, E)._replace(params=params if stacked else None)
    groups = []
    for one in distinct:
        data, axes = examples[one]
        if data.weights is not None:  # relative to their mean, each member's to its own
            data = data._replace(weights=data.weights / data.weights.mean(-1, keepdims=True))
        plan = _make_plan(one, given, data, axes)
        index = np.arange(E) if isinstance(net, MLP) else np.flatnonzero([n == one for n in nets])
        initial, own = ("zeros", None if stacked else params) if params is not None else (given.initial, None)
        shared = first_key if given.shared_order else None
        parts = _split(index, given.members_at_once, sharding.length(plan.mesh, sharding.MEMBER))
        groups += [Group(part, plan, axes, initial, runs, own, data, shared) for part in parts]
    return groups, _find_varied(given, nets, axis)


def _refuse_equal_keys(keys: PRNGKeyArray) -> None:
    """Noise that two members share would cancel in their difference."""
    drawn = np.asarray(jax.random.key_data(keys))
    if len(np.unique(drawn, axis=0)) < len(drawn):
        raise ValueError(
            "keys holds a key twice, expected one for each member with a readout and shared_order=False: the readout "
            "would draw the same numbers for both"
        )


def _make_plan(net: MLP, given: SimpleNamespace, data: Data, axes: Data) -> Plan:
    m = len(data.X)
    size = sampling.choose_batch_size(given.batch_size, m, "shuffle")
    mesh = sharding.check(given.mesh, net, (sharding.MEMBER, sharding.DATA, sharding.MODEL))
    if processes.are_several(mesh):
        raise ValueError("mesh has devices of other processes, expected this one's: each may have its own sweep")
    accuracy = metrics.predicts_classes(net, data.Y if axes.Y is None else data.Y[0])
    plan = settings.make_plan(net, given, mesh, accuracy=accuracy, batch_size=size, steps=math.ceil(m / size))
    sampling.check_divides(size, mesh, 1, "shuffle")
    settings.check_together(plan, given)
    return plan


def _broadcast_to_members(run: Run, E: int) -> Run:
    """The run with every number once for each member; a strength by layer is then `(E, K)`."""
    one = lambda values: jnp.broadcast_to(values, (E, *values.shape[1:]) if values.ndim == 2 else (E,))
    each = lambda value: value.for_members(E, one) if isinstance(value, Penalty) else one(value)
    return jax.tree.map(each, run, is_leaf=lambda value: isinstance(value, Penalty))


def _read_nets(given: Any, axis: Axis) -> tuple[MLP, ...]:
    """A network, or one for each member."""
    each = (given,) if isinstance(given, MLP) else tuple(given) if isinstance(given, list | tuple) else ()
    if not each or not all(isinstance(net, MLP) for net in each):
        raise ValueError(f"net is {given!r}, expected an MLP, or a list with one for each member")
    if len(widths := sorted({net.sizes[0] for net in each})) > 1:
        raise ValueError(f"net has networks of {widths} inputs, expected as many in each: they see the same examples")
    if not isinstance(given, MLP):
        axis.add("net", len(each))
    return each


def _read_initial(nets: tuple[MLP, ...], given: Any, axis: Axis) -> tuple[Any, bool]:
    """Parameters of one network, or stacked ones; None where weights are drawn. And whether they have a member axis."""
    if isinstance(given, str):
        validate.one_of(given, tuple(VARIANCES), "initial")
    if isinstance(given, str) or callable(given):
        return None, False
    net, *others = nets
    if others:
        raise ValueError("initial holds parameters, expected a name or an initializer for networks of several shapes")
    listed = isinstance(given, tuple | list) and bool(given)
    first: Any = getattr(next(iter(given)), "W", 0) if listed else 0
    if jnp.ndim(first) != 3:
        validate.params(net, given)
        return tuple(given), False
    lengths = {jnp.shape(array)[:1] for array in jax.tree.leaves(given)}
    if len(lengths) > 1:
        raise ValueError(f"initial has arrays of {sorted(n for (n,) in lengths)} members, expected one number of them")
    validate.params(net, jax.tree.map(lambda array: array[0], tuple(given)))
    axis.add("initial", len(first))
    return tuple(given), True


def choose_dtype(params: Params | None, data: Any, preprocess: Any) -> Any:
    """That of the parameters; where they are drawn, that of the inputs if these go in unchanged."""
    if params is not None:
        return jnp.result_type(params[0].W)
    if preprocess is None and isinstance(data, tuple) and data:
        X = validate.array(data[0], "X")
        return X.dtype if jnp.issubdtype(X.dtype, jnp.floating) else jnp.result_type(float)
    return jnp.result_type(float)


def _find_varied(given: SimpleNamespace, nets: tuple[MLP, ...], axis: Axis) -> dict[str, np.ndarray]:
    """The settings in which members differ, by their names in the table."""
    named = {"net": np.asarray([_name(net) for net in nets])} if "net" in axis.lengths else {}
    numbers = {name: np.asarray(values) for name, values in settings.name_numbers(given).items()}
    return named | {name: values for name, values in numbers.items() if values.ndim and len(values) == axis.members}


def _name(net: MLP) -> str:
    """Such as `784-64-10 relu`."""
    return " ".join(["-".join(map(str, net.sizes)), *dict.fromkeys(f.name for f in net.hidden)])


def _split(index: np.ndarray, at_once: int | None, devices: int) -> list[np.ndarray]:
    """`index` in parts of one length, at most `at_once`, that `devices` divide; the last entry fills the last part."""
    n = 1 if at_once is None else math.ceil(len(index) / at_once)
    size = devices * math.ceil(len(index) / (n * devices))
    return list(np.pad(index, (0, n * size - len(index)), mode="edge").reshape(n, size))
