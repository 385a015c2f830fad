"""Crop boxes and flips: pure functions of an item's seed and the size of its upright picture.

The random words are Philox4x32-10 with the seed as the key (see `hydrax_gpu._plan.philox`) and the counter
`(attempt, 0, 0, PURPOSE)`; attempt 0 gives the flip, attempts 1 to 10 give crop boxes. It is computed by the host
library, or with Python's integers, because for one lane that takes a tenth of NumPy's time.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import TypeAlias

from hydrax_gpu._kernels.host import Library
from hydrax_gpu._kernels.resize_crop_flip_normalize import EIGHTHS, Box

__all__ = ["ATTEMPTS", "PURPOSE", "Words", "center_box", "flipped", "host_words", "random_box", "words"]

Words: TypeAlias = Callable[[int, int], tuple[int, int, int, int]]
"""`(attempt, seed)` → four 32-bit random words."""

PURPOSE = 0x696D6731
"""Last word of the counter, so that no other use of an item's seed shares a number: `img1` in ASCII."""

ATTEMPTS = 10

_MASK = 0xFFFFFFFF
_UNIT = 2.0**-32


def words(attempt: int, seed: int) -> tuple[int, int, int, int]:
    """Four 32-bit random words."""
    x0, x1, x2, x3 = attempt, 0, 0, PURPOSE
    k0, k1 = seed & _MASK, seed >> 32 & _MASK
    for _ in range(10):
        p, q = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        x0, x1, x2, x3 = (q >> 32) ^ x1 ^ k0, q & _MASK, (p >> 32) ^ x3 ^ k1, p & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return x0, x1, x2, x3


def host_words(library: Library) -> Words:
    """The same by the host library. The function belongs to one thread."""
    philox = library.function("hx_philox")
    philox.argtypes = (ctypes.c_uint64, ctypes.c_void_p)
    philox.restype = None
    buffer = (ctypes.c_uint32 * 4)()
    address = ctypes.addressof(buffer)

    def draw(attempt: int, seed: int) -> tuple[int, int, int, int]:
        buffer[:] = (attempt, 0, 0, PURPOSE)
        philox(seed, address)
        a, b, c, d = buffer
        return a, b, c, d

    return draw


def flipped(seed: int, probability: float, words: Words = words) -> bool:
    """Whether the picture is mirrored: `word 0 of attempt 0 / 2**32 < probability`."""
    if probability <= 0:
        return False
    return words(0, seed)[0] * _UNIT < probability


def random_box(
    seed: int,
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    words: Words = words,
) -> Box:
    """A part of the picture with a random area and a random aspect ratio.

    The scheme of C. Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6, as it is common. With
    words `a, b, c, d` of an attempt divided by 2**32: the area is `width height (s0 + a (s1 - s0))`, the ratio of the
    sides `r0 (r1 / r0)**b`; the sides are `round(sqrt(area ratio))` and `round(sqrt(area / ratio))`, halves to even.
    If both are at least 1 and fit the picture, the box begins at `(floor(c (width - w + 1)), floor(d (height - h +
    1)))`. Otherwise the next attempt; after ten, the largest box in the middle whose ratio is within the range.

    Args:
        seed: of the item, in `[0, 2**64)`.
        width: of the upright picture, in pixels.
        height: of the upright picture, in pixels.
        scale: range of the box's share of the picture's area.
        ratio: range of width by height.
        words: where random words come from.
    """
    for attempt in range(1, ATTEMPTS + 1):
        a, b, c, d = words(attempt, seed)
        area = width * height * (scale[0] + a * _UNIT * (scale[1] - scale[0]))
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** (b * _UNIT)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = c * (width - w + 1) >> 32, d * (height - h + 1) >> 32
            return Box(EIGHTHS * x, EIGHTHS * y, EIGHTHS * w, EIGHTHS * h)
    w, h = width, height
    if width < ratio[0] * height:
        h = max(1, round(width / ratio[0]))
    elif width > ratio[1] * height:
        w = max(1, round(height * ratio[1]))
    x, y = (width - w) // 2, (height - h) // 2
    return Box(EIGHTHS * x, EIGHTHS * y, EIGHTHS * w, EIGHTHS * h)


def center_box(width: int, height: int, size: tuple[int, int], resize: int) -> Box:
    """The middle `size` (height, width) of the picture after its shorter side was resized to `resize`, to the eighth.

    Nothing is resized twice: the box is that part of the picture as it is, `size * min(width, height) / resize` pixels
    in size, rounded to an eighth of a pixel, halves to even.
    """
    short = min(width, height)
    w = min(EIGHTHS * width, max(1, round(EIGHTHS * size[1] * short / resize)))
    h = min(EIGHTHS * height, max(1, round(EIGHTHS * size[0] * short / resize)))
    return Box((EIGHTHS * width - w) // 2, (EIGHTHS * height - h) // 2, w, h)
