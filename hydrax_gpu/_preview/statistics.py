"""What can be said of a batch's arrays in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ArrayStatistics", "as_numbers", "describe_arrays", "table"]


@dataclass(frozen=True, slots=True)
class ArrayStatistics:
    """Of one array of a batch. `minimum` to `deviation` are of the finite elements, and None if there are none."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    minimum: float | None
    maximum: float | None
    mean: float | None
    deviation: float | None
    nan: int
    infinite: int
    constant_rows: int
    """Rows whose elements are all equal, of rows with more than one: a picture that was not loaded looks like that."""


def as_numbers(array: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Its values as binary64, for statistics and pictures; of complex numbers the magnitudes."""
    return np.abs(array).astype(np.float64) if array.dtype.kind == "c" else array.astype(np.float64)


def describe_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> list[ArrayStatistics]:
    """Statistics of each array, the batch dimension first."""
    return [_describe(name, array) for name, array in arrays.items()]


def _describe(name: str, array: npt.NDArray[Any]) -> ArrayStatistics:
    values = as_numbers(array)
    finite = values[np.isfinite(values)]
    known = finite.size > 0
    rows = values.reshape(len(values), -1)
    constant = int((rows == rows[:, :1]).all(axis=1).sum()) if rows.shape[1] > 1 else 0
    return ArrayStatistics(
        name,
        array.shape,
        str(array.dtype),
        float(finite.min()) if known else None,
        float(finite.max()) if known else None,
        float(finite.mean()) if known else None,
        float(finite.std()) if known else None,
        int(np.isnan(values).sum()),
        int(np.isinf(values).sum()),
        constant,
    )


def table(statistics: list[ArrayStatistics]) -> str:
    """The statistics as aligned columns of text."""
    head = ["array", "shape", "dtype", "min", "max", "mean", "std", "NaN", "inf", "constant rows"]
    lines = [head] + [
        [
            each.name,
            "×".join(map(str, each.shape)),
            each.dtype,
            *(_number(value) for value in (each.minimum, each.maximum, each.mean, each.deviation)),
            str(each.nan),
            str(each.infinite),
            str(each.constant_rows),
        ]
        for each in statistics
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
