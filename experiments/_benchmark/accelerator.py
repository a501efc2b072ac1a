"""What the owner of a GPU or TPU wants to know, in at most 8 minutes: a table for each question, and the record.

Clipping a huge batch (time and memory), epochs with and without rounded products, readouts, K-FAC, populations and
dropout, beside `jax.grad`, Flax and PyTorch on the same chip. What is not an epoch is computed in float32.
"""

import dataclasses
import functools
import importlib
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlp as jm
from experiments import xor
from experiments._benchmark import populations, readouts, second_order
from experiments._benchmark.ours import Epoch, by_autodiff
from experiments._benchmark.problem import Problem, make_problem, widths
from experiments._benchmark.timing import (
    Call,
    Cell,
    digits,
    first_line,
    make_contestants,
    milliseconds,
    peer,
    quartiles,
    time_in_turns,
)
from experiments.datasets import Pictures
from experiments.output import Output
from jaxmlp.products import PRODUCTS

LONGEST = 480.0  # seconds of a run
RATE = 0.01
FLOAT32 = "float32"


class Work(NamedTuple):
    """A network, its batch size, and the steps of an epoch."""

    network: str
    batch_size: int
    steps: int = 1


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The amount of work of each table; `seconds` are expected of one cell, with its compilation."""

    clipping: Work
    epochs: tuple[Work, ...]
    products: tuple[str, ...]  # the precisions of the epochs
    readouts: Work
    second_order: tuple[Work, ...]
    few: bool  # whether SGD and K-FAC alone stand beside the peers of the second order
    digits: tuple[int, int, int]  # networks 784-64-10, their steps, and how many are trained one by one
    xor: populations.Size
    dropout: Work
    keep: float
    seconds: dict[str, float]


FULL = Sizes(
    clipping=Work("784-5120-2560-1280-10", 131_072),
    epochs=(Work("784-64-10", 128, 400), Work("784-1024-1024-10", 512, 100), Work("784-2048-2048-2048-10", 4096, 14)),
    products=(FLOAT32, "tensorfloat32", "bfloat16"),
    readouts=Work("784-1024-1024-10", 512),
    second_order=(Work("784-1024-512-256-128-64-10", 512, 20), Work("784-1024-1024-10", 512, 20)),
    few=False,
    digits=(1024, 50, 4),
    xor=populations.Size(members=(10_000,), steps=2000, timed=(1, 300)),
    dropout=Work("784-1024-1024-1024-10", 128, 100),
    keep=0.8,
    seconds={"clipping": 40, "epochs": 15, "readouts": 20, "second order": 60, "populations": 30, "dropout": 15},
)
TINY = Sizes(
    clipping=Work("784-16-8-10", 64),
    epochs=(Work("784-8-10", 32, 2),),
    products=(FLOAT32, "tensorfloat32", "bfloat16"),
    readouts=Work("784-8-10", 16),
    second_order=(Work("784-8-10", 16, 10),),
    few=True,
    digits=(4, 2, 1),
    xor=populations.Size(members=(16,), steps=10, timed=(1, 5)),
    dropout=Work("784-8-8-10", 16, 2),
    keep=0.8,
    seconds=dict.fromkeys(FULL.seconds, 5.0),
)


class Step(NamedTuple):
    """A cell to measure, and its table's rows."""

    section: str
    name: str
    measure: Callable[[], Cell]
    rows: Callable[[Cell], list[dict[str, str]]]


