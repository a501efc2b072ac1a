"""The results of `fit` and `sweep`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Array, Float, Num, Shaped

from jaxmlp.activations import Activation
from jaxmlp.checked_files import FilePath
from jaxmlp.losses import Loss
from jaxmlp.network import MLP, Params
from jaxmlp.pickling import WithFunctions
from jaxmlp.tables import format_value, list_epochs, make_html, make_table
from jaxmlp.training import ensembles, population_file, selection
from jaxmlp.training.ensembles import Disagreement, Members
from jaxmlp.training.selection import Ensemble
from jaxmlp.training.state import TrainState
from jaxmlp.validate import Given, Preprocess

History = dict[str, np.ndarray]

SHOWN = 20  # rows of a table that is printed or shown


@dataclass(frozen=True, repr=False)
class Result:
    """The result of `fit`. `history` has one array a column, one entry an epoch: see `fit`."""

    params: Params  # the best on the validation examples; without any, the last; averages where `average` is given
    last_params: Params
    history: History
    best_epoch: int | None  # 1 is the first; None without validation
    stopped_early: bool  # by patience
    state: TrainState

    def __repr__(self) -> str:
        """The last epoch's numbers, without the arrays, which would fill pages."""
        last = {name: column[-1] for name, column in self.history.items() if len(column)}
        shown = [f"{name}={value:.4g}" for name, value in last.items() if np.ndim(value) == 0]
        stopped = ", stopped early" if self.stopped_early else ""
        return f"Result({', '.join(shown)}, best_epoch={self.best_epoch}{stopped})"

    def _repr_html_(self) -> str | None:
        """The last epochs and the best one; None leaves it to the text."""
        rows = list_epochs(self.history, self.best_epoch)
        return make_html(rows, None) if rows else None


def make_result(state: TrainState, history: History) -> Result:
    """The result of a run that ends in `state`."""
    best = state.best
    return Result(
        params=state.evaluated if best is None or int(best.epoch) == 0 else best.params,
        last_params=state.params,
        history=history,
        best_epoch=None if best is None else int(best.epoch),
        stopped_early=bool(state.stopped) and not bool(state.diverged) and (best is None or int(best.epoch) > 0),
        state=state,
    )


