"""What both estimators share: scikit-learn's fit, epoch by epoch, over the compiled ones."""

import warnings
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxmlp._forward import _predict
from jaxmlp.interop import sklearn_inputs as inputs
from jaxmlp.interop import sklearn_lbfgs as lbfgs
from jaxmlp.interop import sklearn_network as networks
from jaxmlp.interop.sklearn_optimizers import Penalized
from jaxmlp.interop.sklearn_training import Memory, Training, choose_solver
from jaxmlp.network import MLP, Params, init
from jaxmlp.training.regularization import Regularization
from jaxmlp.training.state import Data
from jaxmlp.validate import Examples

MAX_SEED = 2**31 - 1


class BaseMLP(BaseEstimator):
    """The parts of `MLPClassifier` and `MLPRegressor` that are the same."""

    label_smoothing = 0.0  # of a regression

    if TYPE_CHECKING:  # the parameters, and what a fit leaves
        best_loss_: Any
        best_validation_score_: Any
        validation_scores_: Any

        def __getattr__(self, name: str) -> Any: ...

    @property
    def net_(self) -> MLP:
        """The network as jaxmlp describes it."""
        check_is_fitted(self)
        return self._network()

    @property
    def params_(self) -> Params:
        """The weights as jaxmlp takes them, made of `coefs_` and `intercepts_`."""
        check_is_fitted(self)
        return jax.device_put(networks.to_params(self.coefs_, self.intercepts_))

    def _network(self) -> MLP:
        sizes = (self.coefs_[0].shape[0], *(len(b) for b in self.intercepts_))
        return networks.build(sizes, self.activation, self.out_activation_, self.products)

    def _store(self, given: dict[str, Any]) -> None:
        """Sets the parameters of `__init__`."""
        for name, value in given.items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)

    def _fit(self, X: Any, y: Any, sample_weight: Any, validation: Any = None, incremental: bool = False) -> Any:
        if not (incremental and hasattr(self, "coefs_")):
            inputs.check_parameters(self)
        widths = inputs.read_widths(self.hidden_layer_sizes)
        first = not hasattr(self, "coefs_") or not (self.warm_start or incremental)
        X, Y, weights = self._read(X, y, sample_weight, incremental, first)
        self._random_state = check_random_state(self.random_state)
        if first:
            self._initialize((X.shape[1], *widths, self.n_outputs_), X.dtype)
        if (k := len(self.intercepts_[-1])) != self.n_outputs_:
            raise ValueError(f"y has {self.n_outputs_} outputs, expected the {k} of the previous call")
        if self.solver == "lbfgs":
            self._fit_lbfgs(X, Y, weights, validation)
        else:
            self._fit_stochastic(X, Y, weights, validation, incremental)
        if not all(np.isfinite(array).all() for array in [*self.coefs_, *self.intercepts_]):
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                "preprocessed, or learning_rate_init may be too large."
            )
        return self

    def _initialize(self, sizes: tuple[int, ...], dtype: Any) -> None:
        """Draws the first weights, and forgets what earlier calls have learned."""
        self.n_iter_, self.t_, self.n_layers_ = 0, 0, len(sizes)
        self.out_activation_ = self._choose_output()
        if self.weights is None:
            self.coefs_, self.intercepts_ = networks.draw_coefs(self._random_state, sizes, self.activation, dtype)
        else:
            net = networks.build(sizes, self.activation, self.out_activation_, self.products)
            key = jax.random.key(self._random_state.randint(MAX_SEED))
            self.coefs_, self.intercepts_ = networks.to_coefs(init(net, key, self.weights, dtype=dtype))
        if hasattr(self, "loss_curve_"):
            del self.loss_curve_

    @property
    def _share(self) -> float:
        """scikit-learn reports the mean of the outputs' squared errors."""
        return 1 / self.n_outputs_ if self.out_activation_ == "identity" else 1.0

    def _fit_lbfgs(self, X: Any, Y: Any, weights: Any, validation: Any) -> None:
        if validation is not None or np.any(self.dropout):
            raise ValueError("validation and dropout go with a stochastic solver, but solver is 'lbfgs'")
        smoothing = self.label_smoothing or None
        options = {"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol}
        self.coefs_, self.intercepts_, self.loss_, self.n_iter_ = lbfgs.minimize(
            self._network(), self.coefs_, self.intercepts_, Examples(X, Y, weights), float(self.alpha), self._share,
            smoothing, options,
        )  # fmt: skip

    def _fit_stochastic(self, X: Any, Y: Any, weights: Any, validation: Any, incremental: bool) -> None:
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        held_out = None if validation is None else self._read_validation(validation)
        if self.early_stopping and held_out is None:
            (X, Y, weights), held_out = self._hold_out(X, Y, weights)
        if held_out is not None:
            held_out = jax.device_put(held_out[0]), *held_out[1:]
        training = self._start_training(X, Y, weights, incremental)
        self._start_history(held_out is not None, anew=validation is not None)
        order = np.arange(len(X))
        try:
            self.n_iter_ = 0
            while self.n_iter_ < self.max_iter:
                if self.shuffle:
                    order = _shuffle(order, self._random_state)
                self._end_epoch(training.run(order) / len(X), len(X))
                self._count_failures(training, held_out)
                self._optimizer.end_epoch(self.t_)
                if self._no_improvement_count > self.n_iter_no_change and self._is_over(held_out is not None):
                    break
                if incremental:
                    break
                if self.n_iter_ == self.max_iter:
                    warnings.warn(
                        f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization "
                        "hasn't converged yet.",
                        ConvergenceWarning,
                        stacklevel=4,
                    )
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=4)
        self.coefs_, self.intercepts_ = networks.to_coefs(training.params)
        if held_out is not None:
            self.coefs_, self.intercepts_ = self._best_coefs, self._best_intercepts
        training.remember()

    def _start_training(self, X: Any, Y: Any, weights: Any, incremental: bool) -> Training:
        """The examples on the device, and the state to go on from."""
        net = self._network()
        make, numbers = choose_solver(self, net)
        if not incremental or not hasattr(self, "_optimizer"):
            schedule = "constant" if self.solver == "adam" else self.learning_rate
            ours = self.solver not in ("sgd", "adam") or np.any(self.dropout)  # these draw in ways of their own
            seed = int(self._random_state.randint(MAX_SEED)) if ours else 0
            self._optimizer = Memory(numbers, schedule, self.power_t, seed)
        if self._optimizer.numbers.keys() != numbers.keys():
            raise ValueError(f"solver is {self.solver!r}, expected the one of the calls of partial_fit before")
        batch_size = min(200, len(X)) if self.batch_size == "auto" else self.batch_size
        if batch_size > len(X):
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=5
            )
        strength: Any = lambda value: None if value is None else np.asarray(value, X.dtype)
        regularization = Regularization(
            keep=strength(inputs.read_keep(self.dropout, net.depth)),
            label_smoothing=strength(self.label_smoothing or None),
        )
        params = networks.to_params(self.coefs_, self.intercepts_, X.dtype)
        return Training(net, self._optimizer, Penalized(make, self._share), params, Data(X, Y, weights), regularization,
                        min(int(batch_size), len(X)), float(self.alpha))  # pyright: ignore # fmt: skip

    def _read_validation(self, given: Any) -> tuple[Any, Any, Any]:
        X, y, weights = inputs.read_validation(given)
        try:
            X, Y = self._read_held_out(X, y)
            return X, Y, inputs.read_sample_weight(weights, X, X.dtype)
        except ValueError as error:
            raise ValueError(f"validation: {error}") from None

    def _hold_out(self, X: Any, Y: Any, weights: Any) -> tuple[tuple, tuple]:
        """scikit-learn's split for `early_stopping`: the training examples, and the others."""
        stratify = Y.astype(bool) if self.out_activation_ == "logistic" and self.n_outputs_ == 1 else None
        train, rest = train_test_split(
            np.arange(len(X)), random_state=self._random_state, test_size=self.validation_fraction, stratify=stratify
        )
        if len(rest) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        take = lambda index: (X[index], Y[index], None if weights is None else weights[index])
        return take(train), take(rest)

    def _start_history(self, validated: bool, anew: bool) -> None:
        """What a warm start or `partial_fit` goes on with, where it is there; costs or validation scores decide.

        `anew` forgets earlier scores, which were on other validation examples: weights that scored well there alone
        would win over all of this fit. scikit-learn, whose sets are its own, goes on.
        """
        if not hasattr(self, "loss_curve_"):
            self.loss_curve_, self._no_improvement_count, self.best_loss_ = [], 0, np.inf
            self.validation_scores_ = self.best_validation_score_ = None
        if not validated:
            self.best_loss_ = np.inf if self.best_loss_ is None else self.best_loss_
            return
        self.best_loss_ = None
        if anew:
            self._no_improvement_count, self.validation_scores_ = 0, None
        if self.validation_scores_ is None:
            self.validation_scores_, self.best_validation_score_ = [], -np.inf
            self._best_coefs = [W.copy() for W in self.coefs_]
            self._best_intercepts = [b.copy() for b in self.intercepts_]

    def _end_epoch(self, cost: float, m: int) -> None:
        """Notes the mean cost of an epoch over m examples."""
        self.n_iter_ += 1
        self.t_ += m
        self.loss_ = cost
        self.loss_curve_.append(cost)
        if self.verbose:
            print(f"Iteration {self.n_iter_}, loss = {cost:.8f}")

    def _count_failures(self, training: Training, held_out: tuple | None) -> None:
        """Counts the epochs in a row without a better cost, or without a better validation score."""
        if held_out is None:
            failed = self.loss_ > self.best_loss_ - self.tol
            self.best_loss_ = self.loss_ if self.loss_ < self.best_loss_ else self.best_loss_
        else:
            failed = self._validate(training, *held_out)
        self._no_improvement_count = self._no_improvement_count + 1 if failed else 0

    def _validate(self, training: Training, X: Any, Y: Any, weights: Any) -> bool:
        """Scores the weights and keeps the best; whether the score is no better than the best one."""
        score = self._score_outputs(np.asarray(_predict(training.plan.net, training.params, X, None)), Y, weights)
        self.validation_scores_.append(score)
        if self.verbose:
            print(f"Validation score: {score:f}")
        failed = score < self.best_validation_score_ + self.tol
        if score > self.best_validation_score_:
            self.best_validation_score_ = score
            self._best_coefs, self._best_intercepts = networks.to_coefs(training.params)
        return failed

    def _is_over(self, validated: bool) -> bool:
        """Whether so many failures end the fit, or a smaller rate goes on."""
        kind = "Validation score" if validated else "Training loss"
        message = f"{kind} did not improve more than tol={self.tol:f} for {self.n_iter_no_change} consecutive epochs."
        over = self._optimizer.is_over(message, self.verbose)
        if not over:
            self._no_improvement_count = 0
        return over

    def _outputs(self, X: Any) -> np.ndarray:
        """The network's outputs `(m, k)`, from `coefs_` and `intercepts_` as they are now."""
        check_is_fitted(self)
        inputs.refuse_masked(X=X)
        X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype=self.coefs_[0].dtype, reset=False)
        if networks.is_fast(self.activation, self.products):
            return networks.propagate_fast(X, self.coefs_, self.intercepts_, self.activation, self.out_activation_)
        return networks.propagate(self._network(), self.coefs_, self.intercepts_, inputs.densify(X))

    def _is_stochastic(self) -> bool:
        """Whether `partial_fit` exists."""
        if self.solver == "lbfgs":
            raise AttributeError("partial_fit is only available for stochastic optimizers. lbfgs is not stochastic.")
        return True

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _shuffle(order: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """`sklearn.utils.shuffle` to the bit; its checks take longer than an epoch of a small network."""
    index = np.arange(len(order))
    random.shuffle(index)
    return order[index]
