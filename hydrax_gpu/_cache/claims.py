"""How writers agree on who writes an entry, without locks.

Each writer has one file `<writer>.claim`, which only it writes: the keys that it is about to write, replaced for each
call and emptied after it. A writer first *announces* its keys there, and only then *looks*: at the journals, and at
what others claim. Of two that claim the same key, at least one has announced before the other looked, so at least one
sees the other; and then the writer whose name is the smaller waits until the other has written or let go, and the other
lets go at once. So one of them writes, and nobody waits in a circle.

A claim that is not whole is one that is being announced: its writer has yet to look, and will see ours. It is passed
over. A claim is void when its process is known to be dead, or when it has stood for `STALE` seconds: claims last as long
as one call, and their writer, on another machine perhaps, is dead, stopped, or cannot write any more. Where a file system shows a file late to other machines
(NFS does), two may write the same entry; both are good, and readers agree on one.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

__all__ = ["STALE", "pack_claim", "unpack_claim"]

STALE = 60.0
"""Seconds."""

_HEAD = struct.Struct("<4sIIQ")
_MAGIC = b"hxC\x01"


def pack_claim(keys: npt.NDArray[np.int64], number: int) -> bytes:
    """The bytes of a claim of keys, the writer's `number`-th."""
    data = keys.astype("<i8").tobytes()
    return _HEAD.pack(_MAGIC, len(keys), _sum(data, number), number) + data


def unpack_claim(data: bytes) -> tuple[npt.NDArray[np.int64], int] | None:
    """Keys and number of a claim; None when it is not whole."""
    if len(data) < _HEAD.size:
        return None
    magic, count, sum_, number = _HEAD.unpack_from(data)
    content = data[_HEAD.size : _HEAD.size + 8 * count]
    if magic != _MAGIC or len(content) < 8 * count or _sum(content, number) != sum_:
        return None
    return np.frombuffer(content, "<i8").astype(np.int64), number


def _sum(content: bytes, number: int) -> int:
    return zlib.crc32(content, zlib.crc32(struct.pack("<Q", number)))
