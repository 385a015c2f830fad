"""What an `ImageLoader` was told, checked and complete."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._decode.chain import DECODERS
from hydrax_gpu._kernels.resize_crop_flip_normalize import OUTPUTS, Layout

__all__ = ["CenterCrop", "Color", "Crop", "ImageDeclaration", "Layout", "RandomResizedCrop"]

Color: TypeAlias = Literal["RGB", "gray"]


@final
@dataclass(frozen=True, slots=True)
class RandomResizedCrop:
    """A part of the picture with a random area and a random aspect ratio, at a random place.

    Attributes:
        scale: range of its share of the picture's area, `0 < low <= high <= 1`.
        ratio: range of its width by its height, `0 < low <= high`; logarithms are drawn uniformly.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        for name, limit in (("scale", 1.0), ("ratio", math.inf)):
            value: Any = getattr(self, name)
            try:
                low, high = map(float, value)
            except (TypeError, ValueError):
                raise TypeError(f"RandomResizedCrop {name}: got {value!r}, wanted two numbers") from None
            if not (0 < low <= high <= limit and high < math.inf):
                raise ValueError(
                    f"RandomResizedCrop {name}: got {value!r}, wanted (low, high) with 0 < low <= high"
                    f"{' <= 1' if limit == 1 else ''}"
                )
            object.__setattr__(self, name, (low, high))


@final
@dataclass(frozen=True, slots=True)
class CenterCrop:
    """The middle of the picture, after its shorter side was resized to `resize` pixels.

    Attributes:
        resize: pixels, at least the larger side of the loader's `size`; None for 8/7 of that, rounded: 256 for 224.
    """

    resize: int | None = None

    def shorter_side(self, size: tuple[int, int]) -> int:
        """`resize`, or what it is by default."""
        return round(max(size) * 8 / 7) if self.resize is None else self.resize


Crop: TypeAlias = RandomResizedCrop | CenterCrop | None


