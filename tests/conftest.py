"""Strict from the start: no silent promotion, every warning an error, shapes of jaxtyping checked."""

import os
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX_PLATFORMS=cuda,cpu runs the suite on a GPU
# Eight virtual devices, for meshes; what does not ask for them runs on the first.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
if version("jaxlib").startswith("0.10."):  # others may not know the older emitters of fusions; these compile faster
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import hypothesis
import jax
import matplotlib
import pytest
from jaxtyping import install_import_hook

from experiments.output import Output

matplotlib.use("agg")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# The rooms behind the doors: a door itself takes whatever can become an array, and refuses by a ValueError.
CHECKED = ("activations", "losses", "readouts", "training._epoch", "training.state")
install_import_hook([f"jaxmlp.{room}" for room in CHECKED], "typechecker.check")

hypothesis.settings.register_profile(
    "jaxmlp",
    deadline=None,
    derandomize=True,  # the same examples on every machine
    max_examples=5,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("jaxmlp")


@pytest.fixture(autouse=True)
def compiled_quickly(request):
    """Most of the suite's time is XLA's: only experiments, which train, are compiled with all its optimisations."""
    jax.config.update("jax_disable_most_optimizations", not request.path.name.startswith("test_experiments"))


@pytest.fixture(autouse=True)
def as_users_run_them(request):
    """Experiments run with JAX's usual promotion, which optax's schedules need."""
    experiments = request.path.name.startswith("test_experiments")
    with jax.numpy_dtype_promotion("standard" if experiments else "strict"):
        yield


@pytest.fixture
def out(tmp_path):
    def create(name, settings):
        return Output.create(name, settings, results=tmp_path)

    return create


@pytest.fixture
def shown(tmp_path):
    """What an experiment shows in a quick run; its pictures are drawn, too."""

    def show(experiment, pictures=(), **settings):
        given = experiment.Settings(quick=True, **settings)
        out = Output.create(experiment.__name__.split(".")[-1], given, results=tmp_path)
        numbers = experiment.run(given, out)
        assert {path.stem for path in out.folder.glob("*.png")} == set(pictures)
        return numbers

    return show


@pytest.fixture
def x64():
    """float64, as checks at 1e-12 need it; without it JAX's default, float32."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    return jax.random.key(0)
