"""A training step by K-FAC and EK-FAC beside a step of SGD, kfac-jax and curvlinops.

An epoch of ours is the one that `fit` compiles. Its steps are a multiple of `PERIOD`, so each epoch updates factors and
inverses equally often. All K-FAC contestants have the same damping, rate, momentum and decay of the factors' averages,
and sample one label an example from the model.
"""

import functools
from collections.abc import Callable, Iterator

import numpy as np
import optax

import jaxmlp as jm
from experiments._benchmark.ours import Epoch
from experiments._benchmark.problem import Problem, make_problem, widths
from experiments._benchmark.timing import Call, Cell, make_contestants, milliseconds, peer, quartiles, time_in_turns
from experiments.datasets import Pictures
from experiments.output import Output

BATCH_SIZE, STEPS = 512, 20
PERIOD = 10  # steps between two updates of the factors, and of their inverses
DAMPING, RATE, MOMENTUM, DECAY = 0.1, 0.01, 0.9, 0.95
BASE, KFAC = "SGD", "K-FAC"
NETWORK, SMALL = "784-1024-1024-10", "784-64-10"
PEERS = {  # the file and the class or function in it that makes the peer
    "kfac-jax": ("jax_second_order", "kfac_jax"),
    "curvlinops": ("torch_second_order", "Curvlinops"),
}


def optimizers(net: jm.MLP, quick: bool = False) -> dict[str, optax.GradientTransformation]:
    """Ours by name, SGD first; two of them where it is to be quick."""
    kfac = functools.partial(jm.kfac, net, damping=DAMPING, momentum=MOMENTUM, factors_every=PERIOD,
                             inverses_every=PERIOD, decay=DECAY ** (1 / PERIOD))  # fmt: skip
    made: dict[str, optax.GradientTransformation] = {
        BASE: optax.sgd(RATE),
        KFAC: kfac(RATE),
        "K-FAC, own rate": kfac(),  # rate and momentum from the quadratic model
        "EK-FAC": kfac(RATE, eigenbasis=True),
    }
    return {name: made[name] for name in (BASE, KFAC)} if quick else made


def contestants(problem: Problem, own: dict[str, optax.GradientTransformation]) -> dict[str, Callable[[], Call]]:
    """What makes each contestant's epoch, ours first. The call of a peer imports its library."""
    made: dict[str, Callable[[], Call]] = {
        name: functools.partial(Epoch, problem, optimizer=optimizer) for name, optimizer in own.items()
    }
    return made | {name: peer(*where, problem) for name, where in PEERS.items()}


def measure(problem: Problem, name: str, rounds: int, quick: bool = False) -> Cell:
    """A cell of this section; its seconds are for one step, and its ratios are taken to a step of SGD."""
    own = optimizers(problem.net, quick)
    calls, ready, absent = make_contestants(contestants(problem, own), tuple(own))
    seconds = {each: times / problem.steps for each, times in time_in_turns(calls, rounds).items()}
    return Cell("second_order", name, seconds, tuple(own), absent, {"steps": problem.steps, "ready_seconds": ready})


def section(pictures: Pictures, networks: tuple[str, ...], rounds: int, quick: bool, out: Output) -> Iterator[Cell]:
    """A step of each contestant at batch 512, and a table for each network."""
    for network in networks:
        problem = make_problem(widths(network), BATCH_SIZE, pictures, RATE, steps=PERIOD if quick else STEPS)
        cell = measure(problem, f"{network}, batch {BATCH_SIZE}", rounds, quick)
        yield cell
        out.table(f"second order: a step at {cell.name}, factors and inverses every {PERIOD}", rows(cell))


def rows(cell: Cell) -> list[dict[str, str]]:
    """A row for each contestant, and one for each peer that could not run."""
    made = []
    for name, seconds in cell.seconds.items():
        made.append({"contestant": name, "ms a step": milliseconds(seconds), "quartiles": quartiles(1e3 * seconds),
                     f"times {BASE}": f"{cell.ratio(name):.2f}", "from, to": quartiles(cell.ratios(name)),
                     f"times {KFAC}": f"{np.median(seconds / cell.seconds[KFAC]):.2f}",
                     "ready (s)": f"{cell.facts['ready_seconds'][name]:.1f}"})  # fmt: skip
    return made + [{**dict.fromkeys(made[0], ""), "contestant": f"{name}: {why}"} for name, why in cell.absent.items()]
