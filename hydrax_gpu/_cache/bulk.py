"""Many records read and checked in one call of the kernels' host library, which lets go of the GIL once for all of them.

The checksum stays the xxhash package's: its module has the C functions of XXH3 among its symbols, and the library is
given the address of one. A build of the package that hides them, like a missing library, leaves the work to
`reading`, which does the same a record at a time.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cache.checksums import digest
from hydrax_gpu._kernels.host import load

__all__ = ["OFFSET", "ORDER", "SEED", "SIZE", "SUM", "TARGET", "VERDICT", "WORDS", "Bulk", "bulk"]

_log = logging.getLogger("hydrax_gpu")

OFFSET, SIZE, TARGET, SUM, SEED, ORDER, VERDICT, WORDS = range(8)
"""Rows of the table that `Bulk.read` is given, and their number."""

# `dispatch` chooses instructions by the processor at hand, and is not in every build
_FUNCTIONS = ("XXH3_64bits_withSeed_dispatch", "XXH3_64bits_withSeed")
_TRIED = (0, 1, 3, 8, 16, 17, 128, 129, 240, 241, 1024, 4099)
"""Bytes of what the function is tried with: XXH3 has another way for each of these ranges."""


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
        self._read: Any = library.function("hx_cache_read")
        self._read.argtypes = (ctypes.c_int, pointer, pointer, pointer, number, number, number, number, pointer)
        self._sums: Any = library.function("hx_cache_sums")
        self._sums.argtypes = (pointer, pointer, number, pointer, number, pointer, pointer)
        self._sums.restype = None

    def read(
        self, fd: int, memory: int, table: npt.NDArray[np.int64], gap: int, limit: int, block: int
    ) -> tuple[int, int]:
        """Reads records of a file and checks them.

        Args:
            fd: the file.
            memory: address that targets count from.
            table: int64, shape `(WORDS, n)`, C-contiguous: offset in the file, bytes, target, checksum and seed (both
                unsigned) of each record, and the records' numbers by ascending offset. `VERDICT` is set: 0 for a good
                record, 1 for a wrong checksum, 2 for one that the file ends before.
            gap: bytes between two records that are read along with them, at most; no more than 16 KiB are.
            limit: bytes of a read of more than one record, at most.
            block: the same, where all records lie behind one another in the file and in memory.

        Returns:
            Bytes read, and calls.

        Raises:
            OSError: of reading. Verdicts then mean nothing.
        """
        done = (ctypes.c_int64 * 2)()
        address = table.__array_interface__["data"][0]
        error = self._read(fd, self._hash, memory, address, table.shape[1], gap, limit, block, done)
        if error:
            raise OSError(error, os.strerror(error))
        return done[0], done[1]

    def sums(
        self, memory: int, nbytes: int, rows: npt.NDArray[np.int64], seeds: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.uint64]:
        """Checksums of rows of `nbytes` bytes each, by their numbers, from address `memory` on."""
        rows, seeds = np.ascontiguousarray(rows), np.ascontiguousarray(seeds)
        sums = np.empty(len(rows), np.uint64)
        self._sums(memory, nbytes, rows.ctypes.data, len(rows), seeds.ctypes.data, sums.ctypes.data)
        return sums


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
    import xxhash._xxhash

    extension = ctypes.CDLL(xxhash._xxhash.__file__)
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
