"""Rows of floats to and from a cache that keeps them in int8."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cache import ArrayFormat, Descriptor
from hydrax_gpu._kernels.host import load

if TYPE_CHECKING:
    from hydrax_gpu._kernels.host import Library

__all__ = ["Int8Rows"]

_Rows: TypeAlias = Mapping[str, npt.NDArray[Any]]


class Int8Rows:
    """What is done for the arrays of a cache that are kept in int8, for a `RowStore`. Safe for threads.

    Rows may be given as records, uint8, which they are where a decode of their batch's layout makes floats of them;
    these are left as they are.
    """

    def __init__(self, arrays: Sequence[ArrayFormat], library: Library | None) -> None:
        self._arrays = arrays
        self._library = library
        self._memory = threading.local()

    @staticmethod
    def of(descriptor: Descriptor, kernels: str | None) -> Int8Rows | None:
        """For a cache; None when it keeps nothing in int8.

        Args:
            descriptor: of the cache.
            kernels: file of the kernels' host library, or None for NumPy to do their work.
        """
        arrays = [array for array in descriptor.arrays if array.compression == "int8"]
        return Int8Rows(arrays, load(kernels) if kernels is not None else None) if arrays else None

    def to_write(self, rows: _Rows) -> tuple[_Rows, dict[int, str]]:
        """Rows as they are kept, until the next call on this thread; and, by row, what cannot be kept, and why."""
        from hydrax_gpu._kernels.quantize import Quantize

        made, refused = dict(rows), dict[int, str]()
        for array, count in self._floats(rows):
            values = rows[array.name]
            records = made[array.name] = self._scratch(array, len(values))
            finite = Quantize(self._library, count, values.dtype)(values.reshape(len(values), count), records)
            for row in np.flatnonzero(~finite).tolist():
                refused.setdefault(row, f"array {array.name!r} has values that are not finite, which int8 cannot hold")
        return made, refused

    def to_read(self, rows: _Rows) -> tuple[_Rows, Callable[[int, int], None]]:
        """Where to read records to, and what then makes floats of the rows `begin .. end`.

        To be done with before the next call on this thread.
        """
        from hydrax_gpu._kernels.dequantize import Dequantize
        from hydrax_gpu._kernels.quantize import BLOCK, parts

        made, work = dict(rows), list[tuple[int, Any, npt.NDArray[np.uint8], npt.NDArray[Any]]]()
        for array, count in self._floats(rows):
            values = rows[array.name]
            records = made[array.name] = self._scratch(array, len(values))
            kernel = Dequantize(
                self._library, (count,), BLOCK, np.dtype(np.int8), np.dtype(np.float32), values.dtype
            )  # fmt: skip
            work.append((count, kernel, records, values.reshape(len(values), count)))

        def finish(begin: int, end: int) -> None:
            for count, kernel, records, values in work:
                kernel(*parts(records[begin:end], count), values[begin:end])

        return made, finish

    def _scratch(self, array: ArrayFormat, rows: int) -> npt.NDArray[np.uint8]:
        """Memory for records, until the calling thread asks for it again: new pages each time would cost more than what
        is done with them."""
        memory: dict[str, npt.NDArray[np.uint8]] = vars(self._memory)
        if array.name not in memory or len(memory[array.name]) < rows:
            memory[array.name] = np.empty((rows, array.nbytes), np.uint8)
        return memory[array.name][:rows]

    def _floats(self, rows: _Rows) -> list[tuple[ArrayFormat, int]]:
        return [(a, math.prod(a.item_shape)) for a in self._arrays if rows[a.name].dtype != np.uint8]
