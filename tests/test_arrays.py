"""Arrays as people give them, at every door: converted where nothing is lost, else refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from problems import NET, SGD, examples

import jaxmlp as jm
from jaxmlp import arrays

pytestmark = pytest.mark.wrong_arguments

X, Y = examples(6)
PARAMS = jm.init(NET, jax.random.key(0))
MASKED = np.ma.array(X, mask=np.arange(18).reshape(6, 3) == 7)
MASKED_Y = np.ma.array(Y, mask=[0, 0, 0, 0, 0, 1])
MASKED_W = np.ma.array(np.ones(6), mask=[0, 0, 0, 0, 0, 1])
ROWS = np.eye(2, dtype=np.float32)[Y]


class NoArray:
    """As a PyTorch tensor that requires grad."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")


def as_objects(values, change=None):
    made = np.empty(np.shape(values), object)
    made[:] = np.asarray(values).tolist()
    if change is not None:
        made[(2, 1)[: made.ndim]] = change
    return made


def fit(data=(X, Y), **settings):
    settings = {"optimizer": SGD, "epochs": 1, "key": jax.random.key(1), "progress": False} | settings
    return jm.fit(NET, PARAMS, data, **settings)


MASKED_DOORS = {
    "X": lambda: jm.cost(NET, PARAMS, MASKED, Y),
    "Y": lambda: jm.cost(NET, PARAMS, X, MASKED_Y),
    "rows": lambda: jm.cost(NET, PARAMS, X, np.ma.array(ROWS, mask=ROWS > 0)),
    "a list": lambda: jm.predict(NET, PARAMS, list(MASKED)),
    "an entry of a list": lambda: jm.predict(NET, PARAMS, [[1.0, np.ma.masked, 0.0]]),
    "x": lambda: jm.forward(NET, PARAMS, MASKED[2]),
    "weights": lambda: jm.value_and_grad(NET, PARAMS, X, Y, weights=MASKED_W),
    "masks": lambda: jm.cost(NET, PARAMS, X, Y, masks=(MASKED, np.ones((6, 5), np.float32))),
    "params": lambda: jm.cost(NET, (jm.Layer(np.ma.array(PARAMS[0].W, mask=True), PARAMS[0].b), PARAMS[1]), X, Y),
    "weights of a readout": lambda: jm.mean_gradient(jm.backprop(NET, PARAMS, X, Y), MASKED_W),
    "data": lambda: fit((MASKED, Y)),
    "weights of fit": lambda: fit(weights=MASKED_W),
    "class_weights": lambda: fit(class_weights=np.ma.array([1.0, 2.0], mask=[0, 1])),
    "validation": lambda: fit(validation=(X, MASKED_Y)),
    "weights of validation": lambda: fit(validation=(X, Y, MASKED_W)),
    "a stream": lambda: fit([(MASKED, Y)]),
    "labels of a stream": lambda: fit([(X, MASKED_Y)]),
    "weights of a stream": lambda: fit([(X, Y, MASKED_W)]),
    "a sweep": lambda: jm.sweep(NET, (X, Y), keys=jax.random.key(0), optimizer=SGD, epochs=1, progress=False,
                                scale=np.ma.array([1.0, 2.0], mask=[0, 1])),
    "keep": lambda: jm.dropout_masks(NET, jax.random.key(0), np.ma.array([0.5, 0.5], mask=[0, 1]), 3),
    "a penalty": lambda: jm.l2(np.ma.array([0.5, 0.5], mask=[0, 1])),
    "standardize": lambda: jm.data.standardize(MASKED),
    "scaling": lambda: jm.data.standardize(X)(MASKED),
    "inverse": lambda: jm.data.standardize(X).inverse(MASKED),
    "pixels": lambda: jm.data.scale_pixels(np.ma.array([[1, 2]], mask=[[0, 1]], dtype=np.uint8)),
    "Batches": lambda: jm.data.Batches(MASKED, Y, 3),
    "labels of Batches": lambda: jm.data.Batches(X, MASKED_Y, 3),
    "stratify": lambda: jm.data.split(jax.random.key(0), 6, (0.5, 0.5), stratify=MASKED_Y),
    "accuracy": lambda: jm.metrics.accuracy(ROWS, MASKED_Y),
    "errors": lambda: jm.metrics.regression_errors(MASKED, X),
    "classes": lambda: jm.metrics.classes(MASKED_Y),
    "a tree": lambda: jm.trees.write_tree("masked", {"a": MASKED}),
}  # fmt: skip


@pytest.mark.parametrize("door", MASKED_DOORS)
def test_masked_entries_are_data_at_no_door(door, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"masked in places|a MaskedArray"):
        MASKED_DOORS[door]()
    assert not list(tmp_path.iterdir())


class Slices:
    """Rows on disk that come back masked, as those of netCDF4 do."""

    shape, dtype = MASKED.shape, MASKED.dtype

    def __init__(self, rows):
        self.rows = rows

    def __getitem__(self, at):
        return np.ma.array(self.rows[at])


def test_rows_are_looked_at_when_they_are_read():
    assert len(list(jm.data.Batches(Slices(np.ma.array(X)), Y, 3))) == 2
    with pytest.raises(ValueError, match="X is masked in places"):
        list(jm.data.Batches(Slices(MASKED), Y, 3))


