"""Which declared arrays a device decodes, and how: the same `Decode`s, bound to another library of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hydrax_gpu._spec import Layout, kept

__all__ = ["bind", "decodable"]


def decodable(layout: Layout) -> bool:
    """Whether a device can decode the arrays of a layout.

    `PadRagged` is left to the workers, and with it the others of its batch: row splits that do not fit are the fault of
    an item, and have to be known before the batch is handed out. What has no decode needs none.
    """
    if not layout.decodes:
        return False
    from hydrax_gpu.decode.int8 import Int8Blocks
    from hydrax_gpu.decode.packed import Dequantize, UnpackBits
    from hydrax_gpu.decode.pictures import Normalize, Oklab

    return all(
        isinstance(decode, Normalize | Oklab | UnpackBits | Dequantize | Int8Blocks) for _, decode in layout.decodes
    )


def bind(layout: Layout, library: Any) -> Sequence[Callable[[Any, Any], Any]]:
    """The decodes of a layout, each to be called with arrays by name: as loaded, and as the batch holds them.

    Args:
        layout: one that is `decodable`.
        library: what has the kernels' entries, or None for the NumPy twins. If they run on a device, the arrays are of
            device memory: only their shapes, strides and addresses are looked at.
    """
    declared, outputs = kept(layout.wire), kept(layout.arrays)
    return [decode.bind(library, name, declared, outputs) for name, decode in layout.decodes]
