"""Additional data of an entry as bytes: msgpack, with extensions for what it lacks.

None, bool, int, float, str, bytes, list and dict are msgpack's own. Tuples, NumPy scalars and arrays, integers beyond
64 bits and dicts with unusual keys are extensions, and come back as they were. Anything else, instances of subclasses
included, is pickled, and said to be: whether a pickle is opened is for the reader to decide, see `trust`.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from hydrax_gpu.errors import CacheError

__all__ = ["decode", "encode"]

_MAX_DEPTH = 64
"""Lists in lists are pickled from here on."""


class _Code:
    TUPLE, SCALAR, ARRAY, INTEGER, PAIRS, PICKLE = range(1, 7)


def encode(values: Mapping[str, Any]) -> tuple[bytes, bool]:
    """The bytes of a dict, and whether there are pickled values among them.

    Raises:
        TypeError: a value can be neither written nor pickled; its key is named.
        CacheError: msgspec is not installed.
    """
    encoder = _Encoder()
    plain: dict[str, Any] = {}
    for key, value in values.items():
        if type(key) is not str:
            raise TypeError(f"the keys of additional data must be str, got {key!r}.")
        try:
            plain[key] = encoder.plain(value)
        except _Unwritable as error:
            raise TypeError(
                f"additional data {key!r} cannot be cached: {error}. Use numbers, str, bytes, lists, tuples, dicts and "
                "NumPy arrays, or what can be pickled."
            ) from error.__cause__
    return encoder.packb(plain), encoder.pickled


def decode(data: bytes | memoryview, *, unpickle: bool) -> dict[str, Any]:
    """What `encode` was given.

    Args:
        data: its result.
        unpickle: whether pickled values may be opened.

    Raises:
        ValueError: the bytes are not what `encode` makes, or have pickled values that may not be opened.
    """
    msgpack = _msgpack()

    def extension(code: int, content: memoryview) -> Any:
        if code == _Code.TUPLE:
            return tuple(load(content))
        if code in (_Code.SCALAR, _Code.ARRAY):
            array = _array(*load(content))
            return array[()] if code == _Code.SCALAR else array
        if code == _Code.INTEGER:
            return int.from_bytes(content, "little", signed=True)
        if code == _Code.PAIRS:
            return dict(load(content))
        if code == _Code.PICKLE and unpickle:
            return pickle.loads(content)
        raise ValueError(
            "pickled values that must not be opened" if code == _Code.PICKLE else f"unknown extension {code} of msgpack"
        )

    def load(content: Any) -> Any:
        return msgpack.decode(content, ext_hook=extension)

    try:
        values = load(data)
    except Exception as error:
        # pickles raise what they like; and bytes that a checksum has passed do not become values in another try
        raise ValueError(f"additional data cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"additional data must be a dict, got {type(values).__name__}")
    return cast("dict[str, Any]", values)


class _Unwritable(Exception):
    """A value that cannot be pickled."""


class _Encoder:
    def __init__(self) -> None:
        self.pickled = False
        self._msgpack = _msgpack()
        self.packb = self._msgpack.encode

    def plain(self, value: Any, depth: int = 0) -> Any:
        kind = cast("type[Any]", type(value))
        if value is None or kind in (bool, float, str, bytes):
            return value
        if kind is int:
            if -(1 << 63) <= value < 1 << 64:
                return value
            return self._ext(_Code.INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))
        if depth < _MAX_DEPTH:
            if kind is list:
                return [self.plain(each, depth + 1) for each in value]
            if kind is tuple:
                return self._ext(_Code.TUPLE, self.packb([self.plain(each, depth + 1) for each in value]))
            if kind is dict:
                return self._dict(value, depth + 1)
        is_numpy = kind is np.ndarray or issubclass(kind, np.generic)
        if is_numpy and (dtype := _name(value.dtype)) is not None:
            code = _Code.ARRAY if kind is np.ndarray else _Code.SCALAR
            return self._ext(code, self.packb([dtype, list(value.shape), np.ascontiguousarray(value).tobytes()]))
        try:
            data = pickle.dumps(value, 5)
        except Exception as error:
            raise _Unwritable(f"{type(error).__name__}: {error}") from error
        self.pickled = True
        return self._ext(_Code.PICKLE, data)

    def _dict(self, value: dict[Any, Any], depth: int) -> Any:
        if all(type(key) is str for key in value):
            return {key: self.plain(each, depth) for key, each in value.items()}
        return self._ext(
            _Code.PAIRS, self.packb([[self.plain(key, depth), self.plain(each, depth)] for key, each in value.items()])
        )

    def _ext(self, code: int, data: bytes) -> Any:
        return self._msgpack.Ext(code, data)


def _array(dtype: str, shape: list[int], raw: bytes) -> np.ndarray[Any, Any]:
    array = np.empty(shape, _dtype(dtype))
    if len(raw) != array.nbytes:
        raise ValueError(f"{len(raw)} bytes for an array of {array.nbytes}")
    if array.nbytes:
        array.reshape(-1).view(np.uint8)[:] = np.frombuffer(raw, np.uint8)
    return array


def _name(dtype: np.dtype[Any]) -> str | None:
    """What `_dtype` makes the dtype of again; None when it has fields or objects."""
    if dtype.kind in "biufcSUmM":
        return dtype.str
    # ml_dtypes have a name and no letter of their own
    return dtype.name if dtype.kind == "V" and dtype.names is None and hasattr(_ml_dtypes(), dtype.name) else None


def _dtype(name: Any) -> np.dtype[Any]:
    if not isinstance(name, str):
        raise ValueError(f"a dtype's name must be str, got {name!r}")
    found = getattr(_ml_dtypes(), name, None) if name.isidentifier() else None
    dtype = np.dtype(name if found is None else found)
    if dtype.hasobject:
        raise ValueError(f"dtype {name!r} has objects")
    return dtype


def _ml_dtypes() -> Any:
    # jax requires it, and it is small
    import ml_dtypes

    return ml_dtypes


def _msgpack() -> Any:
    try:
        import msgspec
    except ImportError as error:
        raise CacheError(
            f"a cache needs the package msgspec, which cannot be imported ({error}): pip install 'hydrax-gpu[cache]'."
        ) from error

    class Bound:
        encode = staticmethod(msgspec.msgpack.Encoder().encode)
        decode = staticmethod(msgspec.msgpack.decode)
        Ext = msgspec.msgpack.Ext

    return Bound
