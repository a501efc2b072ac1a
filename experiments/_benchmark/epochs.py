"""The grid: an epoch of each network at each batch size, by ours, by every peer and at the limit."""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments._benchmark import timing
from experiments._benchmark.limit import Products, bytes_seconds, limit_seconds
from experiments._benchmark.ours import Epoch
from experiments._benchmark.problem import EPOCH_SECONDS, QUICK_SECONDS, Problem, make_problem, steps_for, widths
from experiments._benchmark.timing import Call, Cell, digits, make_contestants, milliseconds, quartiles, time_in_turns
from experiments.datasets import Pictures
from experiments.output import Output
from jaxmlp import plotting

SECTION = "epochs"
LIMIT = "products alone"
OWN = ("ours", "bytes")
MARKS = ("o-", "s-", "^-", "v-", "D-", "P-", "X-", "*-", ".:")  # of the peers and of the limit
TICKS = (0.05, 0.1, 0.2, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100, 200)
PEERS = {  # the file and the function or class in it that makes the peer
    "bytes": ("ours", "as_bytes"),  # ours, on uint8 pictures
    "jax.grad": ("ours", "by_jax_grad"),
    "equinox": ("jax_peers", "equinox"),
    "flax": ("jax_peers", "flax"),
    "torch": ("torch_peers", "Loop"),
    "torch.compile": ("torch_peers", "compile_loop"),
    "scikit-learn": ("plain_peers", "ScikitLearn"),
    "numpy": ("plain_peers", "NumPy"),
}


def maker(peer: str) -> Callable[[Problem], Any]:
    """The function that makes a peer of a problem; only its call imports the peer's library."""
    return lambda problem: timing.peer(*PEERS[peer], problem)()


def measure_cell(problem: Problem, name: str, peers: tuple[str, ...], rounds: int) -> Cell:
    """One cell of the grid; the limit's products are one of the contestants."""
    makers: dict[str, Callable[[], Call]] = {"ours": lambda: Epoch(problem), LIMIT: lambda: Products(problem)}
    makers |= {peer: functools.partial(maker(peer), problem) for peer in peers}
    calls, ready, absent = make_contestants(makers, (*OWN, LIMIT))
    seconds = time_in_turns(calls, rounds)
    facts = {"network": "-".join(map(str, problem.net.sizes)), "batch_size": problem.batch_size,
             "examples": len(problem.X), "steps": problem.steps, "bytes_seconds": bytes_seconds(problem),
             "ready_seconds": ready,
             "limit_ratio": {peer: beyond_limit(problem, seconds, peer) for peer in seconds}}  # fmt: skip
    return Cell(SECTION, name, seconds, OWN, absent, facts)


def beyond_limit(problem: Problem, seconds: dict[str, np.ndarray], peer: str) -> float:
    """A contestant's time over the limit: the median of the rounds."""
    return float(np.median(seconds[peer] / limit_seconds(seconds[LIMIT], problem)))


def grid(
    networks: tuple[str, ...], batch_sizes: tuple[int, ...], peers: tuple[str, ...], pictures: Pictures, rounds: int,
    rate: float, quick: bool, out: Output,
) -> Iterator[Cell]:  # fmt: skip
    """Yields each cell when it is done, and reports it by a line, and each network by a table."""
    long = QUICK_SECONDS if quick else EPOCH_SECONDS
    number, total = 0, len(networks) * len(batch_sizes)
    for network in networks:
        cells = []
        for batch_size in batch_sizes:
            began, number = time.perf_counter(), number + 1
            steps = steps_for(widths(network), batch_size, len(pictures.X), long)
            problem = make_problem(widths(network), batch_size, pictures, rate, steps)
            cell = measure_cell(problem, f"{network}, batch {batch_size}", peers, rounds)
            cells.append(cell)
            yield cell
            out.say(f"[{number} of {total}] {cell.name}: {milliseconds(cell.seconds['ours'])} ms for "
                    f"{len(problem.X):,} examples, {cell.facts['limit_ratio']['ours']:.2f} times the limit "
                    f"({time.perf_counter() - began:.0f} s)")  # fmt: skip
        out.table(f"an epoch of {network}, by ours and by the peers", [row for cell in cells for row in rows(cell)])


