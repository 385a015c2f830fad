"""A DALI graph for `gpu_images`, in a module that worker processes can import without jax."""

from __future__ import annotations

from typing import Any

import nvidia.dali.fn as fn
import nvidia.dali.math as math
import nvidia.dali.types as types

SIZE = 224


def random_crop(sample: Any) -> Any:
    """A random part of 8 % to 100 % of the picture's area, of an aspect ratio of 3/4 to 4/3, mirrored or not.

    The shape is drawn in units of the picture's own, and cut off at its sides, where DALI's own operator draws again.
    """
    area = sample.random.uniform((0.08, 1.0))
    ratio = math.exp(sample.random.uniform((-0.2877, 0.2877)))
    side = math.sqrt(area * fn.stack(1 / ratio, ratio))
    extent = math.min(side, 1.0)
    start = sample.random.uniform((0.0, 1.0), shape=2) * (1.0 - extent)
    image = fn.decoders.image_slice(sample.data, start, extent, axis_names="HW", device=sample.mixed)
    image = fn.resize(image, size=(SIZE, SIZE), dtype=types.UINT8)
    return fn.flip(image, horizontal=sample.random.coin_flip())
