"""Pictures into arrays, and back."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from hydrax_gpu.image._coefs import Coefs

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def write_hwc(image: ArrayLike, array: NDArray[Any], coefs: Coefs | None = None) -> None:
    """Write a picture into an array of shape (height, width, channels).

    Args:
        image: A Pillow picture, or an array of shape (height, width, channels) or (height, width). One channel is
            written to all channels of `array`.
        array: Where to write.
        coefs: What is applied to the values, in the dtype of `array`, which must be a floating one then. Without it
            values are written as they are: 0..255 for a picture.

    Raises:
        ValueError: If height or width differ, or the numbers of channels.
        TypeError: If `array` cannot hold every value of the dtype of `image`, or holds integers and `coefs` are given.
    """
    _write(_three_axes(image), array, coefs)


def write_chw(image: ArrayLike, array: NDArray[Any], coefs: Coefs | None = None) -> None:
    """Write a picture into an array of shape (channels, height, width).

    Args:
        image: As for `write_hwc`: its channels are the last axis.
        array: Where to write.
        coefs: As for `write_hwc`.

    Raises:
        ValueError: If height or width differ, or the numbers of channels.
        TypeError: If `array` cannot hold every value of the dtype of `image`, or holds integers and `coefs` are given.
    """
    if array.ndim != 3:
        raise ValueError(f"write_chw writes to an array of shape (channels, height, width); got {array.shape}")
    _write(_three_axes(image), np.moveaxis(array, 0, -1), coefs)


def from_srgb_hwc(image: ArrayLike, coefs: Coefs, *, mode: str | None = None, copy: bool = False) -> Image.Image:
    """Make a Pillow picture of an array of shape (height, width, channels) or (height, width): the way back.

    Values are rounded (halves to even), and limited to 0..255. NaN becomes 0, with a `RuntimeWarning`.

    Args:
        image: sRGB values of a floating dtype, as `write_hwc` with the same `coefs` has written them.
        coefs: Their coefficients; the inverse is applied.
        mode: Pillow's name of what the channels are; by default 1 is `"L"`, 2 `"LA"`, 3 `"RGB"` and 4 `"RGBA"`.
        copy: If False, a NumPy array that can be written to may be used for the computation, and has other values
            afterwards. Everything else (a `jax.Array` for one) is copied in any case.

    Raises:
        TypeError: If `image` has no floating dtype.
        ValueError: If its shape is another, or does not fit `coefs` or `mode`.
    """
    source = np.asarray(image)
    check_floating(source, "from_srgb_hwc takes")
    if source.ndim == 2:
        source = source[..., None]
    if source.ndim != 3 or 0 in source.shape:
        raise ValueError(f"from_srgb_hwc takes one picture, shape (height, width, channels); got {source.shape}")
    height, width, channels = source.shape
    chosen = mode or _MODES.get(channels)
    if chosen is None or Image.getmodebands(chosen) != channels:
        raise ValueError(f"{channels} channels (shape {source.shape}) are not those of a picture of mode {mode}")
    divisor, offset = _for_channels(coefs, source.dtype, channels)
    values = source.copy() if copy or not source.flags.writeable else source
    values += offset
    values *= divisor
    if unknown := int(np.isnan(values).sum()):
        warnings.warn(f"{unknown} values of a picture are NaN; they become 0", RuntimeWarning, stacklevel=2)
        values[np.isnan(values)] = 0
    np.rint(values, out=values)
    np.clip(values, 0, 255, out=values)
    return Image.frombytes(chosen, (width, height), np.ascontiguousarray(values.astype(np.uint8)).tobytes())


def check_floating(array: NDArray[Any], wants: str) -> None:
    """Raise TypeError unless the dtype is a floating one, bfloat16 included; `wants` is the sentence's beginning."""
    # NumPy does not count bfloat16, which is not its own, as floating
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise TypeError(f"{wants} floating-point values, e.g. float32; got {array.dtype}")


def _three_axes(image: ArrayLike) -> NDArray[Any]:
    values = np.asarray(image)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3:
        raise ValueError(f"wanted one picture, shape (height, width, channels) or (height, width); got {values.shape}")
    return values


def _write(values: NDArray[Any], target: NDArray[Any], coefs: Coefs | None) -> None:
    """Write to `target`, a view whose last axis is that of the channels."""
    fits = target.ndim == 3 and values.shape[:2] == target.shape[:2] and values.shape[2] in (1, target.shape[2])
    if not fits:
        raise ValueError(
            f"a picture of (height, width, channels) = {values.shape} does not fit into an array for {target.shape}: "
            "resize it, or open it in another mode"
        )
    if not np.can_cast(values.dtype, target.dtype, "safe"):
        raise TypeError(
            f"an array of {target.dtype} cannot hold all values of {values.dtype}: convert the picture before"
        )
    if coefs is None:
        np.copyto(target, values)
        return
    check_floating(target, "coefficients are for an array of")
    divisor, offset = _for_channels(coefs, target.dtype, target.shape[2])
    np.copyto(target, values)
    target /= divisor
    target -= offset


def _for_channels(coefs: Coefs, dtype: np.dtype[Any], channels: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Divisors and offsets, each of one channel or of all."""
    divisor, offset = coefs[dtype]
    if len(divisor) not in (1, channels):
        raise ValueError(f"coefficients for {len(divisor)} channels do not fit a picture of {channels}")
    return divisor, offset
