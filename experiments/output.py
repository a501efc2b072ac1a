"""The output of an experiment: texts, tables, numbers and pictures in `results/<name>/<time>/`."""

import csv
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tabulate import tabulate

SAVED: dict[str, Any] = {"dpi": 150, "bbox_inches": "tight"}  # of every picture; a tight box draws it twice


class NotReached(Exception):
    """An experiment ran and missed a published figure; its tables and pictures are there."""


@dataclass(frozen=True)
class Output:
    """A folder for the settings, tables, numbers and pictures of one run."""

    folder: Path
    settings: str

    @classmethod
    def create(cls, name: str, settings: Any, results: Path = Path("results")) -> "Output":
        """The output into a new folder; the first file creates it."""
        base = results / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        folder, number = base, 1
        while folder.exists():
            folder, number = base.with_name(f"{base.name}_{number}"), number + 1
        return cls.into(folder, settings)

    @classmethod
    def into(cls, folder: Path, settings: Any) -> "Output":
        """The output into this folder; the first file creates it."""
        return cls(folder, json.dumps(dataclasses.asdict(settings), indent=2, default=str) + "\n")

    def _file(self, name: str) -> Path:
        """A path in the folder; creates the folder, with the settings in it, if it is missing."""
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            (self.folder / "settings.json").write_text(self.settings)
        return self.folder / name

    def say(self, text: str) -> None:
        """Prints a text and keeps it in the report."""
        self._print(text)
        self._record(text=text)

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Prints rows as a table under a title and keeps it in the report."""
        lines = tabulate([list(row.values()) for row in rows], headers=list(rows[0]), disable_numparse=True,
                            colalign=["left"] + ["right"] * (len(rows[0]) - 1))  # fmt: skip
        self._print(f"\n{title}\n\n{lines}\n")
        self._record(title=title, head=list(rows[0]), rows=[list(map(str, row.values())) for row in rows])

    def _print(self, text: str) -> None:
        print(text, flush=True)
        with self._file("report.txt").open("a") as report:
            report.write(text + "\n")

    def _record(self, **item: Any) -> None:
        """Keeps a text, a table or a picture as a line of JSON; the page shows them in order."""
        with self._file("shown.jsonl").open("a") as shown:
            shown.write(json.dumps(item) + "\n")

    def numbers(self, name: str, columns: Mapping[str, Iterable[Any]]) -> None:
        """Writes the columns into `name.csv`."""
        with self._file(f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def picture(self, name: str, figure: Figure) -> None:
        """Writes the figure into `name.png`."""
        figure.savefig(self._file(f"{name}.png"), **SAVED)
        self._record(picture=f"{name}.png")

    def close(self) -> None:
        """Says where the files are."""
        print(f"settings, numbers and pictures are in {self.folder}", file=sys.stderr)
