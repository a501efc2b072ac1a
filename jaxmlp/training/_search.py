"""`search`: settings chosen on the validation examples, by grid, at random, and by successive halving.

Sources: notes 002, "Hyperparameters"; Bergstra and Bengio 2012, "Random search for hyper-parameter optimization";
Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization".
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from jaxmlp import validate
from jaxmlp.network import MLP, init
from jaxmlp.training import regularization
from jaxmlp.training import search_space as spaces
from jaxmlp.training._fit import fit
from jaxmlp.training._sweep import prepared, sweep
from jaxmlp.training.population import Population
from jaxmlp.training.reporting import shown
from jaxmlp.training.result import Result
from jaxmlp.training.state import Optimizer
from jaxmlp.training.sweep_result import SHOWN, gathered, lined_up

PENALTIES = {"l2": regularization.l2, "l1": regularization.l1, "max_norm": regularization.max_norm}
STRENGTHS = ("keep", "label_smoothing", "input_noise", "average", "scale")
NONE_AT_0 = ("label_smoothing", "input_noise")
SHARED = ("batch_size", "initial")  # compiled in, as the network is
OF_MEMBERS = ("initial", "scale", "shared_order", "members_at_once", "mesh")  # which `fit` does not take
FIXED = tuple(name for name in inspect.signature(sweep).parameters
              if name not in ("net", "data", "keys", "epochs", "optimizer", "validation", "progress"))  # fmt: skip

Settings = dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """What `search` returns: the settings tried, in the order they were drawn in, and how each did."""

    trials: list[Settings]
    scores: np.ndarray  # on validation, the best so far: the cost, or minus the accuracy; infinite: diverged
    epochs: np.ndarray  # how many each was trained for
    best: int
    result: Result  # the best one's, as the search trained it
    retrain: Callable[..., Result]  # the best settings by `fit`, from scratch: `retrain(key=None, epochs=None)`

    @property
    def settings(self) -> Settings:
        """The best ones."""
        return self.trials[self.best]

    def order(self) -> np.ndarray:
        """The trials, the best first: those trained for longer, then those with a lower score."""
        return np.lexsort((self.scores, -self.epochs))

    def table(self, most: int | None = None) -> str:
        """The trials in `order`, lined up."""
        rows: list[dict[str, Any]] = [
            {"trial": int(i), **self.trials[i], "epochs": self.epochs[i], "score": self.scores[i]} for i in self.order()
        ]
        more = [] if most is None or len(rows) <= most else [f"and {len(rows) - most:,} more"]
        return "\n".join(lined_up(rows[:most]) + more)

    def __str__(self) -> str:
        return self.table(SHOWN)


def search(
    space: spaces.Space,
    net: MLP | Callable[..., MLP],
    data: tuple[Any, Any],
    *,
    key: PRNGKeyArray,
    optimizer: Optimizer,
    validation: tuple[Any, ...],
    trials: int | None = None,
    epochs: int | None = None,
    budget: int | None = None,
    progress: bool = True,
    **fixed: Any,
) -> SearchResult:
    """The best settings of a space on the validation examples; those of one shape are trained together.

    - `space`: a dict from names to lists of values or distributions, such as `jm.log_uniform(1e-3, 1)`, which are
      functions from u in [0, 1) to a value. A name is an argument of `net`, if that is a function that makes a
      network; or `l2`, `l1`, `max_norm`, `keep`, `label_smoothing`, `input_noise`, `average`, `scale`, `batch_size`,
      `initial`; or an argument of the factory `optimizer`.
    - `trials`: so many settings are drawn at random; without it the grid of all lists.
    - `epochs`: all are trained for so many. Or `budget`: successive halving, with so many epochs in all: of n settings
      `S_0`, in rung `k = 0 .. ceil(log2 n) - 1` each of `S_k` is trained for `floor(B / (|S_k| ceil(log2 n)))` epochs
      more, and the better half is `S_(k+1)` (Jamieson and Talwalkar 2016, Successive Halving).

    All start from one key and see the same batches. The other arguments are those of `sweep`. `result.retrain()` trains
    the best settings once more by `fit`, the same key giving the same to rounding, and another another start.

        found = jm.search(
            {"learning_rate": jm.log_uniform(1e-3, 1), "momentum": [0, 0.9], "width": [32, 64]},
            lambda width: jm.MLP((784, width, 10), output="softmax", loss="cross_entropy"),
            (X, Y), validation=(X_dev, Y_dev), optimizer=optax.sgd, trials=64, budget=384, key=jax.random.key(0),
        )
    """
    for name in fixed:
        validate.one_of(name, FIXED, "a further argument of search")
    if validation is None:
        raise ValueError("validation is None, expected examples (X, Y) to choose the settings by")
    draw_key, key = jax.random.split(validate.key(key))
    names = spaces.checked(space)
    _refuse_twice(names, fixed)
    _refuse_unknown(names, net, optimizer)
    tried = spaces.grid(names) if trials is None else spaces.drawn(names, draw_key, validate.whole(trials, "trials"))
    rungs = _rungs(len(tried), epochs, budget)
    given = _Given(net, data, optimizer, validation, key, fixed)
    groups = _groups(given, tried)
    reached, scores = np.zeros(len(tried), int), np.full(len(tried), np.inf)
    with shown(len(rungs), "rung", progress) as show:
        for number, (survivors, more) in enumerate(rungs, start=1):
            for index, population in groups:
                population.train(more, lambda *_: None)
                scores[index], reached[index] = population.scores, reached[index] + more
            alive = np.unique(np.concatenate([index for index, _ in groups]))
            told = {"settings": len(alive), "epochs": int(reached[alive].max()), "best score": float(scores.min())}
            show(number, told)
            kept = alive[np.lexsort((alive, scores[alive]))][:survivors]
            groups = _kept(groups, kept)
    if not np.isfinite(scores).any():
        raise ValueError(f"space has {len(tried)} settings here that all diverged, expected lower learning rates")
    ((index, population),) = groups
    result = gathered([(index, population)], {}, stacked=True).member(0)
    best = int(index[0])
    return SearchResult(tried, scores, reached, best, result, given.retrain(tried[best], int(reached[best])))


def _rungs(n: int, epochs: int | None, budget: int | None) -> list[tuple[int, int]]:
    """For each rung how many settings survive it, and for how many epochs more each is trained in it."""
    if (epochs is None) == (budget is None):
        raise ValueError(f"epochs is {epochs} and budget is {budget}, expected one of them")
    if budget is None:
        return [(1, validate.whole(epochs, "epochs"))]
    count = max(1, math.ceil(math.log2(n)))
    if validate.whole(budget, "budget") < n * count:
        raise ValueError(f"budget is {budget} epochs, expected at least {n * count}: {n} settings in {count} rungs")
    left = [n]
    while len(left) < count:
        left.append(left[-1] // 2)
    return [(max(1, size // 2), budget // (size * count)) for size in left]


def _refuse_twice(names: dict[str, Any], fixed: dict[str, Any]) -> None:
    for name in names:
        if name in fixed or name in (fixed.get("hyper") or {}):
            raise ValueError(f"{name} is given and in the space, expected one of them")
        if name in PENALTIES and fixed.get("penalties"):
            raise ValueError(f"penalties are given and {name} is in the space, expected one of them")


def _refuse_unknown(names: dict[str, Any], net: Any, optimizer: Any) -> None:
    """A name that nothing takes, where the optimizer's factory says what it takes."""
    if isinstance(optimizer, optax.GradientTransformation):
        taken = {}
    else:
        try:
            taken = inspect.signature(optimizer).parameters
        except (TypeError, ValueError):  # none to read: whether it takes a name shows when it is called
            return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    of_net = () if isinstance(net, MLP) or not callable(net) else inspect.signature(net).parameters
    known = tuple(dict.fromkeys((*of_net, *PENALTIES, *STRENGTHS, *SHARED, *taken)))
    for name in names:
        if name not in known and isinstance(optimizer, optax.GradientTransformation):
            raise ValueError(
                f"space has {name!r}, but optimizer is made already: expected a factory such as optax.sgd, or one of "
                f"{', '.join(map(repr, known))}"
            )
        validate.one_of(name, known, "a name of space")


