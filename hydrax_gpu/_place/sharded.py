"""From a full slot, which holds the rows of this process, to global arrays over shardings.

Each device of this process gets its piece of each array. How it does is decided for each array by itself:

- *alias*: the pieces are exported by DLPack, each for its device, and share the slot, which is lent until all of them
  are gone. Possible on CPU devices for pieces that are contiguous and begin at a multiple of 64 bytes. Costs some 50 µs
  a piece, however large it is. Devices that have the same piece share it.
- *copy*: the pieces are copied to memory of their own (in which a piece that was strided, as a mesh with a model axis
  has them, is contiguous) and handed over together: some 10 µs a piece and the copy.

Where the dtype is to be another, one jitted call for each device converts its pieces of all such arrays. It is a
computation on single devices on purpose: one on the global array would be a launch that all processes have to make in
the same order as all their others, and this is a thread that follows no order of theirs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._place import jaxio, settle
from hydrax_gpu._place.dlpack import to_jax
from hydrax_gpu._place.padding import pad
from hydrax_gpu._place.placer import DeliveryMode, Placement
from hydrax_gpu._place.shards import ArrayShards, BatchShards, Index, Piece, Shards, index_of
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu._spec import ArrayLayout, Layout

__all__ = ["AUTO_COPY_BYTES", "ShardedPlacer"]

_log = logging.getLogger("hydrax_gpu")

AUTO_COPY_BYTES = 256 * 1024
"""Up to this size of a piece, `delivery="auto"` copies it: about where that costs as much as a DLPack import."""

_ALIGNMENT = 64
"""From there on JAX shares host memory, and otherwise it copies."""

_Views: TypeAlias = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Array:
    """How one array of a batch is handed over.

    Attributes:
        name: of the array.
        shards: its pieces.
        held: dtype in which a device is given it.
        dtype: that it has in the batch.
        alias: whether its pieces share the slot.
    """

    name: str
    shards: ArrayShards
    held: np.dtype[Any]
    dtype: np.dtype[Any]
    alias: bool

    @property
    def converted(self) -> bool:
        return self.held != self.dtype


@dataclass(slots=True)
class _Layout:
    layout: Layout
    dtypes: dict[str, np.dtype[Any]]
    arrays: dict[int, list[_Array]] = field(default_factory=dict[int, "list[_Array]"])  # by global rows
    views: dict[tuple[int, int], dict[str, npt.NDArray[Any]]] = field(
        default_factory=dict[tuple[int, int], "dict[str, npt.NDArray[Any]]"]
    )


@final
class ShardedPlacer:
    """Makes global arrays of what an arena's slots hold; what `Placer` is for whole batches.

    Args:
        arena: the slots.
        shards: which device has what; its `layouts` are those of the slots.
        delivery: "alias", "copy", or "auto" for the cheaper of the two by the size of the pieces.
    """

    def __init__(self, arena: Arena, shards: Shards, delivery: DeliveryMode) -> None:
        self._arena = arena
        self._shards = shards
        self._delivery: DeliveryMode = delivery
        self._layouts: list[_Layout] | None = None
        self._lock = threading.Lock()
        self._host_memory = False
        self.deferred = False
        """Whether JAX may keep a slot until its next call."""
        self.notes: list[str] = []
        """What is not as it could be, for the report."""
        self.pinned: bool | None = None
        self.device_name: str | None = None
        self.device_bytes = 0

    @property
    def ways(self) -> list[Literal["alias", "copy"]]:
        """How the batches of each layout are delivered: "alias" if any of its arrays share the slot."""
        return [
            "alias" if any(array.alias for arrays in entry.arrays.values() for array in arrays) else "copy"
            for entry in self._layouts or ()
        ]

    @property
    def decoded_there(self) -> list[bool]:
        """For each layout with arrays to be decoded, whether a device does that."""
        return [False for entry in self._layouts or () if entry.layout.decodes]

    def prepare(self) -> None:
        """Decides how batches are delivered. Starts JAX's backend. Idempotent."""
        with self._lock:
            if self._layouts is None:
                self._layouts = self._prepare()

    def decodes(self, layout: int) -> bool:
        """Whether a device decodes the arrays of a layout, so that workers must not."""
        return False

    def place(
        self,
        slot: int,
        generation: int,
        layout: int,
        plan: BatchPlan,
        additional: object,
        on_release: Callable[[], None],
    ) -> Placement:
        """Makes the arrays of a full slot; as `Placer.place`."""
        self.prepare()
        assert self._layouts is not None
        entry = self._layouts[layout]
        arrays = self._arrays(entry, layout, plan)
        shared = [array.name for array in arrays if array.alias]
        if not shared:
            views = entry.views.get((slot, plan.rows))
            if views is None:
                views = entry.layout.batch_views(self._arena.slot(slot), plan.rows)
                entry.views[slot, plan.rows] = views
            pad(views, plan)
            return Placement(MappingProxyType(_assemble(arrays, views)), None)
        token, released = settle.watch(on_release)
        views = entry.layout.batch_views(self._arena.lease(slot, released), plan.rows)
        pad(views, plan)
        placed = _assemble(arrays, views)
        # Of what is converted, the pieces that share the slot are known to the computation alone.
        shared = [array.name for array in arrays if array.alias and not array.converted]
        if shared:
            settle.held_by(token, [placed[name] for name in shared], self._arena.span(slot))
        return Placement(MappingProxyType(placed), shared)

    def copied(self) -> list[tuple[int, int]]:
        """Slots of which a device has now copied the host memory; none, since they are copied at once."""
        return []

    def retire(self, slot: int) -> None:
        """Never called: no batch is in memory of a device that is ours."""
        raise AssertionError("there is no ring of device slots")

    def collect(self) -> None:
        """Makes JAX let go of NumPy memory it holds back."""
        jaxio.collect()

    def close(self) -> None:
        """Nothing is read behind the engine's back."""

    # Choosing.

    def _prepare(self) -> list[_Layout]:
        devices = {device for each in self._shards.shardings.values() for device in each.addressable_devices}
        self._host_memory = all(device.platform == "cpu" for device in devices)
        if not self._host_memory and self._delivery == "alias":
            self._note(
                "delivery='alias' cannot be had for arrays over several devices other than CPUs: they are copied"
            )
        return [_Layout(layout, jaxio.dtypes_of(layout)) for layout in self._shards.layouts]

    def _arrays(self, entry: _Layout, layout: int, plan: BatchPlan) -> list[_Array]:
        rows = len(plan.global_indices)
        arrays = entry.arrays.get(rows)
        if arrays is None:
            shards = self._shards.of(layout, rows)
            arrays = [self._choose(entry, array, shards) for array in entry.layout.arrays]
            entry.arrays[rows] = arrays
        return arrays

    def _choose(self, entry: _Layout, array: ArrayLayout, batch: BatchShards) -> _Array:
        shards, held = batch.arrays[array.name], jaxio.canonical(array.numpy_dtype)
        nbytes = max(piece.end - piece.begin for piece in shards.pieces) * array.row_nbytes
        alias = self._host_memory and (
            self._delivery == "alias" or (self._delivery == "auto" and nbytes > AUTO_COPY_BYTES)
        )
        if alias and (obstacle := _obstacle(array, held, shards.pieces)):
            alias = False
            self._note(f"array {array.name!r} is copied and not shared with JAX: {obstacle}")
        return _Array(array.name, shards, held, entry.dtypes[array.name], alias)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            _log.warning("%s", text)


