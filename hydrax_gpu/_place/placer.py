"""From a full slot to the arrays of a batch.

Three ways, chosen for each layout when the loader starts and named in the report:

- *alias*: JAX reads the loader's own memory, which belongs to the batch until all of its arrays are gone. On the CPU
  that is the slot itself, exported by DLPack; it costs 6 to 50 µs an array, however large. On a device it is a slot of
  device memory, to which the host's is copied first (`ring.py`).
- *copy*: the arrays are XLA's own and may be kept. On the CPU one jitted call copies (and converts) all of them; it
  costs some 15 µs for all arrays and the time of the copy, and is the cheaper way for small batches. On a device XLA
  copies from the pinned slot by itself, and the slot is free when it has done so.
- *user*: `placement_func` gets NumPy views and does as it likes; the slot is free when nobody refers to them any more.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._place import backends, jaxio, settle
from hydrax_gpu._place.decoding import decodable
from hydrax_gpu._place.device import Decoder, Device
from hydrax_gpu._place.dlpack import to_jax
from hydrax_gpu._place.files import Done, FileDecoder, file_decoder, give_to_workers
from hydrax_gpu._place.padding import pad as _pad
from hydrax_gpu._place.regions import DeviceLayout
from hydrax_gpu._place.ring import Ring
from hydrax_gpu._place.setup import pin, ring_memory
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu._spec import Layout
from hydrax_gpu.errors import PlacementError

__all__ = ["AUTO_COPY_BYTES", "DeliveryMode", "Placement", "PlacementFunc", "Placer", "may_take_files"]

_log = logging.getLogger("hydrax_gpu")

DeliveryMode: TypeAlias = Literal["auto", "alias", "copy"]
_Way: TypeAlias = Literal["alias", "copy", "user"]

AUTO_COPY_BYTES = 512 * 1024
"""Up to this size of a batch, `delivery="auto"` copies: about where a copy costs as much as two DLPack imports."""

AUTO_ON_DEVICE: _Way = "copy"
"""What `delivery="auto"` means on a device: what needs the least trust, until measurements say which is faster."""

_NOTHING = contextlib.nullcontext()

Additional: TypeAlias = Sequence[Mapping[str, Any] | None]
Arrays: TypeAlias = Mapping[str, Any]

PlacementFunc: TypeAlias = Callable[[Mapping[str, npt.NDArray[Any]], int, "Additional | None"], Arrays]
"""`(views by name, layout index, additional data of the items) → jax.Arrays by name`; wraps the user's function."""


class Placement(NamedTuple):
    """What became of a slot.

    Attributes:
        arrays: of the batch, by name.
        shared: names of those that share the memory of the slot, host's or device's; None when the slot is free.
        copying: whether it is memory of a device, to which the host's is being copied: `Placer.copied` says when that
            is done. Otherwise the slot is free when `on_release` is called.
    """

    arrays: Mapping[str, Any]
    shared: Sequence[str] | None
    copying: bool = False


@dataclass(slots=True)
class _Layout:
    layout: Layout
    way: _Way
    dtypes: dict[str, np.dtype[Any]]
    narrowed: bool
    """Whether JAX makes 32-bit numbers of 64-bit ones, which it can only do by a copy of its own."""
    device: DeviceLayout | None = None
    copy: Callable[..., Any] | None = None
    views: dict[tuple[int, int], dict[str, npt.NDArray[Any]]] = field(
        default_factory=dict[tuple[int, int], "dict[str, npt.NDArray[Any]]"]
    )