@dataclass(frozen=True)
class _Given:
    """What a search was given, and how one setting's values are told apart."""

    net: Any
    data: Any
    optimizer: Any
    validation: Any
    key: PRNGKeyArray
    fixed: dict[str, Any]

    def network(self, settings: Settings) -> MLP:
        """The network of these settings."""
        if isinstance(self.net, MLP):
            return self.net
        own = self.own(settings)
        try:
            made = self.net(**own)
        except TypeError as error:
            raise ValueError(f"net, called with {own}, fails: {error}") from None
        if not isinstance(made, MLP):
            raise ValueError(f"net makes a {type(made).__name__} of {own}, expected an MLP")
        return made

    def own(self, settings: Settings) -> Settings:
        """The network's part of the settings."""
        if isinstance(self.net, MLP):
            return {}
        if not callable(self.net):
            raise ValueError(f"net is {self.net!r}, expected an MLP, or a function that makes one of settings")
        taken = inspect.signature(self.net).parameters
        return {name: value for name, value in settings.items() if name in taken}

    def arguments(self, many: list[Settings]) -> dict[str, Any]:
        """Those of `sweep` for settings that share what is compiled in; of one setting also those of `fit`."""
        first, own = many[0], self.own(many[0])
        column = lambda name: [s[name] for s in many] if len(many) > 1 else first[name]
        made = {name: column(name) for name in STRENGTHS if name in first and name not in own}
        made |= {name: first[name] for name in SHARED if name in first and name not in own}
        added = tuple(make(column(name)) for name, make in PENALTIES.items() if name in first and name not in own)
        if added:
            made["penalties"] = added
        rest = [name for name in first if not (name in own or name in made or name in PENALTIES)]
        hyper = {**(self.fixed.get("hyper") or {}), **{name: column(name) for name in rest}}
        return {**self.fixed, **made, "hyper": hyper or None, "optimizer": self.optimizer,
                "validation": self.validation}  # fmt: skip

    def retrain(self, settings: Settings, trained_for: int) -> Callable[..., Result]:
        """The settings by `fit`, as a function of a key and a number of epochs."""

        def run(key: PRNGKeyArray | None = None, epochs: int | None = None, progress: bool = True) -> Result:
            key, net = self.key if key is None else key, self.network(settings)
            arguments = self.arguments([settings])
            arguments = {name: value for name, value in arguments.items()
                         if name not in OF_MEMBERS and not (name in NONE_AT_0 and value == 0)}  # fmt: skip
            initial: Any = self.fixed.get("initial", settings.get("initial", "he"))
            params: Any = initial if isinstance(initial, tuple | list) else init(net, key, initial)
            scale = self.fixed.get("scale", settings.get("scale", 1.0))
            params = tuple(layer._replace(W=layer.W.dtype.type(scale) * layer.W) for layer in params)
            n = trained_for if epochs is None else epochs
            return fit(net, params, self.data, key=key, epochs=n, progress=progress, **arguments)

        return run


def _groups(given: _Given, tried: list[Settings]) -> list[tuple[np.ndarray, Population]]:
    """Populations of the settings that share a program, with the numbers of their members."""
    marks = [(given.network(s), *(s.get(name) for name in SHARED)) for s in tried]
    groups = []
    for mark in dict.fromkeys(marks):
        index = np.flatnonzero([other == mark for other in marks])
        keys = jax.numpy.broadcast_to(given.key, (len(index),))
        entrants, _ = prepared(mark[0], given.data, keys=keys, **given.arguments([tried[i] for i in index]))
        groups += [(index[entrant.index], entrant.enter()) for entrant in entrants]
    return groups


def _kept(groups: list[tuple[np.ndarray, Population]], kept: np.ndarray) -> list[tuple[np.ndarray, Population]]:
    """The groups with only these settings."""
    left = []
    for index, population in groups:
        at = np.flatnonzero(np.isin(index, kept))
        if len(at) == len(index):
            left.append((index, population))
        elif len(at):
            left.append((index[at], population.select(at)))
    return left
