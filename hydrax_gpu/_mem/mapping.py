"""Mapped memory: aligned, populated, on huge pages where the kernel allows, and without a name.

Python's `mmap` cannot choose an address, and an address that is not aligned to 2 MiB rules huge pages out. So libc is
called directly. The region shared with workers is a `memfd`: it has no entry in /dev/shm, is not limited by the size
of that file system (64 MB in a container by default), and vanishes with its last user, however that user ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["HUGE_PAGE", "Mapping", "attach", "create", "populate"]

HUGE_PAGE = 2 << 20

_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000
_MADV_HUGEPAGE = 14
_MADV_POPULATE_WRITE = 23  # Linux 5.14
_MADV_COLLAPSE = 25  # Linux 6.1; collapses shared memory too, whatever shmem_enabled says
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Mapping:
    """A mapped region.

    It stays mapped as long as anything refers to `memory` or to a view of it (a NumPy array, a `jax.Array`): there is
    no `close`, because closing under a reader is the one thing that must not happen.

    Attributes:
        size: bytes.
        memory: writable view of all of it.
        fd: file descriptor to share it with another process, -1 for private memory. `close_fd` when shared.
        huge: whether the kernel put it on huge pages.
        address: of its first byte.
        before_unmap: called, in this order, when the last view is gone and before the region is unmapped; on whichever
            thread that happens.
    """

    size: int
    memory: memoryview = field(repr=False)
    fd: int
    huge: bool
    address: int = 0
    before_unmap: list[Callable[[], None]] = field(default_factory=list["Callable[[], None]"], repr=False)

    def close_fd(self) -> None:
        """Closes the file descriptor (the mapping stays). Idempotent."""
        if self.fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self.fd)
            object.__setattr__(self, "fd", -1)


def create(size: int, *, shared: bool, present: int | None = None) -> Mapping:
    """Maps `size` bytes of zeros, present in memory at once, so that no batch pays for a page fault.

    Args:
        size: bytes, at least 1; rounded up to whole huge pages.
        shared: whether other processes will attach to it by its file descriptor.
        present: how many of them, from the first on, are to be in memory; None for all. The others are addresses and
            nothing else until they are used, or `populate` makes them present.

    Raises:
        MemoryError: the kernel would not give that much; the message names the amount.
    """
    if size < 1:
        raise ValueError(f"got a size of {size} bytes, wanted at least 1")
    size = -(-size // HUGE_PAGE) * HUGE_PAGE
    fd = -1
    try:
        if shared:
            fd = os.memfd_create("hydrax_gpu", os.MFD_CLOEXEC)
            os.ftruncate(fd, size)
        hooks: list[Callable[[], None]] = []
        address, memory = _map(fd, size, hooks)
        if not shared:
            _libc.madvise(address, size, _MADV_HUGEPAGE)
        there = size if present is None else min(size, -(-present // HUGE_PAGE) * HUGE_PAGE)
        _populate(address, there)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise MemoryError(
            f"could not map {size:,} bytes for the batches ({error.strerror}): lower depth or batch_size, "
            "or give the process more memory"
        ) from error
    huge = _libc.madvise(address, there, _MADV_COLLAPSE) == 0
    return Mapping(size, memory, fd, huge, address, hooks)


def populate(mapping: Mapping, begin: int, end: int) -> None:
    """Makes a stretch of a mapping present, on huge pages where all of it was to be.

    Args:
        mapping: of `create`.
        begin: offset of its first byte.
        end: offset behind its last.

    Raises:
        MemoryError: the kernel would not give that much.
    """
    begin = begin // HUGE_PAGE * HUGE_PAGE
    end = min(mapping.size, -(-end // HUGE_PAGE) * HUGE_PAGE)
    try:
        _populate(mapping.address + begin, end - begin)
    except OSError as error:
        raise MemoryError(f"could not have {end - begin:,} bytes more ({error.strerror})") from error
    if mapping.huge:
        _libc.madvise(mapping.address + begin, end - begin, _MADV_COLLAPSE)


def _populate(address: int, size: int) -> None:
    if _libc.madvise(address, size, _MADV_POPULATE_WRITE) != 0 and (code := ctypes.get_errno()) not in (0, 22):
        raise OSError(code, os.strerror(code))  # EINVAL, which is 22, comes from a kernel before 5.14


def attach(fd: int, size: int, *, present: int | None = None) -> Mapping:
    """Maps memory that another process created with `create(shared=True)`, and closes `fd`.

    Args:
        fd: file descriptor.
        size: bytes.
        present: how many of them are in memory there already.
    """
    try:
        hooks: list[Callable[[], None]] = []
        address, memory = _map(fd, size, hooks)
        # Fills the page table in one call; otherwise the first batch pays a fault for every page.
        _libc.madvise(address, size if present is None else min(size, present), _MADV_POPULATE_WRITE)
    finally:
        os.close(fd)
    return Mapping(size, memory, -1, False, address, hooks)


def _map(fd: int, size: int, hooks: list[Callable[[], None]]) -> tuple[int, memoryview]:
    # Reserve one huge page more than needed, map at the aligned address inside, give the rest back.
    reserve = _libc.mmap(None, size + HUGE_PAGE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE, -1, 0)
    if reserve == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    address = -(-reserve // HUGE_PAGE) * HUGE_PAGE
    flags = _MAP_FIXED | (mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if _libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0) != address:
        code = ctypes.get_errno()
        _libc.munmap(reserve, size + HUGE_PAGE)
        raise OSError(code, os.strerror(code))
    if address > reserve:
        _libc.munmap(reserve, address - reserve)
    if tail := reserve + HUGE_PAGE - address:
        _libc.munmap(address + size, tail)
    block = (ctypes.c_ubyte * size).from_address(address)
    # Not at exit: a jax.Array that outlives the interpreter's shutdown still reads this memory.
    weakref.finalize(block, _unmap, address, size, hooks).atexit = False
    return address, memoryview(block).cast("B")


def _unmap(address: int, size: int, hooks: list[Callable[[], None]]) -> None:
    for hook in hooks:
        hook()
    _libc.munmap(address, size)
