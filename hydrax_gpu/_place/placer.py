"""From a full slot to the arrays of a batch.

Three ways, chosen for each layout when the loader starts and named in the report:

- *alias*: the slot is exported by DLPack and belongs to the batch until all of its arrays are gone. Costs some 30 µs an
  array, however large.
- *copy*: one jitted call copies (and converts) all arrays; the slot is free when it is done. Costs some 15 µs for all
  arrays and the time of the copy: the cheaper way for small batches, and the only one whose arrays may be kept.
- *user*: `placement_func` gets NumPy views and does as it likes; the slot is free when nobody refers to them any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._place import jaxio, settle
from hydrax_gpu._place.dlpack import to_jax
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu._spec import Layout
from hydrax_gpu.errors import PlacementError

__all__ = ["AUTO_COPY_BYTES", "DeliveryMode", "PlacementFunc", "Placer"]

_log = logging.getLogger("hydrax_gpu")

DeliveryMode: TypeAlias = Literal["auto", "alias", "copy"]
_Way: TypeAlias = Literal["alias", "copy", "user"]

AUTO_COPY_BYTES = 512 * 1024
"""Up to this size of a batch, `delivery="auto"` copies: about where a copy costs as much as two DLPack imports."""

Additional: TypeAlias = Sequence[Mapping[str, Any] | None]
Arrays: TypeAlias = Mapping[str, Any]

PlacementFunc: TypeAlias = Callable[[Mapping[str, npt.NDArray[Any]], int, "Additional | None"], Arrays]
"""`(views by name, layout index, additional data of the items) → jax.Arrays by name`; wraps the user's function."""


@dataclass(slots=True)
class _Layout:
    layout: Layout
    way: _Way
    dtypes: dict[str, np.dtype[Any]]
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

    @property
    def deferred(self) -> bool:
        """Whether JAX may keep a slot until its next call (only what a user's placement function hands to it)."""
        return self._user is not None

    @property
    def ways(self) -> list[_Way]:
        """How the batches of each layout are delivered; empty until the first batch."""
        return [] if self._layouts is None else [layout.way for layout in self._layouts]

    def collect(self) -> None:
        """Makes JAX let go of NumPy memory it holds back."""
        jaxio.collect()

    def place(
        self,
        slot: int,
        layout: int,
        plan: BatchPlan,
        additional: Additional | None,
        on_release: Callable[[], None],
    ) -> tuple[MappingProxyType[str, Any], list[str] | None]:
        """Makes the arrays of a full slot.

        Args:
            slot: the slot.
            layout: index of its layout.
            plan: what it holds; the last `plan.rows - plan.valid` rows are filled up here by repeating the others.
            additional: the items' additional data, for the user's placement function.
            on_release: called when nothing refers to the slot's memory any more; never when it is not lent.

        Returns:
            The arrays by name, and the names of those that share the slot's memory; None when the slot is not lent.

        Raises:
            PlacementError: the user's placement function raised, or what it returned does not fit the layout.
        """
        if self._layouts is None:
            self._layouts = [self._prepare(each) for each in self._specs]
        entry = self._layouts[layout]
        if entry.way == "copy":
            views = entry.views.get((slot, plan.rows))
            if views is None:
                views = entry.layout.batch_views(self._arena.slot(slot), plan.rows)
                entry.views[slot, plan.rows] = views
            _pad(views, plan)
            return self._copy(entry, views), None
        if self._user is not None:
            views = entry.layout.batch_views(self._arena.lease(slot, on_release), plan.rows)
            _pad(views, plan)
            # What the user's arrays share is not known; all of them may.
            return self._place_user(self._user, entry.layout, layout, views, additional), list(views)
        token, released = settle.watch(on_release)
        views = entry.layout.batch_views(self._arena.lease(slot, released), plan.rows)
        _pad(views, plan)
        arrays = {name: self._alias(entry, name, view) for name, view in views.items()}
        shared = [name for name, view in views.items() if view.dtype == entry.dtypes[name]]
        if shared:
            settle.held_by(token, map(arrays.__getitem__, shared))
        return MappingProxyType(arrays), shared

    def _prepare(self, layout: Layout) -> _Layout:
        dtypes = {array.name: jaxio.canonical(array.jax_dtype) for array in layout.arrays}
        for array in layout.arrays:
            if dtypes[array.name] != array.jax_dtype:
                _log.warning(
                    "array %r is declared as %s, but JAX makes %s of it because jax_enable_x64 is off",
                    array.name, array.jax_dtype, dtypes[array.name],
                )  # fmt: skip
        way: _Way = "copy"
        if self._user is not None:
            way = "user"
        elif not jaxio.on_cpu():
            if self._delivery == "alias":
                _log.warning("delivery='alias' needs batches in device memory; on this device batches are copied to it")
        elif any(jaxio.canonical(array.numpy_dtype) != array.numpy_dtype for array in layout.arrays):
            if self._delivery == "alias":
                _log.warning("delivery='alias' cannot be had for 64-bit arrays while jax_enable_x64 is off: copying")
        elif self._delivery == "alias" or (self._delivery == "auto" and layout.batch_nbytes > AUTO_COPY_BYTES):
            way = "alias"
        return _Layout(layout, way, dtypes)

    # The three ways.

    def _copy(self, entry: _Layout, views: dict[str, npt.NDArray[Any]]) -> MappingProxyType[str, Any]:
        if entry.copy is None:
            entry.copy = jaxio.copier(tuple(entry.dtypes.values()))
            if all(view.dtype == entry.dtypes[name] for name, view in views.items()):
                # The first batch does not wait for the compiler: JAX may keep, and share, a copy of our own.
                return MappingProxyType({name: jaxio.jax().device_put(view.copy()) for name, view in views.items()})
        arrays = entry.copy(*views.values())
        # The call copies the slot either at once or on a thread of XLA's; only when the results are there is the slot
        # free for certain. For small arrays they always are.
        for array in arrays:
            if not array.is_ready():
                array.block_until_ready()
        return MappingProxyType(dict(zip(views, arrays, strict=True)))

    def _alias(self, entry: _Layout, name: str, view: npt.NDArray[Any]) -> Any:
        array, wanted = to_jax(view), entry.dtypes[name]
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


def _pad(views: Mapping[str, npt.NDArray[Any]], plan: BatchPlan) -> None:
    """Repeats the valid rows, in order, until all rows are filled."""
    for begin in range(plan.valid, plan.rows, plan.valid):
        count = min(plan.valid, plan.rows - begin)
        for view in views.values():
            view[begin : begin + count] = view[:count]


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
