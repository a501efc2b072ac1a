"""Many networks at once by `jm.sweep`: on XOR against PyTorch one by one, on MNIST against `jm.fit` one by one."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmlp as jm
from experiments import xor
from experiments._benchmark.problem import make_problem, widths
from experiments._benchmark.timing import Call, Cell, make_contestants, quartiles, time_in_turns
from experiments.datasets import Pictures
from experiments.output import Output

XOR = jm.MLP((2, 3, 1), hidden="sigmoid", output="sigmoid", loss="binary_cross_entropy")
STARTS = jax.nn.initializers.normal(0.3)  # one object: a second sweep with it does not compile again
RATE = 2.0


@dataclass(frozen=True)
class Size:
    """The amount of work in this section's runs."""

    members: tuple[int, ...] = (10_000, 1024)  # networks for XOR
    steps: int = 2000
    timed: tuple[int, int] = (3, 300)  # PyTorch's networks and their steps: few, as each takes equally long
    digits: tuple[int, int] = (32, 50)  # networks for MNIST, and their steps


SMALL = Size(members=(1024,), steps=200, timed=(1, 100), digits=(4, 20))


def xor_sweep(members: int, steps: int) -> Call:
    """`steps` full-batch steps of `members` networks."""
    keys = jax.random.split(jax.random.key(0), members)
    return lambda: jm.sweep(XOR, (xor.X, xor.Y), keys=keys, optimizer=optax.sgd, hyper={"learning_rate": RATE},
                            initial=STARTS, epochs=steps, progress=False)  # fmt: skip


def torch_xor(networks: int, steps: int) -> Call:
    """The same networks in PyTorch, one after another."""
    one_by_one = importlib.import_module("experiments._benchmark.torch_peers").xor_one_by_one
    drawn = [jm.init(XOR, key, STARTS) for key in jax.random.split(jax.random.key(0), networks)]
    runs = [one_by_one(xor.X, xor.Y, params, RATE, steps) for params in drawn]
    return lambda: [run() for run in runs]


def digits(pictures: Pictures, networks: int, steps: int) -> dict[str, Callable[[], Call]]:
    """Networks 784-64-10 from different keys, batch 128, two epochs: all at once, and one `fit` after another."""
    problem = make_problem(widths("784-64-10"), 128, pictures, 0.01, steps)
    net, data, keys = problem.net, (problem.X, problem.Y), jax.random.split(jax.random.key(0), networks)
    sgd, common = optax.sgd(problem.rate), {"epochs": 2, "batch_size": 128, "progress": False}
    at_once = lambda: jm.sweep(net, data, keys=keys, optimizer=sgd, **common)
    each = lambda: [jm.fit(net, jm.init(net, key), data, key=key, optimizer=sgd, **common) for key in keys]
    return {"ours": lambda: at_once, "fit, one by one": lambda: each}


def cells(pictures: Pictures, rounds: int, size: Size) -> Iterator[Cell]:
    """The cells of this section; their seconds are for one step of one network."""
    for members in size.members:
        makers: dict[str, Callable[[], Call]] = {"ours": lambda members=members: xor_sweep(members, size.steps)}
        makers["torch, one by one"] = lambda: torch_xor(*size.timed)
        counts = {"ours": members * size.steps, "torch, one by one": size.timed[0] * size.timed[1]}
        yield per_step(f"{members:,} networks 2-3-1 for XOR", makers, counts, rounds, ("ours",))
    networks, steps = size.digits
    makers = digits(pictures, networks, steps)
    yield per_step(f"{networks} networks 784-64-10, batch 128", makers,
                   dict.fromkeys(makers, networks * steps * 2), rounds, tuple(makers))  # fmt: skip


def by_vmap_grad(net: jm.MLP, X: np.ndarray, Y: np.ndarray, members: int, batch_size: int, epochs: int, rate: float,
                 weights: Any = "he") -> Call:  # fmt: skip
    """Networks at once as one writes it without this library: `vmap` of a scan over steps by `jax.grad`."""
    inputs, labels = jnp.asarray(X), jnp.asarray(Y)

    def train(key: jax.Array) -> Any:
        def step(params: Any, index: Any) -> tuple[Any, None]:
            batch = (inputs, labels) if index is None else (inputs[index], labels[index])
            grads = jax.grad(lambda p: jm.cost(net, p, *batch))(params)
            return jax.tree.map(lambda p, g: p - rate * g, params, grads), None

        orders = None  # of the whole batch, whose order does not matter
        if batch_size < len(X):
            keys = jax.random.split(key, epochs)
            orders = jax.vmap(lambda key: jax.random.permutation(key, len(X)))(keys).reshape(-1, batch_size)
        return jax.lax.scan(step, jm.init(net, key, weights), orders, length=epochs * (len(X) // batch_size))[0]

    run, keys = jax.jit(jax.vmap(train)), jax.random.split(jax.random.key(0), members)
    return lambda: jax.block_until_ready(run(keys))


def per_step(name: str, makers: dict, counts: dict[str, int], rounds: int, own: tuple[str, ...]) -> Cell:
    """A cell whose seconds are for one step of one network; a call takes as many as `counts` has."""
    calls, ready, absent = make_contestants(makers, own)
    seconds = {peer: times / counts[peer] for peer, times in time_in_turns(calls, rounds).items()}
    return Cell("populations", name, seconds, own, absent, {"network_steps": counts, "ready_seconds": ready})


def section(pictures: Pictures, rounds: int, quick: bool, out: Output) -> Iterator[Cell]:
    """Times whole calls, with checks and the drawing of weights; the first call, which compiles, does not count."""
    made = []
    for cell in cells(pictures, rounds, SMALL if quick else Size()):
        yield cell
        made.append(cell)
    out.table(
        "one step of one network, where ours trains all at once",
        [row for cell in made for row in rows(cell)],
    )


def rows(cell: Cell) -> list[dict[str, Any]]:
    """A row for each contestant, in nanoseconds."""
    measured = [{"population, contestant": f"{cell.name}, {name}", "ns": f"{1e9 * np.median(seconds):,.1f}",
                 "quartiles": quartiles(1e9 * seconds), "times ours": f"{cell.ratio(name):.2f}",
                 "first call (s)": f"{cell.facts['ready_seconds'][name]:.1f}"}
                for name, seconds in cell.seconds.items()]  # fmt: skip
    return measured + [{**dict.fromkeys(measured[0], ""), "population, contestant": f"{cell.name}, {name}: {why}"}
                       for name, why in cell.absent.items()]  # fmt: skip
