"""`Normalize` and `Oklab`: values of channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._arguments import choice
from hydrax_gpu.decode.base import Bound, Decode, Kept, Rows
from hydrax_gpu.decode.checks import dtype_in, number, numbers

if TYPE_CHECKING:
    from hydrax_gpu._kernels.host import Library

__all__ = ["AxisOrder", "Normalize", "Oklab"]

AxisOrder: TypeAlias = Literal["HWC", "CHW", "HWC->CHW", "CHW->HWC"]
"""Where the channels are: last, first, last in what the loader function writes and first in the batch, or the reverse.
There may be any number of other axes."""

_WAYS: dict[str, Literal["last", "first", "planes", "pixels"]] = {
    **{"HWC": "last", "CHW": "first", "HWC->CHW": "planes", "CHW->HWC": "pixels"}
}


@final
@dataclass(frozen=True, slots=True)
class Normalize(Decode):
    """Affine conversion to another dtype: `(x / unit - mean) / std`, by channel.

    It is computed as `x * scale + bias` in float32, where `scale = 1 / (unit * std)` and `bias = -mean / std` are
    rounded once, and the product and the sum once each. The result is rounded to nearest, ties to even; for uint8 it
    saturates, and NaN becomes 0.

    Inputs (`numpy_dtype`) are uint8, int8, uint16, int16, int32, float16, bfloat16, float32; outputs (`jax_dtype`) are
    uint8, float16, bfloat16, float32.

    Attributes:
        mean: subtracted; a number, or one for each channel.
        std: divided by; a number, or one for each channel.
        unit: the input value that counts as 1: 255 for the usual means of 8-bit pictures.
        order: where the channels are, and whether they move.
    """

    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    unit: float = 1.0
    order: AxisOrder = "HWC"

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, numbers(f"Normalize: {name}", getattr(self, name)))
        object.__setattr__(self, "unit", number("Normalize: unit", self.unit))
        choice("Normalize: order", self.order, tuple(_WAYS))
        many = {len(each) for each in (self.mean, self.std) if isinstance(each, tuple)}
        if len(many) > 1:
            raise ValueError(f"Normalize: got {self.mean} and {self.std}, wanted as many means as standard deviations")
        if not (np.isfinite(self.scale).all() and np.isfinite(self.bias).all()):
            raise ValueError(
                f"Normalize: mean {self.mean}, std {self.std} and unit {self.unit} make a scale of {self.scale} and a "
                f"bias of {self.bias}, wanted finite float32 numbers"
            )

    @property
    def scale(self) -> npt.NDArray[np.float32]:
        """`1 / (unit * std)`, float32, of shape `()` or `(channels,)`."""
        with np.errstate(all="ignore"):
            return (1.0 / (np.float64(self.unit) * np.asarray(self.std, np.float64))).astype(np.float32)

    @property
    def bias(self) -> npt.NDArray[np.float32]:
        """`-mean / std`, float32, of shape `()` or `(channels,)`."""
        with np.errstate(all="ignore"):
            return (-np.asarray(self.mean, np.float64) / np.asarray(self.std, np.float64)).astype(np.float32)

    def outputs(self, name: str, declared: Mapping[str, Kept]) -> dict[str, Kept]:
        from hydrax_gpu._kernels.convert import INPUTS, OUTPUTS

        shape, source, wanted = declared[name]
        dtype_in("Normalize", "numpy_dtype", source, INPUTS)
        dtype_in("Normalize", "jax_dtype", wanted, OUTPUTS)
        channels = max(self.scale.size, self.bias.size) if self.scale.ndim or self.bias.ndim else None
        if "->" in self.order and len(shape) < 2:
            raise ValueError(f"Normalize: order {self.order!r} needs items of two axes or more, got shape {shape}")
        if channels is not None:
            found = shape[axis_of(self.order)] if shape else None
            if found != channels:
                raise ValueError(
                    f"Normalize: got {channels} means or standard deviations, but shape {shape} has "
                    f"{found if shape else 'no'} channels by order {self.order!r}"
                )
        return {name: Kept(moved(shape, self.order), wanted, wanted)}

    def bind(
        self, library: Library | None, name: str, declared: Mapping[str, Kept], outputs: Mapping[str, Kept]
    ) -> Bound:
        from hydrax_gpu._kernels.convert import Convert

        shape, source, _ = declared[name]
        way = _WAYS[self.order]
        scale, bias = np.broadcast_arrays(self.scale, self.bias)
        flat = False
        if scale.ndim == 0:
            # without channels of its own, an item that keeps its order is one plane
            flat = way in ("last", "first")
            scale, bias = (np.full(1 if flat else shape[axis_of(self.order)], each) for each in (scale, bias))
            way = "first" if flat else way
        kernel = Convert(
            library, (1, math.prod(shape)) if flat else shape, source, outputs[name].dtype, way, scale, bias
        )

        def decode(loaded: Rows, batch: Rows) -> Mapping[int, str]:
            given, out = loaded[name], batch[name]
            if flat:
                given, out = given.reshape(len(given), 1, -1), out.reshape(len(out), 1, -1)
            kernel(given, out)
            return {}

        return decode


@final
@dataclass(frozen=True, slots=True)
class Oklab(Decode):
    """Colours from sRGB to Oklab, or with `inverse` back.

    sRGB is uint8 (0..255) or float32 (0..1), Oklab is float32, float16 or bfloat16; L is 1 for white. The definition is
    Björn Ottosson's, https://bottosson.github.io/posts/oklab/, with sRGB's transfer function of IEC 61966-2-1. What is
    not finite becomes NaN, and 0 in uint8.

    Attributes:
        order: where the three channels are: "HWC"; "HWC->CHW", only to Oklab; or "CHW->HWC", only back.
        inverse: from Oklab to sRGB.
    """

    order: AxisOrder = "HWC"
    inverse: bool = False

    def __post_init__(self) -> None:
        choice("Oklab: order", self.order, ("HWC", "CHW->HWC" if self.inverse else "HWC->CHW"))

    def outputs(self, name: str, declared: Mapping[str, Kept]) -> dict[str, Kept]:
        from hydrax_gpu._kernels.srgb_oklab import LAB, SRGB

        shape, source, wanted = declared[name]
        dtype_in("Oklab", "numpy_dtype", source, LAB if self.inverse else SRGB)
        dtype_in("Oklab", "jax_dtype", wanted, SRGB if self.inverse else LAB)
        if len(shape) < 1 + ("->" in self.order) or shape[axis_of(self.order)] != 3:
            raise ValueError(f"Oklab: got shape {shape}, wanted 3 channels as order {self.order!r} has them")
        return {name: Kept(moved(shape, self.order), wanted, wanted)}

    def bind(
        self, library: Library | None, name: str, declared: Mapping[str, Kept], outputs: Mapping[str, Kept]
    ) -> Bound:
        from hydrax_gpu._kernels.srgb_oklab import ColourWay, SrgbOklab

        shape, source, _ = declared[name]
        way = cast("ColourWay", _WAYS[self.order])
        kernel = SrgbOklab(library, shape, source, outputs[name].dtype, way, self.inverse)

        def decode(loaded: Rows, batch: Rows) -> Mapping[int, str]:
            kernel(loaded[name], batch[name])
            return {}

        return decode


def axis_of(order: str) -> int:
    """Of the channels, in what the loader function writes."""
    return 0 if order.startswith("CHW") else -1


def moved(shape: tuple[int, ...], order: str) -> tuple[int, ...]:
    """The shape that a picture of this shape has in the batch."""
    if order == "HWC->CHW":
        return (shape[-1], *shape[:-1])
    return (*shape[1:], shape[0]) if order == "CHW->HWC" else shape
