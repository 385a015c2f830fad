"""As much of nvImageCodec 0.9 as the package calls, decoding into host memory by Pillow.

Its names and parameters were compared with the real one's, which decodes in its place on a CPU with the same results.
"""

from __future__ import annotations

import ctypes
import io
import sys
import types
from typing import Any

import numpy as np
import pytest
from PIL import Image


class Region:
    def __init__(self, start: list[int], end: list[int]) -> None:
        self.start, self.end = start, end


class CodeStream:
    def __init__(self, array: np.ndarray[Any, Any], region: Region | None = None) -> None:
        assert array.dtype == np.uint8 and array.ndim == 1
        self.array, self.region = array, region

    def get_sub_code_stream(self, image_idx: int = 0, region: Region | None = None) -> CodeStream:
        assert image_idx == 0
        return CodeStream(self.array, region)


class DecodeParams:
    def __init__(self, apply_exif_orientation: bool = True, color_spec: str = "SRGB") -> None:
        self.apply_exif_orientation, self.color_spec = apply_exif_orientation, color_spec


class Wrapped:
    def __init__(self, source: Any, stream: int) -> None:
        interface = source.__cuda_array_interface__
        assert interface["typestr"] == "|u1" and interface["version"] == 3 and interface["strides"] is None
        assert stream >= 1000
        self.shape = interface["shape"]
        memory = (ctypes.c_ubyte * int(np.prod(self.shape))).from_address(interface["data"][0])
        self.pixels = np.ndarray(self.shape, np.uint8, buffer=memory)


class Decoder:
    made: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(self, device_id: int = -1, max_num_cpu_threads: int = 0, options: str = "") -> None:
        Decoder.made.append({"device_id": device_id, "threads": max_num_cpu_threads, "options": options})

    def decode(
        self, srcs: list[CodeStream], *, images: list[Wrapped], params: DecodeParams, cuda_stream: int = 0
    ) -> list[Wrapped | None]:
        assert len(srcs) == len(images) and cuda_stream >= 1000 and not params.apply_exif_orientation
        return [self._one(source, image, params) for source, image in zip(srcs, images, strict=True)]

    def _one(self, source: CodeStream, image: Wrapped, params: DecodeParams) -> Wrapped | None:
        try:
            with Image.open(io.BytesIO(source.array.tobytes())) as opened:
                whole = np.asarray(opened.convert("L" if params.color_spec == "GRAY" else "RGB"))
        except Exception:
            return None
        assert source.region is not None
        (top, left), (bottom, right) = source.region.start, source.region.end
        image.pixels[...] = whole[top:bottom, left:right].reshape(image.shape)
        return image


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `import nvidia.nvimgcodec` find the stub, until the end of the test."""
    module = types.ModuleType("nvidia.nvimgcodec")
    module.__dict__.update(
        Region=Region, CodeStream=CodeStream, DecodeParams=DecodeParams, Decoder=Decoder,
        ColorSpec=types.SimpleNamespace(GRAY="GRAY", SRGB="SRGB"),
        as_images=lambda sources, cuda_stream=0: [Wrapped(source, cuda_stream) for source in sources],
    )  # fmt: skip
    monkeypatch.setattr(Decoder, "made", [])
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", module)
