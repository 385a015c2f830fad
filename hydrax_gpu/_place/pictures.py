"""JPEG files in a host slot → rows of one array of a device slot: the device decodes, and one kernel makes the rows.

    file ──► ImageDecoder: the part that the crop touches ──► scratch ──► resize_crop_flip_normalize ──► the row

The scratch memory, once large enough, serves every batch, since all of this is in the order of one stream.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, final

from hydrax_gpu._kernels.resize_crop_flip_normalize import Args, Item, Turn, aim, measure, taps
from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._mem.encoded import FILE, HEAD, PIXELS, PictureRows, Record
from hydrax_gpu._place.device import Device, DeviceMemory, Event, Picture, Stream
from hydrax_gpu._place.ring import Ring
from hydrax_gpu._place.targets import Part
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu._spec import ALIGNMENT, EncodedLayout, Layout

__all__ = ["GROUP_BYTES", "PictureDecoder", "Scratch"]

GROUP_BYTES = 256 << 20
"""Decoded pixels that are in the device's memory at a time; a batch with more is decoded in several groups."""

_MOST_BYTES = 1 << 30
"""The largest part of a picture that is decoded on a device at all."""


@final
class Scratch:
    """Memory of a device for what is needed between two operations of a stream.

    Args:
        device: whose memory it is.
        stream: whose operations.
    """

    def __init__(self, device: Device, stream: Stream) -> None:
        self._device, self._stream = device, stream
        self._memory: DeviceMemory | None = None
        self._outgrown: list[tuple[DeviceMemory, Event]] = []

    def reserve(self, nbytes: int) -> int:
        """Address of so much memory. What it replaces lives on until the stream has got past it.

        Raises:
            MemoryError: there is not that much.
        """
        device = self._device
        self._outgrown = [each for each in self._outgrown if not device.done(each[1])]
        if self._memory is None or self._memory.nbytes < nbytes:
            wanted = -(-nbytes * 5 // 4 // (1 << 20)) << 20
            if self._memory is not None:
                event = device.new_event()
                device.record(event, self._stream)
                self._outgrown.append((self._memory, event))
            try:
                self._memory = device.allocate(wanted, "device")
            except MemoryError:
                self._memory = device.allocate(_aligned(nbytes), "xla")
        return self._memory.address


class _File(NamedTuple):
    row: int
    record: Record
    picture: Picture

    @property
    def turn(self) -> Turn:
        record: Any = self.record
        return Turn(bool(record.swap), bool(record.mirror_x), bool(record.mirror_y))


@final
class PictureDecoder:
    """Decodes the files of one array, for one kind of batch.

    Args:
        device: the device.
        stream: of the device, for all of it.
        arena: the host slots.
        ring: the device slots.
        layout: of the batches.
        encoded: where the files are.
        scratch: memory for the stream.
        share: which of how many tables of items in the slot is for this device.

    Raises:
        ImportError: what the device needs to decode is not installed.
    """

    def __init__(
        self, device: Device, stream: Stream, arena: Arena, ring: Ring, layout: Layout, encoded: EncodedLayout,
        scratch: Scratch, share: tuple[int, int],
    ) -> None:  # fmt: skip
        self._device, self._stream, self._arena, self._ring, self._scratch = device, stream, arena, ring, scratch
        self._encoded = encoded
        self._table = encoded.scratch_nbytes // share[1] // ctypes.sizeof(Item)  # items that fit
        self._table_at = encoded.scratch + share[0] * (encoded.scratch_nbytes // share[1])
        self._items: dict[int, int] = {}  # slot → entries of its table that the device may have yet to read
        self.row_nbytes = next(each.row_nbytes for each in layout.wire if each.name == encoded.name)
        rows: PictureRows = encoded.rows
        self._decode = device.image_decoder(rows.channels)
        self._resize = device.resizer(rows)

    def begin(self, slot: int) -> None:
        """A slot has other files now, and the device has read what it was to read of those before."""
        self._items[slot] = 0

    def decode(self, slot: int, rows: Sequence[int], part: Part, plan: BatchPlan) -> tuple[list[int], dict[int, str]]:
        """Decodes the files of some rows, and enqueues what makes rows of the device's slot of them.

        Returns:
            The rows that have no file, and for each row whose file was refused the reason.
        """
        encoded, host = self._encoded, self._arena.address(slot)
        plain: list[int] = []
        files: list[_File] = []
        refused: dict[int, str] = {}
        for row in rows:
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
        for group in _groups(files, encoded.rows.channels):
            refused |= self._decode_group(slot, group, part, plan)
        return plain, refused

    def _decode_group(self, slot: int, files: list[_File], part: Part, plan: BatchPlan) -> dict[int, str]:
        """Files whose pixels are in the scratch memory together."""
        rows: PictureRows = self._encoded.rows
        copies = sum(len(part.of(file.row, plan)) for file in files)
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
            at = self._scratch.reserve(_aligned(table) + _aligned(item_bytes) + sum(parts))
        except MemoryError as error:
            if len(files) == 1:
                return {files[0].row: f"{self._device.name} has no memory to decode it ({error})"}
            half = len(files) // 2
            return self._decode_group(slot, files[:half], part, plan) | self._decode_group(
                slot, files[half:], part, plan
            )
        args.table, items_at, at = at, at + _aligned(table), at + _aligned(table) + _aligned(item_bytes)
        placed: list[_File] = []
        for file, size in zip(files, parts, strict=True):
            p = file.picture
            picture = Picture(p.data, p.nbytes, p.x, p.y, p.width, p.height, at)
            placed.append(file._replace(picture=picture))
            at += size
        reasons = self._decode(self._stream, [file.picture for file in placed])
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
                items_at = self._launch(slot, args, items_at, turned, part, plan)
        return refused

    def _launch(self, slot: int, args: Args, items_at: int, files: Sequence[_File], part: Part, plan: BatchPlan) -> int:
        """One launch of the kernel, for files that are turned alike. Returns where more items can go."""
        device, rows = self._device, self._encoded.rows
        targets = [(file, target) for file in files for target in part.of(file.row, plan)]
        if self._items[slot] + len(targets) > self._table:  # files that took the place of refused ones
            device.synchronize(self._stream)
            self._items[slot] = 0
        size = ctypes.sizeof(Item)
        host = self._arena.address(slot) + self._table_at + self._items[slot] * size
        items: Any = (Item * len(targets)).from_address(host)
        self._items[slot] += len(targets)
        elements = self.row_nbytes // rows.dtype.itemsize
        height = width = 0
        for item, (file, target) in zip(items, targets, strict=True):
            picture, record = file.picture, file.record
            item.picture, item.stride = picture.destination, picture.width * rows.channels
            item.pixel, item.columns = rows.channels, picture.width
            item.box[:] = record.box
            height, width = aim(item, rows.height, rows.width, rows.channels, rows.layout, file.turn)
            item.origin += (target - part.begin) * elements
        device.copy_in(self._stream, items_at, host, len(targets) * size)
        args.items, args.out, args.out_stride = items_at, self._ring.address(slot) + part.offset, 0
        args.rows = len(targets)
        measure(args, height, width, args.taps_y, args.taps_x)
        self._resize(self._stream, args)
        return items_at + len(targets) * size


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
