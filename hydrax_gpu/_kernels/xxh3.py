"""`xxh3`: the checksum of a cache's records, computed where they lie; see `kernels/xxh3.cu`.

On the host the package xxhash computes it. This does on a device, for records that were read into its memory without
having been in the host's.
"""

from __future__ import annotations

import ctypes
from typing import Any, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._kernels.arguments import address, fields
from hydrax_gpu._kernels.host import Library

__all__ = ["SHORTEST", "Args", "Xxh3", "twin"]

SHORTEST = 241
"""Bytes from which on XXH3 hashes in this way."""

_Words = npt.NDArray[np.uint64]

# The default secret of XXH3, 192 bytes, in words of little-endian order.
_SECRET = (
    0xBE4BA423396CFEB8,
    0x1CAD21F72C81017C,
    0xDB979083E96DD4DE,
    0x1F67B3B7A4A44072,
    0x78E5C0CC4EE679CB,
    0x2172FFCC7DD05A82,
    0x8E2443F7744608B8,
    0x4C263A81E69035E0,
    0xCB00C391BB52283C,
    0xA32E531B8B65D088,
    0x4EF90DA297486471,
    0xD8ACDEA946EF1938,
    0x3F349CE33F76FAA8,
    0x1D4F0BC7C7BBDCF9,
    0x3159B4CD4BE0518A,
    0x647378D9C97E9FC8,
    0xC3EBD33483ACC5EA,
    0xEB6313FAFFA081C5,
    0x49DAF0B751DD0D17,
    0x9E68D429265516D3,
    0xFCA1477D58BE162B,
    0xCE31D07AD1B8F88F,
    0x280416958F3ACB45,
    0x7E404BBBCAFBD7AF,
)
_PRIMES = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
_SMALL = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
_BEGIN = (_SMALL[2], *_PRIMES[:4], _SMALL[1], _PRIMES[4], _SMALL[0])
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


class Args(ctypes.Structure):
    """`Xxh3Args` of the source."""

    _fields_ = fields(pointers="in_ seeds sums", int64="in_stride rows nbytes")


def twin(records: npt.NDArray[np.uint8], seeds: _Words) -> _Words:
    """XXH3, 64 bits, of each row: what `xxhash.xxh3_64_intdigest(row, seed)` is.

    Args:
        records: shape `(rows, nbytes)`, of `SHORTEST` bytes at least.
        seeds: shape `(rows,)`.
    """
    rows, nbytes = records.shape
    blocks = (nbytes - 1) // 1024
    words = np.tile(np.array(_SECRET, np.uint64), (rows, 1))
    words[:, ::2] += seeds[:, None]
    words[:, 1::2] -= seeds[:, None]
    secret = words.astype("<u8").view(np.uint8)
    state = np.tile(np.array(_BEGIN, np.uint64), (rows, 1))
    for block in range(blocks):
        state += _added(records[:, 1024 * block : 1024 * (block + 1)], words)
        state = (state ^ state >> np.uint64(47) ^ words[:, 16:24]) * np.uint64(_SMALL[0])
    rest = (nbytes - 1 - 1024 * blocks) // 64
    state += _added(records[:, 1024 * blocks : 1024 * blocks + 64 * rest], words)
    state += _added(records[:, nbytes - 64 :], _words(secret[:, 121:185]))
    sums = np.full(rows, nbytes * _PRIMES[0] % 2**64, np.uint64)
    keys = state ^ _words(secret[:, 11:75])
    for pair in range(0, 8, 2):
        sums += _folded(keys[:, pair], keys[:, pair + 1])
    sums = (sums ^ sums >> np.uint64(37)) * np.uint64(0x165667919E3779F9)
    return sums ^ sums >> _HALF


def _words(data: npt.NDArray[np.uint8]) -> _Words:
    return np.ascontiguousarray(data).view("<u8").astype(np.uint64)


def _added(data: npt.NDArray[np.uint8], secret: _Words) -> _Words:
    """What stripes of 64 bytes, each with the secret from one word further on, add to the eight accumulators."""
    stripes = _words(data).reshape(len(data), data.shape[1] // 64, 8)
    sums = np.zeros((len(data), 8), np.uint64)
    for stripe in range(stripes.shape[1]):
        values = stripes[:, stripe]
        keys = values ^ secret[:, stripe : stripe + 8]
        sums += (keys & _LOW) * (keys >> _HALF) + values[:, (1, 0, 3, 2, 5, 4, 7, 6)]
    return sums


def _folded(a: _Words, b: _Words) -> _Words:
    """The two halves of the product of 128 bits, by xor."""
    a_low, a_high, b_low, b_high = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    cross = a_high * b_low + (a_low * b_low >> _HALF)
    other = (cross & _LOW) + a_low * b_high
    return (a * b) ^ ((cross >> _HALF) + (other >> _HALF) + a_high * b_high)


@final
class Xxh3:
    """The kernel for records of one size.

    Args:
        library: the host library or that of a device, or None for the twin.
        nbytes: of a record.

    Raises:
        ValueError: records are too short for it.
    """

    def __init__(self, library: Library | None, nbytes: int) -> None:
        if nbytes < SHORTEST:
            raise ValueError(f"got records of {nbytes} bytes, wanted {SHORTEST} or more: shorter have another hash")
        self._entry = None
        if library is not None:
            self._entry = library.entry("xxh3_64")
            self._args = Args(nbytes=nbytes)

    def __call__(self, records: npt.NDArray[Any], seeds: _Words, sums: _Words) -> None:
        """Fills `sums` with the checksum of each row of `records`, uint8 of shape `(rows, nbytes)`.

        All three lie where the kernel runs; `seeds` and `sums`, uint64, have no gaps.
        """
        if self._entry is None:
            sums[...] = twin(records, seeds)
            return
        args = self._args
        args.in_, args.seeds, args.sums = address(records), address(seeds), address(sums)
        args.in_stride = records.strides[0]
        args.rows = len(records)
        self._entry(args)
