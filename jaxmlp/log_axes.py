"""Logarithmic axes of pictures: no value is left out, and no label lies on another."""

from typing import Any

import numpy as np


def set_log_scale(ax: Any, values: Any) -> None:
    """Makes the y axis logarithmic; where a value is not above 0, linear around 0, so that the axis leaves out none.

    Args:
        ax: the axes of matplotlib.
        values: all that is drawn on them; NaN and infinity do not count.
    Example:
        >>> _, ax = jm.plotting.figure()
        >>> jm.plotting.set_log_scale(ax, [3.0, -1.0])
        >>> ax.get_yscale()
        'symlog'
    """
    drawn = np.asarray(values, float)
    drawn = drawn[np.isfinite(drawn)]
    if (drawn > 0).all():
        ax.set_yscale("log" if drawn.size else "linear")
        return
    sizes = np.abs(drawn[drawn != 0])
    largest = sizes.max(initial=0) or 1.0
    least = 10.0 ** np.floor(np.log10(max(sizes.min(initial=largest), largest / 1000)))  # linear up to here
    ax.set_yscale("symlog", linthresh=least)
    if (drawn >= 0).all():
        ax.set_ylim(bottom=-least / 5)
    decades = least * 10.0 ** np.arange(np.ceil(np.log10(largest / least)) + 1)
    decades = decades[:: -(-len(decades) // 3)]
    low, high = ax.get_ylim()
    ticks = [tick for tick in (*-decades[::-1], 0.0, *decades) if low <= tick <= high]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.yaxis.set_minor_formatter("")
    ax.axhline(0, color="gray", linewidth=0.6)


def set_log_ticks(axis: Any, most: int = 4) -> None:
    """Labels a logarithmic axis at a few round numbers, also where it spans less than a decade.

    Args:
        axis: `ax.xaxis` or `ax.yaxis`; on another scale than "log" nothing changes.
        most: the largest number of labels.
    Example:
        >>> _, ax = jm.plotting.figure()
        >>> _ = ax.set(xscale="log", xlim=(0.13, 0.61))
        >>> jm.plotting.set_log_ticks(ax.xaxis)
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['0.2', '0.5']
    """
    low, high = axis.get_view_interval()
    if axis.get_scale() != "log" or not 0 < low < high:
        return
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    ticks = np.asarray([])
    for digits in ((1,), (1, 3), (1, 2, 5)):
        ticks = np.sort(np.outer(decades, digits).ravel())
        ticks = ticks[(low <= ticks) & (ticks <= high)]
        if len(ticks) > 2:
            break
    if len(ticks) < 2:
        ticks = np.unique([float(f"{tick:.3g}") for tick in np.geomspace(low, high, 5)[1:-1]])
    ticks = ticks[:: -(-len(ticks) // most)]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_minor_formatter("")
