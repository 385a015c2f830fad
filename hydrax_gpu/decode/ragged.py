"""`PadRagged`: sequences of varying length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from hydrax_gpu._arguments import at_least
from hydrax_gpu.decode.base import Bound, Decode, Kept, Rows
from hydrax_gpu.decode.checks import array_name, companion, dtype_in

if TYPE_CHECKING:
    from hydrax_gpu._kernels.host import Library

__all__ = ["PadRagged"]


@final
@dataclass(frozen=True, slots=True)
class PadRagged(Decode):
    """Sequences of varying length, one behind the other, to lines of one length.

    The declared array is `(capacity, ...)`: the values of all sequences of an item, as many as there are; the rest of
    it is not looked at. `splits` names the array that says where sequences end: of shape `(n + 1,)`, sequence `i` is
    `values[splits[i]:splits[i + 1]]`, and `splits[0]` is 0; of shape `()`, it is the length of the only sequence. The
    elements are not converted, only moved, and have 1, 2, 4 or 8 bytes.

    By default each sequence has a line of its own: the batch holds items of `(n, length, ...)`, or `(length, ...)` for
    splits of shape `()`. With `lines`, sequences are packed into so many lines, each behind what is there already in
    the first line that has room for it (first fit), and empty ones are left out: `(lines, length, ...)`, or
    `(length, ...)` for `lines=1`.

    Splits that are not sound, a sequence that is too long for a line (unless `truncate`), or one that fits in none,
    make the item a bad one.

    Attributes:
        splits: name of the declared array with the row splits or the length; int32 or int64.
        length: values of a line.
        pad: what is behind the sequences.
        lines: pack the sequences into so many lines.
        truncate: cut what is longer than a line; only without `lines`.
        mask: name for an additional array of the batch, bool: where there are values.
        segment_ids: name for an additional array, int32: the number of the sequence in its line, from 1; 0 for none.
        positions: name for an additional array, int32: the place in the sequence, from 0; 0 behind them.
    """

    splits: str
    length: int
    pad: float = 0
    lines: int | None = None
    truncate: bool = False
    mask: str | None = None
    segment_ids: str | None = None
    positions: str | None = None

    def __post_init__(self) -> None:
        from hydrax_gpu._kernels.pad_ragged import MAX_LINES

        array_name("PadRagged: splits", self.splits)
        object.__setattr__(self, "length", at_least("PadRagged: length", self.length, 1))
        if self.lines is not None:
            object.__setattr__(self, "lines", at_least("PadRagged: lines", self.lines, 1))
            if self.lines > MAX_LINES:
                raise ValueError(f"PadRagged: got {self.lines} lines, wanted at most {MAX_LINES}")
            if self.truncate:
                raise ValueError("PadRagged: truncate cuts sequences that have a line each; packed ones must fit")
        for extra in ("mask", "segment_ids", "positions"):
            if getattr(self, extra) is not None:
                array_name(f"PadRagged: {extra}", getattr(self, extra))

    def outputs(self, name: str, declared: Mapping[str, Kept]) -> dict[str, Kept]:
        from hydrax_gpu._kernels.pad_ragged import EXTRAS

        shape, source, wanted = declared[name]
        if not shape:
            raise ValueError("PadRagged: got shape (), wanted a first axis of values")
        if source.itemsize not in (1, 2, 4, 8):
            raise ValueError(f"PadRagged: got numpy_dtype {source}, wanted one of 1, 2, 4 or 8 bytes")
        splits = companion("PadRagged: splits", self.splits, name, declared)
        dtype_in("PadRagged", f"numpy_dtype of {self.splits!r}", splits.dtype, ("int32", "int64"))
        if len(splits.shape) > 1 or splits.shape == (1,):
            raise ValueError(
                f"PadRagged: array {self.splits!r} has shape {splits.shape}, wanted (n + 1,) for n sequences an item, "
                "or () for one"
            )
        with np.errstate(all="ignore"):
            pad = np.asarray(self.pad).astype(source)
        if not (source.kind == "b" or pad == self.pad or (pad != pad and self.pad != self.pad)):
            raise ValueError(f"PadRagged: pad {self.pad!r} is no number of {source}")
        places = self._places(splits)
        if math.prod((*places, *shape[1:])) >= 2**31 or math.prod(shape) >= 2**31:
            raise ValueError("PadRagged: an item has 2**31 elements or more")
        extras = {getattr(self, extra): Kept(places, dtype, dtype) for extra, dtype in EXTRAS.items()}
        extras.pop(None, None)
        return {name: Kept((*places, *shape[1:]), source, wanted), **extras}

    def _places(self, splits: Kept) -> tuple[int, ...]:
        if self.lines is not None:
            return (self.length,) if self.lines == 1 else (self.lines, self.length)
        return (splits.shape[0] - 1, self.length) if splits.shape else (self.length,)

    def bind(
        self, library: Library | None, name: str, declared: Mapping[str, Kept], outputs: Mapping[str, Kept]
    ) -> Bound:
        from hydrax_gpu._kernels.pad_ragged import EXTRAS, Ragged, error_of
        from hydrax_gpu._kernels.pad_ragged import PadRagged as Kernel

        shape, source, _ = declared[name]
        splits = declared[self.splits]
        sequences = splits.shape[0] - 1 if splits.shape else 1
        with np.errstate(all="ignore"):
            pad: np.generic = source.type(self.pad)
        ragged = Ragged(
            shape[0], math.prod(shape[1:]), sequences, self.lines or sequences, self.length, not splits.shape,
            self.lines is not None, self.truncate, pad,
        )  # fmt: skip
        kernel = Kernel(library, ragged, source, splits.dtype)
        extras = {extra: getattr(self, extra) for extra in EXTRAS if getattr(self, extra) is not None}

        def decode(loaded: Rows, batch: Rows) -> Mapping[int, str]:
            ends = loaded[self.splits]
            status = kernel(loaded[name], ends, batch[name], {extra: batch[own] for extra, own in extras.items()})
            if not status.any():
                return {}
            return {int(row): error_of(ragged, int(status[row]), ends[row]) for row in np.flatnonzero(status)}

        return decode
