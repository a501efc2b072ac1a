"""The cost of each readout beside the mean gradient, `vmap(grad)`, BackPACK and Opacus."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlp as jm
from experiments._benchmark.problem import make_problem, widths
from experiments._benchmark.timing import (
    Call,
    Cell,
    make_contestants,
    milliseconds,
    peer,
    peer_rows,
    quartiles,
    time_in_turns,
)
from experiments.datasets import Pictures
from experiments.output import Output
from jaxmlp.network import Params

MAX_NORM = 1.0
BASE = "mean gradient"


def quantities(net: jm.MLP) -> dict[str, Callable]:
    """The quantities by name, each a function of `(params, X, Y)`."""
    of_trace = {
        BASE: jm.mean_gradient,
        "norms": jm.per_example_norms,
        "clipped gradient": lambda trace: jm.clipped_gradient(trace, MAX_NORM),
        "second moment": jm.second_moment,
        "variance": jm.variance,
        "Gram matrix": jm.gradient_gram,
        "Kronecker factors": jm.kronecker_factors,
    }
    return {name: (lambda p, X, Y, read=read: read(jm.backprop(net, p, X, Y))) for name, read in of_trace.items()}


def with_gradient(net: jm.MLP) -> dict[str, Callable]:
    """Quantities together with the mean gradient, as BackPACK and Opacus compute them."""

    def both(readout):
        def run(params, X, Y):
            trace = jm.backprop(net, params, X, Y)
            return jm.mean_gradient(trace), readout(trace)

        return run

    def kronecker(params, X, Y):
        trace = jm.backprop(net, params, X, Y)
        labels = jm.sample_labels(net, trace.output, jax.random.key(0))
        return jm.mean_gradient(trace), jm.kronecker_factors(jm.backprop(net, params, X, labels))

    return {
        "norms": both(jm.per_example_norms),
        "second moment": both(jm.second_moment),
        "Kronecker factors": kronecker,
        "Gauss-Newton diagonal": lambda p, X, Y: (jm.value_and_grad(net, p, X, Y)[1], jm.ggn_diagonal(net, p, X, Y)),
        "clipped gradient": lambda p, X, Y: jm.clipped_gradient(jm.backprop(net, p, X, Y), MAX_NORM),
    }


def by_vmap_grad(net: jm.MLP) -> dict[str, Callable]:
    """Quantities by `vmap(grad)`, which forms every example's gradient."""

    def gradients(params, X, Y):
        one = lambda x, y: jax.grad(lambda p: jm.cost(net, p, x[None], y[None]))(params)
        return jax.vmap(one)(X, Y)

    def norms(grads):
        return jnp.sqrt(sum(jnp.sum(g**2, axis=tuple(range(1, g.ndim))) for g in jax.tree.leaves(grads)))

    def clip(grads):
        factor = MAX_NORM / jnp.maximum(norms(grads), MAX_NORM)
        return jax.tree.map(lambda g: jnp.tensordot(factor, g, 1) / g.shape[0], grads)

    reads = {"norms": norms, "clipped gradient": clip,
             "second moment": lambda grads: jax.tree.map(lambda g: jnp.mean(g**2, axis=0), grads)}  # fmt: skip
    return {name: (lambda p, X, Y, read=read: read(gradients(p, X, Y))) for name, read in reads.items()}


def compile_call(function: Callable, *arguments) -> tuple[Callable[[], None], int]:
    """A call that waits for its result, and the bytes it needs besides its arguments, as XLA counts them."""
    program = jax.jit(function).lower(*arguments).compile()
    memory = program.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.output_size_in_bytes if memory else 0
    return lambda: jax.block_until_ready(program(*arguments)), needed


def compare_with_gradient(net: jm.MLP, params: Params, X, Y, rounds: int, name: str) -> Cell:
    """The time and memory of each quantity over the mean gradient's; each takes one backward pass."""
    made = {quantity: compile_call(f, params, X, Y) for quantity, f in quantities(net).items()}
    seconds = time_in_turns({quantity: call for quantity, (call, _) in made.items()}, rounds)
    memory = {quantity: needed / made[BASE][1] for quantity, (_, needed) in made.items()}
    return Cell("readouts", f"{name}, beside the mean gradient", seconds, tuple(seconds), facts={"memory": memory})


def quantity_rows(cell: Cell) -> list[dict[str, str]]:
    """A row for each quantity."""
    return [{"quantity": quantity, "ms": milliseconds(seconds), "ratio": f"{cell.ratio(quantity):.2f}",
             "quartiles": quartiles(cell.ratios(quantity)), "memory": f"{cell.facts['memory'][quantity]:.2f}"}
            for quantity, seconds in cell.seconds.items()]  # fmt: skip


def compare_with_vmap_grad(net: jm.MLP, params: Params, X, Y, name: str) -> Iterator[Cell]:
    """Ours against `vmap(grad)`, which takes long: three rounds only."""
    for quantity, slow in by_vmap_grad(net).items():
        calls = {"ours": compile_call(quantities(net)[quantity], params, X, Y)[0],
                 "vmap(grad)": compile_call(slow, params, X, Y)[0]}  # fmt: skip
        yield Cell("readouts", f"{name}, {quantity} alone", time_in_turns(calls, 3))


def compare_with_torch(net: jm.MLP, params: Params, X, Y, rounds: int, name: str) -> Iterator[Cell]:
    """Ours, together with the mean gradient, against BackPACK and Opacus."""
    arrays = params, np.array(X), np.array(Y)
    torch = functools.partial(peer, "torch_readouts")
    contests: dict[str, dict[str, Callable[[], Call]]] = {
        quantity: {"BackPACK": torch("backpack", quantity, *arrays)}
        for quantity in ("norms", "second moment", "Kronecker factors", "Gauss-Newton diagonal")
    }
    contests["clipped gradient"] = {
        "Opacus, per example": torch("opacus_per_example", *arrays, MAX_NORM),
        "Opacus, ghost": torch("opacus_ghost", *arrays, MAX_NORM),
    }
    for quantity, makers in contests.items():
        ours = with_gradient(net)[quantity]
        calls, _, absent = make_contestants({"ours": lambda ours=ours: compile_call(ours, params, X, Y)[0], **makers})
        yield Cell("readouts", f"{name}, {quantity}", time_in_turns(calls, rounds), absent=absent)


def section(pictures: Pictures, networks: tuple[str, ...], rounds: int, quick: bool, out: Output) -> Iterator[Cell]:
    """The readouts of one backward pass, at batch 512."""
    for network in networks:
        problem = make_problem(widths(network), 512, pictures, 0.01, steps=1)
        net, params = problem.net, problem.params
        X, Y, name = jnp.asarray(problem.X), jnp.asarray(problem.Y), f"{network}, batch 512"
        cell = compare_with_gradient(net, params, X, Y, rounds, name)
        yield cell
        out.table(f"readouts at {name}, beside the mean gradient (forward, backward and product)", quantity_rows(cell))
        if quick:
            continue
        cells = [*compare_with_torch(net, params, X, Y, rounds, name), *compare_with_vmap_grad(net, params, X, Y, name)]
        yield from cells
        out.table("readouts against the peers; BackPACK and Opacus compute the mean gradient too",
                  [row for cell in cells for row in peer_rows(cell)])  # fmt: skip
