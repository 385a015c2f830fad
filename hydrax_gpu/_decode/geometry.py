"""Boxes between the upright picture, the stored one, and the stored one decoded at some eighths of its size."""

from __future__ import annotations

from typing import NamedTuple

from hydrax_gpu._kernels.resize_crop_flip_normalize import EIGHTHS, Box, Turn

__all__ = ["TURNS", "Pixels", "eighths_for", "reduced", "stored_box", "turned"]

TURNS = (
    Turn(),
    Turn(mirror_x=True),
    Turn(mirror_x=True, mirror_y=True),
    Turn(mirror_y=True),
    Turn(swap=True),
    Turn(swap=True, mirror_y=True),
    Turn(swap=True, mirror_x=True, mirror_y=True),
    Turn(swap=True, mirror_x=True),
)
"""How a stored picture is turned to be upright, by its EXIF orientation less one (EXIF 2.32, tag 0x0112)."""


class Pixels(NamedTuple):
    """A part of a picture in whole pixels."""

    x: int
    y: int
    width: int
    height: int


def turned(orientation: int, *, flip: bool) -> Turn:
    """From the stored picture to the upright one, mirrored left to right if `flip`."""
    swap, mirror_x, mirror_y = TURNS[orientation - 1]
    if swap:  # what is left and right in the end are rows of the stored picture
        return Turn(swap, mirror_x, mirror_y != flip)
    return Turn(swap, mirror_x != flip, mirror_y)


def stored_box(box: Box, orientation: int, width: int, height: int) -> Box:
    """A box of the upright picture in the stored one, whose size in pixels is `width` × `height`."""
    swap, mirror_x, mirror_y = TURNS[orientation - 1]
    x, y, w, h = (box.y, box.x, box.height, box.width) if swap else box
    if mirror_x:
        x = EIGHTHS * width - x - w
    if mirror_y:
        y = EIGHTHS * height - y - h
    return Box(x, y, w, h)


def eighths_for(box: Box, height: int, width: int, least: float) -> int:
    """At how many eighths of its size a JPEG picture is decoded, when `box` becomes `height` × `width` pixels.

    The fewest of 8, 4, 2 and 1 that leave the box at least `least` times as large as the result, both ways: with those,
    a block of 8 × 8 coefficients becomes one of 4 × 4, 2 × 2 or 1 pixel by a smaller transform.
    """
    room = min(box.width / (EIGHTHS * width), box.height / (EIGHTHS * height)) / least
    eighths = 8
    while eighths > 1 and room >= 2:
        room /= 2
        eighths //= 2
    return eighths


def reduced(box: Box, eighths: int, width: int, height: int) -> tuple[Box, Pixels]:
    """A box in a picture that is decoded at some eighths of its size.

    Args:
        box: in the stored picture, whose size in pixels is `width` × `height`.
        eighths: 1, 2, 4 or 8.
        width: of the stored picture.
        height: of the stored picture.

    Returns:
        The box in the reduced picture, rounded to the eighth, and the pixels of that which it touches.
    """
    if eighths == 8:
        x, y, right, bottom = box.x, box.y, box.x + box.width, box.y + box.height
        columns, rows = width, height
    else:
        x, y = box.x * eighths // 8, box.y * eighths // 8
        right, bottom = -(-(box.x + box.width) * eighths // 8), -(-(box.y + box.height) * eighths // 8)
        columns, rows = -(-width * eighths // 8), -(-height * eighths // 8)
    first, top = x // EIGHTHS, y // EIGHTHS
    last, end = min(columns, -(-right // EIGHTHS)), min(rows, -(-bottom // EIGHTHS))
    part = Box(x, y, min(right, EIGHTHS * columns) - x, min(bottom, EIGHTHS * rows) - y)
    return part, Pixels(first, top, last - first, end - top)