SAME = {
    "big-endian": X.astype(">f4"), "long double": X.astype(np.longdouble), "float64": X.astype(np.float64),
    "objects": as_objects(X), "lists": X.tolist(), "nothing masked": np.ma.array(X), "Fortran": np.asfortranarray(X),
    "reversed": X[::-1][::-1], "a list of JAX arrays": [jnp.asarray(x) for x in X],
}  # fmt: skip


def test_what_loses_nothing_is_converted():
    expected = float(jm.cost(NET, PARAMS, X, Y))
    for given in SAME.values():
        assert float(jm.cost(NET, PARAMS, given, Y)) == expected
    for labels in (Y.astype(">i8"), as_objects(Y), Y.astype(bool), Y.astype(np.uint64), ROWS.astype(">f8")):
        assert float(jm.cost(NET, PARAMS, X, labels)) == pytest.approx(expected, rel=1e-6)
    batches = [fit([(given, Y.astype(">i4"))]).params for given in (X, X.astype(">f4"), X.astype(np.longdouble))]
    for other in batches[1:]:
        assert all((a == b).all() for a, b in zip(jax.tree.leaves(batches[0]), jax.tree.leaves(other), strict=True))


def test_parameters_of_numpys_float64_count_as_what_jax_holds():
    small = jm.MLP((3, 2))
    params = jm.init(small, jax.random.key(0))
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    assert jm.check_gradients(small, wide, X, ROWS, entries=1).passed
    assert jm.backprop(small, wide, X, ROWS, start=jm.hessian_root).deltas[0].dtype == jnp.float32
    np.testing.assert_array_equal(
        jm.hvp(small, wide, X, ROWS, params)[0].W, jm.hvp(small, params, X, ROWS, params)[0].W
    )
    posterior = jm.laplace(small, wide, X, ROWS, "diagonal")
    assert posterior.predict(X).mean.shape == (6, 2)


PLACE = np.arange(18).reshape(6, 3) == 7
LOST = {
    "requires grad": (NoArray(), r"X is a NoArray that gives no array: .*Use tensor.detach\(\).numpy\(\)"),
    "missing": (as_objects(X, float("nan")), r"X holds nan at \(2, 1\), expected finite numbers"),
    "None": (np.where(PLACE, None, as_objects(X)), r"X holds None at \(2, 1\), expected numbers"),
    "a string": (as_objects(X, "1.0"), r"X holds '1.0' at \(2, 1\), expected numbers"),
    "sparse": (scipy.sparse.csr_matrix(X), r"X is a csr_matrix, expected an array of numbers; toarray\(\) makes one"),
    "records": (np.zeros(6, [("a", "f4")]), r"X has dtype \[\('a', '<f4'\)\], expected an array of numbers"),
    "dates": (np.zeros((6, 3), "M8[s]"), r"X has dtype datetime64\[s\], expected an array of numbers"),
    "durations": (np.zeros((6, 3), "m8[s]"), r"X has dtype timedelta64\[s\], expected an array of numbers"),
    "complex": (X.astype(np.complex64), r"X has dtype complex64, expected an array of numbers"),
    "complex of JAX": (jnp.asarray(X.astype(np.complex64)), r"X has dtype complex64, expected an array of numbers"),
    "keys": (jax.random.split(jax.random.key(0), (6, 3)), r"X (has dtype key<fry>, expected|is a PRNGKeyArray)"),
    "nothing": (None, r"X is a NoneType, expected an array of numbers"),
    "a dict": ({"a": 1}, r"X is a dict, expected an array of numbers"),
    "beyond float32": (np.where(PLACE, -1e39, X.astype(float)), r"X holds -1e\+39 at \(2, 1\), expected at most 3.40"),
    "beyond float64": (X * np.longdouble("1e4000"), r"X holds .*e\+?39\d\d at \(0, 0\), expected at most 1.797"),
    "beyond 64 bits": ([[2**70, 1, 2]], r"X holds whole numbers beyond 64 bits"),
}  # fmt: skip


@pytest.mark.parametrize("what", LOST)
def test_what_would_be_lost_is_named(what):
    given, message = LOST[what]
    for door in (lambda: jm.predict(NET, PARAMS, given), lambda: fit([(given, Y)])):
        if what == "beyond float64" and np.finfo(np.longdouble).max == np.finfo(float).max:
            pytest.skip("a long double is a double here")
        with pytest.raises(ValueError, match=message.replace("X ", "X (of batch 0 )?", 1)):
            door()


def test_params_are_arrays_that_jax_takes():
    for W in (PARAMS[0].W.tolist(), np.asarray(PARAMS[0].W, ">f4"), np.asarray(PARAMS[0].W, np.longdouble)):
        with pytest.raises(
            ValueError, match=r"params: layer 1 holds an? .*, expected arrays that JAX takes as they are"
        ):
            jm.cost(NET, (jm.Layer(W, PARAMS[0].b), PARAMS[1]), X, Y)


def test_numbers_of_a_trace_in_a_list_stay_traced():
    grad = jax.grad(lambda t: jm.predict(NET, PARAMS, [[t, 2 * t, 1.0]])[0, 0])
    assert np.isfinite(grad(0.5))


def test_whole_numbers_keep_their_value_or_are_refused():
    with pytest.raises(ValueError, match=r"a holds 0 to 4294967297, expected -2147483648 to 2147483647 \(int32\)"):
        arrays.to_jax([0, 2**32 + 1], "a")
    with jax.enable_x64(True):
        assert arrays.to_jax(as_objects([0, 2**32 + 1]), "a").tolist() == [0, 2**32 + 1]
