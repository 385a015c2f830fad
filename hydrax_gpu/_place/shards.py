"""Which part of each array goes to which device of this process, and so which rows the process loads.

Only shardings are asked, and they answer with arithmetic: nothing is moved here.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast, final

from hydrax_gpu._place import jaxio
from hydrax_gpu._plan import BatchPlan, owned_rows, union
from hydrax_gpu._spec import ArrayLayout, Layout

__all__ = ["ArrayShards", "BatchShards", "Index", "Piece", "Sharding", "Shards", "index_of"]

Sharding: TypeAlias = Any
"""A `jax.sharding.Sharding`; jax's own types are unknown to pyright in many places."""


Index: TypeAlias = tuple[tuple[int, int], ...]


def index_of(slices: Sequence[slice], shape: Sequence[int]) -> Index:
    """What slices of an array of that shape mean."""
    return tuple((part.indices(size)[0], part.indices(size)[1]) for part, size in zip(slices, shape, strict=True))


@dataclass(frozen=True, slots=True)
class Piece:
    """What one device has of an array.

    Attributes:
        device: the `jax.Device`.
        index: where it is in the global array: for each axis where it begins and ends.
        begin: first of its rows, among those that this process loads.
        end: the row behind its last one.
        rest: its part of the other axes.
        whole: whether that is all of them, so that the piece has its bytes in one piece.
    """

    device: Any
    index: Index
    begin: int
    end: int
    rest: tuple[slice, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class ArrayShards:
    """One array of a batch: its global shape, and a piece for each device of this process."""

    shape: tuple[int, ...]
    sharding: Sharding
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class BatchShards:
    """The arrays of a batch by name, and which of its rows this process loads, ascending."""

    rows: Sequence[int]
    arrays: Mapping[str, ArrayShards]


@final
class Shards:
    """The shardings of a loader's arrays, checked against all batches that it can have.

    Args:
        sharding: for all arrays, or a mapping with one for each name.
        layouts: of each group's global batches, and after them of cached batches; methods name one by its index.
        last: for each group the rows of its last batch if that is a short one, otherwise 0.
        cached: for each group the index of the layout of its cached batches; none by default.

    Raises:
        TypeError, ValueError: an array cannot be sharded so; the message says which, and what was wanted.
    """

    def __init__(
        self,
        sharding: Sharding | Mapping[str, Sharding],
        layouts: Sequence[Layout],
        last: Sequence[int],
        cached: Sequence[int] = (),
    ) -> None:
        names = list(dict.fromkeys(array.name for layout in layouts for array in layout.arrays))
        self.shardings = _by_name(sharding, names)
        for name, each in self.shardings.items():
            _check_devices(name, each)
        self._known: dict[tuple[int, int], BatchShards] = {}
        for index, short in enumerate(last):
            other = cached[index] if cached else index
            for rows in (layouts[index].rows, short):
                if rows:
                    self._add(list(dict.fromkeys((index, other))), layouts, rows)
        self.several = any(not each.is_fully_addressable for each in self.shardings.values())
        """Whether devices of other processes are among them, so that this one has a part of each batch only."""
        self.layouts = [
            layout.with_rows(len(self._known[index, layout.rows].rows)) for index, layout in enumerate(layouts)
        ]
        """What this process has of each group's batches."""
        self.devices = len({device for each in self.shardings.values() for device in each.addressable_devices})
        """Number of devices of this process."""
        everyone = {device for each in self.shardings.values() for device in each.device_set}
        self.processes = sorted({int(device.process_index) for device in everyone})
        """Numbers of the processes that have devices among them."""
        self.process = int(jaxio.jax().process_index())
        """That of this one."""
        self._owned: dict[tuple[int, int], Sequence[int]] = {}
        self._shared: dict[tuple[int, int], set[int]] = {}

    def of(self, layout: int, rows: int) -> BatchShards:
        """The shards of a batch with so many rows in all processes."""
        return self._known[layout, rows]

    def sizes(self, layout: int) -> list[int]:
        """The rows that batches of a layout can have, in all processes."""
        return [rows for index, rows in self._known if index == layout]

    def plan(self, plan: Callable[[int], BatchPlan], training_groups: int) -> Callable[[int], BatchPlan]:
        """A plan of the global batches → the plan of what this process has of them."""
        if not self.several:
            return plan

        def at(position: int) -> BatchPlan:
            batch = plan(position)
            layout = batch.group + training_groups if batch.validation else batch.group
            return batch.of_rows(self._known[layout, batch.rows].rows)

        return at

    def owned(self, layout: int, rows: int) -> Sequence[int]:
        """The rows of a batch with so many that this process is to write to a cache, ascending.

        Raises:
            ValueError: there are rows that no process has all of.
        """
        if not self.several:
            return range(rows)
        if (layout, rows) not in self._owned:
            arrays = self._known[layout, rows].arrays
            holders = {name: _whole(each, _parts(each)) for name, each in arrays.items()}
            self._owned[layout, rows] = owned_rows(holders, rows, self.process)
        return self._owned[layout, rows]

    def alone(self, layout: int, rows: int, row: int) -> bool:
        """Whether no other process has any part of a row of this process, in a batch with so many in all."""
        if not self.several:
            return True
        if (layout, rows) not in self._shared:
            shared = set[int]()
            for array in self._known[layout, rows].arrays.values():
                for stretch, held in _parts(array).items():
                    if held.keys() - {self.process}:
                        shared.update(stretch)
            self._shared[layout, rows] = shared
        return self._known[layout, rows].rows[row] not in self._shared[layout, rows]

    def _add(self, indices: Sequence[int], layouts: Sequence[Layout], rows: int) -> None:
        """What a group's batches are cut into, as they are loaded and as they are cached: both have the same rows."""
        parts = {index: self._parts(layouts[index], rows) for index in indices}
        mine = union(range(*place[0]) for arrays in parts.values() for pieces in arrays.values() for _, place in pieces)
        for index in indices:
            self._known[index, rows] = self._of(layouts[index], rows, parts[index], mine)

    def _parts(self, layout: Layout, rows: int) -> dict[str, list[tuple[Any, Index]]]:
        indices: dict[str, list[tuple[Any, Index]]] = {}
        for array in layout.arrays:
            shape = (rows, *array.item_shape)
            sharding = self.shardings[array.name]
            _check_shape(array, shape, sharding, layout.rows)
            indices[array.name] = [
                (device, index_of(slices, shape))
                for device, slices in sharding.addressable_devices_indices_map(shape).items()
            ]
        return indices

    def _of(
        self, layout: Layout, rows: int, indices: Mapping[str, list[tuple[Any, Index]]], mine: Sequence[int]
    ) -> BatchShards:
        arrays = {
            array.name: ArrayShards(
                (rows, *array.item_shape),
                self.shardings[array.name],
                tuple(_piece(array, mine, *part) for part in indices[array.name]),
            )
            for array in layout.arrays
        }
        return BatchShards(mine, arrays)


def _piece(array: ArrayLayout, mine: Sequence[int], device: Any, index: Index) -> Piece:
    begin, rest = bisect_left(mine, index[0][0]), index[1:]
    whole = rest == tuple((0, size) for size in array.item_shape)
    return Piece(device, index, begin, begin + index[0][1] - index[0][0], tuple(slice(*part) for part in rest), whole)


def _parts(array: ArrayShards) -> dict[range, dict[int, set[Index]]]:
    """For each stretch of rows, and each process with devices that have it, what these have of the other axes."""
    parts: dict[range, dict[int, set[Index]]] = {}
    for device, slices in array.sharding.devices_indices_map(array.shape).items():
        index = index_of(slices, array.shape)
        parts.setdefault(range(*index[0]), {}).setdefault(device.process_index, set()).add(index[1:])
    return parts


def _whole(array: ArrayShards, parts: Mapping[range, Mapping[int, set[Index]]]) -> dict[range, list[int]]:
    """For each stretch of rows the processes whose devices have all of them together."""
    # parts are equal or disjoint, so that they are all of a row when they have as many elements
    whole = math.prod(array.shape[1:])
    return {
        rows: [process for process, places in sorted(held.items()) if sum(map(_size, places)) == whole]
        for rows, held in parts.items()
    }


def _size(index: Index) -> int:
    return math.prod(end - begin for begin, end in index)


def _by_name(sharding: object, names: Sequence[str]) -> dict[str, Sharding]:
    if isinstance(sharding, Mapping):
        given = dict(cast("Mapping[str, Sharding]", sharding))
        unknown, missing = [name for name in given if name not in names], [name for name in names if name not in given]
        if unknown:
            raise ValueError(f"sharding: there is no array {unknown[0]!r}; the groups have {', '.join(names)}")
        if missing:
            raise ValueError(f"sharding: array {missing[0]!r} has none; wanted one for each of {', '.join(names)}")
    else:
        given = dict.fromkeys(names, sharding)
    for name, each in given.items():
        if not isinstance(each, jaxio.jax().sharding.Sharding):
            what = f"sharding of array {name!r}" if isinstance(sharding, Mapping) else "sharding"
            raise TypeError(
                f"{what}: got {type(each).__name__}, wanted a jax.sharding.Sharding, for example "
                "NamedSharding(mesh, PartitionSpec('data')), or a dict with one for each array"
            )
    return given


def _check_devices(name: str, sharding: Sharding) -> None:
    jax = jaxio.jax()
    try:
        devices, mine = sharding.device_set, sharding.addressable_devices
    except ValueError as error:  # of an abstract mesh
        raise ValueError(f"sharding of array {name!r}: {sharding} names no devices: {error}") from error
    if not mine:
        others = sorted({device.process_index for device in devices})
        raise ValueError(
            f"sharding of array {name!r}: {sharding} has no device of this process (number {jax.process_index()} of "
            f"{jax.process_count()}), but of {', '.join(map(str, others))} only. Wanted a mesh with devices of every "
            "process that has a Dataloader; a process without any needs none"
        )
    kind, usual = sharding.memory_kind, next(iter(mine)).default_memory().kind
    if kind not in (None, usual):
        raise ValueError(
            f"sharding of array {name!r}: got memory kind {kind!r}, wanted {usual!r}, the device's own, where a "
            "Dataloader places its batches; jax.device_put moves them elsewhere"
        )


def _check_shape(array: ArrayLayout, shape: tuple[int, ...], sharding: Sharding, batch_size: int) -> None:
    axes = len(getattr(sharding, "spec", ()))
    if axes > len(shape):
        raise ValueError(
            f"sharding of array {array.name!r}: {sharding.spec} is for at least {axes} axes, but the array has shape "
            f"{shape}, the batch axis included. Arrays of different rank can have a sharding each: a dict by name"
        )
    count = len(sharding.device_set)
    try:
        shard = sharding.shard_shape(tuple(size * count for size in shape))
    except ValueError as error:
        raise ValueError(f"sharding of array {array.name!r} with shape {shape}: {error}") from error
    parts = [size * count // part for size, part in zip(shape, shard, strict=True)]
    for axis, (size, number) in enumerate(zip(shape, parts, strict=True)):
        if size % number == 0:
            continue
        if axis:
            advice = f"wanted {array.name!r} with a multiple of {number} there, or another sharding"
        elif size == batch_size:
            advice = f"wanted a batch_size, which is that of all processes together, that is a multiple of {number}"
        else:
            advice = (
                "this is the last batch of a group with remainder='short'. Wanted remainder='pad' (with Batch.valid) "
                "or 'drop', with which all batches have the same size"
            )
        raise ValueError(
            f"sharding of array {array.name!r}: {sharding} cuts axis {axis} of shape {shape} into {number} parts, "
            f"but {size} cannot be divided by {number}; {advice}"
        )
