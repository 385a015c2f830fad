"""A fingerprint of data descriptors: the same for equal data in any process, on any machine.

Each descriptor is written down in a form that says its type, and all of them are hashed (BLAKE2b). Of more than `ALL`
descriptors only `SAMPLE` are, those at the positions `i * (length - 1) // (SAMPLE - 1)`, besides the length: a change
of single descriptors in so much data may go unnoticed, and is what `cache_version` is for.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import os
import pickle
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import numpy as np

__all__ = ["ALL", "SAMPLE", "fingerprint"]

ALL = 100_000
SAMPLE = 65_536

_DEPTH = 32


def fingerprint(data: Sequence[Any]) -> str:
    """A fingerprint of data descriptors, 32 hexadecimal digits.

    None, bool, int, float, complex, str, bytes, tuples, lists, dicts and sets (in any order), ranges, paths, enums,
    NumPy scalars and arrays, dataclasses and objects with attributes count by what they hold. Anything else counts by
    its pickle, which may differ between versions of Python and of its own package.

    Raises:
        TypeError: a descriptor can be told from others in none of these ways.
    """
    length = len(data)
    state = hashlib.blake2b(digest_size=16)
    state.update(f"hydrax_gpu 1 {length}".encode())
    if isinstance(data, range):
        state.update(_canonical(data, 0))
    else:
        positions = range(length)
        if length > ALL:
            positions = (number * (length - 1) // (SAMPLE - 1) for number in range(SAMPLE))
        for position in positions:
            state.update(_canonical(data[position], 0))
    return state.hexdigest()


def _canonical(value: Any, depth: int) -> bytes:
    kind = cast("type[Any]", type(value))
    if (simple := _SIMPLE.get(kind)) is not None:
        return simple(value)
    if depth > _DEPTH:
        raise TypeError(f"data descriptors are nested more than {_DEPTH} deep; {_ADVICE}")
    below = depth + 1
    if kind is tuple or kind is list:
        return _all(b"t" if kind is tuple else b"l", (_canonical(each, below) for each in value))
    if kind is dict:
        return _all(b"d", sorted(_canonical(key, below) + _canonical(value[key], below) for key in value))
    if kind is set or kind is frozenset:
        return _all(b"e", sorted(_canonical(each, below) for each in value))
    if isinstance(value, np.ndarray | np.generic):
        return _array(cast("Any", np.asarray(cast("Any", value))), depth)
    if isinstance(value, os.PathLike):
        path = os.fspath(cast("os.PathLike[str]", value))
        return _all(b"p", [_canonical(path, below)])
    # without the module, which is another one when a script is imported
    name = kind.__qualname__
    if isinstance(value, enum.Enum):
        return _all(b"m", [_text(name), _text(value.name)])
    if dataclasses.is_dataclass(value):
        fields = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return _named(name, fields, below)
    if isinstance(value, tuple):
        return _all(b"o", [_text(name), *(_canonical(each, below) for each in cast("tuple[Any, ...]", value))])
    if _plain_object(kind):
        return _named(name, sorted(cast("dict[str, Any]", vars(value)).items()), below)
    try:
        return _all(b"q", [_text(name), pickle.dumps(value, 4)])
    except Exception as error:
        raise TypeError(
            f"a data descriptor of type {name} cannot be told from another: it cannot be pickled ({error}); {_ADVICE}"
        ) from error


_ADVICE = "use descriptors of numbers, str, tuples, dicts or dataclasses."


def _plain_object(kind: type[Any]) -> bool:
    """Whether the instances of a class are what their attributes say."""
    bases = kind.__mro__[:-1]
    return all(
        base.__module__ != "builtins"
        and "__slots__" not in vars(base)
        and not {"__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__"} & set(vars(base))
        for base in bases
    ) and any("__dict__" in vars(base) for base in bases)


def _named(name: str, fields: Iterable[tuple[str, Any]], depth: int) -> bytes:
    return _all(b"o", [_text(name), *(_text(key) + _canonical(value, depth) for key, value in fields)])


def _array(array: np.ndarray[Any, Any], depth: int) -> bytes:
    if array.dtype.hasobject:
        return _all(b"a", [_text(str(array.shape)), _canonical(array.reshape(-1).tolist(), depth + 1)])
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    head = _text(f"{array.dtype.name} {little.dtype.str} {array.shape}")
    return _all(b"a", [head, np.ascontiguousarray(little).tobytes()])


def _all(tag: bytes, parts: Iterable[bytes]) -> bytes:
    parts = list(parts)
    return tag + struct.pack("<Q", len(parts)) + b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"s" + struct.pack("<Q", len(data)) + data


def _bytes(data: Any) -> bytes:
    return b"y" + struct.pack("<Q", len(data)) + data


def _int(number: int) -> bytes:
    return _text(str(number)).replace(b"s", b"i", 1)


_SIMPLE: dict[type[Any], Callable[[Any], bytes]] = {
    type(None): lambda _: b"n",
    bool: lambda value: b"b1" if value else b"b0",
    int: _int,
    float: lambda value: b"f" + struct.pack("<d", value),
    complex: lambda value: b"c" + struct.pack("<dd", value.real, value.imag),
    str: _text,
    bytes: _bytes,
    bytearray: _bytes,
    range: lambda value: _all(b"r", [_int(value.start), _int(value.stop), _int(value.step)]),
}
