"""The arena: `depth` equal slots in one mapping, and one page more for the workers' status words."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from hydrax_gpu._mem.mapping import Mapping, attach, create, populate

__all__ = ["WORDS", "Arena", "ArenaShape", "Lease", "stride_of"]

_PAGE = 4096

_COUNT = (1 << 31) - 1
_FAR = 1 << 20

WORDS = 3
"""Status words of a worker."""

Lease: TypeAlias = "ctypes.Array[ctypes.c_ubyte]"
"""A window on a slot's bytes that NumPy takes as a buffer; see `Arena.lease`."""


class ArenaShape(NamedTuple):
    """All that another process needs to attach to an arena."""

    depth: int
    stride: int
    workers: int
    in_use: int
    """How many of the slots, the first, are in memory from the beginning."""

    @property
    def size(self) -> int:
        return self.depth * self.stride + self.status_size

    @property
    def status_size(self) -> int:
        return -(-8 * (1 + WORDS * self.workers) // _PAGE) * _PAGE


class Arena:
    """Memory of all slots.

    The status words, 64-bit integers behind the slots, need no lock: each has one writer. Word 0 is set to 1 by the
    owner to make workers stop after the item they are at. `WORDS` words for each worker follow: the number of items
    that it has begun in its life, when it took up the task that it is at (`time.perf_counter_ns`), and which of its
    tasks it has done, see `tell_done`.
    """

    def __init__(self, shape: ArenaShape, mapping: Mapping) -> None:
        self.shape = shape
        self.mapping = mapping
        self.in_use = shape.in_use
        self._address = ctypes.addressof(ctypes.c_ubyte.from_buffer(mapping.memory))
        self._lease_type = ctypes.c_ubyte * shape.stride
        begin = shape.depth * shape.stride
        self.status: memoryview = mapping.memory[begin : begin + shape.status_size].cast("q")

    @staticmethod
    def create(depth: int, slot_size: int, *, workers: int, shared: bool, in_use: int | None = None) -> Arena:
        """An arena for `depth` batches of at most `slot_size` bytes.

        Args:
            depth: number of slots.
            slot_size: bytes of the largest batch.
            workers: how many there can be.
            shared: whether they are processes.
            in_use: how many of the slots are to be in memory now; the others take none before `use` is told of them.

        Raises:
            NotEnoughMemory: there is less memory free than that.
            MemoryError: the kernel refuses it all the same; as `create` of the mapping.
        """
        from hydrax_gpu._mem.limits import check  # here, because workers import this module and never create an arena

        in_use = depth if in_use is None else in_use
        shape = ArenaShape(depth, stride_of(slot_size), workers, in_use)
        nbytes = shape.size if in_use == depth else in_use * shape.stride + shape.status_size
        check(nbytes, shared=shared, what=f"{in_use} slots of {shape.stride:,} bytes")
        return Arena(shape, create(shape.size, shared=shared, present=None if in_use == depth else nbytes))

    @staticmethod
    def attach(shape: ArenaShape, fd: int) -> Arena:
        """The same arena in another process, from its file descriptor, which is closed."""
        present = None if shape.in_use == shape.depth else shape.in_use * shape.stride
        return Arena(shape, attach(fd, shape.size, present=present))

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes, as far as this process knows."""
        return self.mapping.size if self.in_use == self.shape.depth else self.in_use * self.shape.stride

    def use(self, slots: int) -> None:
        """Makes the first `slots` slots present in memory, if they are not; in the process that created the arena.

        Raises:
            MemoryError: the kernel would not give that much.
        """
        if slots > self.in_use:
            populate(self.mapping, self.in_use * self.shape.stride, slots * self.shape.stride)
            self.in_use = slots

    def status_of(self, worker: int) -> tuple[int, int]:
        """Items that a worker has begun in its life, and when it took up its task, in nanoseconds."""
        word = 1 + WORDS * worker
        return self.status[word], self.status[word + 1]

    def tell_done(self, worker: int, last: int, loud: int) -> None:
        """A worker tells that it has done `last` tasks in its life.

        There is nothing to tell about those after the `loud`-th. Both in one word, which is written at once.
        """
        loud = max(loud, last - _FAR)  # so that the difference stays small, however many they become
        self.status[WORDS * worker + 3] = (loud & _COUNT) << _COUNT.bit_length() | last & _COUNT

    def silently_done(self, worker: int, known: int) -> int:
        """How many tasks a worker has done beyond `known` of which there is nothing to tell."""
        both = self.status[WORDS * worker + 3]
        last, loud = _beyond(both & _COUNT, known), _beyond(both >> _COUNT.bit_length(), known)
        return last if loud <= 0 < last else 0

    def reset_status(self, worker: int) -> None:
        """Makes room for the numbers of a worker that takes another's place."""
        word = 1 + WORDS * worker
        for each in range(word, word + WORDS):
            self.status[each] = 0

    def slot(self, slot: int) -> memoryview:
        """The bytes of a slot."""
        begin = slot * self.shape.stride
        return self.mapping.memory[begin : begin + self.shape.stride]

    def address(self, slot: int) -> int:
        """Where a slot begins."""
        return self._address + slot * self.shape.stride

    def span(self, slot: int) -> range:
        """The addresses of a slot."""
        return range(self.address(slot), self.address(slot) + self.shape.stride)

    def lease(self, slot: int, on_release: Callable[[], None]) -> Lease:
        """The bytes of a slot, with `on_release()` called when the last view of *this* lease is gone.

        NumPy arrays over the lease, DLPack capsules of those and the `jax.Array`s made of them all keep the lease
        alive, so one weak reference watches them all. `on_release` runs on whichever thread lets go last, possibly
        inside the garbage collector: it must only append to a queue.

        A lease is a ctypes array and not a memoryview, because NumPy looks through a memoryview and keeps alive only
        what is behind it.
        """
        lease = self._lease_type.from_address(self._address + slot * self.shape.stride)
        vars(lease)["mapping"] = self.mapping  # the lease is an address; this keeps it mapped
        weakref.finalize(lease, on_release).atexit = False
        return lease


def stride_of(slot_size: int) -> int:
    """Bytes from one slot to the next, for batches of at most `slot_size` bytes."""
    return -(-slot_size // _PAGE) * _PAGE


def _beyond(count: int, known: int) -> int:
    """`count - known`, if it is small, of counts that are known modulo 2**31."""
    difference = (count - known) & _COUNT
    return difference if difference <= _COUNT // 2 else difference - _COUNT - 1
