"""Which dtypes the kernel `convert` can turn into which, with the values that `numpy.ndarray.astype` and XLA give.

The kernel computes `x * 1 + (-0.0)` in binary32 and rounds the result to the output's dtype, to nearest with ties to
even. (Adding -0.0 changes nothing, while adding 0.0 makes 0.0 of -0.0.) So a conversion is exact in that sense if the
first step, to binary32, loses nothing or the second does nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["exact"]

_SMALL = frozenset({"uint8", "int8", "uint16", "int16", "float16", "bfloat16", "float32"})
_FLOATS = frozenset({"float16", "bfloat16", "float32"})


def exact(source: np.dtype[Any], destination: np.dtype[Any]) -> bool:
    """Whether the kernel converts `source` to `destination` as `astype` does.

    Conversions to integers are not among them: the kernel rounds to nearest, `astype` towards zero. Those of int32 to
    16 bits neither, since they would be rounded twice.
    """
    if source == destination:
        return False
    if source.name == "int32":
        return destination.name == "float32"
    return source.name in _SMALL and destination.name in _FLOATS
