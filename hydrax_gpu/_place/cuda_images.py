"""`ImageDecoder` for CUDA, by nvImageCodec. Imported only where it is installed.

On most GPUs the host decodes the Huffman code, on threads of nvImageCodec's own, and the device does the rest; A100 and
its successors have engines that do both. Which of them takes a picture is nvImageCodec's business.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Sequence
from typing import Any, final

import numpy as np

from hydrax_gpu._place.device import Picture

__all__ = ["NvImageDecoder", "Pixels"]

_THREADS = 8

_OPTIONS = ":fancy_upsampling=1"
"""Chroma is interpolated as libjpeg does it, and not repeated."""

REFUSED = "nvImageCodec does not decode it"


@final
class Pixels:
    """Memory of a device, as `__cuda_array_interface__` has it: uint8, `(height, width, channels)`, without gaps.

    Attributes:
        shape: of the pixels.
        address: of the first.
    """

    def __init__(self, shape: tuple[int, int, int], address: int) -> None:
        self.shape, self.address = shape, address

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": "|u1",
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": None,  # whoever decodes there says on which stream
        }


@final
class NvImageDecoder:
    """A decoder of one device.

    Args:
        device_id: number of the CUDA device.
        channels: 3 for RGB, 1 for gray.

    Raises:
        ImportError: nvImageCodec is not installed.
    """

    def __init__(self, device_id: int, channels: int) -> None:
        try:
            codec: Any = importlib.import_module("nvidia.nvimgcodec")
        except ImportError as error:
            raise ImportError(
                f"nvImageCodec cannot be imported ({error}): pip install 'hydrax-gpu[cuda12]' or [cuda13]"
            ) from error
        self._codec = codec
        self._channels = channels
        threads = min(_THREADS, len(os.sched_getaffinity(0)))
        self._decoder = self._new(codec, device_id, threads)
        # Turned by the kernel, of which the crop's box knows.
        color = codec.ColorSpec.GRAY if channels == 1 else codec.ColorSpec.SRGB
        self._params = codec.DecodeParams(apply_exif_orientation=False, color_spec=color)

    @staticmethod
    def _new(codec: Any, device_id: int, threads: int) -> Any:
        return codec.Decoder(device_id=device_id, max_num_cpu_threads=threads, options=_OPTIONS)

    @staticmethod
    def _memory(shape: tuple[int, int, int], address: int) -> Any:
        return Pixels(shape, address)

    def __call__(self, stream: Any, pictures: Sequence[Picture]) -> Sequence[str | None]:
        """See `device.ImageDecoder`."""
        codec = self._codec
        reasons: list[str | None] = [None] * len(pictures)
        sources: list[Any] = []
        targets: list[Any] = []
        given: list[int] = []
        for index, picture in enumerate(pictures):
            memory: Any = (ctypes.c_ubyte * picture.nbytes).from_address(picture.data)
            try:
                whole = codec.CodeStream(np.frombuffer(memory, np.uint8))
                region = codec.Region([picture.y, picture.x], [picture.y + picture.height, picture.x + picture.width])
                sources.append(whole.get_sub_code_stream(image_idx=0, region=region))
            except Exception as error:  # of its own: it cannot read the header
                reasons[index] = f"nvImageCodec does not read it: {type(error).__name__}"
                continue
            targets.append(self._memory((picture.height, picture.width, self._channels), picture.destination))
            given.append(index)
        if given:
            images = codec.as_images(targets, cuda_stream=stream.ptr)
            found = self._decoder.decode(sources, images=images, params=self._params, cuda_stream=stream.ptr)
            for index, image, target in zip(given, found, targets, strict=True):
                if image is None:
                    reasons[index] = REFUSED
                elif tuple(image.shape) != tuple(target.shape):
                    reasons[index] = f"nvImageCodec decodes it to {tuple(image.shape)}, wanted {tuple(target.shape)}"
        return reasons
