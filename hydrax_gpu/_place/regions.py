"""Where the arrays of a batch lie in device memory, and which bytes are copied there. Pure arithmetic.

A slot of the device begins with the same bytes as its host slot, at the same offsets, so that one copy brings all
arrays over. An array whose dtype is converted on the device has a second place behind them, which is what JAX reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from hydrax_gpu._place.device import Convert, Decoder
from hydrax_gpu._spec import ALIGNMENT, ArrayLayout, Layout

__all__ = ["DeviceLayout", "Region", "coalesce"]

_GAP = 64 * 1024
"""Bytes that are rather copied in vain than left out: they take as long as beginning another copy, some 3 µs."""

How: TypeAlias = Literal["as it is", "kernel", "xla"]


def coalesce(ranges: Iterable[tuple[int, int]], *, gap: int) -> list[tuple[int, int]]:
    """Joins `(begin, end)` ranges that are at most `gap` apart.

    Returns:
        Ascending ranges, more than `gap` apart, that cover those given and nothing else but gaps.
    """
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if joined and begin - joined[-1][1] <= gap:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((begin, end))
    return joined


@dataclass(frozen=True, slots=True)
class Region:
    """One array in a slot of the device.

    Attributes:
        name: of the array.
        item_shape: without the batch dimension.
        source: its offset in the host slot, and in the device slot before it is converted.
        source_dtype: of that.
        offset: of what JAX is given; equal to `source` unless a kernel converts.
        dtype: of that.
        how: how it gets the dtype that was declared: it has it; by a kernel; or by XLA, which is given `source_dtype`.
    """

    name: str
    item_shape: tuple[int, ...]
    source: int
    source_dtype: np.dtype[Any]
    offset: int
    dtype: np.dtype[Any]
    how: How

    @property
    def item_size(self) -> int:
        return math.prod(self.item_shape)


@dataclass(frozen=True, slots=True)
class DeviceLayout:
    """The memory of one batch on the device.

    Attributes:
        rows: of a full batch.
        regions: its arrays.
        nbytes: with the places for what is converted.
        copied: what comes from the host: the arrays, or, if they are decoded on the device, what was loaded.
        decoder: makes the former of the latter.
    """

    rows: int
    regions: tuple[Region, ...]
    nbytes: int
    copied: tuple[ArrayLayout, ...]
    decoder: Decoder | None = None

    @staticmethod
    def build(
        layout: Layout,
        dtypes: Mapping[str, np.dtype[Any]],
        converts: Callable[[np.dtype[Any], np.dtype[Any]], bool],
        decoder: Decoder | None = None,
    ) -> DeviceLayout:
        """Lays a batch out.

        Args:
            layout: of the host slot.
            dtypes: what each array is to have in the batch.
            converts: whether a kernel can convert from the first to the second.
            decoder: what decodes on the device; without it the workers have done so.
        """
        regions: list[Region] = []
        end = layout.arrays_nbytes
        for array in layout.arrays:
            wanted, offset, how = dtypes[array.name], array.offset, "as it is"
            if wanted != array.numpy_dtype:
                how = "kernel" if converts(array.numpy_dtype, wanted) else "xla"
            if how == "kernel":
                offset = end
                end += -(-array.count * wanted.itemsize // ALIGNMENT) * ALIGNMENT
            regions.append(
                Region(
                    array.name,
                    array.item_shape,
                    array.offset,
                    array.numpy_dtype,
                    offset,
                    array.numpy_dtype if how == "xla" else wanted,
                    how,
                )
            )
        copied = layout.arrays if decoder is None else layout.wire
        return DeviceLayout(layout.rows, tuple(regions), -(-end // ALIGNMENT) * ALIGNMENT, copied, decoder)

    def copies(self, rows: int, there: Collection[str] = ()) -> list[tuple[int, int]]:
        """`(offset, bytes)` of what is to be copied of a batch with so many rows: one piece, if its arrays are full.

        Arrays that are `there` already are left out, and nothing is copied over them.
        """
        copied = [array for array in self.copied if array.name not in there]
        ranges = [(array.offset, array.offset + rows * array.row_nbytes) for array in copied]
        return [(begin, end - begin) for begin, end in coalesce(ranges, gap=0 if there else _GAP)]

    def source(self, offset: int) -> int:
        """Where the host's slot has what is copied to an offset: at the same."""
        return offset

    def converts(self, address: int, rows: int) -> list[Convert]:
        """What kernels are to do in a slot that begins at `address`."""
        return [
            Convert(address + r.source, r.source_dtype, address + r.offset, r.dtype, rows * r.item_size)
            for r in self.regions
            if r.how == "kernel"
        ]

    def views(self, memory: Any, rows: int) -> dict[str, npt.NDArray[Any]]:
        """What JAX is to be given, as arrays over `memory`, which begins with the slot and is never read here."""
        return {
            r.name: np.ndarray((rows, *r.item_shape), r.dtype, buffer=memory, offset=r.offset) for r in self.regions
        }
