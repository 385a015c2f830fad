"""Coefficients that take pictures from 0..255 to the range that a model wants."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray


@final
class Coefs:
    """What takes pictures from 0..255 to the range that a model wants, and back: a divisor and an offset a channel.

    `write_hwc` and `write_chw` compute `value / divisor - offset`, `from_srgb_hwc` computes the inverse,
    `(value + offset) * divisor`. `coefs[dtype]` is the array in that dtype.

    Args:
        coefs: Shape (2, channels): the divisors, then the offsets. One channel stands for all.

    Raises:
        ValueError: If the shape is another, if a number is not finite, or a divisor is 0.
    """

    __slots__ = ("_cache", "_coefs")

    FRACTIONAL: ClassVar[Coefs]
    """From 0..255 to 0..1, whatever the number of channels."""

    IMAGENET_SRGB: ClassVar[Coefs]
    """ImageNet's mean (123.675, 116.28, 103.53) and standard deviation (58.395, 57.12, 57.375) of R, G and B."""

    IMAGENET_SRGB_ALPHA: ClassVar[Coefs]
    """The same, and alpha from 0..255 to 0..1."""

    def __init__(self, coefs: ArrayLike) -> None:
        array = np.array(coefs, np.float64)
        if array.ndim != 2 or len(array) != 2 or array.shape[1] == 0:
            raise ValueError(
                f"Coefs takes two rows, the divisors and the offsets of the channels, e.g. [[255.0], [0.0]]; "
                f"got shape {array.shape}"
            )
        if not np.isfinite(array).all() or not array[0].all():
            raise ValueError(f"Coefs takes finite numbers and divisors other than 0; got {array.tolist()}")
        array.setflags(write=False)
        self._coefs = array
        self._cache: dict[np.dtype[Any], NDArray[Any]] = {}

    def __getitem__(self, dtype: DTypeLike) -> NDArray[Any]:
        """The coefficients in a dtype, shape (2, channels); read-only, made once."""
        wanted = np.dtype(dtype)
        found = self._cache.get(wanted)
        if found is None:
            found = self._coefs.astype(wanted)
            found.setflags(write=False)
            self._cache[wanted] = found
        return found

    def __repr__(self) -> str:
        """As it can be written in a program."""
        return f"Coefs({self._coefs.tolist()})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Coefs, (self._coefs.tolist(),)

    @staticmethod
    @lru_cache(maxsize=8)
    def balanced(scale: float = 1.0, *, alpha: bool = False) -> Coefs:
        """From 0..255 to -scale..scale.

        Args:
            scale: The largest value, above 0.
            alpha: Whether there is a fourth channel, which goes to 0..1.

        Raises:
            ValueError: If `scale` is not above 0.
        """
        check_scale(scale)
        divisor = 127.5 / scale
        if alpha:
            return Coefs([[divisor, divisor, divisor, 255.0], [scale, scale, scale, 0.0]])
        return Coefs([[divisor, divisor, divisor], [scale, scale, scale]])


# mean and standard deviation of ImageNet's training pictures, in steps of 255 as everyone uses them
_IMAGENET_STD = (58.395, 57.12, 57.375)
_IMAGENET_OFFSET = tuple(mean / std for mean, std in zip((123.675, 116.28, 103.53), _IMAGENET_STD, strict=True))
Coefs.FRACTIONAL = Coefs([[255.0], [0.0]])
Coefs.IMAGENET_SRGB = Coefs([_IMAGENET_STD, _IMAGENET_OFFSET])
Coefs.IMAGENET_SRGB_ALPHA = Coefs([(*_IMAGENET_STD, 255.0), (*_IMAGENET_OFFSET, 0.0)])


def check_scale(scale: float) -> None:
    """Raise ValueError unless it is a finite number above 0."""
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale={scale}: wanted a finite number above 0")