def _obstacle(array: ArrayLayout, held: np.dtype[Any], pieces: Sequence[Piece]) -> str:
    """Why the pieces of an array cannot share the slot; "" if they can."""
    if held != array.numpy_dtype:
        return f"JAX makes {held} of {array.numpy_dtype} because jax_enable_x64 is off"
    for piece in pieces:
        if not piece.whole:
            return "its sharding cuts other axes than that of the batch, so that its parts are not contiguous"
        if (array.offset + piece.begin * array.row_nbytes) % _ALIGNMENT:
            rows = piece.end - piece.begin
            return (
                f"the {rows} rows of a device have {rows * array.row_nbytes} bytes, which is no multiple of "
                f"{_ALIGNMENT}, so that not all parts are aligned"
            )
    return ""


# Assembling.


def _assemble(arrays: Sequence[_Array], views: _Views) -> dict[str, Any]:
    placed: dict[str, Any] = {}
    converted: list[tuple[_Array, list[Any]]] = []
    for array in arrays:
        view = views[array.name]
        if array.converted:
            converted.append((array, _inputs(array, view)))
        elif array.alias:
            placed[array.name] = _joined(array, [_export(piece, view) for piece in array.shards.pieces])
        else:
            placed[array.name] = _copied(array, view)
    if converted:
        placed |= _converted(converted)
    return {array.name: placed[array.name] for array in arrays}


