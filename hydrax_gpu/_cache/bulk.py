"""Many records read and checked in one call of the kernels' host library, without the GIL.

The checksum stays the xxhash package's: its module has the C functions of XXH3 among its symbols, and the library is
given the address of one. A build of the package that hides them, like a missing library, leaves the work to
`reading`, which does the same a record at a time.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cache.checksums import digest
from hydrax_gpu._kernels.host import load

__all__ = [
    "EXTRAS",
    "MISSING",
    "OFFSET",
    "PICKLED",
    "SEED",
    "SEVERAL",
    "SIZE",
    "SUM",
    "TARGET",
    "VERDICT",
    "WORDS",
    "Bulk",
    "Done",
    "Found",
    "Span",
    "bulk",
]

_log = logging.getLogger("hydrax_gpu")

OFFSET, SIZE, TARGET, SUM, SEED, ORDER, VERDICT, WORDS = range(8)
"""Rows of the table that `Bulk.read` is given, and their number."""

MISSING, SEVERAL, EXTRAS, PICKLED = 1, 2, 4, 8
"""What `Found.flags` says: some entries are not there, are of several writers, have additional data, pickled values."""

# `dispatch` chooses instructions by the processor at hand, and is not in every build
_FUNCTIONS = ("XXH3_64bits_withSeed_dispatch", "XXH3_64bits_withSeed")
_TRIED = (0, 1, 3, 8, 16, 17, 128, 129, 240, 241, 1024, 4099)
"""Bytes of what the function is tried with: XXH3 has another way for each of these ranges."""


_Counts = ctypes.c_int64 * 3


class Found(NamedTuple):
    """Entries that were looked up.

    Attributes:
        keys: int64, shape `(n,)`, packed.
        places: int64, shape `(n,)`: of their rows in the table of entries, `ABSENT` where there is none.
        rows: uint64, shape `(n, words)`: their rows. What is in those that are not there means nothing.
        flags: see `MISSING`.
    """

    keys: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    rows: npt.NDArray[np.uint64]
    flags: int


class Done(NamedTuple):
    """What became of a read.

    Attributes:
        nbytes: bytes read.
        calls: calls of the operating system.
        bad: number of records that are not good.
        verdicts: int64, shape `(n,)`: 0 for a good record, 1 for a wrong checksum, 2 for one that the file ends before.
    """

    nbytes: int
    calls: int
    bad: int
    verdicts: npt.NDArray[np.int64]


class Span(NamedTuple):
    """How reads are cut.

    Attributes:
        gap: bytes between two records that are read along with them, at most; no more than 16 KiB are.
        limit: bytes of a read of more than one record, at most.
        block: the same, where all records lie behind one another in the file and in memory.
    """

    gap: int
    limit: int
    block: int


class Bulk:
    """The calls. Thread-safe.

    Args:
        kernels: file of the host library.
        hash_address: address of a function `(const void*, size_t, uint64_t seed) -> uint64_t`.

    Raises:
        OSError, AttributeError: the library cannot be opened or has no such calls.
    """

    def __init__(self, kernels: str, hash_address: int) -> None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        library = load(kernels)
        self._hash = hash_address
        span = (number, number, number)
        self._read: Any = library.function("hx_cache_read")
        self._read.argtypes = (ctypes.c_int, pointer, pointer, pointer, number, *span, pointer)
        self._read_rows: Any = library.function("hx_cache_rows")
        self._read_rows.argtypes = (
            *(ctypes.c_int, pointer, pointer, pointer, number, pointer, pointer, number, number, number),
            *(*span, pointer, pointer),
        )
        self._sums: Any = library.function("hx_cache_sums")
        self._sums.argtypes = (pointer, pointer, number, pointer, number, pointer, pointer)
        self._sums.restype = None
        # with the GIL held: it takes less time than to let go of it and to have it back
        self._look: Any = ctypes.PyDLL(kernels).hx_cache_look
        self._look.argtypes = (
            *(pointer, pointer, number, number, ctypes.c_int, pointer, number, pointer, number),
            *(pointer, pointer, pointer),
        )

    def look(
        self,
        items: npt.NDArray[np.int64],
        passes: npt.NDArray[np.int64],
        length: int,
        by_item: bool,
        runs: npt.NDArray[np.int64],
        rows: npt.NDArray[np.uint64],
    ) -> Found | None:
        """Looks entries up. All arrays must be C-contiguous, and nobody may change them meanwhile.

        Args:
            items: int64, shape `(n,)`.
            passes: int64, shape `(n,)`.
            length: items are below it.
            by_item: whether passes must be 0.
            runs: int64, shape `(k, 3)`: see `Index.runs`.
            rows: all there are.

        Returns:
            None when a key is not one that the cache can have.
        """
        count, width = len(items), rows.shape[1]
        places = np.empty((2, count), np.int64)
        out = np.empty((count, width), np.uint64)
        address = _address(places)
        flags = self._look(
            _address(items), _address(passes), count, length, by_item, _address(runs), len(runs), _address(rows),
            width, address, address + 8 * count, _address(out),
        )  # fmt: skip
        return None if flags < 0 else Found(places[0], places[1], out, flags)

    def read(self, fd: int, memory: int, table: npt.NDArray[np.int64], span: Span) -> Done:
        """Reads records of a file and checks them.

        Args:
            fd: the file.
            memory: address that targets count from.
            table: int64, shape `(WORDS, n)`, C-contiguous: offset in the file, bytes, target, checksum and seed (both
                unsigned) of each record. The others are written to.
            span: how reads are cut.

        Raises:
            OSError: of reading. Verdicts then mean nothing.
        """
        done = _Counts()
        error = self._read(fd, self._hash, memory, _address(table), table.shape[1], *span, done)
        if error:
            raise OSError(error, os.strerror(error))
        return Done(done[0], done[1], done[2], table[VERDICT])

    def read_rows(
        self,
        fd: int,
        memory: int,
        rows: npt.NDArray[np.uint64],
        keys: npt.NDArray[np.int64],
        into: npt.NDArray[np.int64] | None,
        array: tuple[int, int],
        span: Span,
    ) -> Done:
        """`read` of one array of entries of one writer, which is not compressed.

        Args:
            fd: the writer's file of that array.
            memory: address of the first row of a batch.
            rows: uint64, shape `(n, words)`, C-contiguous: of the entries.
            keys: int64, shape `(n,)`, contiguous: theirs.
            into: int64, shape `(n,)`, contiguous: number of the row that each goes to; None for one after the other.
            array: its number and its bytes a row.
            span: how reads are cut.

        Raises:
            OSError: of reading.
        """
        count, width = rows.shape
        table, done = np.empty((WORDS, count), np.int64), _Counts()
        position, nbytes = array
        error = self._read_rows(
            fd, self._hash, memory, _address(rows), width, _address(keys),
            None if into is None else _address(into), count, position, nbytes, *span, _address(table), done,
        )  # fmt: skip
        if error:
            raise OSError(error, os.strerror(error))
        return Done(done[0], done[1], done[2], table[VERDICT])

    def sums(
        self, memory: int, nbytes: int, rows: npt.NDArray[np.int64], seeds: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.uint64]:
        """Checksums of rows of `nbytes` bytes each, by their numbers, from address `memory` on."""
        rows, seeds = np.ascontiguousarray(rows), np.ascontiguousarray(seeds)
        sums = np.empty(len(rows), np.uint64)
        self._sums(self._hash, memory, nbytes, _address(rows), len(rows), _address(seeds), _address(sums))
        return sums


def _address(array: npt.NDArray[Any]) -> int:
    return array.__array_interface__["data"][0]


@cache
def bulk(kernels: str | None) -> Bulk | None:
    """The calls of a host library; None when it, or the package's function, cannot be had, or there is no library."""
    if kernels is None:
        return None
    try:
        return Bulk(kernels, _hash_address())
    except (ImportError, OSError, AttributeError, ValueError) as error:
        _log.info("records of caches are read and checked one at a time, which is slower: %s", error)
        return None


def _hash_address() -> int:
    extension = ctypes.CDLL(import_module("xxhash._xxhash").__file__)
    for name in _FUNCTIONS:
        function = getattr(extension, name, None)
        if function is None:
            continue
        address = ctypes.cast(function, ctypes.c_void_p).value
        if address and _agrees(address):
            return address
    raise ValueError(f"the package xxhash has none of the functions {', '.join(_FUNCTIONS)}")


def _agrees(address: int) -> bool:
    call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64)(address)
    wanted = digest()
    data = bytes(i * 7 % 251 for i in range(max(_TRIED)))
    return all(call(data, size, seed) == wanted(data[:size], seed) for size in _TRIED for seed in (0, 1, 2**64 - 1))