@final
@dataclass(frozen=True, slots=True)
class ImageDeclaration:
    """All that determines the pixels of an `ImageLoader`; its arguments describe the fields.

    `mean` and `std` have a value for each channel, and `decoders` those that are asked for JPEG pictures.
    """

    size: tuple[int, int]
    """Height and width."""
    crop: Crop
    """Of training items."""
    validation_crop: Crop
    """Of validation items."""
    flip: float
    """Chance of a training item to be mirrored."""
    layout: Layout
    """Order of the axes."""
    dtype: np.dtype[Any]
    """Of the rows."""
    mean: tuple[float, ...]
    """Of each channel, in units in which white is 1."""
    std: tuple[float, ...]
    """Of each channel, in units in which white is 1."""
    color: Color
    """RGB or gray."""
    background: tuple[int, int, int]
    """Behind pictures with alpha."""
    srgb: bool
    """Whether ICC profiles are honoured."""
    max_pixels: int
    """Of a picture."""
    max_file_bytes: int
    """Of a file."""
    decoders: tuple[str, ...]
    """Of JPEG pictures."""

    @property
    def channels(self) -> int:
        """3 or 1."""
        return 3 if self.color == "RGB" else 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a row."""
        height, width = self.size
        return (height, width, self.channels) if self.layout == "HWC" else (self.channels, height, width)

    def affine(self) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.float32] | None]:
        """`(scale, bias)` with `row = scale * value + bias` for values of 0 to 255, by channel; None for uint8."""
        if self.dtype.name == "uint8":
            return None, None
        mean, std = np.array(self.mean), np.array(self.std)
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    @staticmethod
    def of(
        *,
        size: Any,
        crop: Any,
        validation_crop: Any,
        flip: Any,
        layout: Any,
        dtype: Any,
        mean: Any,
        std: Any,
        color: Any,
        background: Any,
        srgb: Any,
        max_pixels: Any,
        max_file_bytes: Any,
        decoders: Any,
    ) -> ImageDeclaration:
        """Checks and completes what a user gave.

        Raises:
            ValueError, TypeError: something of it is not valid; the message says what and what was wanted.
        """
        both = _size(size)
        for name, value, wanted in (("layout", layout, ("HWC", "CHW")), ("color", color, ("RGB", "gray"))):
            if value not in wanted:
                raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(map(repr, wanted))}")
        kind = np.dtype(dtype)
        if kind.name not in OUTPUTS:
            raise ValueError(f"dtype: got {kind.name}, wanted one of {', '.join(OUTPUTS)}")
        channels = 3 if color == "RGB" else 1
        if kind.name == "uint8" and (mean is not None or std is not None):
            raise ValueError(
                "mean and std are for floats, and the dtype is uint8: ask for dtype=np.float32, or leave them to the "
                "training step, which gets a quarter of the bytes then"
            )
        deviations = _by_channel("std", 1.0 if std is None else std, channels)
        if not all(value > 0 for value in deviations):
            raise ValueError(f"std: got {std!r}, wanted numbers above 0")
        return ImageDeclaration(
            size=both,
            crop=_crop("crop", crop, both),
            validation_crop=_validation(crop, validation_crop, both),
            flip=_chance(flip),
            layout=layout,
            dtype=kind,
            mean=_by_channel("mean", 0.0 if mean is None else mean, channels),
            std=deviations,
            color=color,
            background=_background(background),
            srgb=bool(srgb),
            max_pixels=_positive("max_pixels", max_pixels),
            max_file_bytes=_positive("max_file_bytes", max_file_bytes),
            decoders=_decoders(decoders),
        )


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: got {value!r}, wanted an integer") from None


def _positive(name: str, value: Any) -> int:
    number = _integer(name, value)
    if number < 1:
        raise ValueError(f"{name}: got {number}, wanted at least 1")
    return number


def _size(value: Any) -> tuple[int, int]:
    parts = tuple(cast("Sequence[Any]", value)) if isinstance(value, tuple | list) else (value, value)
    if len(parts) != 2:
        raise ValueError(f"size: got {value!r}, wanted (height, width) or one number for both")
    height, width = (_positive("size", part) for part in parts)
    if max(height, width) > 1 << 14:
        raise ValueError(f"size: got {value!r}, wanted at most {1 << 14} pixels")
    return height, width


def _crop(name: str, value: Any, size: tuple[int, int]) -> Crop:
    if value is not None and not isinstance(value, RandomResizedCrop | CenterCrop):
        raise TypeError(f"{name}: got {value!r}, wanted RandomResizedCrop(...), CenterCrop(...) or None")
    if isinstance(value, CenterCrop) and _positive("CenterCrop resize", value.shorter_side(size)) < max(size):
        raise ValueError(
            f"{name}: got {value!r}, wanted a resize of at least {max(size)}, or the crop would not fit the picture"
        )
    return value


def _validation(crop: Any, value: Any, size: tuple[int, int]) -> Crop:
    if isinstance(value, str):
        if value != "default":
            raise ValueError(f"validation_crop: got {value!r}, wanted a crop, None or 'default'")
        value = CenterCrop() if isinstance(crop, RandomResizedCrop) else crop
    if isinstance(value, RandomResizedCrop):
        raise ValueError("validation_crop: got a RandomResizedCrop, but validation items have no seed to draw from")
    return _crop("validation_crop", value, size)


def _chance(value: Any) -> float:
    if isinstance(value, bool):
        return 0.5 if value else 0.0
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"flip: got {value!r}, wanted a chance from 0 to 1, True or False")
    return float(value)


def _by_channel(name: str, value: Any, channels: int) -> tuple[float, ...]:
    try:
        each = tuple(float(part) for part in np.broadcast_to(np.asarray(value, np.float64), (channels,)))
    except ValueError:
        raise ValueError(f"{name}: got {value!r}, wanted a number, or one for each of {channels} channels") from None
    if not all(map(math.isfinite, each)):
        raise ValueError(f"{name}: got {value!r}, wanted finite numbers")
    return each


def _background(value: Any) -> tuple[int, int, int]:
    parts = tuple(cast("Sequence[Any]", value)) if isinstance(value, tuple | list) else ()
    if len(parts) != 3 or not all(0 <= _integer("background", part) <= 255 for part in parts):
        raise ValueError(f"background: got {value!r}, wanted (red, green, blue), each 0 to 255")
    red, green, blue = map(int, parts)
    return red, green, blue


def _decoders(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else tuple(value)
    if not names or len(set(names)) != len(names) or not set(names) <= set(DECODERS):
        raise ValueError(f"decoders: got {value!r}, wanted some of {', '.join(map(repr, DECODERS))}, each once")
    return names
