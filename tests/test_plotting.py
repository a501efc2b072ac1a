"""Pictures: what is drawn, what a notebook shows, and what an installation without matplotlib says."""

import pickle
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import jaxmlp as jm

HISTORY = {"epoch": np.arange(1, 5), "cost": np.asarray([3.0, 2.0, 1.0, 0.5])}


def test_a_notebook_shows_pictures():
    drawn = jm.plotting.curves(HISTORY)
    for figure in (drawn, jm.circuit(lambda x: x * x, 1.0).draw(), pickle.loads(pickle.dumps(drawn))):
        assert figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "draw",
    [
        lambda: jm.plotting.figure(),
        lambda: jm.plotting.curves(HISTORY),
        lambda: jm.plotting.monitors(HISTORY | {"dead": np.zeros((4, 1))}),
        lambda: jm.plotting.confusion(np.eye(2, dtype=int), ["a", "b"]),
        lambda: jm.plotting.weights_as_images(np.zeros((2, 4)), (2, 2)),
        lambda: jm.plotting.pictures(np.zeros((2, 2, 2)), ["a", "b"]),
        lambda: jm.plotting.decision_boundary(
            jm.MLP((2, 1)), (jm.Layer(jnp.ones((1, 2)), jnp.ones(1)),), np.eye(2), np.arange(2)
        ),
        lambda: jm.circuit(lambda x: x * x, 1.0).draw(),
    ],
)
def test_without_matplotlib_the_extra_is_named(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "jaxmlp.picture", raising=False)
    with pytest.raises(ImportError, match=r"matplotlib, expected the extra: pip install 'jaxmlp\[experiments\]'"):
        draw()


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([3.0, 2.0, 1.0, 0.5], "log"),
        ([3.0, np.nan, 1.0, np.inf], "log"),
        ([3.0, 0.1, -0.2, -40.0], "symlog"),
        ([3.0, 0.1, 0.0, 0.0], "symlog"),
        ([0.0, 0.0, 0.0, 0.0], "symlog"),
    ],
)
def test_no_value_is_left_out_of_a_logarithmic_axis(values, scale):
    """A negative log-likelihood falls below 0, and an estimate of the noise scale may be negative."""
    history = HISTORY | {"cost": np.asarray(values), "noise_scale": np.asarray(values)[:, None]}
    for draw in (jm.plotting.curves, jm.plotting.monitors):
        figure = draw(history)
        figure.canvas.draw()
        ax = figure.axes[0]
        assert ax.get_yscale() == ("linear" if draw is jm.plotting.curves and min(values) < 0 else scale)
        drawn = np.asarray(ax.lines[0].get_ydata(), float)
        np.testing.assert_array_equal(drawn, values)
        low, high = ax.get_ylim()
        finite = drawn[np.isfinite(drawn)]
        assert (low <= finite).all() and (finite <= high).all()
