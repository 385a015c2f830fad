"""From an item's descriptor to the arrays that a DALI graph is fed with."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast, final

import numpy as np
import numpy.typing as npt

__all__ = ["Fields", "Readers", "check_image", "describe_item"]

Readers: TypeAlias = Mapping[str, Callable[[Any], Any]]
"""For each of some fields what makes an array of its value."""

_KINDS = "biuf"


@final
class Fields:
    """The fields of descriptors of one kind, and how each becomes an array.

    Args:
        example: a descriptor.
        names: names of the fields, for a descriptor that does not name them itself.
        read: what makes an array of a field's value, for those that are to be read in another way.

    Raises:
        TypeError: the fields of such a descriptor have no names, or names that cannot be; the message says what to do.
    """

    def __init__(self, example: Any, names: Sequence[str] | None, read: Readers) -> None:
        own = _own_names(example)
        if own is not None and names is not None:
            raise TypeError(f"fields={tuple(names)!r}: the items name their fields themselves: {', '.join(own)}")
        if own is None and isinstance(example, list | tuple):
            count = len(cast("Sequence[Any]", example))
            if names is None or len(names) != count:
                raise TypeError(
                    f"the items are of type {type(cast('object', example)).__name__} with {count} parts, but "
                    f"fields={names!r}: name each of them, such as fields=('image', 'label')"
                )
        elif own is None and names is not None and len(names) != 1:
            raise TypeError(f"fields={tuple(names)!r}: the items have one part each, a {type(example).__name__}")
        self.names: tuple[str, ...] = tuple(own or names or ("data",))
        unknown = sorted(set(read) - set(self.names))
        if unknown:
            raise TypeError(f"read: the items have no field {', '.join(unknown)}; they have {', '.join(self.names)}")
        self._read = read
        self._kinds: dict[str, tuple[np.dtype[Any], int]] = {}  # of each field's arrays, as first seen

    def value(self, item: Any, name: str) -> Any:
        """The value of a field of an item as its descriptor has it.

        Raises:
            KeyError, AttributeError, IndexError: this item has no such field.
        """
        if isinstance(item, Mapping):
            return cast("Mapping[str, Any]", item)[name]
        if dataclasses.is_dataclass(item) or hasattr(cast("object", item), "_fields"):
            return getattr(item, name)
        if isinstance(item, list | tuple):
            parts = cast("Sequence[Any]", item)
            if len(parts) != len(self.names):
                raise IndexError(f"the item has {len(parts)} parts, wanted {len(self.names)} ({', '.join(self.names)})")
            return parts[self.names.index(name)]
        return item

    def array(self, item: Any, name: str) -> npt.NDArray[Any]:
        """A field of an item as a C-contiguous array.

        Raises:
            OSError: its file cannot be read.
            TypeError, ValueError: it cannot be made an array of the dtype and dimensions that the field has in others.
        """
        value = self.value(item, name)
        if name in self._read:
            value = self._read[name](value)
        array = _array(name, value)
        kind = array.dtype, array.ndim
        expected = self._kinds.setdefault(name, kind)
        if kind != expected:
            raise TypeError(
                f"field {name!r} has dtype {kind[0].name} and {kind[1]} dimensions, but {expected[0].name} and "
                f"{expected[1]} in an item before: a graph is built for one kind of array"
            )
        return array


def _own_names(example: Any) -> tuple[str, ...] | None:
    if isinstance(example, Mapping):
        names = tuple(cast("Mapping[Any, Any]", example))
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"the items are mappings with the keys {names!r}; the names of fields are strings")
        return names
    if dataclasses.is_dataclass(example):
        return tuple(field.name for field in dataclasses.fields(example))
    names: Sequence[str] | None = getattr(cast("object", example), "_fields", None)
    return None if names is None else tuple(names)


def _array(name: str, value: Any) -> npt.NDArray[Any]:
    if isinstance(value, str | os.PathLike):
        return _read_file(cast("str | os.PathLike[str]", value))
    if isinstance(value, bytes | bytearray | memoryview):
        data = np.frombuffer(cast("bytes", value), np.uint8)
        if not data.size:
            raise ValueError(f"field {name!r} is empty")
        return data
    if isinstance(value, bool):
        return np.array(value)
    if isinstance(value, int | float):
        return np.array(value, np.int64 if isinstance(value, int) else np.float32)
    array = np.asarray(value)
    if array.dtype.kind not in _KINDS:
        raise TypeError(
            f"field {name!r}: got {type(value).__name__}, wanted a path, bytes, a number or an array of numbers. "
            f"DaliLoader(read={{{name!r}: function}}) makes one of anything"
        )
    if array.dtype == np.float64 and not isinstance(value, np.ndarray | np.generic):
        array = array.astype(np.float32)
    return np.require(array, array.dtype.newbyteorder("="), "C")


def _read_file(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    # O_NONBLOCK: opening a named pipe that nobody writes to would wait for ever.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{os.fspath(path)}: not a file, but a {_kind(status.st_mode)}")
        data = np.empty(status.st_size, np.uint8)
        view = memoryview(cast("Any", data))
        while view and (count := os.readv(fd, [view])):
            view = view[count:]
    finally:
        os.close(fd)
    if not data.size or view:
        got = "empty" if not data.size else f"{len(view)} bytes shorter than it was when it was opened"
        raise ValueError(f"{os.fspath(path)}: the file is {got}")
    return data


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "directory", stat.S_IFIFO: "named pipe", stat.S_IFCHR: "character device"}
    return kinds.get(stat.S_IFMT(mode), "special file")


def describe_item(fields: Fields, item: Any, used: Sequence[str]) -> str:
    """What to call an item in an error: its path, if it has one, otherwise nothing."""
    for name in used:
        try:
            value = fields.value(item, name)
        except (KeyError, AttributeError, IndexError):
            continue
        if isinstance(value, str | os.PathLike):
            return f"{os.fspath(cast('str | os.PathLike[str]', value))}: "
    return ""


def check_image(data: npt.NDArray[np.uint8], max_pixels: int) -> None:
    """Refuses an encoded image that DALI must not see.

    DALI 2.4 reads the headers of a batch one after the other while it decodes those before, and when one is bad, it
    gives up the batch with decoders still at work on it: they write to memory that was freed, which ends the process
    sooner or later. So a header is looked at with the library that DALI itself decodes with (some 3 µs an image).

    Raises:
        ValueError: it is no image, or one of absurd dimensions, or larger than `max_pixels`.
        ImportError: nvImageCodec, which comes with DALI, is not there.
    """
    from nvidia import nvimgcodec  # pyright: ignore

    code_stream = cast("Any", nvimgcodec).CodeStream
    try:
        stream = code_stream(data)
        height, width, channels = stream.height, stream.width, stream.num_channels
    except RuntimeError as error:
        raise ValueError(f"not an image that DALI can read ({error})") from None
    try:
        depth = np.dtype(stream.dtype).itemsize
    except TypeError:
        depth = 0
    if min(height, width, channels) < 1 or channels > 4 or not 1 <= depth <= 4:
        raise ValueError(
            f"the header of the image is damaged: {height} x {width} pixels, {channels} channels of {depth} bytes"
        )
    if height * width > max_pixels:
        raise ValueError(
            f"the image has {height} x {width} pixels, more than max_pixels={max_pixels:,} of the DaliLoader. If it is "
            "no decompression bomb, raise that"
        )
