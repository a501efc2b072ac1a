"""The stated expectations of the experiments circuits, flow and parity."""

import jax
import pytest

from experiments import circuits
from experiments.output import Output


@pytest.fixture(autouse=True)
def as_users_run_them():
    """With JAX's usual promotion, which optax's schedules need."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def out(tmp_path):
    def create(name, settings):
        return Output.create(name, settings, results=tmp_path)

    return create


def test_circuits_equal_autodiff_and_the_notes(out):
    settings = circuits.Settings()
    made = out("circuits", settings)
    shown = circuits.run(settings, made)
    assert shown["difference"] <= 1e-12
    assert [shown[name] for name in ("value", "x", "y", "z")] == [-12, -4, -4, 3]
    assert {path.stem for path in made.folder.glob("*.png")} == {"notes", "sigmoid", "routing", "network"}
