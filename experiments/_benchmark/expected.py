"""What is expected of each cell of the grid, and the cells that fall short of it."""

from collections.abc import Iterator

from experiments._benchmark.problem import widths
from experiments._benchmark.timing import Cell

AT_LEAST = {"jax.grad": 0.97, "equinox": 1.0, "flax": 1.0, "torch": 1.0, "torch.compile": 1.0, "scikit-learn": 2.5,
            "numpy": 1.0}  # times ours; a program against itself wavers by 2%  # fmt: skip
TORCH, SMALL = 2.0, 128  # PyTorch's up to this batch size
OVER_LIMIT, OVER_LIMIT_WIDE, LARGE, WIDE = 1.3, 1.15, 128, 1024  # from this batch size on; of so wide networks


def least(peer: str, batch_size: int) -> float:
    """How many times our time a peer is to take."""
    return TORCH if peer == "torch" and batch_size <= SMALL else AT_LEAST[peer]


def most(cell: Cell) -> float | None:
    """How many times the limit ours may take; None where nothing is expected."""
    if cell.facts["batch_size"] < LARGE:
        return None
    return OVER_LIMIT_WIDE if max(widths(cell.facts["network"])[1:]) >= WIDE else OVER_LIMIT


def missed(cells: list[Cell]) -> list[dict[str, str]]:
    """A row for each expectation that a cell falls short of.

    `at the limit` is what a program that takes no longer than the limit would show: where this falls short as well,
    no program reaches it.
    """
    return [row for cell in cells for row in _missed(cell)]


def _missed(cell: Cell) -> Iterator[dict[str, str]]:
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
