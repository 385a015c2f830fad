"""Conversions of whole arrays, in place: Oklab, and values around zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydrax_gpu.image._arrays import check_floating
from hydrax_gpu.image._coefs import check_scale

# Björn Ottosson's matrices for linear sRGB, as of 2021-01-25. A row gives one of the results.
_LMS_OF_RGB = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_LAB_OF_LMS = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)
_LMS_OF_LAB = (
    (1.0, 0.3963377774, 0.2158037573),
    (1.0, -0.1055613458, -0.0638541728),
    (1.0, -0.0894841775, -1.2914855480),
)
_RGB_OF_LMS = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)


def convert_srgb_to_oklab_frac_hwc(image: NDArray[Any]) -> None:
    """Convert fractional sRGB to Oklab, in place.

    The transfer function of sRGB is that of IEC 61966-2-1, the matrices are those of Björn Ottosson, "A perceptual
    color space for image processing" (https://bottosson.github.io/posts/oklab/). White is (1, 0, 0), black (0, 0, 0);
    the two colour axes stay within ±0.4. Computed in float32, or in float64 if the array has it.

    Args:
        image: Shape (..., height, width, channels), a floating dtype. The first three channels are converted.

    Raises:
        TypeError: If the dtype is no floating one.
        ValueError: If the shape is another, or the array cannot be written to.
    """
    _in_place(image, -1, _oklab_of_srgb)


def convert_srgb_to_oklab_frac_chw(image: NDArray[Any]) -> None:
    """The same for shape (..., channels, height, width). See `convert_srgb_to_oklab_frac_hwc`."""
    _in_place(image, -3, _oklab_of_srgb)


def convert_oklab_to_srgb_frac_hwc(image: NDArray[Any]) -> None:
    """Convert Oklab to fractional sRGB, in place: the way back of `convert_srgb_to_oklab_frac_hwc`.

    Colours that sRGB does not have lie below 0 or above 1 afterwards; nothing is cut off.

    Args:
        image: Shape (..., height, width, channels), a floating dtype. The first three channels are converted.

    Raises:
        TypeError: If the dtype is no floating one.
        ValueError: If the shape is another, or the array cannot be written to.
    """
    _in_place(image, -1, _srgb_of_oklab)


def convert_oklab_to_srgb_frac_chw(image: NDArray[Any]) -> None:
    """The same for shape (..., channels, height, width). See `convert_oklab_to_srgb_frac_hwc`."""
    _in_place(image, -3, _srgb_of_oklab)


def convert_frac_to_balanced_hwc(image: NDArray[Any], scale: float = 1.0) -> None:
    """Convert 0..1 to -scale..scale, in place.

    Args:
        image: Shape (..., height, width, channels), a floating dtype. The first three channels are converted, alpha is
            left as it is.
        scale: The largest value, above 0.

    Raises:
        TypeError: If the dtype is no floating one.
        ValueError: If the shape is another, the array cannot be written to, or `scale` is not above 0.
    """
    _to_balanced(_colours(image, -1), scale)


def convert_frac_to_balanced_chw(image: NDArray[Any], scale: float = 1.0) -> None:
    """The same for shape (..., channels, height, width). See `convert_frac_to_balanced_hwc`."""
    _to_balanced(_colours(image, -3), scale)


def convert_balanced_to_frac_hwc(image: NDArray[Any], scale: float = 1.0) -> None:
    """Convert -scale..scale to 0..1, in place: the way back of `convert_frac_to_balanced_hwc`.

    Args:
        image: Shape (..., height, width, channels), a floating dtype. The first three channels are converted, alpha is
            left as it is.
        scale: The largest value, above 0.

    Raises:
        TypeError: If the dtype is no floating one.
        ValueError: If the shape is another, the array cannot be written to, or `scale` is not above 0.
    """
    _to_frac(_colours(image, -1), scale)


def convert_balanced_to_frac_chw(image: NDArray[Any], scale: float = 1.0) -> None:
    """The same for shape (..., channels, height, width). See `convert_balanced_to_frac_hwc`."""
    _to_frac(_colours(image, -3), scale)


def _colours(image: NDArray[Any], axis: int) -> NDArray[Any]:
    """A view of the first three channels, as the last axis."""
    check_floating(image, "conversions in place take an array of")
    order = "(..., height, width, channels)" if axis == -1 else "(..., channels, height, width)"
    if image.ndim < 3 or image.shape[axis] < 3:
        raise ValueError(f"wanted an array of shape {order} with 3 channels or more; got {image.shape}")
    if not image.flags.writeable:
        raise ValueError("the array cannot be written to, and conversions are made in place: pass a copy of it")
    return np.moveaxis(image, axis, -1)[..., :3]


def _in_place(
    image: NDArray[Any], axis: int, function: Callable[[Sequence[NDArray[Any]]], Sequence[NDArray[Any]]]
) -> None:
    """Apply a function of three planes. Half precision would lose digits at every step of it."""
    view = _colours(image, axis)
    computing = np.float64 if image.dtype.itemsize > 4 else np.float32
    # contiguous planes: three channels side by side keep vector units from being used
    for channel, result in enumerate(function([view[..., k].astype(computing, order="C") for k in range(3)])):
        view[..., channel] = result


def _mix(matrix: Sequence[Sequence[float]], planes: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """A 3 × 3 matrix times each pixel. Not by BLAS, whose order of additions and threads are its own affair."""
    x, y, z = planes
    return [a * x + b * y + c * z for a, b, c in matrix]


def _oklab_of_srgb(planes: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    linear = [np.where(x <= 0.04045, x / 12.92, ((np.maximum(x, 0.04045) + 0.055) / 1.055) ** 2.4) for x in planes]
    return _mix(_LAB_OF_LMS, [np.cbrt(x) for x in _mix(_LMS_OF_RGB, linear)])


def _srgb_of_oklab(planes: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    linear = _mix(_RGB_OF_LMS, [x * x * x for x in _mix(_LMS_OF_LAB, planes)])
    return [np.where(x <= 0.0031308, x * 12.92, np.maximum(x, 0.0031308) ** (1 / 2.4) * 1.055 - 0.055) for x in linear]


def _to_balanced(view: NDArray[Any], scale: float) -> None:
    check_scale(scale)
    view -= 0.5
    view *= 2.0 * scale


def _to_frac(view: NDArray[Any], scale: float) -> None:
    check_scale(scale)
    view /= 2.0 * scale
    view += 0.5
