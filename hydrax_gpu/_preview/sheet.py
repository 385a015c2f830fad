"""A contact sheet: the rows of a batch side by side, one block for each array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hydrax_gpu._preview.statistics import as_numbers

__all__ = ["captions", "draw", "pictures_of"]

_TILE = 256
"""Pixels that a picture is thinned out to, in each direction: a sheet is to be looked at, not to be used."""

_WRONG = (255, 0, 255)
"""The colour of NaN and infinities: magenta, which few photographs have."""

_WORDS = 24


def pictures_of(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8] | None:
    """The rows of an array as pictures, of shape `(rows, height, width, 3)`; None if they cannot be shown as such.

    Rows are pictures if they have two dimensions of at least 2, or three, of which the last or the first is the
    channels: 1 or 3 are grey or RGB, of 4 the first three are shown, and of any other number the mean. uint8 is shown
    as it is, bool as black and white, and everything else from the batch's least finite value (black) to its greatest.
    """
    shape = array.shape[1:]
    if len(shape) == 3:
        last, first = shape[2], shape[0]
        if last > 4 >= first:  # channels first
            array = np.moveaxis(array, 1, -1)
        channels = array.shape[-1]
    elif len(shape) == 2:
        array, channels = array[..., None], 1
    else:
        return None
    if min(array.shape[1:3]) < 2:
        return None
    array = array[:, :: -(-array.shape[1] // _TILE), :: -(-array.shape[2] // _TILE)]
    array = array[..., :3] if channels in (3, 4) else array
    if array.dtype == np.uint8 and array.shape[-1] in (1, 3):
        return np.broadcast_to(array, (*array.shape[:3], 3)).astype(np.uint8)
    values = as_numbers(array)
    if array.shape[-1] not in (1, 3):
        values = values.mean(axis=-1, keepdims=True)
    finite = np.isfinite(values)
    known = values[finite]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    if array.dtype.kind == "b":
        low, high = 0.0, 1.0
    scaled = (np.where(finite, values, low) - low) / (high - low or 1.0) * 255
    result = np.broadcast_to(np.rint(scaled), (*values.shape[:3], 3)).astype(np.uint8)
    result[~finite.all(axis=-1)] = _WRONG
    return result


def captions(
    indices: Sequence[int], arrays: Mapping[str, npt.NDArray[Any]], additional: Mapping[str, Sequence[Any]]
) -> list[str]:
    """For each row its item's index and what is short about it: values of scalar arrays and of additional data."""
    result: list[str] = []
    for row, item in enumerate(indices):
        words = [f"{name}={array[row]}" for name, array in arrays.items() if array.ndim == 1]
        words += [f"{key}={values[row]}" for key, values in additional.items() if values[row] is not None]
        short = [word if len(word) <= _WORDS else word[: _WORDS - 1] + "…" for word in words]
        result.append("\n".join([f"item {item}", *short[:3]]))
    return result


def draw(path: Path, arrays: Mapping[str, npt.NDArray[Any]], labels: Sequence[str], title: str) -> list[str]:
    """Draws the rows into an image file, of the format that its name ends with.

    Args:
        path: of the file.
        arrays: with as many rows as there are labels.
        labels: captions of the rows.
        title: of the whole sheet.

    Returns:
        Names of the arrays that were drawn: those whose rows are pictures or curves.

    Raises:
        ImportError: there is no matplotlib.
        OSError, ValueError: the file cannot be written, or its ending names no format.
    """
    import matplotlib

    matplotlib.use("agg")  # files only, no window
    from matplotlib import pyplot

    blocks = {name: array for name, array in arrays.items() if array.ndim >= 2 and array[0].size > 1}
    pictures = {name: pictures_of(array) for name, array in blocks.items()}
    drawn = [name for name in blocks if pictures[name] is not None or blocks[name].ndim == 2]
    columns = min(8, len(labels))
    lines = -(-len(labels) // columns)
    # what is no picture and no curve, such as scalars alone, still has its captions
    figure: Any  # matplotlib's own types are incomplete
    figure, axes = pyplot.subplots(
        max(1, len(drawn)),
        figsize=(1.6 * columns + 0.4, (1.6 * lines + 0.6) * max(1, len(drawn)) + 0.4),
        layout="constrained",
        squeeze=False,
    )
    for axis, name in zip(axes[:, 0], drawn or [""], strict=True):
        shown = pictures.get(name)
        height, width = (1, 1) if shown is None else shown.shape[1:3]
        if shown is not None:
            sheet = np.full((lines * height, columns * width, 3), 255, np.uint8)
            for row, picture in enumerate(shown):
                y, x = row // columns * height, row % columns * width
                sheet[y : y + height, x : x + width] = picture
            axis.imshow(sheet, interpolation="nearest")
        elif name:
            _curves(axis, as_numbers(arrays[name]), columns)
        for row, label in enumerate(labels):
            x, y = row % columns * width + 0.03 * width - 0.5 * (shown is not None), row // columns * height
            axis.text(
                x, y + 0.03 * height, label, fontsize=6, va="top", family="monospace",
                bbox={"facecolor": "white", "alpha": 0.7, "pad": 1, "linewidth": 0},
            )  # fmt: skip
        if shown is None:
            axis.set_xlim(0, columns)
            axis.set_ylim(lines, 0)
        axis.set_title(name, fontsize=9)
        axis.axis("off")
    figure.suptitle(title, fontsize=10)
    try:
        figure.savefig(path, dpi=120)
    finally:
        pyplot.close(figure)
    return drawn


def _curves(axis: Any, values: npt.NDArray[np.float64], columns: int) -> None:
    """Rows of numbers as curves, each in a square of size 1; the scale is that of the whole batch."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    along = np.linspace(0.05, 0.95, values.shape[1])
    for row, curve in enumerate(values):
        y = row // columns + 0.95 - 0.7 * (curve - low) / (high - low or 1.0)
        axis.plot(along + row % columns, y, linewidth=0.8, color="tab:blue")
