"""What users of the estimators pass: parameters and examples, checked in scikit-learn's words."""

import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import scipy.sparse
import sklearn
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, validate_data

from jaxmlp import arrays
from jaxmlp.activations import NAMED, Activation
from jaxmlp.initializers import VARIANCES
from jaxmlp.products import PRODUCTS

SOLVERS = ("lbfgs", "sgd", "adam", "kfac")
DENSE_LIMIT = 2**32  # bytes that a sparse matrix may take as a dense one


class Rule(NamedTuple):
    """What a parameter may be, in words and as a test."""

    words: str
    allows: Callable[[Any], bool]


def _real(least: float, most: float = math.inf, open_below: bool = False, open_above: bool = True) -> Rule:
    def allows(value: Any) -> bool:
        if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
            return False
        value = float(value)
        above = value > least if open_below else value >= least
        return bool(above and (value < most if open_above else value <= most))

    ends = "(" if open_below else "[", ")" if open_above else "]"
    return Rule(f"a float in the range {ends[0]}{float(least)}, {float(most)}{ends[1]}", allows)


def _whole(least: int) -> Rule:
    allows = lambda value: isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
    return Rule(f"an int in the range [{least}, inf)", allows)


def _either(*rules: Rule) -> Rule:
    return Rule(" or ".join(rule.words for rule in rules), lambda value: any(rule.allows(value) for rule in rules))


def _among(*names: str) -> Rule:
    allows = lambda value: isinstance(value, str) and value in names
    return Rule(f"a str among {{{', '.join(map(repr, sorted(names)))}}}", allows)


def _is_seed(value: Any) -> bool:
    try:
        check_random_state(value)
    except ValueError:
        return False
    return True


def _object(words: str, *kinds: Any) -> Rule:
    return Rule(words, lambda value: isinstance(value, kinds))


_none = Rule("None", lambda value: value is None)
_bool = _object("an instance of 'bool'", bool, np.bool_)
_callable = Rule("a callable", lambda value: callable(value) and not isinstance(value, str))
_seed = Rule("an int in the range [0, 4294967295], an instance of 'numpy.random.mtrand.RandomState' or None", _is_seed)
_widths = Rule("an array-like", lambda value: hasattr(value, "__iter__") and not isinstance(value, str))

RULES: dict[str, Rule] = {
    "hidden_layer_sizes": _either(_widths, _whole(1)),
    "activation": _either(_among(*(set(NAMED) - {"softmax"}), "logistic"), _object("an Activation", Activation)),
    "solver": _either(_among(*SOLVERS), _object("an optax transformation", optax.GradientTransformation), _callable),
    "alpha": _real(0),
    "batch_size": _either(_among("auto"), _whole(1)),
    "learning_rate": _among("constant", "invscaling", "adaptive"),
    "learning_rate_init": _real(0, open_below=True),
    "power_t": _real(0),
    "max_iter": _whole(1),
    "loss": _among("squared_error", "poisson"),
    "shuffle": _bool,
    "random_state": _seed,
    "tol": _real(0),
    "verbose": _either(_whole(0), _bool),
    "warm_start": _bool,
    "momentum": _real(0, 1, open_above=False),
    "nesterovs_momentum": _bool,
    "early_stopping": _bool,
    "validation_fraction": _real(0, 1),
    "beta_1": _real(0, 1),
    "beta_2": _real(0, 1),
    "epsilon": _real(0, open_below=True),
    "n_iter_no_change": _either(_whole(1), Rule("inf", lambda value: isinstance(value, float) and value == np.inf)),
    "max_fun": _whole(1),
    "class_weight": _either(_among("balanced"), _object("a dict or a list of them", dict, list), _none),
    "dropout": _either(_real(0, 1), _widths),
    "label_smoothing": _real(0, 1, open_above=False),
    "weights": _either(_among(*VARIANCES), _callable, _none),
    "products": _either(_among(*PRODUCTS), _none),
}


def check_parameters(estimator: Any) -> None:
    """Refuses a parameter that is none of what its rule allows."""
    if sklearn.get_config()["skip_parameter_validation"]:
        return
    for name, value in estimator.get_params(deep=False).items():
        rule = RULES.get(name)
        if rule is not None and not rule.allows(value):
            raise ValueError(
                f"The {name!r} parameter of {type(estimator).__name__} must be {rule.words}. Got {value!r} instead."
            )


def read_widths(given: Any) -> list[int]:
    """The widths of the hidden layers."""
    widths = list(given) if hasattr(given, "__iter__") else [given]
    if not all(isinstance(width, Integral) and not isinstance(width, bool) for width in widths):
        raise ValueError(f"hidden_layer_sizes is {given!r}, expected whole numbers")
    if np.any(np.array(widths) <= 0):
        raise ValueError(f"hidden_layer_sizes must be > 0, got {widths}.")
    return [int(width) for width in widths]


