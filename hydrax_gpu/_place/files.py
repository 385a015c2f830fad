"""Compressed files in host slots → rows of device slots: the device decodes, and one kernel makes the rows.

A batch goes through here when its workers are done, before it is placed and while others are being loaded:

    file ──► ImageDecoder: the part that the crop touches ──► scratch ──► resize_crop_flip_normalize ──► the row
    pixels (of a picture that a worker had to decode) ── copy ──────────────────────────────────────────► the row

All of it is in the order of one stream, which belongs to this alone: so the scratch memory, once large enough, serves
every batch. Only what writes rows waits for the fence of the device slot; decoding need not.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, final

from hydrax_gpu._kernels.resize_crop_flip_normalize import Args, Item, Turn, aim, measure, taps
from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._mem.encoded import FILE, HEAD, PIXELS, PictureRows, Record
from hydrax_gpu._place.device import Device, DeviceMemory, Event, ImageDecoder, Picture, Resizer
from hydrax_gpu._place.regions import DeviceLayout, coalesce
from hydrax_gpu._place.ring import Ring
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu._spec import ALIGNMENT, EncodedLayout, Layout

__all__ = ["GROUP_BYTES", "Done", "FileDecoder", "file_decoder"]

_log = logging.getLogger("hydrax_gpu")

GROUP_BYTES = 256 << 20
"""Decoded pixels that are in the device's memory at a time; a batch with more is decoded in several groups."""

_MOST_BYTES = 1 << 30
"""The largest part of a picture that is decoded on a device at all."""

_CLOSE_SECONDS = 20.0

Done: TypeAlias = "Callable[[Mapping[int, str], Exception | None], None]"
"""`(reason by row that was refused, what kept it from decoding at all)`."""


@dataclass(slots=True, eq=False)
class _Slot:
    decoded: Event  # its rows that come from files are there
    generation: int = -1
    done: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])
    items: int = 0  # entries of the host's table of items that the device may have yet to read
    filled: bool = True  # the batch went on from here to be placed: its copy tells when the host memory is free


class _File(NamedTuple):
    row: int
    record: Record
    picture: Picture

    @property
    def turn(self) -> Turn:
        record: Any = self.record
        return Turn(bool(record.swap), bool(record.mirror_x), bool(record.mirror_y))


class _Array(NamedTuple):
    """One array that is decoded: where it lies, and by what."""

    encoded: EncodedLayout
    offset: int
    row_nbytes: int
    item_rows: int
    decoder: ImageDecoder
    resizer: Resizer


