"""`tf.train.Example` out of its bytes: the few things of protocol buffers that it is made of.

The wire format is that of https://protobuf.dev/programming-guides/encoding, the messages those of TensorFlow's
`core/example/example.proto` and `feature.proto`:

    Example   { Features features = 1; }
    Features  { map<string, Feature> feature = 1; }             an entry is a message { key = 1; value = 2; }
    Feature   { oneof kind { BytesList = 1; FloatList = 2; Int64List = 3; } }
    BytesList { repeated bytes value = 1; }    FloatList { repeated float value = 1 [packed]; }    Int64List likewise
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Feature", "Malformed", "features_of"]

Feature: TypeAlias = "npt.NDArray[np.int64] | npt.NDArray[np.float32] | list[bytes]"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3
_AT_ONCE = 16
"""From so many bytes of packed integers on, NumPy is faster than a loop."""


class Malformed(ValueError):
    """Bytes that are no such message."""


def features_of(data: bytes, wanted: Collection[str] | None = None) -> dict[str, Feature]:
    """The features of a serialized `tf.train.Example`.

    As protocol buffers have it, messages that come in parts are put together, of two features of one name the later
    one is taken, numbers may be packed or not, and fields that are not known are passed over. A feature of no kind,
    which is how a missing one can be written, is left out. Stricter than they are: a field of the wrong type is an
    error, and not taken for an unknown one, and so is one that is neither the key nor the value of an entry.

    Args:
        data: the message.
        wanted: the names of those that are wanted; None for all.

    Returns:
        int64 `(n,)`, float32 `(n,)` or a list of n bytes by name. The floats are read-only.

    Raises:
        Malformed: it is no such message.
    """
    found: dict[str, Feature] = {}
    for number, features in _messages(data, 0, len(data), "Example", (1, 2)):
        if number == 2:
            raise Malformed("it is a tf.train.SequenceExample, wanted a tf.train.Example")
        for _, entry in _messages(data, *features, "Features", (1,)):
            name, parts = _entry(data, *entry)
            if wanted is not None and name not in wanted:
                continue
            # the later one counts, also where it is of no kind
            found.pop(name, None)
            feature = _feature(data, parts, name)
            if feature is not None:
                found[name] = feature
    return found


def _entry(data: bytes, begin: int, end: int) -> tuple[str, list[tuple[int, int]]]:
    name, parts = b"", list[tuple[int, int]]()
    where = "an entry of Features"
    for number, wire, first, last in _fields(data, begin, end, where):
        if number > 2 or wire != _BYTES:
            raise Malformed(f"{where}: field {number} of wire type {wire}, wanted a key and a value")
        if number == 1:
            name = data[first:last]
        else:
            parts.append((first, last))
    try:
        return name.decode(), parts
    except UnicodeDecodeError:
        raise Malformed(f"the name {name!r} of a feature is not UTF-8") from None


def _feature(data: bytes, parts: list[tuple[int, int]], name: str) -> Feature | None:
    kind, lists = 0, list[tuple[int, int]]()
    for part in parts:
        for number, place in _messages(data, *part, f"feature {name!r}", (_BYTES_LIST, _FLOAT_LIST, _INT64_LIST)):
            # of a oneof the last that is there counts, and parts of the same one are put together
            if number != kind:
                lists.clear()
            kind = number
            lists.append(place)
    if kind == _BYTES_LIST:
        return [
            data[first:last]
            for place in lists
            for _, (first, last) in _messages(data, *place, f"feature {name!r}", (1,))
        ]
    if kind == _FLOAT_LIST:
        return _numbers([each for place in lists for each in _floats(data, *place, name)], np.float32)
    if kind == _INT64_LIST:
        return _numbers([each for place in lists for each in _integers(data, *place, name)], np.int64)
    return None


def _numbers(parts: list[npt.NDArray[Any]], dtype: type[Any]) -> npt.NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype), *parts])


def _floats(data: bytes, begin: int, end: int, name: str) -> Iterator[npt.NDArray[np.float32]]:
    for number, wire, first, last in _fields(data, begin, end, f"feature {name!r}"):
        if number != 1:
            continue
        if wire not in (_BYTES, _FIXED32) or (last - first) % 4:
            raise Malformed(f"feature {name!r}: its floats do not take four bytes each")
        yield np.frombuffer(data, "<f4", (last - first) // 4, first).astype(np.float32, copy=False)


def _integers(data: bytes, begin: int, end: int, name: str) -> Iterator[npt.NDArray[np.int64]]:
    where = f"feature {name!r}"
    for number, wire, first, last in _fields(data, begin, end, where):
        if number != 1:
            continue
        if wire not in (_BYTES, _VARINT):
            raise Malformed(f"{where}: its integers are no varints")
        yield _varints(data, first, last, where)


def _varints(data: bytes, begin: int, end: int, where: str) -> npt.NDArray[np.int64]:
    if end - begin < _AT_ONCE:
        few: list[int] = []
        while begin < end:
            value, begin = _varint(data, begin, end, where)
            few.append(value)
        return np.array(few, np.uint64).view(np.int64)
    octets = np.frombuffer(data, np.uint8, end - begin, begin)
    ends = np.flatnonzero(octets < 128)
    if not len(ends) or ends[-1] != len(octets) - 1:
        raise Malformed(f"{where}: a number ends with the field that it is in")
    begins = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - begins + 1
    if lengths.max() > 10:
        raise Malformed(f"{where}: a number of more than ten bytes")
    shifts = (np.arange(len(octets)) - np.repeat(begins, lengths)).astype(np.uint64) * np.uint64(7)
    sevens = (octets & np.uint8(127)).astype(np.uint64) << shifts
    return np.bitwise_or.reduceat(sevens, begins).view(np.int64)


def _messages(
    data: bytes, begin: int, end: int, where: str, known: tuple[int, ...]
) -> Iterator[tuple[int, tuple[int, int]]]:
    """The known fields of a message, all of which are messages, text or bytes."""
    for number, wire, first, last in _fields(data, begin, end, where):
        if number in known:
            if wire != _BYTES:
                raise Malformed(f"{where}: field {number} is a number, wanted a message")
            yield number, (first, last)


def _fields(data: bytes, begin: int, end: int, where: str) -> Iterator[tuple[int, int, int, int]]:
    """Each field's number, wire type, and where its value begins and ends."""
    while begin < end:
        tag, begin = _varint(data, begin, end, where)
        number, wire = tag >> 3, tag & 7
        if not number or number >= 1 << 29:
            raise Malformed(f"{where}: there is no field {number}")
        first = begin
        if wire == _BYTES:
            size, first = _varint(data, begin, end, where)
            begin = first + size
        elif wire == _VARINT:
            _, begin = _varint(data, begin, end, where)
        elif wire in (_FIXED32, _FIXED64):
            begin += 4 if wire == _FIXED32 else 8
        else:
            raise Malformed(f"{where}: a field of wire type {wire}, which it does not have")
        if begin > end:
            raise Malformed(f"{where}: field {number} is longer than what it is in")
        yield number, wire, first, begin


def _varint(data: bytes, at: int, end: int, where: str) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise Malformed(f"{where}: it ends within a number")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise Malformed(f"{where}: a number of more than ten bytes")
