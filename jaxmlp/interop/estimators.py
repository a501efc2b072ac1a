"""scikit-learn's multilayer perceptrons, trained by jaxmlp: the same parameters, attributes and numbers."""

from typing import Any, Literal

import numpy as np
import optax
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import column_or_1d
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import type_of_target, unique_labels

from jaxmlp.activations import Activation
from jaxmlp.interop import sklearn_inputs as inputs
from jaxmlp.interop.sklearn_estimator import BaseMLP

Solver = str | optax.GradientTransformation | Any  # a name, an optax transformation, or a factory of one


class MLPClassifier(ClassifierMixin, BaseMLP):
    """scikit-learn's `MLPClassifier`, trained by jaxmlp.

    All its parameters mean the same, and the same `random_state` gives the same first weights, batches and validation
    split: results agree to rounding. float32 is the dtype unless X is float64 and `jax_enable_x64` is on; L-BFGS runs
    in float64. A fit compiles one program for the shapes of its data, and candidates of a grid search that differ in
    numbers share it.

    Args:
        activation: also "sigmoid", "leaky_relu", "elu", "softplus", "gelu", "silu", or an `Activation`.
        solver: also "kfac", an optax transformation, whose updates are added, or a factory such as `optax.lion`, which
            takes `learning_rate_init`. The schedules of `learning_rate` hold for all but "adam".
        class_weight: a dict `{label: weight}`, 1 for the others, or "balanced"; it multiplies `sample_weight`. A list
            of dicts, one for each column of a y of several labels.
        dropout: the probability of dropping an entry of the inputs and hidden layers, or one for each of these.
        label_smoothing: the share of each label that is spread over all classes.
        weights: a name of `jm.init`'s, such as "he"; unless given scikit-learn's uniform weights are drawn.
        products: the precision of matrix products, as in `MLP`.
    Example:
        >>> from jaxmlp.interop import MLPClassifier
        >>> classifier = MLPClassifier((8,), solver="sgd", max_iter=200, tol=0.1, random_state=0).fit(X, Y)
        >>> classifier.predict_proba(X).shape
        (20, 9)
        >>> classifier.net_  # nine classes are in Y
        MLP(784-8-9, hidden=relu, output=softmax, loss=cross_entropy)
    """

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: str | Activation = "relu",
        *,
        solver: Solver = "adam",
        alpha: float = 0.0001,
        batch_size: int | Literal["auto"] = "auto",
        learning_rate: Literal["constant", "invscaling", "adaptive"] = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        class_weight: Any = None,
        dropout: Any = 0.0,
        label_smoothing: float = 0.0,
        weights: Any = None,
        products: Literal["bfloat16", "tensorfloat32"] | None = None,
    ):
        self._store(locals())

    def fit(self, X: Any, y: Any, sample_weight: Any = None, validation: Any = None) -> "MLPClassifier":
        """Trains the network.

        Args:
            X: the examples `(m, n)`: an array, a DataFrame, or a sparse matrix, which becomes a dense one.
            y: their labels `(m,)`, or `(m, k)` of 0 and 1 where an example may have several.
            sample_weight: a weight for each example; a batch descends `sum w g / sum w`.
            validation: `(X, y)` or `(X, y, sample_weight)`, which takes the place of the examples that
                `early_stopping` holds out: this call's best weights on them are kept.
        """
        return self._fit(X, y, sample_weight, validation)

    @available_if(lambda estimator: estimator._is_stochastic())
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> "MLPClassifier":
        """Trains for one epoch, from where the last call has ended; the first call names all `classes`."""
        if self.class_weight == "balanced":
            raise ValueError("class_weight 'balanced' is not supported for partial_fit, expected a dict: see "
                             "compute_class_weight('balanced', classes=classes, y=y)")  # fmt: skip
        known = getattr(self, "classes_", None)
        if known is None and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        if known is None:
            self.classes_ = unique_labels(classes)
            self._label_binarizer = LabelBinarizer()
            self._label_binarizer.fit(y if type_of_target(y).startswith("multilabel") else classes)
        elif classes is not None and not np.array_equal(known, unique_labels(classes)):
            raise ValueError(f"`classes={classes!r}` is not the same as on last call to partial_fit, was: {known!r}")
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> Any:
        """The labels `(m,)`, or `(m, k)` of 0 and 1 where an example may have several, sparse if they came so."""
        outputs = self._outputs(X)
        return self._label_binarizer.inverse_transform(outputs.ravel() if self.n_outputs_ == 1 else outputs)

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probabilities `(m, k)` of the classes, in the order of `classes_`."""
        outputs = self._outputs(X)
        return np.hstack([1 - outputs, outputs]) if self.n_outputs_ == 1 else outputs

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithms of the probabilities."""
        probabilities = self.predict_proba(X)
        return np.log(probabilities, out=probabilities)

    def _choose_output(self) -> str:
        return "softmax" if self._label_binarizer.y_type_ == "multiclass" else "logistic"

    def _read(self, X: Any, y: Any, sample_weight: Any, incremental: bool, reset: bool) -> tuple:
        """The examples, their classes `(m,)` or rows of 0 and 1 `(m, k)`, and their weights."""
        X, y = inputs.read_examples(self, X, y, reset)
        y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._label_binarizer = LabelBinarizer().fit(y)
            self.classes_ = self._label_binarizer.classes_
        else:
            self._check_classes(unique_labels(y))
        weights = inputs.read_sample_weight(sample_weight, X, X.dtype)
        if self.class_weight is not None:
            own = self._weigh_classes(y).astype(X.dtype)
            weights = own if weights is None else weights * own
            if not incremental and not weights.any():
                raise ValueError("class_weight and sample_weight give no example a weight above 0")
        return X, self._encode(y), weights

    def _check_classes(self, classes: np.ndarray) -> None:
        """Refuses classes that the fitted network does not have."""
        if self.warm_start and set(classes) != set(self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. Previously "
                f"got {self.classes_}, `y` has {classes}"
            )
        if len(np.setdiff1d(classes, self.classes_, assume_unique=True)):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {classes}."
            )

    def _encode(self, y: Any) -> np.ndarray:
        rows = self._label_binarizer.transform(y)
        self.n_outputs_ = rows.shape[1]
        several = self._label_binarizer.y_type_ == "multiclass"
        return rows.argmax(axis=1).astype(np.int32) if several else rows.astype(np.uint8)

    def _weigh_classes(self, y: Any) -> np.ndarray:
        """Each example's weight by its class."""
        given = self.class_weight
        if given != "balanced":
            for weights in given if isinstance(given, list) else [given]:
                inputs.check_class_weights(weights)
        if isinstance(given, list) and y.ndim == 1:
            raise ValueError(f"class_weight is {given}, expected a dict of weights by class, or 'balanced'")
        if not isinstance(given, dict) or y.ndim == 2:
            return compute_sample_weight(given, y)
        if unknown := [label for label in given if label not in self.classes_]:
            raise ValueError(f"class_weight names {unknown}, expected classes of y: {self.classes_}")
        each = np.array([given.get(label, 1.0) for label in self.classes_.tolist()])
        return each[np.searchsorted(self.classes_, y)]

    def _read_held_out(self, X: Any, y: Any) -> tuple[Any, Any]:
        X, y = inputs.read_examples(self, X, y, reset=False)
        if self._label_binarizer.y_type_.startswith("multilabel"):
            if y.shape != (len(X), self.n_outputs_) or not np.isin(y, (0, 1)).all():
                raise ValueError(f"y has shape {y.shape}, expected {(len(X), self.n_outputs_)} of 0 and 1")
            return X, self._encode(y)
        y = column_or_1d(y, warn=True)
        if (unknown := np.setdiff1d(y, self.classes_)).size:
            raise ValueError(f"y has the classes {unknown}, expected those of training: {self.classes_}")
        return X, self._encode(y)

    def _score_outputs(self, outputs: np.ndarray, Y: np.ndarray, weights: np.ndarray | None) -> float:
        """The accuracy; several labels of one example are right together."""
        right = outputs.argmax(axis=1) == Y if Y.ndim == 1 else ((outputs > 0.5) == Y).all(axis=1)
        return float(np.average(right, weights=weights))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPRegressor(RegressorMixin, BaseMLP):
    """scikit-learn's `MLPRegressor`, trained by jaxmlp.

    All its parameters mean the same, and those beside them are those of `MLPClassifier`.

    Args:
        loss: "squared_error", or "poisson" with `exp` as the output's activation.
        activation, solver, dropout, weights, products: see `MLPClassifier`.
    Example:
        >>> from jaxmlp.interop import MLPRegressor
        >>> regressor = MLPRegressor("squared_error", (8,), "gelu", max_iter=200, tol=1.0).fit(X, X[:, :2])
        >>> regressor.predict(X).shape
        (20, 2)
    """

    def __init__(
        self,
        loss: Literal["squared_error", "poisson"] = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: str | Activation = "relu",
        *,
        solver: Solver = "adam",
        alpha: float = 0.0001,
        batch_size: int | Literal["auto"] = "auto",
        learning_rate: Literal["constant", "invscaling", "adaptive"] = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool | int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        dropout: Any = 0.0,
        weights: Any = None,
        products: Literal["bfloat16", "tensorfloat32"] | None = None,
    ):
        self._store(locals())

    def fit(self, X: Any, y: Any, sample_weight: Any = None, validation: Any = None) -> "MLPRegressor":
        """Trains the network: the arguments are those of `MLPClassifier.fit`, with numbers `(m,)` or `(m, k)` as y."""
        return self._fit(X, y, sample_weight, validation)

    @available_if(lambda estimator: estimator._is_stochastic())
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> "MLPRegressor":
        """Trains for one epoch, from where the last call has ended."""
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> np.ndarray:
        """The numbers `(m,)`, or `(m, k)` for several outputs."""
        outputs = self._outputs(X)
        return outputs.ravel() if outputs.shape[1] == 1 else outputs

    def _choose_output(self) -> str:
        return "exp" if self.loss == "poisson" else "identity"

    def _read(self, X: Any, y: Any, sample_weight: Any, incremental: bool, reset: bool) -> tuple:
        X, y = inputs.read_examples(self, X, y, reset, y_numeric=True)
        y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        Y = inputs.read_numbers(y, X.dtype, self.loss)
        self.n_outputs_ = Y.shape[1]
        return X, Y, inputs.read_sample_weight(sample_weight, X, X.dtype)

    def _read_held_out(self, X: Any, y: Any) -> tuple[Any, Any]:
        X, y = inputs.read_examples(self, X, y, reset=False, y_numeric=True)
        Y = inputs.read_numbers(y, X.dtype, self.loss)
        if Y.shape[1] != self.n_outputs_:
            raise ValueError(f"y has {Y.shape[1]} outputs, expected {self.n_outputs_}")
        return X, Y

    def _score_outputs(self, outputs: np.ndarray, Y: np.ndarray, weights: np.ndarray | None) -> float:
        """The R^2; NaN where an output is not finite."""
        return float(r2_score(Y, outputs, sample_weight=weights)) if np.isfinite(outputs).all() else float("nan")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
