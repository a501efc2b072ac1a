"""Unpacks a gzip file piece by piece, so that no more is unpacked than is asked for."""

import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

MAGIC = b"\x1f\x8b"
RATIO = 1032  # a byte of a gzip file unpacks to at most so many
BLOCK = 2**16  # bytes read at once
PIECE = 2**20  # bytes unpacked at once
OF_GZIP = 31  # zlib's number for a gzip header and its checksum


class Unpacked:
    """The unpacked bytes of an open gzip file, by `read`; errors call the file `name`."""

    def __init__(self, file: BinaryIO, name: str):
        self.pieces, self.left = _unpack(file, name), b""

    def read(self, n: int) -> bytes:
        """The next n bytes, fewer at the end, where the file's checksum has been checked."""
        while len(self.left) < n and (piece := next(self.pieces, b"")):
            self.left += piece
        made, self.left = self.left[:n], self.left[n:]
        return made


def _unpack(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Pieces of the unpacked members, one after the other; zeros may follow a member, as on tapes."""
    member, padding = zlib.decompressobj(OF_GZIP), 0
    while packed := file.read(BLOCK):
        while packed:
            if member.eof:
                kept = packed.lstrip(b"\0")
                padding += len(packed) - len(kept)
                if padding > PIECE:
                    raise ValueError(f"{name} is no gzip file: more than {PIECE:,} zeros follow its end")
                if not kept:
                    break
                packed, member = kept, zlib.decompressobj(OF_GZIP)
            yield from _decompress(member, packed, name)
            packed = member.unused_data  # of the next member
    if not member.eof:
        raise ValueError(f"{name} is a truncated or corrupt gzip file: it has no end")


def _decompress(member: Any, packed: bytes, name: str) -> Iterator[bytes]:
    """What a block of packed bytes gives, in pieces."""
    try:
        piece = member.decompress(packed, PIECE)
        while piece:
            yield piece
            piece = b"" if member.eof else member.decompress(member.unconsumed_tail, PIECE)
    except zlib.error as error:
        raise ValueError(f"{name} is a truncated or corrupt gzip file: {error}") from None