def _joined(array: _Array, parts: list[Any]) -> Any:
    shards = array.shards
    return jaxio.jax().make_array_from_single_device_arrays(shards.shape, shards.sharding, parts)


def _part(piece: Piece, view: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return view[(slice(piece.begin, piece.end), *piece.rest)]


def _export(piece: Piece, view: npt.NDArray[Any]) -> Any:
    return to_jax(_part(piece, view), int(piece.device.local_hardware_id or 0))


def _own(part: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A copy that begins where JAX need not copy once more. Nobody else writes it, so that JAX may keep it."""
    nbytes = part.size * dtype.itemsize
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    own: npt.NDArray[Any] = memory[begin : begin + nbytes].view(dtype).reshape(part.shape)
    np.copyto(own, part, casting="unsafe")  # unsafe is what makes 32 bits of 64
    return own


def _copied(array: _Array, view: npt.NDArray[Any]) -> Any:
    shards = array.shards
    copies: dict[Index, npt.NDArray[Any]] = {}
    for piece in shards.pieces:
        if piece.index not in copies:
            copies[piece.index] = _own(_part(piece, view), array.held)

    def copy_of(slices: tuple[slice, ...]) -> npt.NDArray[Any]:
        return copies[index_of(slices, shards.shape)]

    return jaxio.jax().make_array_from_callback(shards.shape, shards.sharding, copy_of)


@cache
def _converter(dtypes: tuple[np.dtype[Any], ...], device: Any) -> Callable[..., tuple[Any, ...]]:
    jax = jaxio.jax()
    return jax.jit(jaxio.conversion(dtypes), out_shardings=jax.sharding.SingleDeviceSharding(device))


def _inputs(array: _Array, view: npt.NDArray[Any]) -> list[Any]:
    pieces = array.shards.pieces
    if array.alias:  # the slot is read in place, and is free when that is done
        return [_export(piece, view) for piece in pieces]
    return [_own(_part(piece, view), array.held) for piece in pieces]


def _converted(arrays: Sequence[tuple[_Array, list[Any]]]) -> dict[str, Any]:
    by_device: dict[Any, list[tuple[_Array, Any]]] = {}
    for array, inputs in arrays:
        for piece, part in zip(array.shards.pieces, inputs, strict=True):
            by_device.setdefault(piece.device, []).append((array, part))
    parts: dict[str, dict[Any, Any]] = {array.name: {} for array, _ in arrays}
    for device, entries in by_device.items():
        outputs = _converter(tuple(array.dtype for array, _ in entries), device)(*(part for _, part in entries))
        for (array, _), output in zip(entries, outputs, strict=True):
            parts[array.name][device] = output
    return {
        array.name: _joined(array, [parts[array.name][piece.device] for piece in array.shards.pieces])
        for array, _ in arrays
    }
