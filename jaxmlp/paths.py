"""Files as people name them: a path, its lines of text, and errors that tell which file is meant."""

import io
import os
import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONGEST = 2**24  # characters in a line; a longer one is no text, such as a hole in a file


def check(given: Any, argument: str = "path") -> Path:
    """`given` as the path of a file or folder."""
    try:
        path = Path(given)
        fine = given != "" and b"\0" not in os.fsencode(path)  # Path("") is the folder of the process
    except (TypeError, ValueError):
        fine = False
    if not fine:
        raise ValueError(f"{argument} is {reprlib.repr(given)}, expected the name of a file or folder")
    if isinstance(given, str) and re.match(r"[a-z][a-z0-9+.-]+://", given):  # which would name a folder such as `s3:`
        raise ValueError(f"{argument} is {given!r}, a URL, expected the name of a file or folder")
    return path


@contextmanager
def name_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of the system that name no file, such as a full disk, and a lack of memory, name this one."""
    try:
        yield
    except MemoryError:
        raise ValueError(f"{path} needs more memory than there is, expected a smaller file") from None
    except OSError as error:
        if error.errno is None or (error.filename is not None and os.fspath(path) in str(error)):
            raise
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a text file in UTF-8, with their ends; errors name the file and the line."""
    with name_errors(path), path.open("rb") as raw, as_text(raw) as file:
        yield from split_lines(file, path)


def as_text(raw: Any) -> io.TextIOWrapper:
    """A file of bytes as text for `split_lines`."""
    return io.TextIOWrapper(raw, newline="", encoding="utf-8", errors="surrogateescape")


def split_lines(file: io.TextIOWrapper, path: Path) -> Iterator[str]:
    """The lines of an open text file, as those of `read_lines`."""
    number = 0
    while line := file.readline(LONGEST):
        number += 1
        if len(line) == LONGEST:
            raise ValueError(f"{path}, line {number} has more than {LONGEST:,} characters, expected a text file")
        if not line.isascii():
            _check_text(line, path, number)
        yield line


def _check_text(line: str, path: Path, number: int) -> None:
    try:
        line.encode()
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) - 0xDC00  # surrogateescape's form of a byte that is no text
        raise ValueError(f"{path} is not a text file in UTF-8: line {number} holds the byte 0x{byte:02x}") from None
