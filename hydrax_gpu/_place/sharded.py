"""From a full slot, which holds the rows of this process, to global arrays over shardings.

Each device of this process gets its piece of each array. How it does is decided for each array by itself:

- *alias*: the pieces are exported by DLPack, each for its device, and share the slot, which is lent until all of them
  are gone. Possible on CPU devices for pieces that are contiguous and begin at a multiple of 64 bytes. Costs some 50 µs
  a piece, however large it is. Devices that have the same piece share it.
- *ring*: `alias` on devices with memory of their own (CUDA with CuPy): see `sharded_devices.py`.
- *pinned*: on such devices XLA copies each contiguous part from the pinned slot by itself, and the slot is lent until
  it has done so.
- *copy*: the pieces are copied to memory of their own (in which a piece that was strided, as a mesh with a model axis
  has them, is contiguous) and handed over together: some 10 µs a piece and the copy.

Where the dtype is to be another, one jitted call for each device converts its pieces of all such arrays. It is a
computation on single devices on purpose: one on the global array would be a launch that all processes have to make in
the same order as all their others, and this is a thread that follows no order of theirs.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._place import backends, jaxio, settle
from hydrax_gpu._place.device import Device
from hydrax_gpu._place.dlpack import to_jax
from hydrax_gpu._place.files import Done
from hydrax_gpu._place.padding import pad
from hydrax_gpu._place.placer import AUTO_ON_DEVICE, DeliveryMode, Placement
from hydrax_gpu._place.setup import pin
from hydrax_gpu._place.sharded_devices import DeviceRings, ShardLayout
from hydrax_gpu._place.sharded_files import ShardedFiles, obstacle
from hydrax_gpu._place.shards import ArrayShards, BatchShards, Index, Piece, Shards, index_of
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu._spec import ArrayLayout, Layout

__all__ = ["AUTO_COPY_BYTES", "ShardedPlacer"]

_log = logging.getLogger("hydrax_gpu")

AUTO_COPY_BYTES = 256 * 1024
"""Up to this size of a piece, `delivery="auto"` copies it: about where that costs as much as a DLPack import."""

_ALIGNMENT = 64
"""From there on JAX shares host memory, and otherwise it copies."""

_Way: TypeAlias = Literal["alias", "ring", "pinned", "copy"]
_Parts: TypeAlias = Mapping[str, Mapping[Any, Any]]
_Views: TypeAlias = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Copies:
    """Where the different pieces of an array are copied to: `(piece, shape, offset)`, and how large that memory is."""

    places: tuple[tuple[Piece, tuple[int, ...], int], ...]
    nbytes: int

    @staticmethod
    def of(shards: ArrayShards, held: np.dtype[Any]) -> _Copies:
        places: list[tuple[Piece, tuple[int, ...], int]] = []
        end = 0
        for piece in {piece.index: piece for piece in shards.pieces}.values():
            shape = tuple(stop - begin for begin, stop in piece.index)
            places.append((piece, shape, end))
            end += -(-math.prod(shape) * held.itemsize // _ALIGNMENT) * _ALIGNMENT
        return _Copies(tuple(places), end)


@dataclass(frozen=True, slots=True)
class _Array:
    """How one array of a batch is handed over.

    Attributes:
        name: of the array.
        shards: its pieces.
        held: dtype in which a device is given it.
        dtype: that it has in the batch.
        way: how its pieces get to the devices.
        copies: where each different piece goes in one copy of them all.
        known: what slices that JAX asks by mean, remembered: it asks by the same ones for every batch.
    """

    name: str
    shards: ArrayShards
    held: np.dtype[Any]
    dtype: np.dtype[Any]
    way: _Way
    copies: _Copies
    known: dict[tuple[tuple[Any, Any], ...], Index] = field(default_factory=dict[Any, Index])

    @property
    def converted(self) -> bool:
        return self.held != self.dtype


@dataclass(slots=True)
class _Layout:
    layout: Layout
    dtypes: dict[str, np.dtype[Any]]
    arrays: dict[int, list[_Array]]  # by the rows of the global batch
    rings: dict[int, int] = field(default_factory=dict[int, int])  # the same → index among the layouts of the rings
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
        self._devices: dict[Any, Device] = {}
        self._rings: DeviceRings | None = None
        self._files: ShardedFiles | None = None
        self._files_of = [False] * len(shards.layouts)
        self._imports_pinned = True
        self.deferred = False
        """Whether JAX may keep a slot until its next call."""
        self.notes: list[str] = []
        """What is not as it could be, for the report."""
        self.pinned: bool | None = None
        """Whether devices read host memory by themselves; None when there are none."""

    @property
    def device_name(self) -> str | None:
        """The devices that batches are copied to by us, None without any."""
        names = sorted({device.name for device in self._devices.values()})
        return f"{len(self._devices)} × {', '.join(names)}" if names else None

    @property
    def device_bytes(self) -> int:
        """Device memory of the slots, of all devices together."""
        return 0 if self._rings is None else self._rings.nbytes

    @property
    def ways(self) -> list[Literal["alias", "copy"]]:
        """How the batches of each layout are delivered: "alias" if any of its arrays share the slot."""
        return [
            "alias"
            if any(array.way in ("alias", "ring") for arrays in entry.arrays.values() for array in arrays)
            else "copy"
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

    @property
    def pictures_by(self) -> str:
        """What decodes compressed files in place of the workers; "" when they do."""
        return self.device_name or "" if self._files is not None else ""

    def takes_files(self, layout: int) -> bool:
        """Whether the devices decode the compressed files of a layout, so that workers leave them to them."""
        if self._shards.layouts[layout].encoded and self._layouts is None:
            with contextlib.suppress(Exception):  # which `place` will raise again, where it can be told
                self.prepare()
        return self._files_of[layout]

    def decode_files(self, slot: int, generation: int, layout: int, plan: BatchPlan, done: Done) -> None:
        """Lets the devices decode the files in a slot; `done` is called from another thread."""
        assert self._files is not None
        self._files.submit(slot, generation, layout, plan, done)

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
        rows = len(plan.global_indices)
        arrays = entry.arrays[rows]
        ways = {array.way for array in arrays}
        if "ring" in ways:
            assert self._rings is not None
            views = self._host_views(entry, slot, plan)
            files, there = None, list[str]()
            if self._files is not None and self._files_of[layout]:
                files, there = partial(self._files.event, slot=slot, generation=generation), self._files.names(layout)
            parts = self._rings.place(slot, generation, entry.rings[rows], on_release, files, there)
            shared = [array.name for array in arrays if array.way == "ring" and not _by_xla(parts, array)]
            return Placement(MappingProxyType(_assemble(arrays, views, parts)), shared, copying=True)
        if ways == {"copy"}:
            return Placement(MappingProxyType(_assemble(arrays, self._host_views(entry, slot, plan))), None)
        token, released = settle.watch(on_release)
        views = entry.layout.batch_views(self._arena.lease(slot, released), plan.rows)
        pad(views, plan)
        exported: dict[str, dict[Any, Any]] = {}
        for array in arrays:
            if array.way == "alias":
                exported[array.name] = {
                    piece.device: _export(piece, views[array.name]) for piece in array.shards.pieces
                }
            elif array.way == "pinned":
                exported[array.name] = self._pinned(array, views[array.name])
        placed = _assemble(arrays, views, exported)
        # Of what is converted, the pieces that share the slot are known to the computation alone.
        shared = [array.name for array in arrays if array.way == "alias" and not array.converted]
        if shared:
            settle.held_by(token, [placed[name] for name in shared], self._arena.span(slot))
        return Placement(MappingProxyType(placed), shared)

    def copied(self) -> list[tuple[int, int]]:
        """Slots, and generations, of which all devices have now copied their parts."""
        return [] if self._rings is None else self._rings.copied()

    def retire(self, slot: int) -> None:
        """Sees to it that no device writes a slot of its own before those that read it are done."""
        assert self._rings is not None
        self._rings.retire(slot)

    def collect(self) -> None:
        """Makes JAX let go of NumPy memory it holds back."""
        jaxio.collect()

    def close(self) -> None:
        """Waits until no device reads host memory. Idempotent."""
        if self._files is not None:
            self._files.close()
        if self._rings is not None:
            self._rings.close()

    # Choosing.

    def _prepare(self) -> list[_Layout]:
        devices = {device for each in self._shards.shardings.values() for device in each.addressable_devices}
        found = {device: backends.find(device) for device in sorted(devices, key=lambda each: each.id)}
        ours = {device: mine for device, (mine, _) in found.items() if mine is not None}
        for _, reason in found.values():
            if reason:
                self._note(
                    f"the loader cannot use the GPU itself, and JAX copies batches from ordinary memory: {reason}"
                )
        if len(ours) == len(found):
            self._devices = ours
            refused = pin(next(iter(ours.values())), self._arena.mapping)  # for all devices
            self.pinned = not refused
            if refused:
                self._note(f"the slots could not be pinned, so that copies to the devices are slower: {refused}")
        self._host_memory = not ours and all(device.platform == "cpu" for device in devices)
        if self._delivery == "alias" and not self._host_memory and not self._devices:
            self._note("delivery='alias' cannot be had on these devices: batches are copied")
        return self._choose_all()

    def _choose_all(self) -> list[_Layout]:
        layouts: list[_Layout] = []
        kinds: list[dict[Any, ShardLayout]] = []
        for index, layout in enumerate(self._shards.layouts):
            entry = _Layout(layout, jaxio.dtypes_of(layout), {})
            for rows in self._shards.sizes(index):
                batch = self._shards.of(index, rows)
                arrays = entry.arrays[rows] = [self._choose(entry, array, batch) for array in layout.arrays]
                names = [array.name for array in arrays if array.way == "ring"]
                if names:
                    entry.rings[rows] = len(kinds)
                    kinds.append(
                        {
                            jax_device: ShardLayout.of(layout, batch, jax_device, entry.dtypes, names, device.converts)
                            for jax_device, device in self._devices.items()
                        }
                    )
            layouts.append(entry)
        if kinds:
            self._rings = DeviceRings(self._devices, self._arena, kinds)
            for note in self._rings.notes:
                self._note(note)
            self._take_files(self._rings, layouts)
        return layouts

    def _take_files(self, rings: DeviceRings, layouts: Sequence[_Layout]) -> None:
        """Decides of which groups the devices decode the files."""
        wanted = [bool(entry.layout.encoded) for entry in layouts]
        for index, entry in enumerate(layouts):
            for rows, arrays in entry.arrays.items() if wanted[index] else ():
                shared = {array.name: array.way == "ring" for array in arrays}
                if why := obstacle(entry.layout, shared, self._shards.of(index, rows)):
                    wanted[index] = False
                    self._note(f"workers decode the files of a group, and not the devices: {why}")
                    break
        if not any(wanted):
            return
        specs = [entry.layout if wants else None for entry, wants in zip(layouts, wanted, strict=True)]
        share = {each: (i, self._shards.devices) for i, each in enumerate(self._devices)}
        with_rings = {each: (self._devices[each], ring) for each, ring in rings.rings.items()}

        def there(layout: int, plan: BatchPlan) -> Mapping[Any, ShardLayout]:
            return rings.layouts(layouts[layout].rings[len(plan.global_indices)])

        try:
            self._files, self._files_of = ShardedFiles(with_rings, self._arena, specs, there, share), wanted
        except Exception as error:  # of the libraries that decode, and of the compiler for the devices
            self._note(f"workers decode the files, and not the devices: {type(error).__name__}: {error}")

    def _choose(self, entry: _Layout, array: ArrayLayout, batch: BatchShards) -> _Array:
        shards, held = batch.arrays[array.name], jaxio.canonical(array.numpy_dtype)
        nbytes = max(piece.end - piece.begin for piece in shards.pieces) * array.row_nbytes
        way: _Way = "copy"
        if self._host_memory:
            if self._delivery == "alias" or (self._delivery == "auto" and nbytes > AUTO_COPY_BYTES):
                way = "alias"
        elif self._devices:
            if self._delivery == "alias" or (self._delivery == "auto" and AUTO_ON_DEVICE == "alias"):
                way = "ring"
            elif self.pinned:
                way = "pinned"
        if way != "copy" and (obstacle := _obstacle(array, held, shards.pieces, aligned=way == "alias")):
            way = "copy"
            self._note(f"array {array.name!r} is copied by the host and not shared with JAX: {obstacle}")
        return _Array(array.name, shards, held, entry.dtypes[array.name], way, _Copies.of(shards, held))

    def _pinned(self, array: _Array, view: npt.NDArray[Any]) -> dict[Any, Any]:
        """The pieces of an array, copied by XLA from where they are."""
        if self._imports_pinned:
            try:
                return {
                    piece.device: self._devices[piece.device].copy_to_jax(_part(piece, view))
                    for piece in array.shards.pieces
                }
            except Exception as error:
                self._imports_pinned = False
                self._note(
                    "jax cannot import pinned memory, so that batches are copied as if it were not pinned: "
                    f"{type(error).__name__}: {error}"
                )
        jax = jaxio.jax()
        return {p.device: jax.device_put(_own(_part(p, view), array.held), p.device) for p in array.shards.pieces}

    def _host_views(self, entry: _Layout, slot: int, plan: BatchPlan) -> dict[str, npt.NDArray[Any]]:
        views = entry.views.get((slot, plan.rows))
        if views is None:
            views = entry.layout.batch_views(self._arena.slot(slot), plan.rows)
            entry.views[slot, plan.rows] = views
        pad(views, plan)
        return views

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            _log.warning("%s", text)


def _obstacle(array: ArrayLayout, held: np.dtype[Any], pieces: Sequence[Piece], *, aligned: bool) -> str:
    """Why the pieces of an array cannot share the slot; "" if they can."""
    if held != array.numpy_dtype:
        return f"JAX makes {held} of {array.numpy_dtype} because jax_enable_x64 is off"
    for piece in pieces:
        if not piece.whole:
            return "its sharding cuts other axes than that of the batch, so that its parts are not contiguous"
        if aligned and (array.offset + piece.begin * array.row_nbytes) % _ALIGNMENT:
            rows = piece.end - piece.begin
            return (
                f"the {rows} rows of a device have {rows * array.row_nbytes} bytes, which is no multiple of "
                f"{_ALIGNMENT}, so that not all parts are aligned"
            )
    return ""


# Assembling.


def _by_xla(parts: _Parts, array: _Array) -> bool:
    """Whether a device has an array in another dtype than that of the batch, so that XLA is to convert it."""
    return any(part.dtype != array.dtype for part in parts[array.name].values())


def _assemble(arrays: Sequence[_Array], views: _Views, parts: _Parts = MappingProxyType({})) -> dict[str, Any]:
    """The arrays of a batch: from what the devices have of them already, or else from the slot."""
    placed: dict[str, Any] = {}
    converted: list[tuple[_Array, list[Any]]] = []
    for array in arrays:
        pieces, there = array.shards.pieces, parts.get(array.name)
        if there is not None:
            inputs = [there[piece.device] for piece in pieces]
            if _by_xla(parts, array):
                converted.append((array, inputs))
            else:
                placed[array.name] = _joined(array, inputs)
        elif array.converted:
            converted.append((array, [_own(_part(piece, views[array.name]), array.held) for piece in pieces]))
        else:
            placed[array.name] = _copied(array, views[array.name])
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
    own: npt.NDArray[Any] = np.ndarray(part.shape, dtype, _aligned(part.size * dtype.itemsize))
    np.copyto(own, part, casting="unsafe")
    return own


def _aligned(nbytes: int) -> npt.NDArray[np.uint8]:
    memory = np.empty(nbytes + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + nbytes]


def _copied(array: _Array, view: npt.NDArray[Any]) -> Any:
    shards, known = array.shards, array.known
    memory = _aligned(array.copies.nbytes)  # of them all: JAX is done with them together
    copies: dict[Index, npt.NDArray[Any]] = {}
    for piece, shape, offset in array.copies.places:
        own = copies[piece.index] = np.ndarray(shape, array.held, memory, offset)
        np.copyto(own, _part(piece, view), casting="unsafe")  # unsafe is what makes 32 bits of 64

    def copy_of(slices: tuple[slice, ...]) -> npt.NDArray[Any]:
        bounds = tuple([(part.start, part.stop) for part in slices])
        index = known.get(bounds)
        if index is None:
            index = known[bounds] = index_of(slices, shards.shape)
        return copies[index]

    return jaxio.jax().make_array_from_callback(shards.shape, shards.sharding, copy_of)


@cache
def _converter(dtypes: tuple[np.dtype[Any], ...], device: Any) -> Callable[..., tuple[Any, ...]]:
    jax = jaxio.jax()
    return jax.jit(jaxio.conversion(dtypes), out_shardings=jax.sharding.SingleDeviceSharding(device))


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