@dataclass(frozen=True, repr=False)
class SweepResult(WithFunctions):
    """The result of `sweep`. For a list of networks `params`, `last_params` and `states` are lists, one entry a member.

    `history` has `epoch (n,)` and columns `(n, E)`, NaN after a member's end. `scores (E,)` is the best score on the
    validation examples (the cost, or minus the accuracy); without any, the last cost. Lower is better; the score of a
    member that diverged is infinite.
    """

    params: Any  # member axis in front: the best on the validation examples; without any, the last
    last_params: Any
    history: History
    best_epoch: np.ndarray | None  # (E,); 1 is the first; None without validation
    stopped_early: np.ndarray  # (E,) by patience
    diverged: np.ndarray  # (E,)
    scores: np.ndarray  # (E,)
    epochs: np.ndarray  # (E,) how many each has in the history
    settings: dict[str, np.ndarray]  # those in which members differ, each (E,) or (E, K)
    states: Any  # None in a result of `load`
    net: MLP | tuple[MLP, ...] | None = None  # a tuple has one for each member; None: not known
    preprocess: Preprocess | None = None  # what the members trained with
    STAND_INS: ClassVar = {"net": None, "preprocess": population_file.unknown_preprocess}

    @property
    def best(self) -> int:
        """The member with the lowest score; ValueError where no score is finite."""
        if not np.isfinite(self.scores).any():
            raise ValueError(
                f"scores are all infinite: {np.sum(self.diverged)} of {len(self.scores)} members diverged; expected a "
                "lower learning rate, or examples that the network gives a finite cost"
            )
        return int(np.argmin(self.scores))

    def member(self, i: int) -> Result:
        """Member i's result, as `fit` would return it; a member that diverged has its last good weights."""
        i = ensembles.read_member(i, len(self.scores))
        of = lambda tree: tree[i] if isinstance(tree, list) else ensembles.take_member(tree, i)
        n = self.epochs[i]
        history = {name: column[:n] if column.ndim == 1 else column[:n, i] for name, column in self.history.items()}
        return Result(
            params=of(self.params),
            last_params=of(self.last_params),
            history={name: column for name, column in history.items() if not np.isnan(column).all()},
            best_epoch=None if self.best_epoch is None else int(self.best_epoch[i]),
            stopped_early=bool(self.stopped_early[i]),
            state=of(self.states),
        )

    def predict(
        self, X: Num[Given, "m ..."], members: Members = None, *, preprocess: Preprocess | None = None
    ) -> Float[Array, "e m k"]:
        """`y_hat` of each member for each example, as `jm.predict` gives it, in bounded memory beside the result.

        Args:
            X: the examples, in the form of the training examples.
            members: the numbers of some of them; all unless given. One that diverged has its last good weights.
            preprocess: another one than in training.
        Raises:
            ValueError: where an argument does not fit, or members differ in the number of their outputs.
        Example:
            >>> many = jm.sweep(net, (X, Y), keys=jax.random.split(key, 4), optimizer=optax.sgd,
            ...                 hyper={"learning_rate": 0.1}, epochs=2, progress=False)
            >>> many.predict(X).shape
            (4, 20, 10)
        """
        return ensembles.predict(self, X, members, preprocess)

    def ensemble(
        self,
        validation: tuple[Any, ...],
        size: int,
        replace: bool = True,
        by: Literal["loss", "accuracy"] = "loss",
        *,
        preprocess: Preprocess | None = None,
    ) -> Ensemble:
        """Chooses members whose mean predicts the validation examples best: greedily, one after another.

        The first 1 .. size of them with the best mean are kept, so it is at least as good there as the best member.

        Args:
            validation: examples `(X, Y)` or `(X, Y, weights)` that the members have not trained on.
            size: how many are chosen at most.
            replace: whether a member may be chosen several times, which gives it a larger share.
            by: "loss", the network's own of the mean prediction, or "accuracy". Of equals the lowest number is chosen.
            preprocess: another one than in training.
        Returns:
            `Ensemble(members, shares)`: their numbers, in the order of their choice, and their shares, which sum to 1.
        Raises:
            ValueError: where an argument does not fit, or all members diverged.
        Example:
            >>> many = jm.sweep(net, (X, Y), keys=jax.random.split(key, 4), optimizer=optax.sgd,
            ...                 hyper={"learning_rate": 0.1}, epochs=2, progress=False)
            >>> members, shares = many.ensemble((X, Y), size=3)
            >>> many.predict_mean(X, members, shares).shape, float(shares.sum())
            ((20, 10), 1.0)

        Source: Caruana et al. 2004, "Ensemble selection from libraries of models".
        """
        return selection.select(self, validation, size, replace, by, preprocess)

    def predict_mean(
        self,
        X: Num[Given, "m ..."],
        members: Members = None,
        shares: Shaped[Given, " e"] | Sequence[float] | None = None,
        *,
        preprocess: Preprocess | None = None,
    ) -> Float[Array, "m k"]:
        """`sum_e share_e y_hat_e`, the mean of the members' outputs: of classifiers, of their probabilities.

        Args:
            X: the examples, as the members trained on them.
            members: the numbers of some of them; unless given, all that did not diverge.
            shares: at least 0, one for each member, divided by their sum; equal ones unless given.
            preprocess: another one than in training.
        """
        return ensembles.disagree(self, X, members, shares, preprocess, entropy=False).mean

    def disagreement(
        self,
        X: Num[Given, "m ..."],
        members: Members = None,
        shares: Shaped[Given, " e"] | Sequence[float] | None = None,
        *,
        preprocess: Preprocess | None = None,
    ) -> Disagreement:
        """The mean of the members' outputs, and how far they are apart on each example.

        Args: those of `predict_mean`.
        Returns:
            `Disagreement(mean, spread, mutual_information)`. `spread = sum_e share_e (y_hat_e - mean)^2`. Of
            probabilities `mutual_information = H(mean) - sum_e share_e H(y_hat_e)` in nats, with the entropy H of a
            distribution over classes, or the sum of those of single outputs; None for a regression.

        Source: Houlsby et al. 2011, "Bayesian active learning for classification and preference learning".
        """
        return ensembles.disagree(self, X, members, shares, preprocess)

    def save(self, path: FilePath) -> None:
        """Writes the population to one file, bit for bit, atomically and with a checksum, as `jm.save` does.

        The file holds all fields but `states`, with the optimizers' states, and `preprocess`, which is a function.

        Args:
            path: the file, new or to replace.
        Raises:
            ValueError: where the network is not known, or has a function with the name of another one.
            FileNotFoundError: where the folder does not exist.
        Example:
            >>> many = jm.sweep(net, (X, Y), keys=jax.random.split(key, 4), optimizer=optax.sgd,
            ...                 hyper={"learning_rate": 0.1}, epochs=2, progress=False)
            >>> many.save("many.safetensors")
            >>> jm.SweepResult.load("many.safetensors").best == many.best
            True
        """
        population_file.write(path, self)

    @classmethod
    def load(cls, path: FilePath, own: Sequence[Activation | Loss] = ()) -> "SweepResult":
        """Reads a population from a file of `save`. Its `states` are None.

        If the members trained with a preprocess, predictions ask for it: `many.predict(X, preprocess=scale_pixels)`.

        Args:
            path: the file.
            own: activations and losses of the networks that are not jaxmlp's.
        Raises:
            ValueError: where the file is truncated, corrupt or of another kind, where a function of a network is
                neither jaxmlp's nor in `own`, and for float64 if JAX has it switched off.
            FileNotFoundError: where there is no such file.
        """
        return cls(**population_file.read(path, own))

    def rows(self) -> list[dict[str, Any]]:
        """A row for each member, the best score first: its own settings, its best (or last) epoch, its scores there."""
        at = np.maximum(self.epochs if self.best_epoch is None else self.best_epoch, 1) - 1
        columns = {name: column for name, column in self.history.items() if column.ndim == 2}
        rows = []
        for i in np.argsort(self.scores, kind="stable"):
            end = "diverged" if self.diverged[i] else f"stopped at {self.epochs[i]}" if self.stopped_early[i] else ""
            rows.append(
                {"member": int(i), **{name: values[i] for name, values in self.settings.items()},
                 "epoch": int(at[i] + 1), **{name: float(column[at[i], i]) for name, column in columns.items()},
                 "end": end}
            )  # fmt: skip
        return rows

    def table(self, most: int | None = None) -> str:
        """The first `most` of `rows` in columns."""
        return make_table(self.rows(), most)

    def __repr__(self) -> str:
        """One line; the table is `str(many)`."""
        best = {name: value for name, value in self.rows()[0].items() if np.ndim(value) == 0 and value != ""}
        shown = ", ".join(f"{name}={format_value(name, value)}" for name, value in best.items())
        shown = shown if np.isfinite(self.scores).any() else "none"
        ends = {"diverged": np.sum(self.diverged), "stopped early": np.sum(self.stopped_early)}
        told = "".join(f"; {count} {end}" for end, count in ends.items() if count)
        return f"SweepResult({len(self.scores):,} members{told}; best: {shown})"

    def __str__(self) -> str:
        return self.table(SHOWN)

    def _repr_html_(self) -> str:
        return make_html(self.rows(), SHOWN)