class Placer:
    """Makes the arrays of batches in an arena's slots.

    Args:
        arena: the slots.
        layouts: layout of each group; `place` names one by its index.
        delivery: "alias", "copy", or "auto" for the cheaper of the two by the batch's size.
        user: in place of all that, the user's own placement.
    """

    def __init__(
        self, arena: Arena, layouts: Sequence[Layout], delivery: DeliveryMode, user: PlacementFunc | None
    ) -> None:
        self._arena = arena
        self._specs = layouts
        self._delivery: DeliveryMode = delivery
        self._user = user
        self._layouts: list[_Layout] | None = None
        self._lock = threading.Lock()
        self._chosen = jaxio.chosen_device()
        self._device: Device | None = None
        self._ring: Ring | None = None
        self._files: FileDecoder | None = None
        self._files_of = [False] * len(layouts)
        self._index = 0  # of the CPU device
        self._imports_pinned = True
        self.notes: list[str] = []
        """What is not as it could be, for the report."""
        self.pinned: bool | None = None
        """Whether the device reads host memory by itself; None when there is no device."""

    @property
    def deferred(self) -> bool:
        """Whether JAX may keep a slot until its next call (only what a user's placement function hands to it)."""
        return self._user is not None

    @property
    def ways(self) -> list[_Way]:
        """How the batches of each layout are delivered; empty until the first batch."""
        return [] if self._layouts is None else [layout.way for layout in self._layouts]

    @property
    def device_name(self) -> str | None:
        """The device that batches are copied to by us, None without one."""
        return None if self._device is None else self._device.name

    @property
    def decoded_there(self) -> list[bool]:
        """For each layout with arrays to be decoded, whether the device does that; empty before the first batch."""
        return [
            layout.device is not None and layout.device.decoder is not None
            for layout in self._layouts or ()
            if layout.layout.decodes
        ]

    @property
    def pictures_by(self) -> str:
        """What decodes compressed files in place of the workers; "" when they do."""
        return self.device_name or "" if self._files is not None else ""

    @property
    def device_bytes(self) -> int:
        """Device memory of the slots."""
        return 0 if self._ring is None else self._ring.memory.nbytes

    def collect(self) -> None:
        """Makes JAX let go of NumPy memory it holds back."""
        jaxio.collect()

    def prepare(self) -> None:
        """Decides how batches are delivered, and takes what that needs. Starts JAX's backend. Idempotent.

        Raises:
            NotEnoughMemory: the device has no room for the slots.
        """
        with self._lock:
            if self._layouts is None:
                self._layouts = self._prepare()

    def decodes(self, layout: int) -> bool:
        """Whether the device decodes the arrays of a layout, so that workers must not.

        Only to answer this for arrays that are to be decoded and shared, and where there may be a GPU, does it wait for
        JAX.
        """
        if not (decodable(self._specs[layout]) and self._wants_alias and self._user is None and backends.possible()):
            return False
        try:
            self.prepare()
        except Exception:  # which `place` will raise again, where it can be told
            return False
        assert self._layouts is not None
        device = self._layouts[layout].device
        return device is not None and device.decoder is not None

    @property
    def _wants_alias(self) -> bool:
        return _wants_alias(self._delivery)

    def takes_files(self, layout: int) -> bool:
        """Whether the device decodes the compressed files of a layout, so that workers leave them to it.

        What it says does not change. It waits for JAX where `decodes` does, and for layouts with room for files.
        """
        if self._specs[layout].encoded and self._wants_alias and self._user is None and self._files is None:
            with contextlib.suppress(Exception):  # which `place` will raise again, where it can be told
                self.prepare()
        return self._files_of[layout]

    def decode_files(self, slot: int, generation: int, layout: int, plan: BatchPlan, done: Done) -> None:
        """Lets the device decode the files in a slot, see `files.FileDecoder`; `done` is called from another thread."""
        assert self._files is not None

        def then(refused: Mapping[int, str], error: Exception | None) -> None:
            give_to_workers(self._arena, slot, self._specs[layout], refused)
            done(refused, error)

        self._files.submit(slot, generation, layout, plan, then)

    def place(
        self,
        slot: int,
        generation: int,
        layout: int,
        plan: BatchPlan,
        additional: Additional | None,
        on_release: Callable[[], None],
    ) -> Placement:
        """Makes the arrays of a full slot.

        Args:
            slot: the slot.
            generation: its generation.
            layout: index of its layout.
            plan: what it holds; the last `plan.rows - plan.valid` rows are filled up here by repeating the others.
            additional: the items' additional data, for the user's placement function.
            on_release: called when nothing refers to the slot's memory any more; never when it is not lent.

        Raises:
            PlacementError: the user's placement function raised, or what it returned does not fit the layout.
            NotEnoughMemory: as `prepare`.
        """
        if self._layouts is None:
            self.prepare()
            assert self._layouts is not None
        entry = self._layouts[layout]
        if entry.way == "copy":
            if self._device is not None and self.pinned and self._imports_pinned and not entry.narrowed:
                return self._copy_to_device(self._device, entry, slot, plan, on_release)
            return self._copy(entry, slot, plan)
        if self._user is not None:
            views = entry.layout.batch_views(self._arena.lease(slot, on_release), plan.rows)
            _pad(views, plan)
            # What the user's arrays share is not known; all of them may.
            return Placement(self._place_user(self._user, entry.layout, layout, views, additional), list(views))
        if self._ring is not None:
            return self._fill_ring(self._ring, entry, slot, generation, layout, plan, on_release)
        return self._alias(entry, slot, plan, on_release)

    def copied(self) -> list[tuple[int, int]]:
        """Slots, and generations, of which the device has now copied the host memory."""
        return [] if self._ring is None else self._ring.copied()

    def retire(self, slot: int) -> None:
        """Sees to it that a slot of the device is not written before those that read it are done."""
        assert self._ring is not None
        self._ring.retire(slot)

    def close(self) -> None:
        """Waits until the device no longer reads host memory. Idempotent."""
        if self._files is not None:
            self._files.close()
        if self._ring is not None:
            self._ring.close()

    # Choosing.

    def _prepare(self) -> list[_Layout]:
        jax_device = jaxio.resolve(self._chosen)
        device, reason = (None, "") if self._user is not None else backends.find(jax_device)
        if reason:
            self._note(f"the loader cannot use the GPU itself, and JAX copies batches from ordinary memory: {reason}")
        on_device = jax_device.platform != "cpu" or device is not None
        self._index = int(jax_device.local_hardware_id or 0)
        layouts = [self._choose(each, device, on_device) for each in self._specs]
        if device is None:
            return layouts
        plans = [layout.device for layout in layouts if layout.device is not None]
        if plans:
            memory, why = ring_memory(device, self._arena.shape.depth, plans)
            if why:
                self._note(why)
            everywhere = [layout.device or DeviceLayout.build(layout.layout, layout.dtypes, device.converts)
                          for layout in layouts]  # fmt: skip
            self._ring = Ring(device, memory, self._arena, everywhere)
            pairs = [(layout.layout, layout.device) for layout in layouts]
            self._files, self._files_of, notes = file_decoder(device, self._arena, self._ring, pairs)
            for note in notes:
                self._note(note)
        refused = pin(device, self._arena.mapping)
        self.pinned = not refused
        if refused:
            self._note(f"the slots could not be pinned, so that copies to the device are slower: {refused}")
        self._device = device
        return layouts

    def _choose(self, layout: Layout, device: Device | None, on_device: bool) -> _Layout:
        dtypes = jaxio.dtypes_of(layout)
        way: _Way = "copy"
        narrowed = any(jaxio.canonical(array.numpy_dtype) != array.numpy_dtype for array in layout.arrays)
        if self._user is not None:
            way = "user"
        elif on_device and device is None:
            if self._delivery == "alias":
                self._note("delivery='alias' cannot be had on this device: batches are copied")
        elif narrowed:
            if self._delivery == "alias":
                text = "delivery='alias' cannot be had for 64-bit arrays while jax_enable_x64 is off: copying"
                _log.warning("%s", text) if device is None else self._note(text)
        elif device is not None:
            if self._wants_alias:
                plan = DeviceLayout.build(layout, dtypes, device.converts, self._decoder(layout, device))
                return _Layout(layout, "alias", dtypes, narrowed, plan)
        elif self._delivery == "alias" or (self._delivery == "auto" and layout.batch_nbytes > AUTO_COPY_BYTES):
            way = "alias"
        return _Layout(layout, way, dtypes, narrowed)

    def _decoder(self, layout: Layout, device: Device) -> Decoder | None:
        if not decodable(layout):
            return None
        try:
            return device.decoder(layout)
        except Exception as error:  # of the compiler for the device, and what it needs
            self._note(f"workers decode what {device.name} could not be made to: {type(error).__name__}: {error}")
            return None

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            _log.warning("%s", text)

    def _on_chosen(self) -> contextlib.AbstractContextManager[Any]:
        # `jax.default_device(...)` is in force in the thread that made the loader, and this may be another
        return _NOTHING if self._chosen is None else jaxio.jax().default_device(self._chosen)

    # The ways.

    def _host_views(self, entry: _Layout, slot: int, plan: BatchPlan) -> dict[str, npt.NDArray[Any]]:
        views = entry.views.get((slot, plan.rows))
        if views is None:
            views = entry.layout.batch_views(self._arena.slot(slot), plan.rows)
            entry.views[slot, plan.rows] = views
        _pad(views, plan)
        return views

    def _copy(self, entry: _Layout, slot: int, plan: BatchPlan) -> Placement:
        views = self._host_views(entry, slot, plan)
        if entry.copy is None:
            entry.copy = jaxio.copier(tuple(entry.dtypes.values()))
            if all(view.dtype == entry.dtypes[name] for name, view in views.items()):
                # The first batch does not wait for the compiler: JAX may keep, and share, a copy of our own.
                with self._on_chosen():
                    put = {name: jaxio.jax().device_put(view.copy()) for name, view in views.items()}
                return Placement(MappingProxyType(put), None)
        with self._on_chosen():
            arrays = entry.copy(*views.values())
        # The call copies the slot either at once or on a thread of XLA's; only when the results are there is the slot
        # free for certain. For small arrays they always are.
        for array in arrays:
            if not array.is_ready():
                array.block_until_ready()
        return Placement(MappingProxyType(dict(zip(views, arrays, strict=True))), None)

    def _copy_to_device(
        self, device: Device, entry: _Layout, slot: int, plan: BatchPlan, on_release: Callable[[], None]
    ) -> Placement:
        self._host_views(entry, slot, plan)
        token, released = settle.watch(on_release)
        views = entry.layout.batch_views(self._arena.lease(slot, released), plan.rows)
        settle.held_by(token, ())
        arrays: dict[str, Any] = {}
        for name, view in views.items():
            try:
                array = device.copy_to_jax(view)
            except Exception as error:
                return self._give_up_pinned(error, entry, slot, plan)
            arrays[name] = array if view.dtype == entry.dtypes[name] else jaxio.copier((entry.dtypes[name],))(array)[0]
        return Placement(MappingProxyType(arrays), ())

    def _give_up_pinned(self, error: Exception, entry: _Layout, slot: int, plan: BatchPlan) -> Placement:
        """The other way to copy, from now on. The slot is lent all the same: the lease tells when that ends."""
        self._imports_pinned = False
        self._note(
            "jax cannot import pinned memory, so that batches are copied as if it were not pinned: "
            f"{type(error).__name__}: {error}"
        )
        return Placement(self._copy(entry, slot, plan).arrays, ())

    def _fill_ring(
        self,
        ring: Ring,
        entry: _Layout,
        slot: int,
        generation: int,
        layout: int,
        plan: BatchPlan,
        on_release: Callable[[], None],
    ) -> Placement:
        assert entry.device is not None
        if plan.valid < plan.rows and entry.device.decoder is not None:
            _pad(entry.layout.wire_views(self._arena.slot(slot)), plan)
        else:
            self._host_views(entry, slot, plan)
        if self._files is not None and self._files_of[layout]:
            event, there = self._files.event(slot, generation), self._files.names(layout)
            ring.fill(slot, generation, layout, plan.rows, event, there)
        else:
            ring.fill(slot, generation, layout, plan.rows)
        arrays = ring.export(slot, layout, plan.rows, on_release)
        shared = [region.name for region in entry.device.regions if region.how != "xla"]
        for region in entry.device.regions:
            if region.how == "xla":
                # reads the slot in place; what comes out is XLA's
                arrays[region.name] = jaxio.copier((entry.dtypes[region.name],))(arrays[region.name])[0]
        return Placement(MappingProxyType(arrays), shared, copying=True)

    def _alias(self, entry: _Layout, slot: int, plan: BatchPlan, on_release: Callable[[], None]) -> Placement:
        token, released = settle.watch(on_release)
        views = entry.layout.batch_views(self._arena.lease(slot, released), plan.rows)
        _pad(views, plan)
        arrays = {name: self._alias_array(entry, name, view) for name, view in views.items()}
        shared = [name for name, view in views.items() if view.dtype == entry.dtypes[name]]
        if shared:
            settle.held_by(token, map(arrays.__getitem__, shared))
        return Placement(MappingProxyType(arrays), shared)

    def _alias_array(self, entry: _Layout, name: str, view: npt.NDArray[Any]) -> Any:
        array, wanted = to_jax(view, self._index), entry.dtypes[name]
        # A conversion reads the slot in place; the slot is free when that is done and `array` is gone.
        return array if view.dtype == wanted else jaxio.copier((wanted,))(array)[0]

    def _place_user(
        self,
        user: PlacementFunc,
        layout: Layout,
        index: int,
        views: dict[str, npt.NDArray[Any]],
        additional: Additional | None,
    ) -> MappingProxyType[str, Any]:
        try:
            arrays = user(MappingProxyType(views), index, additional)
        except Exception as error:
            raise PlacementError(f"placement_func raised {type(error).__name__}: {error}") from error
        return MappingProxyType(_checked(arrays, layout))


def _wants_alias(delivery: DeliveryMode) -> bool:
    return delivery == "alias" or (delivery == "auto" and AUTO_ON_DEVICE == "alias")


def may_take_files(delivery: DeliveryMode) -> bool:
    """Whether there may be a device that decodes compressed files: quickly, and without JAX."""
    return _wants_alias(delivery) and backends.possible()


def _checked(returned: object, layout: Layout) -> dict[str, Any]:
    names = [array.name for array in layout.arrays]
    if not isinstance(returned, Mapping):
        raise PlacementError(
            f"placement_func returned {type(returned).__name__}, wanted a dict of jax.Arrays with the keys {names}"
        )
    arrays = dict(cast("Mapping[str, Any]", returned))
    if set(arrays) != set(names):
        raise PlacementError(f"placement_func returned the arrays {list(arrays)}, wanted {names}")
    for name, array in arrays.items():
        if not isinstance(array, jaxio.jax().Array):
            raise PlacementError(
                f"placement_func returned {type(array).__name__} for array {name!r}, wanted a jax.Array"
            )
    return arrays