def check_class_weights(given: Any) -> None:
    """Refuses what is no dict of weights of at least 0."""
    if not isinstance(given, dict):
        raise ValueError(f"class_weight holds {given!r}, expected a dict of weights by class for each output")
    for label, weight in given.items():
        if not isinstance(weight, Real) or not 0 <= float(weight) < math.inf:
            raise ValueError(f"class_weight[{label!r}] is {weight!r}, expected a finite number of at least 0")


def read_keep(dropout: Any, depth: int) -> np.ndarray | None:
    """The probabilities of keeping an entry, the inputs' first; None without dropout."""
    try:
        rates = np.asarray(dropout, np.float32)
    except (TypeError, ValueError):  # such as texts
        rates = np.full(depth, np.nan)
    if rates.shape not in ((), (depth,)) or not ((rates >= 0) & (rates < 1)).all():
        raise ValueError(
            f"dropout is {dropout}, expected a rate in [0, 1), or {depth} such rates: for the inputs and hidden layers"
        )
    return None if not rates.any() else 1 - rates


def float_types(solver: Any) -> Any:
    """The types in which examples stay; others become the first. L-BFGS runs in float64 in any case."""
    wide = solver == "lbfgs" or jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    return (np.float64, np.float32) if wide else np.float32


def read_examples(estimator: Any, X: Any, y: Any, reset: bool, **how: Any) -> tuple[np.ndarray, Any]:
    """`X` as a dense array in the network's dtype, and `y` as scikit-learn reads it."""
    dtype = float_types(estimator.solver)
    refuse_masked(X=X, y=y)
    X, y = validate_data(
        estimator, X, y, accept_sparse=["csr", "csc"], multi_output=True, dtype=dtype, reset=reset, **how
    )
    return densify(X), y


def refuse_masked(**given: Any) -> None:
    """Refuses masked entries, whose mask scikit-learn drops."""
    for name, array in given.items():
        if isinstance(array, np.ma.MaskedArray):
            arrays.as_numpy(array, name)


def densify(X: Any) -> np.ndarray:
    """A sparse matrix as an array, if it is not too large."""
    if not scipy.sparse.issparse(X):
        return X
    size = X.shape[0] * X.shape[1] * X.dtype.itemsize
    if size > DENSE_LIMIT:
        raise ValueError(
            f"X is a sparse matrix {X.shape}, which takes {size / 2**30:.1f} GiB as a dense one, expected at most "
            f"{DENSE_LIMIT / 2**30:.0f} GiB: fit parts of it by partial_fit, or reduce its features first"
        )
    return X.toarray(order="C")


def read_numbers(y: np.ndarray, dtype: Any, loss: str) -> np.ndarray:
    """A regression's targets `(m, k)` in the network's dtype."""
    if loss == "poisson" and (y < 0).any():
        raise ValueError(f"y holds {y.min()}, expected values of at least 0 for loss='poisson'")
    y = arrays.narrow(np.asarray(y, np.float64), np.dtype(dtype), "y")
    return y.reshape(-1, 1) if y.ndim == 1 else y


def read_sample_weight(given: Any, X: np.ndarray, dtype: Any) -> np.ndarray | None:
    """A weight `(m,)` for each example, in scikit-learn's words."""
    if given is None:
        return None
    m = len(X)
    refuse_masked(sample_weight=given)
    given = np.full(m, given) if isinstance(given, Real) else given
    try:
        weights = check_array(given, ensure_2d=False, dtype=dtype, order="C", input_name="sample_weight")
    except (TypeError, ValueError) as error:
        if "sample_weight" in str(error):
            raise
        raise ValueError(f"sample_weight: {error}") from None
    if weights.ndim != 1:
        raise ValueError(
            f"Sample weights must be 1D array or scalar, got {weights.ndim}D array. Expected either a scalar value or "
            f"a 1D array of length {m}."
        )
    if weights.shape != (m,):
        raise ValueError(f"sample_weight.shape == {weights.shape}, expected {(m,)}!")
    if (weights < 0).any():
        raise ValueError("Negative values in data passed to `sample_weight`")
    if not weights.any():
        raise ValueError("Sample weights must contain at least one non-zero number.")
    return weights


def read_validation(given: Any) -> tuple[Any, Any, Any]:
    """`X`, `y` and weights (or None) of a validation set."""
    if not isinstance(given, tuple | list) or len(given) not in (2, 3):
        got = f"{len(given)} arrays" if isinstance(given, tuple | list) else f"a {type(given).__name__}"
        raise ValueError(f"validation is {got}, expected a tuple (X, y) or (X, y, sample_weight)")
    return tuple(given) if len(given) == 3 else (*given, None)
