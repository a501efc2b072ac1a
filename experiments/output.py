"""Where an experiment leaves what it shows: `results/<name>/<time>/`."""

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


@dataclass(frozen=True)
class Output:
    """A folder for one run's settings, tables, numbers and pictures."""

    folder: Path
    settings: str

    @classmethod
    def create(cls, name: str, settings: Any, results: Path = Path("results")) -> "Output":
        """A new folder, made when something is first written to it."""
        base = results / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        folder, number = base, 1
        while folder.exists():
            folder, number = base.with_name(f"{base.name}_{number}"), number + 1
        return cls.into(folder, settings)

    @classmethod
    def into(cls, folder: Path, settings: Any) -> "Output":
        """That folder, made when something is first written to it."""
        return cls(folder, json.dumps(dataclasses.asdict(settings), indent=2, default=str) + "\n")

    def _file(self, name: str) -> Path:
        """A file in the folder, which is made with the settings in it when something is first written."""
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            (self.folder / "settings.json").write_text(self.settings)
        return self.folder / name

    def say(self, text: str) -> None:
        """Prints a line and keeps it beside the tables."""
        self._print(text)
        self._shown(text=text)

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Prints rows under a title, columns lined up."""
        lined_up = tabulate([list(row.values()) for row in rows], headers=list(rows[0]), disable_numparse=True,
                            colalign=["left"] + ["right"] * (len(rows[0]) - 1))  # fmt: skip
        self._print(f"\n{title}\n\n{lined_up}\n")
        self._shown(title=title, head=list(rows[0]), rows=[list(map(str, row.values())) for row in rows])

    def _print(self, text: str) -> None:
        print(text, flush=True)
        with self._file("report.txt").open("a") as report:
            report.write(text + "\n")

    def _shown(self, **what: Any) -> None:
        """Keeps what was shown, in order, for a page: a text, a table or a picture a line."""
        with self._file("shown.jsonl").open("a") as shown:
            shown.write(json.dumps(what) + "\n")

    def numbers(self, name: str, columns: Mapping[str, Iterable[Any]]) -> None:
        """Writes `name.csv` with a column each."""
        with self._file(f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def picture(self, name: str, figure: Figure) -> None:
        """Writes `name.png`."""
        figure.savefig(self._file(f"{name}.png"), dpi=150, bbox_inches="tight")
        self._shown(picture=f"{name}.png")

    def close(self) -> None:
        """Says where everything is."""
        print(f"settings, numbers and pictures are in {self.folder}", file=sys.stderr)
