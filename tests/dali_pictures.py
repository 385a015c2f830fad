"""Small pictures, made as they are needed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image


def picture(number: int, height: int = 48, width: int = 64) -> npt.NDArray[np.uint8]:
    """A smooth colour picture with some noise, another for each number."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:height, 0:width]
    phases = rng.uniform(0, 2 * np.pi, 3)
    waves = [np.sin(x / rng.uniform(4, 20) + y / rng.uniform(4, 20) + phase) for phase in phases]
    return np.clip(127 + 90 * np.stack(waves, -1) + rng.normal(0, 4, (height, width, 3)), 0, 255).astype(np.uint8)


def encoded(number: int, kind: str = "JPEG", *, height: int = 48, width: int = 64, **options: Any) -> bytes:
    """The picture as a file's contents."""
    data = io.BytesIO()
    Image.fromarray(picture(number, height, width)).save(data, kind, **options)
    return data.getvalue()
