"""Cross-validation: every example is held out once, and all folds train in one program.

Source: Stone 1974, "Cross-validatory choice and assessment of statistical predictions".
"""

import inspect
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxmlp import validate
from jaxmlp.data import folds as draw_folds
from jaxmlp.network import MLP
from jaxmlp.tables import make_html, make_table
from jaxmlp.training._sweep import sweep
from jaxmlp.training.for_all import for_all
from jaxmlp.training.result import SweepResult
from jaxmlp.training.state import Optimizer

OWN = ("net", "data", "keys", "optimizer", "epochs", "validation", "weights", "progress")
FIXED = tuple(name for name in inspect.signature(sweep).parameters if name not in OWN)  # further arguments of `sweep`


@dataclass(frozen=True, repr=False)
class CrossValidation:
    """The result of `cross_validate`. With R repeats and k folds, member `r k + i` held out fold i of repeat r.

    `epochs` has the best mean over the members of what `best_by` names on the held-out examples: one choice for all, so
    it flatters less than each fold's own best epoch. Train for so many on all examples. `scores` are those after this
    epoch.
    """

    scores: dict[str, np.ndarray]  # by column of the history, such as "validation_cost", each (R k,); NaN: diverged
    epochs: int
    folds: int
    many: SweepResult

    @property
    def mean(self) -> dict[str, float]:
        """The mean of each score over the members."""
        return {name: float(values.mean()) for name, values in self.scores.items()}

    @property
    def deviation(self) -> dict[str, float]:
        """The deviation of each score between members: the sum of squares divided by `R k - 1`."""
        return {name: float(values.std(ddof=1)) for name, values in self.scores.items()}

    def rows(self) -> list[dict[str, Any]]:
        """A row for each member, then the mean and the deviation."""
        n = len(self.many.scores)
        at = lambda i: {"repeat": str(i // self.folds) if n > self.folds else "", "fold": str(i % self.folds)}
        each = [at(i) | {name: values[i] for name, values in self.scores.items()} for i in range(n)]
        ends = {"mean": self.mean, "deviation": self.deviation}
        return each + [{"repeat": "", "fold": name, **values} for name, values in ends.items()]

    def __repr__(self) -> str:
        """One line; the table is `str(found)`."""
        shown = [f"{name} {self.mean[name]:.4g} ± {self.deviation[name]:.2g}" for name in self.scores]
        return f"CrossValidation({len(self.many.scores)} members, {self.epochs} epochs: {', '.join(shown)})"

    def __str__(self) -> str:
        return make_table(self.rows(), None)

    def _repr_html_(self) -> str:
        return make_html(self.rows(), None)


def cross_validate(
    net: MLP,
    data: tuple[Any, Any],
    folds: int = 5,
    *,
    key: PRNGKeyArray,
    optimizer: Optimizer,
    epochs: int,
    repeats: int = 1,
    weights: Any = None,
    progress: bool = True,
    **fixed: Any,
) -> CrossValidation:
    """Trains a network once for each fold, on all the others, and scores it on that one: `sweep` with weights 0 and 1.

    Args:
        net: the network, which all folds train.
        data: the examples `(X, Y)`.
        folds: how many, from 2 to the number of examples. They are drawn at random, of sizes that differ by at most 1.
        key: draws the folds, each member's weights, and what training draws.
        optimizer, epochs: as of `sweep`.
        repeats: draws so many times other folds.
        weights: a weight of at least 0 for each example, `(m,)`, in training and in the scores; ones unless given.
        fixed: the other arguments of `sweep`, each one value for all members (or one by layer). With `patience` a fold
            ends by itself, and `epochs` is at most where the first one did.
    Returns:
        A CrossValidation with `scores`, `mean`, `deviation`, `epochs` and `many`, the SweepResult of all members;
        printed, it is a table.
    Raises:
        ValueError: for bad input, before anything compiles; and where all members diverge.
    Example:
        >>> found = jm.cross_validate(net, (X, Y), 4, key=key, optimizer=optax.sgd, hyper={"learning_rate": 0.1},
        ...                           epochs=2, progress=False)
        >>> found.scores["validation_accuracy"].shape, sorted(found.mean)
        ((4,), ['accuracy', 'cost', 'validation_accuracy', 'validation_cost'])

    Source: Stone 1974, "Cross-validatory choice and assessment of statistical predictions".
    """
    for name, own in (("validation", "makes the validation sets itself, of the folds"), ("keys", "draws them by key")):
        if name in fixed:
            raise ValueError(f"{name} is given, but cross_validate {own}; expected none")
    for name in fixed:
        validate.one_of(name, FIXED, "a further argument of cross_validate")
    if not isinstance(net, MLP):
        raise ValueError(f"net is {net!r}, expected an MLP: one network, which all folds train")
    fixed = for_all(fixed, net)
    if not isinstance(data, tuple) or len(data) != 2:
        got = f"a tuple of {len(data)}" if isinstance(data, tuple) else f"a {type(data).__name__}"
        raise ValueError(f"data is {got}, expected a tuple (X, Y)")
    X = validate.array(data[0], "X")
    m, R = X.shape[0] if X.ndim else 0, validate.whole(repeats, "repeats")
    k = validate.whole(folds, "folds", least=2)
    if k > m:
        raise ValueError(f"folds is {k}, expected at most one for each of the {m} examples")
    fold_key, train_key = jax.random.split(validate.key(key))
    W = np.concatenate([np.asarray(draw_folds(draw, m, k)) for draw in jax.random.split(fold_key, R)])
    own = np.ones(m) if weights is None else np.asarray(validate.example_weights(weights, m, jnp.result_type(float)))
    many = sweep(
        net, (X, data[1]), keys=jax.random.split(train_key, R * k), optimizer=optimizer, epochs=epochs,
        weights=own * W, validation=(X, data[1], own * (1 - W)), progress=progress, **fixed,
    )  # fmt: skip
    return _summarize(many, k, fixed.get("best_by", "cost"))


def _summarize(many: SweepResult, folds: int, best_by: str) -> CrossValidation:
    """The scores after the epoch that is best for the mean of those that did not diverge."""
    columns, sound = {name: column for name, column in many.history.items() if column.ndim == 2}, ~many.diverged
    each = columns[f"validation_{best_by}"][:, sound]
    curve = each.mean(1) if sound.any() else np.full(len(each), np.nan)  # NaN where a member has ended
    if not np.isfinite(curve).any():
        raise ValueError(
            f"no epoch gives the held-out examples a finite {best_by}: {np.sum(many.diverged)} of {len(many.scores)} "
            "members diverged, expected a lower learning rate"
        )
    curve = np.where(np.isfinite(curve), curve if best_by == "cost" else -curve, np.inf)
    at = int(np.argmin(curve))
    scores = {name: np.where(sound, column[at], np.nan) for name, column in columns.items()}
    return CrossValidation(scores, at + 1, folds, many)
