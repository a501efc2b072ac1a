"""The expectations of the grid, and the cells that miss them."""

from collections.abc import Iterator

from experiments._benchmark.problem import widths
from experiments._benchmark.timing import Cell

AT_LEAST = {"jax.grad": 0.97, "equinox": 1.0, "flax": 1.0, "torch": 1.0, "torch.compile": 1.0, "scikit-learn": 2.5,
            "numpy": 1.0}  # times ours; two timings of one program differ by 2%  # fmt: skip
TORCH, SMALL = 2.0, 128  # PyTorch must take twice our time up to this batch size
OVER_LIMIT, LARGE = 1.3, 128  # ours may take this times the limit, from this batch size on
OVER_LIMIT_WIDE, WIDE = 1.15, 1024  # and less in networks with so wide a layer


def least(peer: str, batch_size: int) -> float:
    """The least time that is expected of a peer, in units of ours."""
    return TORCH if peer == "torch" and batch_size <= SMALL else AT_LEAST[peer]


def most(cell: Cell) -> float | None:
    """The most time that ours may take, in units of the limit; None where nothing is expected."""
    if cell.facts["batch_size"] < LARGE:
        return None
    return OVER_LIMIT_WIDE if max(widths(cell.facts["network"])[1:]) >= WIDE else OVER_LIMIT


def shortfalls(cells: list[Cell]) -> list[dict[str, str]]:
    """A row for each expectation that a cell misses.

    The column `at the limit` has the ratio of a program that runs at the limit. Where that misses the expectation too,
    no program can meet it.
    """
    return [row for cell in cells for row in _shortfalls(cell)]


def _shortfalls(cell: Cell) -> Iterator[dict[str, str]]:
    over = cell.facts["limit_ratio"]["ours"]
    row = lambda ratio, value, wanted, at_limit: {
        "cell": cell.name, "ratio": ratio, "measured": f"{value:.2f}", "expected": wanted, "at the limit": at_limit,
    }  # fmt: skip
    for peer in AT_LEAST:
        if peer not in cell.seconds:
            continue
        wanted, value = least(peer, cell.facts["batch_size"]), cell.ratio(peer)
        if round(value, 2) < wanted:
            at_limit = f"{value * over:.2f}" + (", short too" if value * over < wanted else "")
            yield row(f"{peer} / ours", value, f"at least {wanted:g}", at_limit)
    allowed = most(cell)
    if allowed is not None and round(over, 2) > allowed:
        yield row("ours / limit", over, f"at most {allowed:g}", "1.00")
