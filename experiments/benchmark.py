"""Speed: an epoch by hand against every peer and against the limit of the machine; readouts, populations, start-up.

How it is measured. All contestants of a cell train the same ReLU network from the same weights on the same pictures by
plain SGD at the same batch size, float32 from 0 to 1 (`bytes` is ours on uint8), every example once an epoch in a new
order, on as many threads as there are cores. They take turns: each round times one epoch of each, every other round
backwards, 40 ms apart so that no one's threads still spin in another's time, and without garbage collection. Building,
compilation and a first epoch (`ready`), and one round more, come before and are not counted. A ratio is taken within a
round; reported are medians and quartiles of the rounds. Ours and `jax.grad` are one compiled program an epoch, as
`jm.fit` compiles it, with the accuracy that it keeps; Equinox and flax run a jitted step for each batch sliced from a
NumPy permutation; PyTorch index_select, zero_grad, backward, step; scikit-learn partial_fit; NumPy the equations.

The limit of an epoch is the longer of its matrix products alone, in one compiled program, and of the bytes that it must
move, at the speed at which this machine reads and writes about as many bytes as the weights are (the next power of 2).

Expect every peer above 1.00 times ours (`jax.grad` at 1.00, no less than 0.97: the same program against itself wavers
by 2%), PyTorch above 2 up to batch 128, scikit-learn above 2.5, and ours at most 1.3 times the limit from batch 128 on,
1.15 where a layer has 1024 units or more. A table lists what falls short, and what a program at the limit would show.

The extra `benchmark` brings the peers; one that is missing is told of. The machine must be idle: threads that wait for
each other, as PyTorch's, lose most where they share a core. One cell: `--sections epochs --networks 784-64-10
--batch-sizes 32 --peers torch`. `--compare old.json new.json` compares two runs, `--compare old.json` this run with an
older one, by the ratios to the peers; it fails where ours has lost more than `--tolerance`.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from experiments import datasets
from experiments._benchmark import epochs, expected, options, populations, readouts, record, rules, startup
from experiments._benchmark.problem import widths
from experiments._benchmark.timing import Cell
from experiments.datasets import Pictures
from experiments.output import Output

SECTIONS = ("epochs", "readouts", "rules", "options", "populations", "startup", "compilation")
OF_TRACES = ("784-64-10", "784-1024-1024-10")  # networks whose readouts, rules and options are looked at
SHOWN = 20  # changes at most, in a comparison where nothing has been lost


@dataclass(frozen=True)
class Settings:
    # readouts, rules and options are measured at 784-64-10 and 784-1024-1024-10 if these are among them
    networks: tuple[str, ...] = ("784-64-10", "784-800-10", "784-1024-1024-10", "784-2048-2048-2048-10")
    batch_sizes: tuple[int, ...] = (1, 10, 32, 128, 512, 4096)  # of the section of epochs
    peers: tuple[str, ...] = tuple(epochs.PEERS)  # in the section of epochs
    sections: tuple[str, ...] = SECTIONS  # what is measured
    rounds: int = 9  # how often each contestant is timed; the median is reported
    learning_rate: float = 0.01  # of the section of epochs
    compare: tuple[str, ...] = ()  # an older benchmark.json, and a newer one if nothing is to be run
    tolerance: float = 1.10  # how many times its older ratio to a peer ours may take, in a comparison
    quick: bool = False  # two networks at two batch sizes, 3 rounds, no torch.compile, the least of each other section

    def checked(self) -> "Settings":
        """With what `quick` changes; ValueError for what is unknown."""
        for name, known in (("peers", tuple(epochs.PEERS)), ("sections", SECTIONS)):
            for given in getattr(self, name):
                if given not in known:
                    raise ValueError(f"{name} has {given!r}, expected some of {', '.join(known)}")
        if self.rounds < 1 or any(not 1 <= size <= 60_000 for size in self.batch_sizes):
            raise ValueError(f"rounds and batch_sizes are {self.rounds} and {self.batch_sizes}, expected at least 1 "
                             "round, and batches of 1 to 60,000")  # fmt: skip
        if len(self.compare) > 2 or not self.tolerance > 0:
            raise ValueError(f"compare and tolerance are {self.compare} and {self.tolerance}, expected at most two "
                             "files, and a tolerance above 0")  # fmt: skip
        for network in self.networks:
            widths(network)
        if not self.quick:
            return self
        return dataclasses.replace(
            self, networks=("784-64-10", "784-800-10"), batch_sizes=(32, 512), rounds=3,
            peers=tuple(peer for peer in self.peers if peer != "torch.compile"),
            sections=tuple(section for section in self.sections if section not in ("rules", "options")),
        )  # fmt: skip


def run(settings: Settings, out: Output) -> dict[str, float]:
    chosen = settings.checked()
    if len(chosen.compare) == 2:
        return compared(*chosen.compare, chosen.tolerance, out)
    for path in chosen.compare:
        record.read(path)  # before an hour is spent
    out.say(f"{__doc__}")
    kept = record.Record(out.folder / "benchmark.json", dataclasses.asdict(chosen))
    machine = kept.head["machine"]
    out.say(f"{machine['processor']}, {machine['cores']} cores, "
            f"{machine['memory_bytes_a_second'] / 1e9:.0f} GB/s to and from memory; "
            + ", ".join(f"{name} {version}" for name, version in kept.head["versions"].items() if version)
            + f"; median of {chosen.rounds} rounds\n")  # fmt: skip
    if (machine["load"] or 0) > 0.5:
        out.say(
            f"{machine['load']:.1f} processes were at work before: peers, and ours, are slower than they would be\n"
        )
    for cell in measured(chosen, out):
        kept.add(cell)
    grid = [cell for cell in kept.cells if cell.section == epochs.SECTION]
    numbers = {}
    if grid:
        out.table("the grid: the middle and the worst of its cells", epochs.summary(grid))
        if short := expected.missed(grid):
            out.table("what was expected and not reached", short)
        out.picture("epochs", epochs.picture(grid))
        numbers = epochs.worst(grid)
    if chosen.compare:
        numbers |= compared(chosen.compare[0], str(kept.path), chosen.tolerance, out)
    out.close()
    return numbers


def measured(chosen: Settings, out: Output) -> Iterator[Cell]:
    """Every cell of the chosen sections as it is done."""
    pictures: Pictures = datasets.load("mnist")
    networks = tuple(network for network in OF_TRACES if network in chosen.networks)
    rest = pictures, chosen.rounds, chosen.quick, out
    of_traces = pictures, networks, chosen.rounds, chosen.quick, out
    parts = {
        "epochs": partial(epochs.grid, chosen.networks, chosen.batch_sizes, chosen.peers, pictures, chosen.rounds,
                          chosen.learning_rate, out),
        "readouts": partial(readouts.section, *of_traces),
        "rules": partial(rules.section, *of_traces),
        "options": partial(options.section, *of_traces),
        "populations": partial(populations.section, *rest),
        "startup": partial(startup.section, *rest),
        "compilation": partial(startup.compilation, *rest),
    }  # fmt: skip
    for section in chosen.sections:
        yield from parts[section]()


def compared(old: str, new: str, tolerance: float, out: Output) -> dict[str, float]:
    """Says where ours has lost ground to the peers; ValueError if it has lost more than `tolerance` somewhere."""
    both, old_alone, new_alone = record.changes(record.read(old), record.read(new))
    for name, alone in (("old", old_alone), ("new", new_alone)):
        if alone:
            out.say(f"in the {name} file alone:\n  " + "\n  ".join(alone))
    if not both:
        raise ValueError(f"{old} and {new} have no cell in common")
    lost = [change for change in both if change.factor > tolerance]
    out.table(f"our time over the peer's, {new} beside {old}: above {tolerance:g}" if lost else
              "our time over the peer's: the most that was lost", [
        {"cell": change.cell, "ours": change.ours, "peer": change.peer, "old": f"{change.old:.3f}",
         "new": f"{change.new:.3f}", "new / old": f"{change.factor:.3f}"} for change in lost or both[:SHOWN]
    ])  # fmt: skip
    worst = both[0]
    out.say(f"the worst of {len(both)}: {worst.factor:.3f}, {worst.cell}, {worst.ours} against {worst.peer}")
    if lost:
        raise ValueError(f"ours has lost more than {tolerance:g} in {len(lost)} of {len(both)} comparisons; see above")
    return {"worst_change": worst.factor}
