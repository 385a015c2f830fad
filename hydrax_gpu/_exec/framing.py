"""Messages over a stream socket: four bytes of length, then a pickle."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from typing import Any

__all__ = ["FrameReader", "encode", "frame"]

_HEADER = struct.Struct("<I")


def encode(message: object) -> bytes:
    """A message as a frame.

    Raises:
        Whatever pickling it raises: the caller knows what of it the user supplied.
    """
    return frame(pickle.dumps(message, protocol=5))


def frame(body: bytes) -> bytes:
    """An already pickled message as a frame.

    Raises:
        ValueError: it is 4 GiB or larger.
    """
    if len(body) >= 1 << 32:
        raise ValueError(f"a message of {len(body):,} bytes is too large; declare arrays instead of returning them")
    return _HEADER.pack(len(body)) + body


class FrameReader:
    """Puts received bytes together to messages. A message that never completes is never seen."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yields the messages that `data` completes."""
        buffer = self._buffer
        buffer += data
        begin = 0
        try:
            while len(buffer) - begin >= 4:
                end = begin + 4 + _HEADER.unpack_from(buffer, begin)[0]
                if end > len(buffer):
                    break
                with memoryview(buffer) as whole, whole[begin + 4 : end] as body:
                    begin = end
                    message = pickle.loads(body)
                yield message
        finally:
            del buffer[:begin]
