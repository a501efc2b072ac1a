"""Strict from the start: no silent promotion, every warning an error, shapes of jaxtyping checked."""

import functools
import gc
import itertools
import os
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX_PLATFORMS=cuda,cpu runs the suite on a GPU
# Several worker processes share a GPU. By default JAX takes three quarters of it for each process.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Eight virtual devices, for meshes; what does not ask for them runs on the first.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
if version("jaxlib").startswith("0.10."):  # others may not know the older emitters of fusions; these compile faster
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"  # parts cost more than one small program
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of the processes that tests start, too
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # where in Python each operation is from: 3% of the time
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its idle threads spin, and take the other workers' time

import hypothesis
import jax
import jax.monitoring
import jaxtyping
import matplotlib
import pytest
from jax._src.interpreters import mlir

from experiments.output import Output

matplotlib.use("agg")
PACKAGE = Path(__file__).parents[1] / "jaxmlp"

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

# The whole package but the files whose public functions take lists and NumPy's arrays, as the annotations do not say,
# and refuse wrong arguments by a ValueError.
DOORS = {
    *("_backward", "_circuit", "_forward", "check", "check_report", "chunks", "circuit_gates", "clipping", "curvature"),
    *("circuit_custom", "circuit_wires", "differences", "gradient_votes", "log_axes", "pickling", "rounding"),
    *("custom_vjp", "dropout", "eigenvalues", "files", "initializers", "jacobians", "metrics", "network", "penalties"),
    *("plotting", "rule", "starts", "trees", "validate"),
    *("training._fit", "training._search", "training._sweep", "training.cross_validation", "training.halving"),
    *("training.ensembles", "training.population_file", "training.result", "training.selection"),
    *("methods.influence", "methods.laplace"),
    *("interop.estimators", "interop.export", "interop.weights"),
}
ROOMS = {".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
CHECKED = {room for room in ROOMS - DOORS if not room.startswith("data") and not room.endswith("__init__")}
jaxtyping.install_import_hook([f"jaxmlp.{room}" for room in sorted(CHECKED)], "typechecker.check")

gc.set_threshold(200_000, 100, 100)  # a search through a process's millions of traced objects takes a tenth of a second

if hasattr(mlir, "make_ir_context"):  # 3 ms for each program's own, a fifth of what a small program costs
    make_context, number = mlir.make_ir_context, itertools.count()
    share = functools.lru_cache(1)(lambda hundred: make_context())  # a context keeps the constants of its programs
    mlir.make_ir_context = lambda: share(next(number) // 100)

hypothesis.settings.register_profile(
    "jaxmlp",
    deadline=None,
    derandomize=True,  # the same examples on every machine
    max_examples=3,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("jaxmlp")


@pytest.fixture(autouse=True)
def compiled_as_marked(request):
    """Most of the suite's time is XLA's: it leaves most optimizations out, but in tests marked `optimized`."""
    optimized = request.node.get_closest_marker("optimized") is not None
    jax.config.update("jax_disable_most_optimizations", not optimized)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def types_checked(request):
    """Shapes and types are checked at every call, but in tests that pass wrong arguments on purpose."""
    wrong = request.node.get_closest_marker("wrong_arguments") is not None
    jaxtyping.config.update("jaxtyping_disable", wrong)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def promoted_as_usual(request):
    """Experiments run with JAX's usual promotion, which optax's schedules need."""
    experiments = request.path.name.startswith("test_experiments")
    with jax.numpy_dtype_promotion("standard" if experiments else "strict"):
        yield


@pytest.fixture
def compilations():
    """The names of the programs that JAX compiles while the test runs, one for each compilation."""
    names = []

    def listen(event, seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(about.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, make)`: a folder that `make(folder)` fills in one of the workers; the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def create(name, make):
        folder, done = base / name, base / f"{name}.done"
        try:
            folder.mkdir()
        except FileExistsError:
            while not done.exists():
                time.sleep(0.1)
            return folder
        try:
            make(folder)
        finally:
            done.touch()
        return folder

    return create


@pytest.fixture
def out(tmp_path, monkeypatch):
    """The output of an experiment into a new folder; its pictures are small, and drawn once."""
    monkeypatch.setattr("experiments.output.SAVED", {"dpi": 40})

    def create(name, settings):
        return Output.create(name, settings, results=tmp_path)

    return create


@pytest.fixture
def x64():
    """float64, as checks at 1e-12 need it; without it JAX's default, float32."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def params(key):
    """Parameters of `problems.NET`."""
    from problems import NET

    import jaxmlp as jm  # after the hook

    return jm.init(NET, key)
