"""MLPClassifier and MLPRegressor: scikit-learn's numbers, its own checks, and what jaxmlp adds."""

import pickle
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import scipy.sparse
import sklearn
import sklearn.neural_network
from sklearn.base import clone
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import has_fit_parameter

import jaxmlp as jm
from jaxmlp.interop import MLPClassifier, MLPRegressor, sklearn_inputs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(53, 4))
CLASSES = RNG.integers(0, 3, 53)
WEIGHTS = RNG.random(53)
NUMBERS = X[:, :2] @ [[1.0, 2.0], [-1.0, 0.5]]
SEVERAL = (X[:, :2] > 0).astype(int)
SMALL = {"hidden_layer_sizes": (5,), "random_state": 3}
QUICK = SMALL | {"max_iter": 2}

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def fit_both(name, y, weights=None, **settings):
    """The same fit by jaxmlp and by scikit-learn."""
    ours = {"MLPClassifier": MLPClassifier, "MLPRegressor": MLPRegressor}[name](**SMALL | settings)
    known = getattr(sklearn.neural_network, name)
    weighted = {} if weights is None else {"sample_weight": weights}
    if (weighted and not has_fit_parameter(known(), "sample_weight")) or settings.keys() - known().get_params().keys():
        pytest.skip("an earlier scikit-learn, without weights of examples or the Poisson loss")
    return ours.fit(X, y, **weighted), known(**SMALL | settings).fit(X, y, **weighted)


def assert_same(ours, theirs, atol=1e-12):
    for a, b in zip([*ours.coefs_, *ours.intercepts_], [*theirs.coefs_, *theirs.intercepts_], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)
    assert (ours.n_iter_, ours.t_, ours.n_layers_) == (theirs.n_iter_, theirs.t_, theirs.n_layers_)
    assert (ours.n_outputs_, ours.out_activation_) == (theirs.n_outputs_, theirs.out_activation_)
    np.testing.assert_allclose(ours.loss_, theirs.loss_, rtol=1e-10)


# 3 epochs of 2 steps, the second one ragged.
@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_the_weights_after_a_few_steps_are_those_of_scikit_learn(x64, solver, weights):
    settings = {"solver": solver, "batch_size": 30, "alpha": 0.1, "max_iter": 3}
    ours, theirs = fit_both("MLPClassifier", CLASSES, weights, **settings)
    assert_same(ours, theirs)
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-12)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-12)
    assert (ours.predict(X) == theirs.predict(X)).all()


def test_a_whole_fit_is_that_of_scikit_learn(x64):
    settings = {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.5, "tol": 1e-2, "batch_size": 30}
    ours, theirs = fit_both("MLPClassifier", CLASSES, **settings | {"alpha": 0.1})
    assert ours.n_iter_ == theirs.n_iter_ > 50  # the rate has become smaller, several times
    assert ours._optimizer.learning_rate == pytest.approx(theirs._optimizer.learning_rate)
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-8)


@pytest.mark.parametrize("name, y", [("MLPClassifier", CLASSES > 0), ("MLPRegressor", NUMBERS)], ids=["two", "numbers"])
def test_early_stopping_keeps_the_weights_that_scikit_learn_keeps(x64, name, y):
    settings = {"early_stopping": True, "learning_rate_init": 0.1, "max_iter": 30, "activation": "logistic"}
    ours, theirs = fit_both(name, y, **settings)
    assert_same(ours, theirs, 1e-10)
    np.testing.assert_allclose(ours.validation_scores_, theirs.validation_scores_, rtol=1e-9)
    assert ours.best_validation_score_ == pytest.approx(theirs.best_validation_score_)
    assert ours.best_loss_ is theirs.best_loss_ is None


def test_a_poisson_regression_is_that_of_scikit_learn(x64):
    settings = {"loss": "poisson", "max_iter": 3, "activation": "tanh", "solver": "sgd", "learning_rate": "invscaling"}
    ours, theirs = fit_both("MLPRegressor", CLASSES, WEIGHTS, **settings)
    assert_same(ours, theirs)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-12)