class Budget:
    """The seconds of a run. The steps so far say how much longer than expected this machine takes."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.began, self.expected = seconds, time.perf_counter(), 0.0

    def allows(self, expected: float) -> bool:
        """Whether a step of so many seconds would end in time; if so it counts."""
        spent = time.perf_counter() - self.began
        pace = max(1.0, spent / self.expected) if self.expected else 1.0
        if spent + pace * expected > self.seconds:
            return False
        self.expected += expected
        return True


def measure(pictures: Pictures, rounds: int, quick: bool, out: Output) -> Iterator[Cell]:
    """Yields every cell; a step that would end too late, or that fails, is a line instead."""
    if jax.default_backend() == "cpu" and not quick:
        raise ValueError("accelerator is set, but JAX finds only a CPU; --quick runs it there at tiny sizes")
    out.say(f"{describe()}; {datetime.now():%Y-%m-%d %H:%M}\n")
    sizes, budget = TINY if quick else FULL, Budget(LONGEST)
    for step in steps(sizes, pictures, rounds):
        if not budget.allows(sizes.seconds[step.section]):
            out.say(f"{step.section}, {step.name}: not measured, as it would end after {LONGEST / 60:g} minutes")
            continue
        try:
            cell = step.measure()
            yield cell
            out.table(f"{step.section}: {step.name}", step.rows(cell))
        except Exception as error:  # of JAX, of PyTorch or of ours: time on a chip is rare, and the next step may run
            out.say(f"{step.section}, {step.name}: {first_line(error)}")


def describe() -> str:
    """The chips that JAX finds, and whether PyTorch finds a GPU."""
    devices = jax.devices()
    try:
        torch: Any = importlib.import_module("torch")
        found = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    except ModuleNotFoundError:
        found = "is not installed"
    except Exception as error:  # a library of CUDA that is missing is an OSError, a driver that is too old another
        found = first_line(error)
    return (
        f"JAX: {len(devices)} x {devices[0].device_kind} ({devices[0].platform}), the first is used; PyTorch: {found}"
    )


def steps(sizes: Sizes, pictures: Pictures, rounds: int) -> Iterator[Step]:
    """The steps in order. Clipping is first, because a chip tells only the most memory since the process began."""
    yield Step("clipping", _name(sizes.clipping), lambda: clipping(sizes.clipping, pictures, rounds), memory_rows)
    for work in sizes.epochs:
        for products in sizes.products:
            run = functools.partial(epochs, work, products, pictures, rounds)
            yield Step("epochs", f"{_name(work)}, {products}", run, contestant_rows)
    run = functools.partial(of_readouts, sizes.readouts, pictures, rounds)
    yield Step("readouts", _name(sizes.readouts), run, readouts.quantity_rows)
    for work in sizes.second_order:
        run = functools.partial(of_second_order, work, sizes.few, pictures, rounds)
        yield Step("second order", _name(work), run, second_order.rows)
    for name, make in (("784-64-10", digits_at_once), ("2-3-1 for XOR", xor_at_once)):
        yield Step("populations", name, functools.partial(make, sizes, pictures, rounds), populations.rows)
    run = functools.partial(epochs, sizes.dropout, FLOAT32, pictures, rounds, sizes.keep)
    yield Step("dropout", f"{_name(sizes.dropout)}, keep {sizes.keep:g}", run, contestant_rows)


def _name(work: Work) -> str:
    return f"{work.network}, batch {work.batch_size:,}"


def _problem(work: Work, pictures: Pictures) -> Problem:
    return make_problem(widths(work.network), work.batch_size, pictures, RATE, work.steps)


def in_float32(function: Callable) -> Callable:
    """The function with products of float32, which JAX rounds by default on a GPU or TPU, and PyTorch does not."""

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        with jax.default_matmul_precision(FLOAT32):
            return function(*arguments)

    return run


@in_float32
def clipping(work: Work, pictures: Pictures, rounds: int) -> Cell:
    """The clipped gradient beside the mean gradient, and beside that of `jax.grad`: time and memory."""
    problem = _problem(Work(work.network, min(work.batch_size, len(pictures.X))), pictures)
    net, params = problem.net, problem.params
    repeat = lambda array: jnp.asarray(np.resize(array, (work.batch_size, *array.shape[1:])))
    data = params, repeat(problem.X), repeat(problem.Y)
    functions = {name: readouts.quantities(net)[name] for name in (readouts.BASE, "clipped gradient")}
    functions["jax.grad"] = jax.grad(lambda p, X, Y: jm.cost(net, p, X, Y))
    calls, program, peak = {}, {}, {}
    for name, function in functions.items():
        calls[name], program[name] = readouts.compile_call(function, *data)
        calls[name]()
        peak[name] = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    seconds = time_in_turns(calls, rounds)
    return Cell("accelerator", f"clipping, {_name(work)}", seconds, tuple(functions)[:2],
                facts={"program_bytes": program, "peak_bytes": peak})  # fmt: skip


def memory_rows(cell: Cell) -> list[dict[str, str]]:
    """A row for each gradient. The program's memory is besides its arguments; the peak counts all so far."""
    program, peak = cell.facts["program_bytes"], cell.facts["peak_bytes"]
    first = next(iter(program.values())) or 1
    return [{**row, "program (MB)": digits(program[name] / 1e6), "times": f"{program[name] / first:.2f}",
             "chip's peak so far (MB)": "not told" if peak[name] is None else digits(peak[name] / 1e6)}
            for row, name in zip(contestant_rows(cell), cell.seconds, strict=True)]  # fmt: skip


