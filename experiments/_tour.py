"""Run the cells of the tour, `tour.ipynb`, and store it with what they show: `python3 -m experiments._tour`.

The extra `test` brings what runs a notebook.
"""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TOUR = Path(__file__).with_name("tour.ipynb")


def execute() -> nbformat.NotebookNode:
    """The tour after a run from its own folder, without times and versions, so that it holds nothing of a machine."""
    tour = nbformat.read(TOUR, as_version=4)
    about = tour.metadata.copy()
    client = NotebookClient(
        tour, timeout=300, record_timing=False, coalesce_streams=True, resources={"metadata": {"path": TOUR.parent}}
    )
    client.execute(env=os.environ | {"PYTHONPATH": str(TOUR.parents[1])})
    tour.metadata = about
    return tour


if __name__ == "__main__":
    nbformat.write(execute(), TOUR)
