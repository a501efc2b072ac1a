"""What each readout costs beside the plain mean gradient, `vmap(grad)`, BackPACK and Opacus."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlp as jm
from experiments._benchmark.problem import posed, widths
from experiments._benchmark.timing import Call, Cell, alternated, contest_rows, entered, milliseconds, quartiles
from experiments.datasets import Pictures
from experiments.output import Output
from jaxmlp.network import Params

MAX_NORM = 1.0


def quantities(net: jm.MLP) -> dict[str, Callable]:
    """Functions of `(params, X, Y)`."""
    of_trace = {
        "mean gradient": jm.mean_gradient,
        "norms": jm.per_example_norms,
        "clipped gradient": lambda trace: jm.clipped_gradient(trace, MAX_NORM),
        "second moment": jm.second_moment,
        "variance": jm.variance,
        "Gram matrix": jm.gradient_gram,
        "Kronecker factors": jm.kronecker_factors,
    }
    return {name: (lambda p, X, Y, read=read: read(jm.backprop(net, p, X, Y))) for name, read in of_trace.items()}


def with_gradient(net: jm.MLP) -> dict[str, Callable]:
    """The same quantities beside the mean gradient, as BackPACK and Opacus compute them."""

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


def formed(net: jm.MLP) -> dict[str, Callable]:
    """The same by `vmap(grad)`, which forms every example's gradient."""

    def gradients(params, X, Y):
        one = lambda x, y: jax.grad(lambda p: jm.cost(net, p, x[None], y[None]))(params)
        return jax.vmap(one)(X, Y)

    def norms(grads):
        return jnp.sqrt(sum(jnp.sum(g**2, axis=tuple(range(1, g.ndim))) for g in jax.tree.leaves(grads)))

    def clipped(grads):
        factor = MAX_NORM / jnp.maximum(norms(grads), MAX_NORM)
        return jax.tree.map(lambda g: jnp.tensordot(factor, g, 1) / g.shape[0], grads)

    reads = {"norms": norms, "clipped gradient": clipped,
             "second moment": lambda grads: jax.tree.map(lambda g: jnp.mean(g**2, axis=0), grads)}  # fmt: skip
    return {name: (lambda p, X, Y, read=read: read(gradients(p, X, Y))) for name, read in reads.items()}


def compiled(function: Callable, *arguments) -> tuple[Callable[[], None], int]:
    """A call that waits for its result, and the bytes it needs beside its arguments, by XLA's own count."""
    program = jax.jit(function).lower(*arguments).compile()
    memory = program.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.output_size_in_bytes if memory else 0
    return lambda: jax.block_until_ready(program(*arguments)), needed


BESIDE = "mean gradient"


def beside_gradient(net: jm.MLP, params: Params, X, Y, rounds: int, name: str) -> Cell:
    """Each quantity's time and memory over the mean gradient's, which all of them need a backward pass for."""
    made = {quantity: compiled(f, params, X, Y) for quantity, f in quantities(net).items()}
    seconds = alternated({quantity: call for quantity, (call, _) in made.items()}, rounds)
    memory = {quantity: needed / made[BESIDE][1] for quantity, (_, needed) in made.items()}
    return Cell("readouts", f"{name}, beside the mean gradient", seconds, tuple(seconds), facts={"memory": memory})


def rows_beside(cell: Cell) -> list[dict[str, str]]:
    """A row for each quantity."""
    return [{"quantity": quantity, "ms": milliseconds(seconds), "ratio": f"{cell.ratio(quantity):.2f}",
             "quartiles": quartiles(cell.ratios(quantity)), "memory": f"{cell.facts['memory'][quantity]:.2f}"}
            for quantity, seconds in cell.seconds.items()]  # fmt: skip


def against_formed(net: jm.MLP, params: Params, X, Y, name: str) -> Iterator[Cell]:
    """Ours against `vmap(grad)`: three rounds, for the latter takes long."""
    for quantity, slow in formed(net).items():
        calls = {"ours": compiled(quantities(net)[quantity], params, X, Y)[0],
                 "vmap(grad)": compiled(slow, params, X, Y)[0]}  # fmt: skip
        yield Cell("readouts", f"{name}, {quantity} alone", alternated(calls, 3))


def against_torch(net: jm.MLP, params: Params, X, Y, rounds: int, name: str) -> Iterator[Cell]:
    """Ours with the mean gradient against BackPACK and Opacus."""
    arrays = params, np.array(X), np.array(Y)

    def peer(maker: str, *arguments: Any) -> Callable[[], Call]:
        """The torch library is imported when it is called."""
        return lambda: getattr(importlib.import_module("experiments._benchmark.torch_readouts"), maker)(*arguments)

    contests: dict[str, dict[str, Callable[[], Call]]] = {
        quantity: {"BackPACK": peer("backpack", quantity, *arrays)}
        for quantity in ("norms", "second moment", "Kronecker factors", "Gauss-Newton diagonal")
    }
    contests["clipped gradient"] = {
        "Opacus, per example": peer("opacus_per_example", *arrays, MAX_NORM),
        "Opacus, ghost": peer("opacus_ghost", *arrays, MAX_NORM),
    }
    for quantity, makers in contests.items():
        ours = with_gradient(net)[quantity]
        calls, _, absent = entered({"ours": lambda ours=ours: compiled(ours, params, X, Y)[0], **makers})
        yield Cell("readouts", f"{name}, {quantity}", alternated(calls, rounds), absent=absent)


def section(pictures: Pictures, networks: tuple[str, ...], rounds: int, quick: bool, out: Output) -> Iterator[Cell]:
    """What else one backward pass answers, at batch 512."""
    for network in networks:
        problem = posed(widths(network), 512, pictures, 0.01, steps=1)
        net, params = problem.net, tuple(jm.Layer(jnp.asarray(W), jnp.asarray(b)) for W, b in problem.weights)
        X, Y, name = jnp.asarray(problem.X), jnp.asarray(problem.Y), f"{network}, batch 512"
        cell = beside_gradient(net, params, X, Y, rounds, name)
        yield cell
        out.table(f"readouts at {name}, beside the mean gradient (forward, backward and product)", rows_beside(cell))
        if quick:
            continue
        cells = [*against_torch(net, params, X, Y, rounds, name), *against_formed(net, params, X, Y, name)]
        yield from cells
        out.table("ours against the peers; BackPACK's and Opacus' with the mean gradient",
                  [row for cell in cells for row in contest_rows(cell)])  # fmt: skip
