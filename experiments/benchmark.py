"""Speed: our epoch beside the same epoch in other libraries and beside the machine's limit.

Sections: epochs, readouts, rules, second order, newer quantities beside the libraries made for them (`methods`),
options of `fit`, populations, start-up and compilation.

Task. All contestants of a cell train one ReLU network by plain SGD, from the same weights, on the same pictures, at the
same batch size. Pictures are float32 from 0 to 1 (`bytes` is ours on uint8). An epoch takes every example once, in a
new order. Every contestant has as many threads as there are cores.

Timing. The contestants take turns. Each round times one epoch of each, and every other round runs backwards. Turns are
40 ms apart, so that no thread spins into another's turn, and Python's garbage collector is off. Building, compiling and
a first epoch (`ready`) and one more round come before and do not count. Ratios are taken within a round. The tables
have the medians and quartiles of the rounds.

Contestants. Ours and `jax.grad` run an epoch as one compiled program, the one of `jm.fit`, which also keeps the
accuracy. Equinox and Flax run a jitted step for each batch of a NumPy permutation. PyTorch runs index_select,
zero_grad, backward and step. scikit-learn runs partial_fit, and NumPy the notes' equations.

Second order. K-FAC and EK-FAC train in the same epoch as SGD, beside kfac-jax, a compiled step for each batch, and
curvlinops on PyTorch. Damping, rate and momentum are fixed, and all sample labels from the model. Factors and inverses
are due every 10 steps, and an epoch is a multiple of 10.

Newer quantities. Each peer must give our numbers before it is timed: jax_privacy's clipped gradient, curvlinops'
products with the Hessian and its Kronecker factors, laplace-torch's posteriors and variances, kronfluence's influence
scores, and the tangent kernel by `jax.jacrev`.

A GPU or TPU. `--accelerator` measures a table of its own instead of the sections, in at most 8 minutes on one chip.

Limit. An epoch must do its matrix products and move its bytes. The limit is the longer of two times: the products
alone in one compiled program, and the bytes at the speed at which this machine copies an array as large as the weights
(rounded up to a power of 2).

Expect every peer to take more than 1.00 times our time. `jax.grad` takes 1.00 times, at least 0.97: two timings of one
program differ by 2%. PyTorch takes more than 2 times up to batch 128, scikit-learn more than 2.5. From batch 128 on
ours takes at most 1.3 times the limit, 1.15 where a layer has 1024 units or more. A table lists the cells that miss an
expectation, with the ratio that a program at the limit would have. A step of K-FAC takes at most 3 times a step of SGD,
and less than one of kfac-jax, for which 2 times is the aim.

The extra `benchmark` brings the peers; the tables name a peer that is missing. The machine must be idle: a contestant
whose threads wait for each other, such as PyTorch, loses most when another process uses a core. One cell:
`--sections epochs --networks 784-64-10 --batch-sizes 32 --peers torch`. `--compare old.json new.json` compares two
runs by their ratios to the peers, and `--compare old.json` compares this run with an older one. A comparison fails
where ours has lost more than `--tolerance`.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax

from experiments import datasets
from experiments._benchmark import (
    accelerator,
    epochs,
    expected,
    methods,
    options,
    populations,
    readouts,
    record,
    rules,
    second_order,
    startup,
)
from experiments._benchmark.problem import widths
from experiments._benchmark.timing import Cell
from experiments.datasets import Pictures
from experiments.output import Output

SECTIONS = ("epochs", "readouts", "rules", "second_order", "methods", "options", "populations", "startup",
            "compilation")  # fmt: skip
OF_TRACES = ("784-64-10", "784-1024-1024-10")  # networks whose readouts, rules and options are measured
SHOWN = 20  # the most changes in the table of a comparison without losses


@dataclass(frozen=True)
class Settings:
    # networks of the section epochs; readouts, rules and options take 784-64-10 and 784-1024-1024-10 from among them
    networks: tuple[str, ...] = ("784-64-10", "784-800-10", "784-1024-1024-10", "784-2048-2048-2048-10")
    # networks of the section second_order; curvlinops' benchmark takes 784-1024-512-256-128-64-10
    second_order_networks: tuple[str, ...] = (second_order.NETWORK,)
    batch_sizes: tuple[int, ...] = (1, 10, 32, 128, 512, 4096)  # batch sizes of the section epochs
    peers: tuple[str, ...] = tuple(epochs.PEERS)  # peers of the section epochs
    sections: tuple[str, ...] = SECTIONS  # sections to run
    rounds: int = 9  # timings of each contestant; the tables have their median
    learning_rate: float = 0.01  # rate of SGD in the section epochs
    compare: tuple[str, ...] = ()  # an older benchmark.json to compare this run with; or an older and a newer one
    tolerance: float = 1.10  # a comparison fails where our ratio to a peer has grown by more than this factor
    accelerator: bool = False  # instead of the sections, the table of a GPU or TPU, in 8 minutes; the page says more
    quick: bool = False  # two networks at two batch sizes, 3 rounds, no torch.compile, no rules, no options, no EK-FAC

    def resolve(self) -> "Settings":
        """The settings with the changes of `quick`; ValueError where they are wrong, or leave nothing to measure."""
        for name, known in (("peers", tuple(epochs.PEERS)), ("sections", SECTIONS)):
            for given in getattr(self, name):
                if given not in known:
                    raise ValueError(f"{name} has {given!r}, expected some of {', '.join(known)}")
        if self.rounds < 1 or any(not 1 <= size <= 60_000 for size in self.batch_sizes):
            raise ValueError(f"rounds and batch_sizes are {self.rounds} and {self.batch_sizes}, expected at least 1 "
                             "round, and batches of 1 to 60,000")  # fmt: skip
        if len(self.compare) > 2 or not 0 < self.tolerance < math.inf:
            raise ValueError(f"compare and tolerance are {self.compare} and {self.tolerance}, expected at most two "
                             "files, and a tolerance above 0")  # fmt: skip
        for network in (*self.networks, *self.second_order_networks):
            widths(network)
        chosen = self._resolve_quick() if self.quick else self
        traced = any(network in OF_TRACES for network in chosen.networks)
        works = dict.fromkeys(("readouts", "rules", "options"), traced)
        works |= {"epochs": bool(chosen.networks and chosen.batch_sizes)}
        works |= {"second_order": bool(chosen.second_order_networks)}
        of_sections = not (chosen.accelerator or len(chosen.compare) == 2)
        if of_sections and not any(works.get(section, True) for section in chosen.sections):
            raise ValueError(f"sections and networks are {self.sections} and {self.networks}, which leaves nothing to "
                             f"measure; readouts, rules and options take {' and '.join(OF_TRACES)} alone, and quick "
                             "has no rules and no options")  # fmt: skip
        return chosen

    def _resolve_quick(self) -> "Settings":
        return dataclasses.replace(
            self, networks=("784-64-10", "784-800-10"), batch_sizes=(32, 512), rounds=3,
            second_order_networks=(second_order.SMALL,),
            peers=tuple(peer for peer in self.peers if peer != "torch.compile"),
            sections=tuple(section for section in self.sections if section not in ("rules", "options")),
        )  # fmt: skip


def run(settings: Settings, out: Output) -> dict[str, float]:
    chosen = settings.resolve()
    if len(chosen.compare) == 2:
        return compare(*chosen.compare, chosen.tolerance, out)
    for path in chosen.compare:
        record.read(path)  # fails now, not after an hour of measuring
    out.say(f"{__doc__}")
    kept = record.Record(out.folder / "benchmark.json", dataclasses.asdict(chosen))
    machine = kept.head["machine"]
    chip = "" if jax.default_backend() == "cpu" else f"{machine['device']}; "
    out.say(f"{chip}{machine['processor']}, {machine['cores']} cores, "
            f"{machine['memory_bytes_a_second'] / 1e9:.0f} GB/s read and written in memory; "
            + ", ".join(f"{name} {version}" for name, version in kept.head["versions"].items() if version)
            + f"; median of {chosen.rounds} rounds\n")  # fmt: skip
    if (machine["load"] or 0) > 0.5:
        out.say(f"the load before this run was {machine['load']:.1f} processes: it slows all contestants down\n")
    for cell in measure_accelerator(chosen, out) if chosen.accelerator else measure(chosen, out):
        kept.add(cell)
    grid = [cell for cell in kept.cells if cell.section == epochs.SECTION]
    numbers = {}
    if grid:
        out.table("the grid: the median and the worst of its cells", epochs.summary(grid))
        if short := expected.shortfalls(grid):
            out.table("cells that miss an expectation", short)
        out.picture("epochs", epochs.picture(grid))
        numbers = epochs.worst(grid)
    if chosen.compare:
        numbers |= compare(chosen.compare[0], str(kept.path), chosen.tolerance, out)
    out.close()
    return numbers


def measure_accelerator(chosen: Settings, out: Output) -> Iterator[Cell]:
    """Yields every cell of the table of a GPU or TPU when it is done."""
    return accelerator.measure(datasets.load("mnist"), chosen.rounds, chosen.quick, out)


def measure(chosen: Settings, out: Output) -> Iterator[Cell]:
    """Yields every cell of the chosen sections when it is done."""
    pictures: Pictures = datasets.load("mnist")
    networks = tuple(network for network in OF_TRACES if network in chosen.networks)
    rest = pictures, chosen.rounds, chosen.quick, out
    of_traces = pictures, networks, chosen.rounds, chosen.quick, out
    parts = {
        "epochs": partial(epochs.grid, chosen.networks, chosen.batch_sizes, chosen.peers, pictures, chosen.rounds,
                          chosen.learning_rate, chosen.quick, out),
        "readouts": partial(readouts.section, *of_traces),
        "rules": partial(rules.section, *of_traces),
        "second_order": partial(second_order.section, pictures, chosen.second_order_networks, *rest[1:]),
        "methods": partial(methods.section, *rest),
        "options": partial(options.section, *of_traces),
        "populations": partial(populations.section, *rest),
        "startup": partial(startup.section, *rest),
        "compilation": partial(startup.compilation, *rest),
    }  # fmt: skip
    for section in chosen.sections:
        yield from parts[section]()


def compare(old: str, new: str, tolerance: float, out: Output) -> dict[str, float]:
    """Reports where ours has become slower beside the peers; ValueError where by more than `tolerance`."""
    both, old_alone, new_alone = record.changes(record.read(old), record.read(new))
    for name, alone in (("old", old_alone), ("new", new_alone)):
        if alone:
            out.say(f"only in the {name} file:\n  " + "\n  ".join(alone))
    if not both:
        raise ValueError(f"{old} and {new} have no cell in common")
    lost = [change for change in both if change.factor > tolerance]
    out.table(f"our time over the peer's, {new} beside {old}: above {tolerance:g}" if lost else
              "our time over the peer's: the largest changes", [
        {"cell": change.cell, "ours": change.ours, "peer": change.peer, "old": f"{change.old:.3f}",
         "new": f"{change.new:.3f}", "new / old": f"{change.factor:.3f}"} for change in lost or both[:SHOWN]
    ])  # fmt: skip
    worst = both[0]
    out.say(f"the worst of {len(both)}: {worst.factor:.3f}, {worst.cell}, {worst.ours} against {worst.peer}")
    if lost:
        raise ValueError(f"ours has lost more than {tolerance:g} in {len(lost)} of {len(both)} comparisons; see above")
    return {"worst_change": worst.factor}


compared = compare  # the name by which scripts of version 0.1.0 call it
