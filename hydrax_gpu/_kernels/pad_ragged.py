"""`pad_ragged`: sequences of varying length to lines of one length; see `kernels/pad_ragged.cu`."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._kernels.arguments import address, fields
from hydrax_gpu._kernels.host import Library

__all__ = ["EXTRAS", "MAX_LINES", "Args", "PadRagged", "Ragged", "error_of", "twin"]

EXTRAS = {"mask": np.dtype(np.bool_), "segment_ids": np.dtype(np.int32), "positions": np.dtype(np.int32)}
"""The outputs beside the values, and their dtypes."""

MAX_LINES = 2048
"""Of an item that is packed."""

_DESCENDS, _TOO_LONG, _FITS_NOWHERE = 1, 2, 3


class Args(ctypes.Structure):
    """`PadRaggedArgs` of the source."""

    _fields_ = fields(
        pointers="values splits out mask segment_ids positions status pad",
        int64=(
            "values_stride splits_stride out_stride mask_stride segment_ids_stride positions_stride "
            "rows capacity width sequences lines length"
        ),
        int32="single packed truncate",
    )


@dataclass(frozen=True, slots=True)
class Ragged:
    """What is the same for all items.

    Attributes:
        capacity: values that an item has room for.
        width: elements of a value.
        sequences: of an item, at most `lines` unless they are packed.
        lines: of an item's output.
        length: values of a line.
        single: whether the item is one sequence, and its splits are the length of it.
        packed: whether sequences share lines.
        truncate: whether what is longer than a line is cut.
        pad: what is behind the sequences.
    """

    capacity: int
    width: int
    sequences: int
    lines: int
    length: int
    single: bool
    packed: bool
    truncate: bool
    pad: np.generic


def twin(
    ragged: Ragged, values: npt.NDArray[Any], splits: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]], int]:
    """What the kernel computes for one item.

    Args:
        ragged: what is the same for all.
        values: shape `(capacity, width)`.
        splits: shape `(sequences + 1,)`, or `()` if `single`.

    Returns:
        The values, shape `(lines, length, width)`; mask, segment ids and positions, shape `(lines, length)`; and the
        status, which if it is not 0 says that the others are not to be used.
    """
    shape = (ragged.lines, ragged.length)
    out = np.full((*shape, ragged.width), ragged.pad, values.dtype)
    extras = {name: np.zeros(shape, dtype) for name, dtype in EXTRAS.items()}
    ends = [0, int(splits)] if ragged.single else [int(split) for split in splits]
    used, count = [0] * ragged.lines, [0] * ragged.lines
    previous = 0
    for number in range(ragged.sequences):
        begin, end = ends[number], ends[number + 1]
        if begin != previous or not begin <= end <= ragged.capacity:
            return out, extras, 4 * number + _DESCENDS
        previous = end
        length, line = end - begin, number
        if ragged.packed:
            if not length:
                continue
            room = (k for k in range(ragged.lines) if used[k] + length <= ragged.length)
            line = next(room, -1)
            if line < 0:
                return out, extras, 4 * number + _FITS_NOWHERE
        elif length > ragged.length:
            if not ragged.truncate:
                return out, extras, 4 * number + _TOO_LONG
            length = ragged.length
        count[line] += 1
        place = line, slice(used[line], used[line] + length)
        out[place] = values[begin : begin + length]
        extras["mask"][place] = True
        extras["segment_ids"][place] = count[line]
        extras["positions"][place] = np.arange(length)
        used[line] += length
    return out, extras, 0


def error_of(ragged: Ragged, status: int, splits: npt.NDArray[Any]) -> str:
    """What is wrong with an item whose status is not 0, `splits` being its own."""
    number, code = divmod(status, 4)
    if ragged.single:
        length = int(splits)
        if code == _DESCENDS:
            return f"the length is {length}, wanted 0 to {ragged.capacity}, which the array has room for"
        return f"the length is {length}, but a line holds {ragged.length}"
    begin, end = int(splits[number]), int(splits[number + 1])
    if code == _DESCENDS:
        return (
            f"row splits {number} and {number + 1} are {begin} and {end}; wanted splits that begin at 0, do not "
            f"descend and end at {ragged.capacity} or before, which the array has room for"
        )
    if code == _TOO_LONG:
        return f"sequence {number} has {end - begin} values, but a line holds {ragged.length}"
    return f"sequence {number} with {end - begin} values fits in none of the {ragged.lines} lines of {ragged.length}"


@final
class PadRagged:
    """The kernel for items of one kind.

    Args:
        library: the host library, or None for the twin.
        ragged: what is the same for all items.
        dtype: of the values, 1, 2, 4 or 8 bytes.
        splits: dtype of the splits, int32 or int64.
    """

    def __init__(self, library: Library | None, ragged: Ragged, dtype: np.dtype[Any], splits: np.dtype[Any]) -> None:
        self._ragged = ragged
        self._entry = None
        if library is not None:
            self._entry = library.entry(f"pad_ragged_i{8 * splits.itemsize}_u{8 * dtype.itemsize}")
            self._args = Args(
                pad=int.from_bytes(np.asarray(ragged.pad, dtype).tobytes(), "little"),
                capacity=ragged.capacity,
                width=ragged.width,
                sequences=ragged.sequences,
                lines=ragged.lines,
                length=ragged.length,
                single=ragged.single,
                packed=ragged.packed,
                truncate=ragged.truncate,
            )

    def __call__(
        self,
        values: npt.NDArray[Any],
        splits: npt.NDArray[Any],
        out: npt.NDArray[Any],
        extras: Mapping[str, npt.NDArray[Any]],
    ) -> npt.NDArray[np.int32]:
        """Fills `out` and `extras`, some of `EXTRAS`, for the rows of `values`, and returns each one's status."""
        status = np.zeros(len(values), np.int32)
        if self._entry is None:
            ragged = self._ragged
            flat = values.reshape(len(values), ragged.capacity, ragged.width)
            for row in range(len(values)):
                filled, more, status[row] = twin(ragged, flat[row], splits[row])
                out[row] = filled.reshape(out.shape[1:])
                for name, extra in extras.items():
                    extra[row] = more[name].reshape(extra.shape[1:])
            return status
        args = self._args
        args.values = address(values)
        args.splits = address(splits)
        args.out = address(out)
        args.status = address(status)
        args.values_stride = values.strides[0]
        args.splits_stride = splits.strides[0]
        args.out_stride = out.strides[0]
        args.rows = len(values)
        for name in EXTRAS:
            extra = extras.get(name)
            setattr(args, name, None if extra is None else address(extra))
            setattr(args, f"{name}_stride", 0 if extra is None else extra.strides[0])
        self._entry(args)
        return status