def rows(cell: Cell) -> list[dict[str, str]]:
    """A row of the table for each contestant of a cell."""
    made = []
    for name, seconds in cell.seconds.items():
        made.append({"batch, contestant": f"{cell.facts['batch_size']}, {name}", "ms": milliseconds(seconds),
                     "quartiles": quartiles(1e3 * seconds),
                     "us a step": digits(1e6 * float(np.median(seconds)) / cell.facts["steps"]),
                     "times ours": f"{cell.ratio(name):.2f}", "from, to": quartiles(cell.ratios(name)),
                     "times limit": f"{cell.facts['limit_ratio'][name]:.2f}",
                     "ready (s)": f"{cell.facts['ready_seconds'][name]:.1f}"})  # fmt: skip
    least = 1e3 * cell.facts["bytes_seconds"]
    empty = dict.fromkeys(made[0], "")
    made.append({**empty, "batch, contestant": f"{cell.facts['batch_size']}, bytes alone", "ms": f"{least:.3g}",
                 "us a step": f"{1e3 * least / cell.facts['steps']:.3g}"})  # fmt: skip
    return made + [{**empty, "batch, contestant": f"{cell.facts['batch_size']}, {name}: {why}"}
                   for name, why in cell.absent.items()]  # fmt: skip


def over_ours(cells: list[Cell], peer: str) -> dict[str, float]:
    """A peer's time over ours, in each cell that has this peer."""
    return {cell.name: cell.ratio(peer) for cell in cells if peer in cell.seconds}


def over_limit(cells: list[Cell]) -> dict[str, float]:
    """Our time over the limit, in each cell."""
    return {cell.name: cell.facts["limit_ratio"]["ours"] for cell in cells}


def summary(cells: list[Cell]) -> list[dict[str, str]]:
    """The median and the worst of the cells: the least of a peer's ratios, the largest of ours to the limit."""
    peers = {f"{peer} / ours": over_ours(cells, peer) for peer in PEERS}
    each = [(name, ratios, min) for name, ratios in peers.items() if ratios]
    return [
        {"ratio": name, "median": f"{np.median(list(ratios.values())):.2f}",
         "worst": f"{ratios[worst := pick(ratios, key=ratios.__getitem__)]:.2f}", "where": worst}
        for name, ratios, pick in [*each, ("ours / limit", over_limit(cells), max)]
    ]  # fmt: skip


def worst(cells: list[Cell]) -> dict[str, float]:
    """The least ratio of each peer's time to ours, and the largest of ours to the limit."""
    least = {f"{peer} / ours": min(ratios.values()) for peer in PEERS if (ratios := over_ours(cells, peer))}
    return {**least, "ours / limit": max(over_limit(cells).values())}


def picture(cells: list[Cell]) -> Figure:
    """The times of the peers and of the limit over ours, against the batch size: a panel for each network."""
    networks = list(dict.fromkeys(cell.facts["network"] for cell in cells))
    figure, axes = plotting.figure(-(-len(networks) // 2), min(2, len(networks)), size=(4.6, 3.4), squeeze=False)
    lines = {}
    for network, ax in zip(networks, axes.flat, strict=False):
        of_network = [cell for cell in cells if cell.facts["network"] == network]
        curves = {peer: [(cell.facts["batch_size"], cell.ratio(peer)) for cell in of_network if peer in cell.seconds]
                  for peer in PEERS}  # fmt: skip
        curves["the limit"] = [(cell.facts["batch_size"], 1 / cell.facts["limit_ratio"]["ours"]) for cell in of_network]
        lines["ours"] = ax.axhline(1, color="black", linewidth=1)
        for (name, points), color, mark in zip(curves.items(), (*plotting.PALETTE, "gray", "gray"), MARKS, strict=True):
            if points:
                (lines[name],) = ax.plot(*zip(*points, strict=True), mark, color=color, markersize=5)
        ax.set(
            title=network, xlabel="batch size (examples)", ylabel="time of an epoch / ours", xscale="log", yscale="log"
        )
        ax.set_xticks(sizes := sorted({cell.facts["batch_size"] for cell in of_network}), list(map(str, sizes)))
        ax.set_yticks([tick for tick in TICKS if ax.get_ylim()[0] <= tick <= ax.get_ylim()[1]])
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    for ax in axes.flat[len(networks) :]:
        ax.axis("off")
    figure.legend(lines.values(), lines, loc="outside right", fontsize="small")  # pyright: ignore
    return figure
