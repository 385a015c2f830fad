"""What several processes agree to be in the cache of a group, so that all of them have a batch from it, or none.

Each process sees the files of a shared directory at a moment of its own. So in a *round*, all of them come to one set
of items, by three kinds of messages, whose size does not depend on how many processes there are:

    proposal    the leader's: what it sees, as changes to what was agreed on before
    answer      every other one's: which of those it does not see, usually none; and which it knows to be damaged
    verdict     the leader's: all of these together

The set is the proposal without what is in the verdict: exactly the items that each process saw, and held to be good,
when it took part.

Sets are bits, eight items a byte, and messages are compressed: a set that has changed little is a short one.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from hydrax_gpu.errors import CacheError

__all__ = ["NOTHING", "Answer", "answer", "conclude", "count", "missing", "no_items", "propose", "seen", "verdict"]

Bits: TypeAlias = npt.NDArray[np.uint8]
"""A set of the items of a group: item `i` is in it if bit `7 - i % 8` of byte `i // 8` is set."""

_BLOCK = 1 << 20  # items that are looked for together
_BITS = (1 << np.arange(7, -1, -1)).astype(np.uint8)
_COUNTS = np.array([byte.bit_count() for byte in range(256)], np.uint8)


class Answer(NamedTuple):
    """What a process says of a proposal, or all of them together.

    Attributes:
        lacking: items that are not there, as packed bits, and compressed; empty for none.
        damaged: items of which the entry is known to be damaged, ascending.
    """

    lacking: bytes
    damaged: tuple[int, ...]

    def to_bytes(self) -> bytes:
        """As a message."""
        return json.dumps(list(self.damaged)).encode() + b"\n" + self.lacking

    @staticmethod
    def of(message: bytes) -> Answer:
        """What `to_bytes` made the message from."""
        damaged, _, lacking = message.partition(b"\n")
        return Answer(lacking, tuple(json.loads(damaged)))


NOTHING = Answer(b"", ())


def no_items(length: int) -> Bits:
    """The empty set, for a group of that length."""
    return np.zeros((length + 7) // 8, np.uint8)


def seen(length: int, contains: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]) -> Bits:
    """The items of a group that a cache contains, which is asked by blocks of them."""
    bits = no_items(length)
    for begin in range(0, length, _BLOCK):
        items = np.arange(begin, min(begin + _BLOCK, length), dtype=np.int64)
        part = np.packbits(contains(items))
        bits[begin // 8 : begin // 8 + len(part)] = part
    return bits


def missing(bits: Bits, items: Sequence[int]) -> int:
    """How many of these items are not in a set."""
    numbers = np.asarray(items, np.int64)
    return int(np.count_nonzero(bits[numbers >> 3] & _BITS[numbers & 7] == 0))


def count(bits: Bits) -> int:
    """How many items are in a set."""
    return int(_COUNTS[bits].sum(dtype=np.int64))


def propose(topic: Mapping[str, Any], bits: Bits, before: Bits) -> bytes:
    """The leader's message.

    Args:
        topic: what is being agreed on, JSON; that of all processes has to be the same.
        bits: what it sees.
        before: what was agreed on before, in the last round of this cache.
    """
    return json.dumps(topic, sort_keys=True).encode() + b"\n" + _packed(bits ^ before)


def answer(
    topic: Mapping[str, Any], proposal: bytes, bits: Bits, before: Bits, damaged: Iterable[int]
) -> tuple[Answer, Bits]:
    """What another process has to say of a proposal.

    Args:
        topic: what it wants to agree on.
        proposal: of the leader.
        bits: what it sees.
        before: what was agreed on before.
        damaged: items of which it knows that their entry is damaged.

    Returns:
        The answer, and what was proposed.

    Raises:
        CacheError: the leader speaks of something else: the processes have not made the same loader.
    """
    head, _, data = proposal.partition(b"\n")
    theirs: Any = json.loads(head)
    if theirs != dict(topic):
        names = sorted(name for name in {**theirs, **topic} if theirs.get(name) != topic.get(name))
        differences = ", ".join(f"{name} is {theirs.get(name)!r} there and {topic.get(name)!r} here" for name in names)
        raise CacheError(
            f"the processes cannot agree on what is in a cache, because they are not at the same place: {differences}. "
            "All processes of a job have to make the same loaders in the same order, with the same groups, depth and "
            "start_at"
        )
    proposed = _unpacked(data, len(before)) ^ before
    return Answer(_packed(proposed & ~bits), tuple(sorted(damaged))), proposed


def verdict(answers: Iterable[Answer], length: int) -> Answer:
    """All answers together, for a group of that length."""
    lacking, damaged = no_items(length), set[int]()
    for each in answers:
        damaged.update(each.damaged)
        if each.lacking:
            lacking |= _unpacked(each.lacking, len(lacking))
    return Answer(_packed(lacking), tuple(sorted(damaged)))


def conclude(proposed: Bits, all_answers: Answer) -> Bits:
    """What is agreed on: the same on all processes."""
    agreed = proposed.copy() if not all_answers.lacking else proposed & ~_unpacked(all_answers.lacking, len(proposed))
    if all_answers.damaged:
        items = np.array(all_answers.damaged, np.int64)
        np.bitwise_and.at(agreed, items >> 3, ~_BITS[items & 7])
    return agreed


def _packed(bits: Bits) -> bytes:
    return zlib.compress(bits.tobytes(), 1) if bits.any() else b""


def _unpacked(data: bytes, size: int) -> Bits:
    if not data:
        return np.zeros(size, np.uint8)
    return np.frombuffer(zlib.decompress(data), np.uint8)