def epochs(work: Work, products: str, pictures: Pictures, rounds: int, keep: float | None = None) -> Cell:
    """An epoch of each contestant, whose products are rounded to `products`; with dropout where `keep` is given."""
    problem, rounded = _problem(work, pictures), products if products in PRODUCTS else None
    problem = dataclasses.replace(problem, net=dataclasses.replace(problem.net, products=rounded), keep=keep)
    X, _, Y = problem.on_device
    on_device: Any = dataclasses.replace(problem, X=X, Y=Y)  # Flax takes its batches from the chip's memory
    makers: dict[str, Callable[[], Call]] = {
        "ours": lambda: Epoch(problem),
        "jax.grad": lambda: Epoch(problem, by_autodiff),
        "flax": peer("jax_peers", "flax", on_device),
        "torch": peer("torch_accelerator", "Accelerated", problem),
    }
    with jax.default_matmul_precision(products):
        calls, ready, absent = make_contestants(makers)
        seconds = time_in_turns(calls, rounds)
    kind = "epochs" if keep is None else "dropout"
    return Cell("accelerator", f"{kind}, {_name(work)}, {products}", seconds, absent=absent,
                facts={"steps": work.steps, "ready_seconds": ready})  # fmt: skip


def contestant_rows(cell: Cell) -> list[dict[str, str]]:
    """A row for each contestant, and one for each peer that could not run."""
    steps = cell.facts.get("steps", 1)
    made = [{"contestant": name, "ms a step": milliseconds(seconds / steps), "times ours": f"{cell.ratio(name):.2f}",
             "quartiles": quartiles(cell.ratios(name))} for name, seconds in cell.seconds.items()]  # fmt: skip
    return made + [{**dict.fromkeys(made[0], ""), "contestant": f"{name}: {why}"} for name, why in cell.absent.items()]


@in_float32
def of_readouts(work: Work, pictures: Pictures, rounds: int) -> Cell:
    """Each readout beside the mean gradient, and the clipped gradient by `vmap(grad)`."""
    problem = _problem(work, pictures)
    net, params = problem.net, problem.params
    X, _, Y = problem.on_device
    functions = readouts.quantities(net)
    functions["clipped gradient, vmap(grad)"] = readouts.by_vmap_grad(net)["clipped gradient"]
    made = {name: readouts.compile_call(function, params, X, Y) for name, function in functions.items()}
    seconds = time_in_turns({name: call for name, (call, _) in made.items()}, rounds)
    memory = {name: needed / (made[readouts.BASE][1] or 1) for name, (_, needed) in made.items()}
    own = tuple(readouts.quantities(net))
    return Cell("accelerator", f"readouts, {_name(work)}", seconds, own, facts={"memory": memory})


@in_float32
def of_second_order(work: Work, few: bool, pictures: Pictures, rounds: int) -> Cell:
    """A step by K-FAC and EK-FAC beside SGD, kfac-jax and curvlinops."""
    problem = dataclasses.replace(_problem(work, pictures), rate=second_order.RATE)
    return dataclasses.replace(second_order.measure(problem, f"second order, {_name(work)}", rounds, few),
                               section="accelerator")  # fmt: skip


@in_float32
def digits_at_once(sizes: Sizes, pictures: Pictures, rounds: int) -> Cell:
    """Many networks for MNIST by one sweep, beside `vmap` of `jax.grad`, and few of them by `fit` one by one."""
    networks, steps, few = sizes.digits
    problem = make_problem(widths("784-64-10"), 128, pictures, RATE, steps)
    vmapped = populations.by_vmap_grad, problem.net, problem.X, problem.Y, networks, 128, 2, RATE
    makers = {
        "ours": populations.digits(pictures, networks, steps)["ours"],
        "fit, one by one": populations.digits(pictures, few, steps)["fit, one by one"],
        "jax.grad, vmap": functools.partial(*vmapped),
    }
    counts = {"ours": 2 * networks * steps, "fit, one by one": 2 * few * steps, "jax.grad, vmap": 2 * networks * steps}
    name, own = f"{networks:,} networks 784-64-10, batch 128", ("ours", "fit, one by one")
    return dataclasses.replace(populations.per_step(name, makers, counts, rounds, own), section="accelerator")


@in_float32
def xor_at_once(sizes: Sizes, pictures: Pictures, rounds: int) -> Cell:
    """Many networks for XOR by one sweep, beside `vmap` of `jax.grad`, and few by PyTorch on the CPU."""
    (members,), steps, timed = sizes.xor.members, sizes.xor.steps, sizes.xor.timed
    vmapped = (populations.by_vmap_grad, populations.XOR, xor.X, xor.Y, members, len(xor.X), steps, populations.RATE,
               populations.STARTS)  # fmt: skip
    makers: dict[str, Callable[[], Call]] = {
        "ours": lambda: populations.xor_sweep(members, steps),
        "jax.grad, vmap": functools.partial(*vmapped),
        "torch, one by one": lambda: populations.torch_xor(*timed),
    }
    counts = {"ours": members * steps, "jax.grad, vmap": members * steps, "torch, one by one": timed[0] * timed[1]}
    name = f"{members:,} networks 2-3-1 for XOR"
    return dataclasses.replace(populations.per_step(name, makers, counts, rounds, ("ours",)), section="accelerator")
