"""The records of a CSV file, packed or plain: lines of text, split at delimiters outside quotes."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from jaxmlp import paths
from jaxmlp.data import gunzip


def read_records(
    path: Path, delimiter: str, skipinitialspace: bool, comment: str | None
) -> Iterator[tuple[int, list[str]]]:
    """Each record with the number of its first line; those at the file's end whose fields are all empty are left out.

    A line that starts with `comment` is left out, but not inside a quoted field.
    """
    empty: list[tuple[int, list[str]]] = []
    for line, record in _parse(path, comment, delimiter=delimiter, skipinitialspace=skipinitialspace, strict=True):
        if any(record) or len(record) == 1:  # a single field may be empty as a cell
            yield from empty
            empty.clear()
            yield line, record
        elif not empty or empty[-1][1]:  # a blank line is an error if more follows: one of them tells
            empty.append((line, record))


def _parse(path: Path, comment: str | None, **form) -> Iterator[tuple[int, list[str]]]:
    start = 0  # the first line of the record that is being read; 0 between two records

    def feed(file: io.TextIOWrapper) -> Iterator[str]:
        nonlocal start
        for number, line in enumerate(paths.split_lines(file, path), start=1):
            if number == 1:
                line = line.removeprefix("\ufeff")  # a mark that some programs put before UTF-8
            if not start and comment is not None and line.startswith(comment):
                continue
            start = start or number
            yield line

    with _open(path) as file:
        reader = csv.reader(feed(file), **form)
        try:
            for record in reader:
                yield start, record
                start = 0
        except csv.Error as error:
            raise ValueError(f"{path}, line {start}: {error}") from None


@contextmanager
def _open(path: Path) -> Iterator[io.TextIOWrapper]:
    """The text of a file; one that starts as gzip files do, and no text in UTF-8 can, is unpacked."""
    with paths.name_errors(path), path.open("rb") as raw:
        packed = raw.peek(2)[:2] == gunzip.MAGIC
        with paths.as_text(io.BufferedReader(_Unpacked(raw, str(path)), gunzip.BLOCK) if packed else raw) as file:
            yield file


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a gzip file, in the form that Python's files of text are made of."""

    def __init__(self, file: BinaryIO, name: str):
        super().__init__()
        self.unpacked = gunzip.Unpacked(file, name)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self.unpacked.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)
