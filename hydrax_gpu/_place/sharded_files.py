"""Files in host slots that several devices decode, each those of the rows that it has.

Every device has a `FileDecoder` of its own, with its thread, its stream and its decoder. A batch is decoded when the
last of them is done. What one of them refuses is a worker's for all: devices that have the same row are to have the
same pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._place.device import Device, Event
from hydrax_gpu._place.files import Done, FileDecoder, give_to_workers
from hydrax_gpu._place.ring import Ring
from hydrax_gpu._place.sharded_devices import ShardLayout
from hydrax_gpu._place.shards import BatchShards
from hydrax_gpu._place.targets import Part
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu._spec import Layout

__all__ = ["ShardedFiles", "obstacle"]


def obstacle(layout: Layout, shared: Mapping[str, bool], shards: BatchShards) -> str:
    """Why devices cannot decode the files of a batch; "" if they can.

    Args:
        layout: of the host's slots, with files.
        shared: for each array of the batch whether its parts are in slots of the devices.
        shards: of the batch.
    """
    if layout.decodes:
        return "workers decode other arrays of the group, too"
    for encoded in layout.encoded:
        for name in encoded.names:
            if not shared[name]:
                return f"array {name!r} is copied by the host"
        rows = [{piece.device: (piece.begin, piece.end) for piece in shards.arrays[name].pieces}
                for name in encoded.names]  # fmt: skip
        if any(each != rows[0] for each in rows):
            return f"the arrays {', '.join(encoded.names)}, which are made together, have shardings of other rows"
    return ""


@final
class ShardedFiles:
    """What decodes the files of batches on several devices.

    Args:
        devices: those that have a ring, with the ring; by their `jax.Device`.
        arena: the host's slots.
        layouts: of the host's slots, by group; None for those whose files are not decoded here.
        there: for a group's batch what each device has of it.
        share: for each device which of how many it is.

    Raises:
        Exception: a device cannot decode; the message says why.
    """

    def __init__(
        self,
        devices: Mapping[Any, tuple[Device, Ring]],
        arena: Arena,
        layouts: Sequence[Layout | None],
        there: Callable[[int, BatchPlan], Mapping[Any, ShardLayout]],
        share: Mapping[Any, tuple[int, int]],
    ) -> None:
        self._arena, self._layouts = arena, layouts

        def parts_of(jax_device: Any) -> Callable[[int, BatchPlan], Mapping[str, Part]]:
            return lambda index, plan: there(index, plan)[jax_device].rows_of

        self._decoders = {
            jax_device: FileDecoder(device, arena, ring, layouts, parts_of(jax_device), share[jax_device])
            for jax_device, (device, ring) in devices.items()
        }

    def submit(self, slot: int, generation: int, layout: int, plan: BatchPlan, done: Done) -> None:
        """Decodes the files of a slot, and calls `done`, on another thread."""
        decoders, specs = list(self._decoders.values()), self._layouts[layout]
        assert specs is not None

        def then(refused: Mapping[int, str], error: Exception | None) -> None:
            for decoder in decoders:
                decoder.forget(slot, generation, refused)
            give_to_workers(self._arena, slot, specs, refused)
            done(refused, error)

        joined = _Joined(len(decoders), then)
        for decoder in decoders:
            decoder.submit(slot, generation, layout, plan, joined)

    def event(self, jax_device: Any, slot: int, generation: int) -> Event:
        """What marks that a device has its rows of a slot. To be called for each device when the slot is placed."""
        return self._decoders[jax_device].event(slot, generation)

    def names(self, layout: int) -> list[str]:
        """Arrays of a batch that come from files."""
        return next(iter(self._decoders.values())).names(layout)

    def close(self) -> None:
        """Waits until no device reads host memory. Idempotent."""
        for decoder in self._decoders.values():
            decoder.close()


@final
class _Joined:
    """Puts together what `count` threads say, and passes it on when the last of them has spoken."""

    def __init__(self, count: int, then: Done) -> None:
        self._lock = threading.Lock()
        self._left, self._then = count, then
        self._refused: dict[int, str] = {}
        self._error: Exception | None = None

    def __call__(self, refused: Mapping[int, str], error: Exception | None) -> None:
        with self._lock:
            self._left -= 1
            self._refused = {**refused, **self._refused}
            self._error = self._error or error
            last = not self._left
        if last:
            self._then(self._refused, self._error)