def test_lbfgs_is_that_of_scikit_learn_without_a_switch():
    ours, theirs = fit_both("MLPRegressor", NUMBERS, WEIGHTS, solver="lbfgs", max_iter=10)
    assert_same(ours, theirs, 1e-10)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-9)


def test_several_labels_an_example_are_predicted_as_by_scikit_learn():
    ours, theirs = fit_both("MLPClassifier", (X[:, :3] > 0).astype(int), max_iter=3)
    assert ours.coefs_[0].dtype == np.float32
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-5)
    assert (ours.predict(X) == theirs.predict(X)).all()


def test_scikit_learn_finds_nothing_to_object_to(x64):
    """None of its checks is expected to fail; they compare to 7 digits, so they run in float64.

    `python3 -m tests.sklearn_own_tests` checks the regressor, too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_estimator(MLPClassifier(max_iter=100), on_skip=None)


# `python3 -m tests.sklearn_own_tests` runs all of them.
@pytest.mark.parametrize("name", ["fit", "learning_rate_warmstart", "partial_fit_errors", "partial_fit_unseen_classes",
                                  "early_stopping_stratified", "adaptive_learning_rate"])  # fmt: skip
def test_scikit_learns_own_test_passes(x64, monkeypatch, name):
    module = pytest.importorskip("sklearn.neural_network.tests.test_mlp")
    monkeypatch.setattr(module, "MLPClassifier", MLPClassifier)
    getattr(module, f"test_{name}")()


def test_another_candidate_of_a_grid_search_compiles_nothing(compilations):
    MLPClassifier(**QUICK).fit(X, CLASSES)
    MLPClassifier(**QUICK, solver="sgd").fit(X, CLASSES)
    compilations.clear()
    for numbers in ({"learning_rate_init": 0.1}, {"alpha": 1.0}, {"beta_1": 0.5, "beta_2": 0.9}, {"epsilon": 1e-3}):
        MLPClassifier(**QUICK, **numbers).fit(X, CLASSES)
    MLPClassifier(**QUICK, solver="sgd", momentum=0.1, learning_rate_init=1.0, learning_rate="adaptive").fit(X, CLASSES)
    assert not compilations


def make_frame():
    """A frame with gaps, whose target is a word."""
    frame = pd.DataFrame(X[:48], columns=["length", "width", "height", "age"])
    kinds = np.array(["ant", "bee", "cat"])[CLASSES[:48]]
    frame.iloc[::7, 1] = np.nan
    return frame, pd.Series(kinds, name="kind")


def test_a_frame_with_gaps_goes_through_a_pipeline_and_a_grid_search():
    frame, kinds = make_frame()
    pipeline = make_pipeline(SimpleImputer(), StandardScaler(), MLPClassifier(**QUICK)).set_output(transform="pandas")
    search = GridSearchCV(pipeline, {"mlpclassifier__alpha": [1e-4, 1.0]}, cv=2).fit(frame, kinds)
    best = search.best_estimator_[-1]
    assert set(search.predict(frame)) <= {"ant", "bee", "cat"}
    assert best.feature_names_in_.tolist() == frame.columns.tolist() and best.classes_.tolist() == ["ant", "bee", "cat"]
    with pytest.raises(ValueError, match="feature names"):
        best.predict(frame.rename(columns={"age": "years"}))


def test_weights_are_routed_to_the_estimator():
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False),
                                 MLPClassifier(**QUICK).set_fit_request(sample_weight=True))  # fmt: skip
        routed = pipeline.fit(X, CLASSES, sample_weight=WEIGHTS)[-1]
    assert routed.loss_ != make_pipeline(StandardScaler(), MLPClassifier(**QUICK)).fit(X, CLASSES)[-1].loss_


def test_the_training_goes_on_after_a_pickle():
    first = MLPClassifier(**QUICK, solver="sgd")
    for _ in range(2):
        first.partial_fit(X, CLASSES, classes=[0, 1, 2])
    second = pickle.loads(pickle.dumps(first))
    for estimator in (first, second):
        estimator.partial_fit(X, CLASSES)
    assert all((a == b).all() for a, b in zip(first.coefs_, second.coefs_, strict=True))
    assert second.n_iter_ == 1 and len(second.loss_curve_) == 3


def test_the_network_and_its_weights_are_at_hand():
    fitted = MLPClassifier(**QUICK).fit(X, CLASSES)
    assert not hasattr(MLPClassifier(), "net_")
    X32 = X.astype(np.float32)
    np.testing.assert_allclose(jm.predict(fitted.net_, fitted.params_, X32), fitted.predict_proba(X), atol=1e-6)
    with pytest.raises(ValueError, match="net is a MLPClassifier, expected an MLP, such as its net_"):
        jm.predict(fitted, fitted.params_, X32)
    fitted.coefs_[1][:] = 0
    fitted.intercepts_[1][:] = [0, 1, 0]
    assert (fitted.predict(X) == 1).all()


def test_the_poisson_loss_has_its_derivatives(x64):
    net = MLPRegressor("poisson", **QUICK).fit(X, CLASSES).net_
    loss, y, z = net.loss, jnp.asarray([0.0, 2.0]), jnp.asarray([0.5, -1.0])

    @jax.jit
    def compare(y, z):
        y_hat, of_z = net.output(z), lambda z: loss.value(net.output, z, y)
        root = loss.root(y_hat)
        ours = of_z(z), loss.delta(net.output, z, y_hat, y), loss.df(y_hat, y), loss.d2f(y_hat, y), root.T @ root
        theirs = loss.f(y_hat, y), jax.grad(of_z)(z), *(derive(loss.f)(y_hat, y) for derive in (jax.grad, jax.hessian))
        return ours, (*theirs[:3], jnp.diag(theirs[3]), jax.hessian(of_z)(z))

    for a, b in zip(*compare(y, z), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    assert pickle.loads(pickle.dumps(net)) == net


def cube(z):
    return z**3


def cube_df(z):
    return 3 * z**2


@pytest.mark.parametrize("settings", [
    {"solver": "kfac", "learning_rate_init": 0.1},
    {"solver": optax.lion, "dropout": (0.1, 0.5), "label_smoothing": 0.1},
    {"solver": optax.sgd(0.1, 0.9), "activation": jm.Activation("cube", cube, cube_df), "weights": "he"},
    {"class_weight": {0: 3.0}, "products": "bfloat16", "activation": "gelu"},
], ids=["kfac", "factory", "made", "class_weight"])  # fmt: skip
def test_what_jaxmlp_adds(settings):
    estimator = clone(MLPClassifier(**QUICK | {"max_iter": 5}, **settings))
    fitted = estimator.fit(X, CLASSES)
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0]
    assert (clone(estimator).fit(X, CLASSES).coefs_[0] == fitted.coefs_[0]).all()
    assert fitted.predict_proba(X).shape == (53, 3)


def test_class_weights_are_weights_of_the_examples():
    weighted = MLPClassifier(**QUICK, class_weight={0: 3.0}).fit(X, CLASSES, WEIGHTS)
    same = MLPClassifier(**QUICK).fit(X, CLASSES, WEIGHTS * np.where(CLASSES == 0, 3, 1))
    np.testing.assert_allclose(weighted.coefs_[0], same.coefs_[0], rtol=1e-6)


def test_the_best_weights_on_a_validation_set_are_kept():
    fitted = MLPClassifier(**SMALL, max_iter=5, learning_rate_init=0.1)
    fitted.fit(X[:30], CLASSES[:30], validation=(X[30:], CLASSES[30:]))
    assert len(fitted.validation_scores_) == 5
    assert fitted.score(X[30:], CLASSES[30:]) == pytest.approx(max(fitted.validation_scores_))
    assert fitted.best_loss_ is None


def test_a_warm_start_forgets_the_scores_on_another_validation_set():
    """A score of 1 on the first one, which no later weights exceed."""
    labels = (X[:, 0] > 0).astype(int)
    fitted = MLPClassifier(**SMALL, max_iter=5, learning_rate_init=0.1, warm_start=True)
    fitted.fit(X[:30], labels[:30], validation=(X[30:], fitted.fit(X[:30], labels[:30]).predict(X[30:])))
    first = fitted.coefs_[0].copy()
    fitted.fit(X[:30], 1 - labels[:30], validation=(X[30:], 1 - labels[30:]))
    assert (fitted.coefs_[0] != first).any() and len(fitted.validation_scores_) == 5
    assert fitted.score(X[30:], 1 - labels[30:]) == pytest.approx(max(fitted.validation_scores_))


def test_sparse_examples_are_fitted_like_dense_ones(monkeypatch):
    dense = np.where(X > 0.5, X, 0)
    fitted = MLPClassifier(**QUICK).fit(dense, CLASSES)
    for kind in (scipy.sparse.csr_matrix, scipy.sparse.csc_array):
        same = clone(fitted).fit(kind(dense), CLASSES)
        assert (same.coefs_[0] == fitted.coefs_[0]).all()
        np.testing.assert_allclose(same.predict_proba(kind(dense)), fitted.predict_proba(dense), rtol=1e-6)
    monkeypatch.setattr(sklearn_inputs, "DENSE_LIMIT", 2**9)
    with pytest.raises(ValueError, match=r"X is a sparse matrix \(53, 4\)"):
        clone(fitted).fit(scipy.sparse.csr_matrix(dense), CLASSES)


def test_an_interrupted_fit_keeps_what_it_has_learned(monkeypatch):
    from jaxmlp.interop.sklearn_training import Training

    run = Training.run
    monkeypatch.setattr(
        Training, "run", lambda self, order: interrupt() if self.memory.epochs == 2 else run(self, order)
    )
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        fitted = MLPClassifier(**SMALL, max_iter=5).fit(X, CLASSES)
    assert fitted.n_iter_ == 2
    monkeypatch.undo()
    assert (fitted.coefs_[0] == MLPClassifier(**QUICK).fit(X, CLASSES).coefs_[0]).all()


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("settings, message", [
    ({"alpha": -1}, r"The 'alpha' parameter of MLPClassifier must be a float in the range \[0.0, inf\). Got -1"),
    ({"activation": "rleu"}, "The 'activation' parameter of MLPClassifier must be a str among"),
    ({"solver": 3}, "The 'solver' parameter"),
    ({"hidden_layer_sizes": (0,)}, "hidden_layer_sizes must be > 0"),
    ({"hidden_layer_sizes": (8.5,)}, r"hidden_layer_sizes is \(8.5,\), expected whole numbers"),
    ({"solver": int}, "solver is .*int.*, expected a name"),
    ({"class_weight": {0: -1}}, r"class_weight\[0\] is -1, expected a finite number of at least 0"),
    ({"class_weight": [1, 2]}, "class_weight holds 1, expected a dict"),
    ({"dropout": (0.1, 0.1, 0.1)}, "expected a rate in [0, 1), or 2 such rates"),
    ({"solver": "lbfgs", "dropout": 0.5}, "solver is 'lbfgs'"),
    ({"solver": optax.sgd(0.1), "learning_rate": "adaptive"}, "solver takes no rate"),
    ({"solver": lambda: optax.sgd(0.1), "learning_rate": "invscaling"}, "solver takes no rate"),
    ({"solver": lambda rate: optax.sgd(rate)}, "solver: hyper is None, and the optimizer's factory refuses it"),
    ({"class_weight": {7: 1.0}}, r"class_weight names \[7\], expected classes of y"),
    ({"class_weight": {0: 0, 1: 0, 2: 0}}, "class_weight and sample_weight give no example a weight above 0"),
    ({"dropout": ("a", "b")}, r"dropout is \('a', 'b'\), expected a rate in [0, 1)"),
    ({"random_state": "abc"}, r"The 'random_state' parameter of MLPClassifier must be an int in .* or None. Got 'abc'"),
    ({"random_state": -1}, "The 'random_state' parameter .* Got -1"),
    ({"random_state": np.random.default_rng(0)}, "The 'random_state' parameter .* Got Generator"),
])  # fmt: skip
def test_a_parameter_that_does_not_fit_is_named(settings, message):
    with pytest.raises(ValueError, match=message.replace("[0, 1)", r"\[0, 1\)")):
        MLPClassifier(**QUICK | settings).fit(X, CLASSES)


@pytest.mark.parametrize("fit, message", [
    (lambda: MLPRegressor(loss="poisson").fit(X, -CLASSES), "expected values of at least 0 for loss='poisson'"),
    (lambda: MLPClassifier(**QUICK).fit(X, CLASSES, -WEIGHTS), "Negative values in data passed to `sample_weight`"),
    (lambda: MLPClassifier(**QUICK).fit(X, CLASSES, -1.0), "Negative values in data passed to `sample_weight`"),
    (lambda: MLPClassifier(**QUICK).fit(X, CLASSES, np.nan), "Input sample_weight contains NaN"),
    (lambda: MLPClassifier(**QUICK).fit(X, CLASSES, 0), "Sample weights must contain at least one non-zero number"),
    (lambda: MLPClassifier(**QUICK).fit(X, CLASSES, "balanced"), "sample_weight: could not convert string to float"),
    (lambda: MLPClassifier(**QUICK).fit(X, CLASSES, (X, CLASSES)), "sample_weight: setting an array element"),
    (lambda: MLPClassifier(**QUICK).fit(X, CLASSES, validation=(X, CLASSES + 1)), "expected those of training"),
    (lambda: MLPClassifier(**QUICK).fit(X, CLASSES, validation=X), "validation is a ndarray, expected a tuple"),
    (lambda: MLPClassifier(**QUICK).fit(X, CLASSES, validation=(X,)), "validation is 1 arrays, expected a tuple"),
    (lambda: MLPClassifier(**QUICK).fit(X, CLASSES, validation=(X[:, :1], CLASSES)), "validation: X has 1 features"),
    (lambda: MLPClassifier(**QUICK).fit(X, SEVERAL, validation=(X, SEVERAL[:, :1])), "validation: y has shape"),
    (lambda: MLPClassifier(**QUICK).fit(X, SEVERAL, validation=(X, 7 * SEVERAL)), "expected .* of 0 and 1"),
    (lambda: MLPRegressor(**QUICK).fit(X, NUMBERS, validation=(X, CLASSES)), "validation: y has 1 outputs, expected"),
    (lambda: MLPClassifier(**QUICK).partial_fit(X, CLASSES, classes=[0, 1, 2]).set_params(solver="sgd")
     .partial_fit(X, CLASSES), "solver is 'sgd', expected the one of the calls of partial_fit before"),
    (lambda: MLPClassifier(class_weight="balanced").partial_fit(X, CLASSES, classes=[0, 1, 2]), "not supported for"),
    (lambda: MLPRegressor(**QUICK).partial_fit(X, CLASSES).partial_fit(X, NUMBERS), "expected the 1 of the previous"),
    (lambda: MLPRegressor().fit(X * 1e300, CLASSES), "too large"),
    (lambda: MLPRegressor(**QUICK).fit(np.ma.masked_greater(X, 0), CLASSES), "X is masked in places"),
    (lambda: MLPRegressor(**QUICK).fit(X, np.ma.masked_equal(CLASSES, 1)), "y is masked in places"),
    (lambda: MLPRegressor(**QUICK).fit(X, CLASSES, np.ma.masked_equal(CLASSES, 1)), "sample_weight is masked in"),
    (lambda: MLPRegressor(**QUICK).partial_fit(X, CLASSES).predict(np.ma.masked_greater(X, 0)), "X is masked in"),
])  # fmt: skip
def test_examples_that_do_not_fit_are_refused(fit, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(ValueError, match=message):
            fit()


def test_importing_jaxmlp_leaves_scikit_learn_alone():
    code = (
        "import sys, jaxmlp.interop; assert 'sklearn' not in sys.modules\n"
        "assert 'MLPRegressor' in dir(jaxmlp.interop); sys.modules['sklearn'] = None\n"
        "try: jaxmlp.interop.MLPClassifier\n"
        "except ImportError as error: assert 'jaxmlp[sklearn]' in str(error)\n"
        "else: raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