@final
class FileDecoder:
    """Decodes the files in the slots of an arena into the slots of a ring.

    Args:
        device: whose memory the ring is.
        arena: the host slots.
        ring: the device slots.
        layouts: of the batches, by index; None for those whose files are not decoded here.

    Raises:
        ImportError: what the device needs to decode is not installed.
    """

    def __init__(self, device: Device, arena: Arena, ring: Ring, layouts: Sequence[Layout | None]) -> None:
        self._device, self._arena, self._ring = device, arena, ring
        self._stream = device.new_stream()
        self._slots = [_Slot(device.new_event()) for _ in range(arena.shape.depth)]
        self._arrays = [list(self._of(layout)) if layout is not None else [] for layout in layouts]
        self._scratch: DeviceMemory | None = None
        self._outgrown: list[tuple[DeviceMemory, Event]] = []
        self._jobs: queue.SimpleQueue[tuple[int, int, int, BatchPlan, Done] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def _of(self, layout: Layout) -> Iterator[_Array]:
        for encoded in layout.encoded:
            array = next(each for each in layout.wire if each.name == encoded.name)
            rows: PictureRows = encoded.rows
            yield _Array(
                encoded, array.offset, array.row_nbytes, layout.rows,
                self._device.image_decoder(rows.channels), self._device.resizer(rows),
            )  # fmt: skip

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
        """Waits until the device no longer reads host memory. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            thread.join(_CLOSE_SECONDS)
            if thread.is_alive():
                _log.error("the decoder of %s has not come back within %g seconds", self._device.name, _CLOSE_SECONDS)
                return
        self._device.synchronize(self._stream)

    def event(self, slot: int, generation: int) -> Event:
        """What marks that the rows of a slot that come from files are there. To be called when it is placed."""
        entry = self._slots[slot]
        assert entry.generation == generation, "a batch is placed whose files were not decoded"
        entry.filled = True
        return entry.decoded

    # On the thread.

    def decode(self, slot: int, generation: int, layout: int, plan: BatchPlan) -> dict[int, str]:
        """Decodes what is not decoded of a slot, and enqueues what makes rows of it.

        Returns:
            For each row whose file was refused the reason.
        """
        device, entry = self._device, self._slots[slot]
        if entry.generation != generation:
            if not entry.filled:  # a batch that was left out after it was here
                device.synchronize(self._stream)
            entry.generation, entry.items, entry.filled = generation, 0, False
            entry.done.clear()
        refused: dict[int, str] = {}
        self._outgrown = [each for each in self._outgrown if not device.done(each[1])]
        for array in self._arrays[layout]:
            refused |= self._decode_array(slot, entry, array, plan)
        device.record(entry.decoded, self._stream)
        return refused

    def _decode_array(self, slot: int, entry: _Slot, array: _Array, plan: BatchPlan) -> dict[int, str]:
        encoded, host = array.encoded, self._arena.address(slot)
        plain: list[int] = []
        files: list[_File] = []
        refused: dict[int, str] = {}
        for row in range(plan.valid):
            if (encoded.name, row) in entry.done:
                continue
            address = host + encoded.offset + row * encoded.row_nbytes
            record: Any = Record.from_address(address)
            if record.state == PIXELS:
                plain.append(row)
                continue
            x, y, width, height = record.part
            needed = width * height * encoded.rows.channels
            # what a loader wrote, which need not be ours
            if not (record.state == FILE and 0 < record.nbytes <= encoded.row_nbytes - HEAD and needed > 0):
                refused[row] = f"{self._device.name} was given no file"
            elif needed > _MOST_BYTES:
                refused[row] = f"{self._device.name} decodes no part of more than {_MOST_BYTES >> 20} MiB"
            else:
                files.append(_File(row, record, Picture(address + HEAD, record.nbytes, x, y, width, height, 0)))
        if plain:
            self._copy(slot, array, plain, plan)
        for group in _groups(files, encoded.rows.channels):
            refused |= self._decode_group(slot, entry, array, group, plan)
        entry.done.update((encoded.name, row) for row in range(plan.valid) if row not in refused)
        for row in refused:  # it is a worker's now
            record = Record.from_address(host + encoded.offset + row * encoded.row_nbytes)
            record.state = PIXELS
        return refused

    def _copy(self, slot: int, array: _Array, rows: Sequence[int], plan: BatchPlan) -> None:
        """Rows that a worker has decoded, and those that repeat them."""
        device, size = self._device, array.row_nbytes
        source, destination = self._arena.address(slot) + array.offset, self._ring.address(slot) + array.offset
        self._ring.wait_for_readers(slot, self._stream)
        for begin, end in coalesce([(row, row + 1) for row in rows], gap=0):
            device.copy_in(self._stream, destination + begin * size, source + begin * size, (end - begin) * size)
        for row in rows:
            for target in range(row + plan.valid, plan.rows, plan.valid):
                device.copy_in(self._stream, destination + target * size, source + row * size, size)

    def _decode_group(
        self, slot: int, entry: _Slot, array: _Array, files: list[_File], plan: BatchPlan
    ) -> dict[int, str]:
        """Files whose pixels are in the scratch memory together."""
        rows: PictureRows = array.encoded.rows
        copies = sum(len(range(file.row, plan.rows, plan.valid)) for file in files)
        args = Args()
        boxes: list[Any] = [file.record.box for file in files]
        swapped = [file.turn.swap for file in files]
        measure(
            args, max(rows.height, rows.width), max(rows.height, rows.width),
            max(taps(rows.width if swap else rows.height, box[3]) for box, swap in zip(boxes, swapped, strict=True)),
            max(taps(rows.height if swap else rows.width, box[2]) for box, swap in zip(boxes, swapped, strict=True)),
        )  # fmt: skip
        table, item_bytes = 2 * args.table_count * copies, ctypes.sizeof(Item) * copies
        parts = [_aligned(file.picture.width * file.picture.height * rows.channels) for file in files]
        try:
            at = self._reserve(_aligned(table) + _aligned(item_bytes) + sum(parts))
        except MemoryError as error:
            if len(files) == 1:
                return {files[0].row: f"{self._device.name} has no memory to decode it ({error})"}
            half = len(files) // 2
            return self._decode_group(slot, entry, array, files[:half], plan) | self._decode_group(
                slot, entry, array, files[half:], plan
            )
        args.table, items_at, at = at, at + _aligned(table), at + _aligned(table) + _aligned(item_bytes)
        placed: list[_File] = []
        for file, size in zip(files, parts, strict=True):
            p = file.picture
            picture = Picture(p.data, p.nbytes, p.x, p.y, p.width, p.height, at)
            placed.append(file._replace(picture=picture))
            at += size
        reasons = array.decoder(self._stream, [file.picture for file in placed])
        refused = {
            file.row: f"{self._device.name} could not decode a file ({why}), a worker does"
            for file, why in zip(placed, reasons, strict=True)
            if why is not None
        }
        good = [file for file in placed if file.row not in refused]
        self._ring.wait_for_readers(slot, self._stream)
        for swap in (False, True):
            turned = [file for file in good if file.turn.swap is swap]
            if turned:
                items_at = self._launch(slot, entry, array, args, items_at, turned, plan)
        return refused

    def _launch(
        self, slot: int, entry: _Slot, array: _Array, args: Args, items_at: int, files: Sequence[_File], plan: BatchPlan
    ) -> int:
        """One launch of the kernel, for files that are turned alike. Returns where more items can go."""
        device, rows = self._device, array.encoded.rows
        targets = [(file, target) for file in files for target in range(file.row, plan.rows, plan.valid)]
        if entry.items + len(targets) > array.item_rows:  # files that took the place of refused ones
            device.synchronize(self._stream)
            entry.items = 0
        size = ctypes.sizeof(Item)
        host = self._arena.address(slot) + array.encoded.scratch + entry.items * size
        items: Any = (Item * len(targets)).from_address(host)
        entry.items += len(targets)
        elements = array.row_nbytes // rows.dtype.itemsize
        height = width = 0
        for item, (file, target) in zip(items, targets, strict=True):
            picture, record = file.picture, file.record
            item.picture, item.stride = picture.destination, picture.width * rows.channels
            item.pixel, item.columns = rows.channels, picture.width
            item.box[:] = record.box
            height, width = aim(item, rows.height, rows.width, rows.channels, rows.layout, file.turn)
            item.origin += target * elements
        device.copy_in(self._stream, items_at, host, len(targets) * size)
        args.items, args.out, args.out_stride = items_at, self._ring.address(slot) + array.offset, 0
        args.rows = len(targets)
        measure(args, height, width, args.taps_y, args.taps_x)
        array.resizer(self._stream, args)
        return items_at + len(targets) * size

    def _reserve(self, nbytes: int) -> int:
        """Address of so much scratch memory. What it replaces lives on until the stream has got past it."""
        if self._scratch is None or self._scratch.nbytes < nbytes:
            wanted = -(-nbytes * 5 // 4 // (1 << 20)) << 20
            if self._scratch is not None:
                event = self._device.new_event()
                self._device.record(event, self._stream)
                self._outgrown.append((self._scratch, event))
            try:
                self._scratch = self._device.allocate(wanted, "device")
            except MemoryError:
                self._scratch = self._device.allocate(_aligned(nbytes), "xla")
        return self._scratch.address


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
        notes.append("workers decode the pictures of a group whose other arrays they decode, too")
    nobody = [False] * len(layouts)
    if not any(wanted):
        return None, nobody, notes
    specs = [layout if wants else None for (layout, _), wants in zip(layouts, wanted, strict=True)]
    try:
        return FileDecoder(device, arena, ring, specs), wanted, notes
    except Exception as error:  # of the libraries that decode, and of the compiler for the device
        notes.append(f"workers decode the pictures, and not {device.name}: {type(error).__name__}: {error}")
        return None, nobody, notes


def _groups(files: Sequence[_File], channels: int) -> Iterator[list[_File]]:
    group: list[_File] = []
    size = 0
    for file in files:
        needed = file.picture.width * file.picture.height * channels
        if group and size + needed > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(file)
        size += needed
    if group:
        yield group


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
