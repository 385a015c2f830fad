"""What a cache is of, and the file that says so.

`cache.json` is made once, under another name and then linked to its own, so that of several processes that come at once
one makes it and the others find it whole. It has a checksum of its own: damage is told from disagreement.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, cast

from hydrax_gpu.errors import CacheError, CacheMismatch

__all__ = ["FILE", "FORMAT", "ArrayFormat", "Descriptor", "check", "from_json", "nameless", "to_json"]

FILE = "cache.json"
FORMAT = 1
"""Version of everything on disk. A reader refuses all others."""


@dataclass(frozen=True)
class ArrayFormat:
    """One array of an entry.

    Attributes:
        name: by which it is handed over; it may differ from one use of a cache to the next.
        item_shape: shape of one item, without the batch dimension.
        dtype: name of the NumPy dtype, such as "float32" or "bfloat16".
        nbytes: bytes of one item: of what is handed to the store and, unless it is `packed`, on disk.
        compression: of each item by itself. "int8" is lossy and of a fixed size: the store is handed records of
            `hydrax_gpu._kernels.quantize` then, and `dtype` is that of the values in them.
    """

    name: str
    item_shape: tuple[int, ...]
    dtype: str
    nbytes: int
    compression: Literal["zstd", "lz4", "int8"] | None = None

    @property
    def packed(self) -> Literal["zstd", "lz4"] | None:
        """What the store makes records of varying size by."""
        return None if self.compression == "int8" else self.compression

    @property
    def value_nbytes(self) -> int:
        """Bytes of one item in `dtype`, uncompressed."""
        if self.compression != "int8":
            return self.nbytes
        return math.prod(self.item_shape) * (4 if self.dtype == "float32" else 2)


@dataclass(frozen=True)
class Descriptor:
    """What a cache is of. Two uses of a cache must agree in all of it but the arrays' names.

    Attributes:
        arrays: of each entry, in order.
        length: number of items of the data.
        seed: of the group, from which its items' seeds come.
        seeded: "item" for one entry an item, "pass" for one an item and pass.
        shuffle_first: whether the first pass is shuffled.
        shuffle_later: how later passes are.
        fingerprint: of the data descriptors, see `fingerprint`.
        cache_version: the user's word for how entries are made, such as the encoder's name.
    """

    arrays: tuple[ArrayFormat, ...]
    length: int
    seed: int
    seeded: Literal["item", "pass"]
    shuffle_first: bool
    shuffle_later: str
    fingerprint: str
    cache_version: str


_FIXES = {
    "cache_version": "Use another cache_location for entries that are made in another way, or delete this one.",
    "fingerprint": (
        "The data descriptors are others than those it was made from: use the data in the same order, or another "
        "cache_location."
    ),
    "length": "The data has grown or shrunk: use the same data, or another cache_location.",
    "arrays": "Entries have fixed arrays (names are free): declare the same, or use another cache_location.",
}
_FIX = "Set it as it was, or use another cache_location."


def nameless(descriptor: Descriptor) -> Descriptor:
    """A descriptor without the arrays' names: two of one cache are equal then."""
    return replace(descriptor, arrays=tuple(replace(array, name="") for array in descriptor.arrays))


def check(location: str, stored: Descriptor, wanted: Descriptor) -> None:
    """Makes sure that a cache is what is wanted.

    Raises:
        CacheMismatch: it is not; the first field that differs is named.
    """
    # what the user says explains more than what follows from it
    for name in ("cache_version", "arrays", "length", "fingerprint", "seeded", "seed", "shuffle_first"):
        if name == "arrays":
            _check_arrays(location, stored.arrays, wanted.arrays)
        else:
            _compare(location, name, getattr(stored, name), getattr(wanted, name), _FIXES.get(name, _FIX))
    _compare(location, "shuffle_later", stored.shuffle_later, wanted.shuffle_later, _FIX)


def _check_arrays(location: str, stored: tuple[ArrayFormat, ...], wanted: tuple[ArrayFormat, ...]) -> None:
    _compare(location, "number of arrays", len(stored), len(wanted), _FIXES["arrays"])
    for position, (old, new) in enumerate(zip(stored, wanted, strict=True)):
        for field in ("compression", "nbytes", "dtype", "item_shape"):
            fix = _compression_fix(location, old, new) if field == "compression" else _FIXES["arrays"]
            _compare(location, f"arrays[{position}].{field}", getattr(old, field), getattr(new, field), fix)


def _compression_fix(location: str, stored: ArrayFormat, wanted: ArrayFormat) -> str:
    return (
        f"Set cache_compression={{{wanted.name!r}: {stored.compression!r}}} to use it as it is; or make one that is as "
        f"wanted: `hydrax-gpu cache copy --compression {stored.name}={wanted.compression or 'none'} {location} TARGET`."
    )


def _compare(location: str, field: str, stored: object, wanted: object, fix: str) -> None:
    if stored != wanted or type(stored) is not type(wanted):
        raise CacheMismatch(location, field, stored, wanted, fix)


def to_json(descriptor: Descriptor) -> str:
    """The text of `cache.json`."""
    content = {"format": FORMAT, **asdict(descriptor)}
    return json.dumps({**content, "checksum": _checksum(content)}, indent=1) + "\n"


def from_json(text: bytes, where: str) -> Descriptor:
    """Reads what `to_json` has written.

    Raises:
        CacheMismatch: it is of another format.
        CacheError: it is not whole.
    """
    fix = "`hydrax-gpu cache repair` restores it from the journals beside it."
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
        content = cast("dict[str, Any]", content)
        if content.pop("checksum", None) != _checksum(content):
            raise ValueError("its checksum is wrong")
    except (ValueError, RecursionError) as error:
        raise CacheError(f"{where} is damaged ({error}). {fix}") from error
    if content.pop("format") != FORMAT:
        raise CacheMismatch(where, "format", json.loads(text)["format"], FORMAT, "Read it with the release it is of.")
    try:
        return _descriptor(content)
    except (TypeError, KeyError) as error:
        raise CacheError(f"{where} cannot be read: {type(error).__name__}: {error}. {fix}") from error


def _descriptor(content: Mapping[str, Any]) -> Descriptor:
    names = {field.name for field in fields(Descriptor)}
    if set(content) != names:
        raise KeyError(f"fields {sorted(set(content) ^ names)}")
    arrays: list[ArrayFormat] = []
    for each in content["arrays"]:
        each["item_shape"] = tuple(each["item_shape"])
        arrays.append(ArrayFormat(**each))
    others: dict[str, Any] = {name: content[name] for name in names - {"arrays"}}
    return Descriptor(arrays=tuple(arrays), **others)


def _checksum(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
