"""`search`: settings chosen on the validation examples, by grid, at random, and by successive halving.

Sources: notes 002, "Hyperparameters"; Bergstra and Bengio 2012, "Random search for hyper-parameter optimization";
Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization".
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from jaxmlp import penalties, search_space, validate
from jaxmlp.network import MLP, init
from jaxmlp.tables import make_html, make_table
from jaxmlp.training._fit import fit
from jaxmlp.training._sweep import choose_dtype, form_groups, sweep
from jaxmlp.training.examples import Axis
from jaxmlp.training.for_all import for_all
from jaxmlp.training.halving import choose_rungs
from jaxmlp.training.joining import join
from jaxmlp.training.population import Population
from jaxmlp.training.reporting import show as show_progress
from jaxmlp.training.result import SHOWN, Result
from jaxmlp.training.settings import TABLE, Context
from jaxmlp.training.state import Optimizer

PENALTIES = {"l2": penalties.l2, "l1": penalties.l1, "max_norm": penalties.max_norm}
STRENGTHS = tuple(name for name, row in TABLE.items() if row.searched and row.by_member)
COMPILED_IN = tuple(name for name, row in TABLE.items() if row.searched and not row.by_member)
OWN = ("net", "data", "keys", "epochs", "optimizer", "validation", "progress", "checkpoints", "checkpoint_every")
FIXED = tuple(name for name in inspect.signature(sweep).parameters if name not in OWN)
OF_FIT = tuple(name for name in inspect.signature(fit).parameters if name != "mesh")  # a sweep's has other axes

Settings = dict[str, Any]


@dataclass(frozen=True, repr=False)
class SearchResult:
    """The result of `search`: the settings it tried, in the order it drew them, and their scores."""

    trials: list[Settings]
    scores: np.ndarray  # the best on validation: the cost, or minus the accuracy; infinite: diverged
    epochs: np.ndarray  # how many each was trained for
    best: int
    result: Result  # of the best settings, as the search trained them
    retrain: Callable[..., Result]  # the best settings by `fit`, from scratch: `retrain(key=None, epochs=None)`

    @property
    def settings(self) -> Settings:
        """The best ones."""
        return self.trials[self.best]

    def order(self) -> np.ndarray:
        """The trials, the best first: more epochs come first, then a lower score."""
        return np.lexsort((self.scores, -self.epochs))

    def rows(self) -> list[dict[str, Any]]:
        """A row for each trial, in `order`: its settings, its epochs, its score."""
        return [
            {"trial": int(i), **self.trials[i], "epochs": self.epochs[i], "score": self.scores[i]} for i in self.order()
        ]

    def table(self, most: int | None = None) -> str:
        """The first `most` of `rows` in columns."""
        return make_table(self.rows(), most)

    def __repr__(self) -> str:
        """One line; the table is `str(found)`."""
        score = f"score {self.scores[self.best]:.4g} after {self.epochs[self.best]} epochs"
        return f"SearchResult({len(self.trials):,} trials; best: {self.settings}, {score})"

    def __str__(self) -> str:
        return self.table(SHOWN)

    def _repr_html_(self) -> str:
        return make_html(self.rows(), SHOWN)


def search(
    space: search_space.Space,
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
    """Finds the best settings of a space on the validation examples; settings of one shape train together.

    All start from one key and see the same batches. With `budget`, by successive halving: of n settings `S_0`, in rung
    `k = 0 .. ceil(log2 n) - 1` each of `S_k` trains for `floor(B / (|S_k| ceil(log2 n)))` epochs more, and the better
    half is `S_(k+1)`.

    Args:
        space: a dict from names to lists of values or distributions, such as `jm.log_uniform(1e-3, 1)`, which are
            functions from u in [0, 1) to a value. A name is an argument of `net`, where that is a function; or `l2`,
            `l1`, `max_norm`, or a setting that the table of settings marks as searched, such as `keep` or `batch_size`;
            or an argument of the factory `optimizer`.
        net: a network, or a function that makes one of settings.
        validation: the examples that judge the settings.
        trials: the number of settings, drawn at random; without it, the grid of all lists.
        epochs: all train for that many.
        budget: the number of epochs of all settings together.
        fixed: the other arguments of `sweep`.
    Returns:
        A SearchResult; printed, it is a table. `retrain()` trains the best settings once more by `fit`: the same key
        gives the same weights to rounding, another key another start.
    Raises:
        ValueError: for bad input, before anything compiles; and where all settings diverge.
    Example:
        >>> found = jm.search({"learning_rate": [0.01, 0.1], "width": [8, 16]},
        ...                   lambda width: jm.MLP((784, width, 10), output="softmax", loss="cross_entropy"),
        ...                   (X, Y), validation=(X, Y), optimizer=optax.sgd, epochs=1, key=key, progress=False)
        >>> len(found.trials)
        4

    Source: Jamieson and Talwalkar 2016, Successive Halving.
    """
    for name in fixed:
        validate.one_of(name, FIXED, "a further argument of search")
    if validation is None:
        raise ValueError("validation is None, expected examples (X, Y) to choose the settings by")
    TABLE["hyper"].read(fixed.get("hyper"), "hyper", Context((), Axis()))
    draw_key, key = jax.random.split(validate.key(key))
    names = search_space.check(space)
    _refuse_twice(names, fixed)
    _refuse_unknown(names, net, optimizer)
    if trials is None:
        tried = search_space.list_grid(names)
    else:
        tried = search_space.draw_settings(names, draw_key, validate.whole(trials, "trials"))
    rungs = choose_rungs(len(tried), epochs, budget)
    given = _Given(net, data, optimizer, validation, key, fixed)
    groups = _begin_groups(given, tried)
    reached, scores = np.zeros(len(tried), int), np.full(len(tried), np.inf)
    with show_progress(len(rungs), "rung", progress) as show:
        for number, (survivors, more) in enumerate(rungs, start=1):
            for index, population in groups:
                population.train(more, lambda *_: None)
                scores[index], reached[index] = population.scores, reached[index] + more
            alive = np.unique(np.concatenate([index for index, _ in groups]))
            summary = {"settings": len(alive), "epochs": int(reached[alive].max()), "best score": float(scores.min())}
            show(number, summary)
            kept = alive[np.lexsort((alive, scores[alive]))][:survivors]
            groups = _select(groups, kept)
    if not np.isfinite(scores).any():
        raise ValueError(f"space has {len(tried)} settings here that all diverged, expected lower learning rates")
    ((index, population),) = groups
    if not np.isfinite(scores[index[0]]):
        raise ValueError(
            f"space has {len(tried)} settings here, and those of the last rung all diverged, expected lower learning "
            "rates"
        )
    result = join([(index, population)], {}, stacked=True).member(0)
    best = int(index[0])
    return SearchResult(tried, scores, reached, best, result, partial(given.retrain, tried[best], int(reached[best])))


def _refuse_twice(names: dict[str, Any], fixed: dict[str, Any]) -> None:
    for name in names:
        if name in fixed or name in (fixed.get("hyper") or {}):
            raise ValueError(f"{name} is given and in the space, expected one of them")
        if name in PENALTIES and fixed.get("penalties"):
            raise ValueError(f"penalties are given and {name} is in the space, expected one of them")


def _refuse_unknown(names: dict[str, Any], net: Any, optimizer: Any) -> None:
    """Refuses a name that neither the network, the table of settings nor the optimizer's factory takes."""
    if isinstance(optimizer, optax.GradientTransformation):
        taken = {}
    else:
        try:
            taken = inspect.signature(optimizer).parameters
        except (TypeError, ValueError):  # no signature to read: the call decides
            return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    of_net = () if isinstance(net, MLP) or not callable(net) else inspect.signature(net).parameters
    known = tuple(dict.fromkeys((*of_net, *PENALTIES, *STRENGTHS, *COMPILED_IN, *taken)))
    for name in names:
        if name not in known and isinstance(optimizer, optax.GradientTransformation):
            raise ValueError(
                f"space has {name!r}, but optimizer is made already: expected a factory such as optax.sgd, or one of "
                f"{', '.join(map(repr, known))}"
            )
        validate.one_of(name, known, "a name of space")


