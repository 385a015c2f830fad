"""The loader function of the demo: one PNG file into one row of a batch.

It runs in worker processes, which import this module and nothing else of the demo. So it stays small, and above all it
does not import jax: a worker would spend a second and a few hundred megabytes on that for nothing.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32

#: What one item of the data set is: the path of its file, and the digit written on it.
Digit = tuple[str, int]


def load_digit(digit: Digit, arrays: Mapping[str, NDArray[Any]], seed: int | None) -> None:
    """Fill one item's arrays in place. They are views of the batch itself, so nothing is copied afterwards."""
    path, label = digit
    with Image.open(path) as file:
        picture = file.convert("L")
    if seed is not None:  # a training item; validation items have no seed, and stay as they are
        picture = wobble(picture, np.random.default_rng(seed))
    arrays["image"][..., 0] = np.asarray(picture)
    arrays["label"][...] = label


def wobble(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Scale by up to a sixth and shift by up to 3 pixels.

    Every draw comes from the item's own seed, which depends on the run's seed, the epoch and the item alone: another
    number of workers, or a resumed run, sees the same pictures.
    """
    zoom = rng.uniform(5 / 6, 7 / 6)
    shift_x, shift_y = rng.uniform(-3, 3, size=2)
    centre = SIDE / 2
    # PIL asks for the way back, from a pixel of the result to a point of the source
    across = (1 / zoom, 0, centre - (centre + shift_x) / zoom)
    down = (0, 1 / zoom, centre - (centre + shift_y) / zoom)
    return picture.transform((SIDE, SIDE), Image.Transform.AFFINE, across + down, Image.Resampling.BILINEAR)
