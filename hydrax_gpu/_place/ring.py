"""Batches in device memory that XLA reads in place, and when that memory may be written again.

The question is the whole difficulty of a loader for a GPU, so here is what does not work, and then what does.

**Python references do not tell.** XLA works asynchronously: `step(batch)` returns when its kernels are *enqueued*. The
user drops the batch, its last reference goes, and the kernels have yet to run.

**DLPack's deleter does not tell either, on CUDA.** On the CPU XLA keeps an imported buffer until the computation that
reads it has ended, so there the deleter is the proof. On a GPU it needs not to: its own memory is given out again in
the order of one compute stream, in which whoever writes next comes after whoever read last. So XLA lets go as soon as
the reader is enqueued, and the deleter runs then. A loader that writes from a stream of its own is not in that order.
Filled in the deleter, a batch is overwritten under a kernel that still reads it: now and then, under load, without an
error. (https://github.com/NVIDIA/DALI/issues/5617 is this.)

**Waiting on the host works, and is no good.** `block_until_ready` on whatever was computed from the batch is right, but
we do not know what that was; synchronising the device is right, too, and stops everything once a batch.

**An event recorded when the batch is handed out is too early,** since its readers are enqueued after that. An event of
our own on the stream of the reader is what we want, but XLA does not show its compute stream.

**So we let XLA tell.** When the deleter has run, every reader is enqueued on the compute stream. A trivial computation
that we dispatch now comes behind them, in the same stream. DLPack lets a consumer ask for an array's content to be
ready *on the consumer's stream*: `array.__dlpack__(stream=s)` makes `s` wait, on the device, until the computation is
done, and so until all readers before it are. That is the *fence*. The host waits nowhere; the next copy into the slot
is enqueued at once, behind the fence.

Three things more:

- The fence is recorded in an event on a stream that does nothing else. The copy stream waits for a slot's event when it
  comes to fill that slot, and not earlier: fences of other slots do not hold it up.
- The fence waits for all that was enqueued *before it*, needed or not. The sooner it is dispatched, the less that is.
  So the deleter's message is handled before the consumer is given another batch, from which it would enqueue more.
- XLA has at most 32 computations in flight, and a dispatch beyond that blocks. `depth` slots with a fence each can keep
  no more than about `4 * depth` of them: a loop that runs ahead is held up by its batches before that.

A copy to the host or to another device holds its source until it is done (there the deleter comes late, which is as
good); a donated buffer belongs to the computation's output, and the deleter runs when that is gone.

The other direction is simple: JAX names a stream when it imports a buffer, and that stream is made to wait for the
event behind the copy and the kernels.

The host's part of a slot has nothing to do with all this: it may be written as soon as it was copied. The engine learns
that by asking the events when it has a turn, rather than by a callback of the driver's: a callback needs the GIL on a
thread of the driver's, holds up the stream until it has it, and aborts a process whose interpreter is shutting down.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._place import settle
from hydrax_gpu._place.device import Device, DeviceMemory, Event, Stream
from hydrax_gpu._place.dlpack import Exporter
from hydrax_gpu._place.regions import DeviceLayout
from hydrax_gpu._spec import ALIGNMENT

__all__ = ["Ring"]


@dataclass(slots=True, eq=False)
class _Slot:
    address: int
    copied: Event  # its host memory was read
    filled: Event  # it may be read
    fence: Event  # it may be written
    out: bool = False  # exported and not retired since: XLA may read it at any time
    fenced: bool = False  # it was retired at least once, so that there is a fence to wait for


class Ring:
    """A slot of device memory for each slot of an arena, filled on a stream of our own and lent to JAX.

    Called by one thread at a time, that which steps the engine. What state a slot is in is the engine's business; kept
    here is only what the device is to wait for.

    Args:
        device: whose memory it is.
        memory: at least `Ring.size(...)` bytes of it.
        arena: the host slots.
        layouts: of the batches; `fill` and `export` name one by its index.
    """

    def __init__(self, device: Device, memory: DeviceMemory, arena: Arena, layouts: Sequence[DeviceLayout]) -> None:
        self._device = device
        self._arena = arena
        self._layouts = layouts
        self.memory = memory
        self._stride = self._stride_of(layouts)
        self._stream = device.new_stream()
        self._fences = device.new_stream()
        self._slots = [
            _Slot(memory.address + slot * self._stride, *(device.new_event() for _ in range(3)))
            for slot in range(arena.shape.depth)
        ]
        self._copying: deque[tuple[int, int]] = deque()  # slot and generation, in the order of the stream
        self._views: dict[tuple[int, int, int], tuple[dict[str, Any], dict[str, Any]]] = {}
        self.fences = 0
        """Number of fences so far."""

    @staticmethod
    def _stride_of(layouts: Iterable[DeviceLayout]) -> int:
        return max(-(-layout.nbytes // ALIGNMENT) * ALIGNMENT for layout in layouts)

    @classmethod
    def size(cls, depth: int, layouts: Iterable[DeviceLayout]) -> int:
        """Bytes that a ring needs."""
        return depth * cls._stride_of(layouts)

    def address(self, slot: int) -> int:
        """Where a slot begins, in device memory."""
        return self._slots[slot].address

    def wait_for_readers(self, slot: int, stream: Stream) -> None:
        """Makes a stream wait until a slot may be written, as `fill` does with its own.

        From any thread: a slot that is being loaded is neither lent nor retired meanwhile.

        Raises:
            AssertionError: the slot was lent and not retired.
        """
        entry = self._slots[slot]
        if entry.out:
            raise AssertionError(f"device slot {slot} was lent and not retired: nothing may be written there")
        if entry.fenced:
            self._device.wait(stream, entry.fence)

    def fill(
        self,
        slot: int,
        generation: int,
        layout: int,
        rows: int,
        files: Event | None = None,
        there: Collection[str] = (),
    ) -> None:
        """Enqueues all that brings a batch to the device: the wait for the fence, the copy, the conversions.

        Args:
            slot: the slot.
            generation: its generation.
            layout: index of its layout.
            rows: of the batch.
            files: what marks that the arrays in `there` are on the device already, None for none.
            there: their names.

        Raises:
            AssertionError: the slot was lent and not retired.
        """
        device, stream, entry, plan = self._device, self._stream, self._slots[slot], self._layouts[layout]
        self.wait_for_readers(slot, stream)
        if files is not None:
            device.wait(stream, files)  # behind which their host memory was read, too
        host = self._arena.address(slot)
        for offset, nbytes in plan.copies(rows, there):
            device.copy_in(stream, entry.address + offset, host + plan.source(offset), nbytes)
        device.record(entry.copied, stream)
        self._copying.append((slot, generation))
        if plan.decoder is not None:
            plan.decoder(stream, *self._decoded(slot, layout, rows))
        for work in plan.converts(entry.address, rows):
            device.convert(stream, work)
        device.record(entry.filled, stream)

    def _decoded(self, slot: int, layout: int, rows: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arrays over device memory, which nobody reads here: as they were loaded, and as the batch holds them."""
        views = self._views.get((slot, layout, rows))
        if views is None:
            plan = self._layouts[layout]
            memory: Any = (ctypes.c_ubyte * self._stride).from_address(self._slots[slot].address)
            loaded = {
                a.name: np.ndarray((rows, *a.item_shape), a.numpy_dtype, buffer=memory, offset=a.offset)
                for a in plan.copied
            }
            batch = {
                r.name: np.ndarray((rows, *r.item_shape), r.source_dtype, buffer=memory, offset=r.source)
                for r in plan.regions
            }
            views = self._views[slot, layout, rows] = loaded, batch
        return views

    def export(self, slot: int, layout: int, rows: int, on_release: Callable[[], None]) -> dict[str, Any]:
        """The arrays of a slot that was filled. `on_release` is called when nothing on the host refers to them."""
        device, entry, plan = self._device, self._slots[slot], self._layouts[layout]
        entry.out = True
        token, released = settle.watch(on_release)
        lease = self.memory.lease(entry.address - self.memory.address, self._stride, released)

        def order(reader: Any) -> None:
            device.order_reader(reader, entry.filled)

        views = plan.views(lease, rows)
        arrays = {name: device.to_jax(Exporter(view, device.dlpack_device, order)) for name, view in views.items()}
        # Of arrays over several devices these are parts, which are given up when the whole is made.
        settle.held_by(token, arrays.values(), range(entry.address, entry.address + self._stride))
        return arrays

    def retire(self, slot: int) -> None:
        """Puts up the fence before a slot that nothing on the host refers to any more."""
        device, entry = self._device, self._slots[slot]
        device.fence(self._fences)
        device.record(entry.fence, self._fences)
        entry.fenced, entry.out = True, False
        self.fences += 1

    def copied(self) -> list[tuple[int, int]]:
        """Slots, and generations, whose copies are done and were not returned before."""
        done: list[tuple[int, int]] = []
        while self._copying and self._device.done(self._slots[self._copying[0][0]].copied):
            done.append(self._copying.popleft())
        return done

    def close(self) -> None:
        """Waits until the device no longer reads host memory. Lent batches stay valid. Idempotent."""
        self._device.synchronize(self._stream)
        self._copying.clear()
