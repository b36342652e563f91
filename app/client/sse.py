"""Reads server-sent events: HTML Living Standard, section 9.2.6, as far as Slipway's streams use it.

Lines end at line feeds alone: what else Unicode takes for the end of a line may be in the middle of a log line.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class Block:
    """One block. ``data`` is its JSON, None when it only moves on or shows that the stream lives."""

    id: str | None = None
    event: str | None = None
    data: Any = None


def blocks(pieces: Iterable[bytes]) -> Iterator[Block]:
    """Yield whole blocks; one that breaks off in the middle was not there."""
    block, data = Block(), list[str]()
    for line in _lines(pieces):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            block.data = json.loads("\n".join(data)) if data else None
            yield block
            block, data = Block(), []
        elif name == "data":
            data.append(value)
        elif name == "id":
            block.id = value
        elif name == "event":
            block.event = value


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    rest = bytearray()
    for piece in pieces:
        rest += piece
        *whole, tail = rest.split(b"\n")
        yield from (line.removesuffix(b"\r").decode() for line in whole)
        rest = bytearray(tail)
