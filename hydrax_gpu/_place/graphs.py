"""Fields of items in a host slot → rows of all arrays of a device slot, by a graph that runs on the device.

    fields ──► the graph ──► its outputs, in memory of its own ── copy ──► the rows

What a graph hands out is memory that it uses again. So it is copied at once, in the order of the stream, and held until
the stream has got past the copies; nobody else ever sees it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np

from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._mem.graphs import FieldArrays, GraphFiles, Output, read_fields
from hydrax_gpu._place.device import Device, Event, Stream
from hydrax_gpu._place.ring import Ring
from hydrax_gpu._place.targets import Part
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu._spec import EncodedLayout, Layout

__all__ = ["GraphDecoder"]


@final
class GraphDecoder:
    """Runs a graph on the fields in slots, for one kind of batch.

    Args:
        device: the device.
        stream: of the device, for all of it.
        arena: the host slots.
        ring: the device slots.
        layout: of the batches.
        encoded: where the fields are.

    Raises:
        Exception: the graph cannot be built for the device; the message says why.
    """

    def __init__(
        self, device: Device, stream: Stream, arena: Arena, ring: Ring, layout: Layout, encoded: EncodedLayout
    ) -> None:
        self._device, self._stream, self._arena, self._ring, self._encoded = device, stream, arena, ring, encoded
        self._wire = {array.name: array for array in layout.wire}
        files: GraphFiles = encoded.rows
        self._training = files.training
        self._graph = device.graph(files.rows, files.training)
        self._held: list[tuple[Any, Event]] = []

    def decode(
        self, slot: int, rows: Sequence[int], parts: Mapping[str, Part], plan: BatchPlan
    ) -> tuple[list[int], dict[int, str]]:
        """Runs the graph on some rows, and enqueues the copies of what comes out to the device's slot.

        Args:
            slot: the slot.
            rows: numbers of the rows, less than `plan.valid`.
            parts: what the device has of each array.
            plan: of the batch.

        Returns:
            The rows that have no fields, and for each row that was refused the reason.
        """
        device, name = self._device, self._device.name
        self._held = [each for each in self._held if not device.done(each[1])]
        plain: list[int] = []
        fields: dict[int, FieldArrays] = {}
        refused: dict[int, str] = {}
        for row in rows:
            try:
                found = read_fields(self._region(slot, row), self._graph.names)
            except ValueError as error:
                refused[row] = f"{name} did not run the graph on an item ({error}), a worker does"
                continue
            if found is None:
                plain.append(row)
            else:
                fields[row] = found
        if not fields:
            return plain, refused
        seeds = None if plan.seeds is None else {row: plan.seeds[row] for row in fields}
        self._ring.wait_for_readers(slot, self._stream)
        for some, outputs, keep in self._graph.run(self._stream, list(fields), fields, seeds):
            if isinstance(outputs, str):
                reasons = dict.fromkeys(some, outputs)
            else:
                reasons = self._misfits(some, outputs)
                self._copy(slot, some, outputs, reasons, parts, plan)
            for row, reason in reasons.items():
                refused[row] = f"{name} could not run the graph on an item ({reason}), a worker does"
            event = device.new_event()
            device.record(event, self._stream)
            self._held.append((keep, event))
        return plain, refused

    def _region(self, slot: int, row: int) -> np.ndarray[Any, Any]:
        address = self._arena.address(slot) + self._encoded.offset + row * self._encoded.row_nbytes
        memory: Any = (ctypes.c_ubyte * self._encoded.row_nbytes).from_address(address)
        return np.frombuffer(memory, np.uint8)

    def _misfits(self, rows: Sequence[int], outputs: Mapping[str, Sequence[Output]]) -> dict[int, str]:
        """For rows whose outputs are not what was declared, what they are. A worker says it at length."""
        found: dict[int, str] = {}
        for name, each in outputs.items():
            array = self._wire[name]
            for row, output in zip(rows, each, strict=True):
                if output.shape != array.item_shape or output.dtype != array.numpy_dtype:
                    found[row] = f"output {name!r} is not as it was declared"
        return found

    def _copy(
        self, slot: int, rows: Sequence[int], outputs: Mapping[str, Sequence[Output]], left_out: Mapping[int, str],
        parts: Mapping[str, Part], plan: BatchPlan,
    ) -> None:  # fmt: skip
        base = self._ring.address(slot)
        for name, part in parts.items():
            size = part.row_nbytes
            begin = source = 0  # of what is to be copied in one piece
            length, inside = 0, False
            for row, output in zip(rows, outputs[name], strict=True):
                if row in left_out:
                    continue
                for target in part.of(row, plan):
                    at = base + part.at(target)
                    if length and (at, output.address, output.on_device) == (begin + length, source + length, inside):
                        length += size
                        continue
                    self._move(begin, source, length, inside)
                    begin, source, length, inside = at, output.address, size, output.on_device
            self._move(begin, source, length, inside)

    def _move(self, destination: int, source: int, nbytes: int, inside: bool) -> None:
        if not nbytes:
            return
        if inside:
            self._device.copy(self._stream, destination, source, nbytes)
        else:
            self._device.copy_in(self._stream, destination, source, nbytes)