@dataclass(frozen=True)
class _Given:
    """The arguments of a search, and the part of a trial's settings that each of them takes."""

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

    def arguments(self, many: list[Settings], members: bool) -> dict[str, Any]:
        """The arguments of `sweep` for settings that share a program; those of `fit` for a single one, no `members`."""
        first, own = many[0], self.own(many[0])
        column = lambda name: [s[name] for s in many] if len(many) > 1 else first[name]
        by_layer = lambda name: members and np.ndim(first[name]) == 1  # for one setting, too, as a row of its own
        each = lambda name: [s[name] for s in many] if by_layer(name) else column(name)
        made = {name: each(name) for name in STRENGTHS if name in first and name not in own}
        made |= {name: first[name] for name in COMPILED_IN if name in first and name not in own}
        added = tuple(make(each(name)) for name, make in PENALTIES.items() if name in first and name not in own)
        if added:
            made["penalties"] = added
        rest = [name for name in first if not (name in own or name in made or name in PENALTIES)]
        hyper = {**(self.fixed.get("hyper") or {}), **{name: column(name) for name in rest}}
        fixed = for_all(self.fixed, self.network(first)) if members else self.fixed
        return {**fixed, **made, "hyper": hyper or None, "optimizer": self.optimizer,
                "validation": self.validation}  # fmt: skip

    def retrain(
        self,
        settings: Settings,
        trained_for: int,
        key: PRNGKeyArray | None = None,
        epochs: int | None = None,
        progress: bool = True,
    ) -> Result:
        """The settings by `fit`, from scratch."""
        key, net = self.key if key is None else key, self.network(settings)
        arguments = self.arguments([settings], members=False)
        arguments = {name: value for name, value in arguments.items() if name in OF_FIT}
        initial: Any = self.fixed.get("initial", settings.get("initial", "he"))
        dtype = choose_dtype(None, self.data, self.fixed.get("preprocess"))
        params: Any = initial if isinstance(initial, tuple | list) else init(net, key, initial, dtype=dtype)
        scale = self.fixed.get("scale", settings.get("scale", 1.0))
        params = tuple(layer._replace(W=layer.W.dtype.type(scale) * layer.W) for layer in params)
        n = trained_for if epochs is None else epochs
        return fit(net, params, self.data, key=key, epochs=n, progress=progress, **arguments)


def _begin_groups(given: _Given, tried: list[Settings]) -> list[tuple[np.ndarray, Population]]:
    """Populations of the settings that share a program, with the numbers of their members."""
    marks = [(given.network(s), *(s.get(name) for name in COMPILED_IN)) for s in tried]
    defaults = {name: p.default for name, p in inspect.signature(sweep).parameters.items() if p.default is not p.empty}
    begun = []
    for mark in dict.fromkeys(marks):
        index = np.flatnonzero([other == mark for other in marks])
        keys = jax.numpy.broadcast_to(given.key, (len(index),))
        arguments = given.arguments([tried[i] for i in index], members=True)
        groups, _ = form_groups({**defaults, "net": mark[0], "data": given.data, "keys": keys, **arguments}, index)
        begun += [(index[group.index], group.begin()) for group in groups]
    return begun


def _select(groups: list[tuple[np.ndarray, Population]], kept: np.ndarray) -> list[tuple[np.ndarray, Population]]:
    """The groups with only these settings."""
    left = []
    for index, population in groups:
        at = np.flatnonzero(np.isin(index, kept))
        if len(at) == len(index):
            left.append((index, population))
        elif len(at):
            left.append((index[at], population.select(at)))
    return left
