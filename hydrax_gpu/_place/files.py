"""Files in host slots → rows of device slots: who decodes them, when, and on which thread.

A batch goes through here when its workers are done, before it is placed and while others are being loaded:

    a file ──────► `pictures.py`: decoded in part, and resized by a kernel ──► the row
    fields ──────► `graphs.py`: a graph runs on them, its outputs copied ────► the row
    nothing (a worker had to make the row itself) ── copy ───────────────────► the row

All of it is in the order of one stream, which belongs to this alone. Only what writes rows waits for the fence of the
device slot; decoding need not.

A decoder blocks the host for as long as its part of the work takes (parsing, and on most GPUs the Huffman code). That
is done on a thread of its own, so that neither the engine nor the consumer has to wait for it.

What the decoder refuses is told to the engine, which lets a worker decode it. Then the batch comes here again, for
those rows.
"""

from __future__ import annotations

import ctypes
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, final

from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._mem.encoded import PIXELS, PictureRows
from hydrax_gpu._place.device import Device, Event
from hydrax_gpu._place.graphs import GraphDecoder
from hydrax_gpu._place.pictures import PictureDecoder, Scratch
from hydrax_gpu._place.regions import DeviceLayout
from hydrax_gpu._place.ring import Ring
from hydrax_gpu._place.targets import Part, Parts, runs
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu._spec import EncodedLayout, Layout

__all__ = ["Done", "FileDecoder", "file_decoder", "give_to_workers"]

_log = logging.getLogger("hydrax_gpu")

_CLOSE_SECONDS = 20.0

Done: TypeAlias = "Callable[[Mapping[int, str], Exception | None], None]"
"""`(reason by row that was refused, what kept it from decoding at all)`."""


@dataclass(slots=True, eq=False)
class _Slot:
    decoded: Event  # its rows that come from files are there
    generation: int = -1
    done: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    filled: bool = True  # the batch went on from here to be placed: its copy tells when the host memory is free


_Each: TypeAlias = "tuple[EncodedLayout, PictureDecoder | GraphDecoder, dict[str, int]]"
"""Where the files are, what decodes them, and where the host's slot has the arrays that come of them."""


