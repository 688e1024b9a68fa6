"""What a picture was drawn from, written into the PNG itself as text chunks."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Mapping

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def digest(text: str) -> str:
    """The first 16 digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stamped(png: bytes, facts: Mapping[str, str]) -> bytes:
    """The picture with these facts before its last chunk."""
    added = b"".join(_chunk(key.encode() + b"\0" + text.encode()) for key, text in facts.items())
    end = len(png) - 12
    return png[:end] + added + png[end:]


def stamps(png: bytes) -> dict[str, str]:
    """The facts in a picture."""
    texts = (data for kind, data in _chunks(png) if kind == b"tEXt")
    pairs = (data.split(b"\0", 1) for data in texts)
    return {key.decode(): text.decode() for key, text in pairs}


def _chunk(data: bytes) -> bytes:
    body = b"tEXt" + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(_SIGNATURE)
    while place < len(png):
        (length,) = struct.unpack_from(">I", png, place)
        yield png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        place += 12 + length