@final
class FileDecoder:
    """Decodes the files in the slots of an arena into the slots of a ring.

    Args:
        device: whose memory the ring is.
        arena: the host slots.
        ring: the device slots.
        layouts: of the batches, by index; None for those whose files are not decoded here.
        parts: what the device has of a batch.
        share: which of how many devices this is that decode parts of the same batches.

    Raises:
        Exception: what the device needs to decode is not installed, or cannot do it; the message says why.
    """

    def __init__(
        self, device: Device, arena: Arena, ring: Ring, layouts: Sequence[Layout | None], parts: Parts,
        share: tuple[int, int] = (0, 1),
    ) -> None:  # fmt: skip
        self._device, self._arena, self._ring, self._parts, self._share = device, arena, ring, parts, share
        self._stream = device.new_stream()
        self._scratch = Scratch(device, self._stream)
        self._slots = [_Slot(device.new_event()) for _ in range(arena.shape.depth)]
        self._files = [list(self._of(layout)) if layout is not None else [] for layout in layouts]
        self._jobs: queue.SimpleQueue[tuple[int, int, int, BatchPlan, Done] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def _of(self, layout: Layout) -> Iterator[_Each]:
        for encoded in layout.encoded:
            given = self._device, self._stream, self._arena, self._ring, layout, encoded
            decoder: PictureDecoder | GraphDecoder
            if isinstance(encoded.rows, PictureRows):
                decoder = PictureDecoder(*given, self._scratch, self._share)
            else:
                decoder = GraphDecoder(*given)
            yield encoded, decoder, {each.name: each.offset for each in layout.wire if each.name in encoded.names}

    def submit(self, slot: int, generation: int, layout: int, plan: BatchPlan, done: Done) -> None:
        """Decodes the files of a slot, and calls `done`, on another thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="hydrax_gpu-files", daemon=True)
            self._thread.start()
        self._jobs.put((slot, generation, layout, plan, done))

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            slot, generation, layout, plan, done = job
            try:
                done(self.decode(slot, generation, layout, plan), None)
            except Exception as error:  # of the libraries below
                done({}, error)

    def close(self) -> None:
        """Waits until the device no longer reads host memory, and gives up what decodes. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            thread.join(_CLOSE_SECONDS)
            if thread.is_alive():
                _log.error("the decoder of %s has not come back within %g seconds", self._device.name, _CLOSE_SECONDS)
                return
        self._device.synchronize(self._stream)
        self._files = []

    def event(self, slot: int, generation: int) -> Event:
        """What marks that the rows of a slot that come from files are there. To be called when it is placed."""
        entry = self._slots[slot]
        assert entry.generation == generation, "a batch is placed whose files were not decoded"
        entry.filled = True
        return entry.decoded

    def names(self, layout: int) -> list[str]:
        """Arrays of a batch that come from files."""
        return [name for encoded, _, _ in self._files[layout] for name in encoded.names]

    # On the thread.

    def decode(self, slot: int, generation: int, layout: int, plan: BatchPlan) -> dict[int, str]:
        """Decodes what is not decoded of a slot, and enqueues what makes rows of it.

        Returns:
            For each row whose file was refused the reason; see `give_to_workers`.
        """
        device, entry = self._device, self._slots[slot]
        if entry.generation != generation:
            if not entry.filled:  # a batch that was left out after it was here
                device.synchronize(self._stream)
            entry.generation, entry.filled = generation, False
            entry.done.clear()
            for _, decoder, _ in self._files[layout]:
                if isinstance(decoder, PictureDecoder):
                    decoder.begin(slot)
        refused: dict[int, str] = {}
        parts = self._parts(layout, plan)
        for each in self._files[layout]:
            refused |= self._decode(slot, entry, each, parts, plan)
        device.record(entry.decoded, self._stream)
        return refused

    def forget(self, slot: int, generation: int, rows: Iterable[int]) -> None:
        """Rows that are to be had from workers, because another device has refused them.

        To be called between a `decode` that has returned and the next one of the same slot.
        """
        entry = self._slots[slot]
        if entry.generation == generation:
            entry.done -= {(name, row) for row in rows for name, _ in set(entry.done)}

    def _decode(
        self, slot: int, entry: _Slot, each: _Each, parts: Mapping[str, Part], plan: BatchPlan
    ) -> dict[int, str]:
        encoded, decoder, offsets = each
        mine = {name: parts[name] for name in encoded.names if name in parts}
        rows = [
            row
            for row in range(plan.valid)
            if (encoded.name, row) not in entry.done and any(part.of(row, plan) for part in mine.values())
        ]
        if not rows:
            return {}
        if isinstance(decoder, PictureDecoder):
            plain, refused = decoder.decode(slot, rows, mine[encoded.name], plan)
        else:
            plain, refused = decoder.decode(slot, rows, mine, plan)
        if plain:
            self._ring.wait_for_readers(slot, self._stream)
            for name, part in mine.items():
                self._copy(slot, plain, offsets[name], part, plan)
        entry.done.update((encoded.name, row) for row in rows if row not in refused)
        return refused

    def _copy(self, slot: int, rows: Sequence[int], offset: int, part: Part, plan: BatchPlan) -> None:
        """Rows that a worker has made, and those that repeat them."""
        size = part.row_nbytes
        host, there = self._arena.address(slot) + offset, self._ring.address(slot)
        for source, target, count in runs((row, target) for row in rows for target in part.of(row, plan)):
            self._device.copy_in(self._stream, there + part.at(target), host + source * size, count * size)


def give_to_workers(arena: Arena, slot: int, layout: Layout, rows: Iterable[int]) -> None:
    """Marks rows as without a file: workers are to make them.

    To be called when no device looks at the files of the slot any more, and before the workers are told.
    """
    for row in rows:
        for encoded in layout.encoded:
            state = ctypes.c_int32.from_address(arena.address(slot) + encoded.offset + row * encoded.row_nbytes)
            state.value = PIXELS


def file_decoder(
    device: Device, arena: Arena, ring: Ring, layouts: Sequence[tuple[Layout, DeviceLayout | None]]
) -> tuple[FileDecoder | None, list[bool], list[str]]:
    """Who decodes compressed files on a device: of batches of which it does all that is to be decoded.

    Args:
        device: the device.
        arena: the host slots.
        ring: the device slots.
        layouts: of the batches, in host and in device memory.

    Returns:
        The decoder, or None; for each layout whether it decodes there; what there is to say about what it does not.
    """
    notes: list[str] = []
    wanted = [
        bool(layout.encoded) and there is not None and (there.decoder is not None or not layout.decodes)
        for layout, there in layouts
    ]
    if any(layout.encoded and not wants for (layout, _), wants in zip(layouts, wanted, strict=True)):
        notes.append("workers decode the files of a group whose other arrays they decode, too")
    nobody = [False] * len(layouts)
    if not any(wanted):
        return None, nobody, notes
    specs = [layout if wants else None for (layout, _), wants in zip(layouts, wanted, strict=True)]
    arrays = [
        {each.name: Part(0, layout.rows, each.offset, each.row_nbytes) for each in layout.wire} for layout, _ in layouts
    ]
    try:
        return FileDecoder(device, arena, ring, specs, lambda index, plan: arrays[index]), wanted, notes
    except Exception as error:  # of the libraries that decode, and of the compiler for the device
        notes.append(f"workers decode the files, and not {device.name}: {type(error).__name__}: {error}")
        return None, nobody, notes
