"""The work of the benchmark `jpeg` as plain functions, and how its result is judged. Workers import this: no jax here.

A picture is 224 × 224 × 3 `uint8`: a random part of a JPEG file, resized, half of them mirrored. Each loader also
hands over the file's number (`index`), and where it can the part that it took (`box`: x, y, width, height, and 1 if
mirrored), so that its pictures can be compared with what they should be.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import local
from typing import Any

import numpy as np

SIZE = 224
SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
CHECKED = 256
"""How many pictures are compared with the reference before anything is measured."""
PASSES = 16
"""How often the files are gone through before parts are used again, where they are drawn before."""
LOWEST_MEAN, LOWEST = 30.0, 20.0
"""dB. Right pictures by the coarsest method are at 40 dB on average, wrong boxes or missing flips below 20."""

PHOTOS = "HYDRAX_BENCHMARK_PHOTOS"
"""Environment variable with the folder of the files."""
DECODER = "HYDRAX_BENCHMARK_DECODER"
"""Environment variable with the decoder of the peers that take a Python function, if not the fastest."""
DECODERS = {"nvImageCodec": "nvidia.nvimgcodec", "simplejpeg": "simplejpeg"}
"""The fastest first: it decodes a part alone. Each with its module."""

Box = tuple[int, int, int, int]


def draw(uniform: Callable[[], float], width: int, height: int) -> Box:
    """A random part: x, y, width, height. The usual random-resized crop (torchvision's `RandomResizedCrop`).

    `uniform` gives numbers from 0 to 1. The share of the area is uniform in `SCALE`, the logarithm of the aspect ratio
    in that of `RATIO`; after ten parts that do not fit, it is the largest one in the middle.
    """
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for _ in range(10):
        area = width * height * (SCALE[0] + (SCALE[1] - SCALE[0]) * uniform())
        ratio = math.exp(low + (high - low) * uniform())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(uniform() * (width - w + 1)), int(uniform() * (height - h + 1)), w, h
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (width - w) // 2, (height - h) // 2, w, h


def number_of(path: str) -> int:
    """The file's number, which is its name."""
    return int(path[-8:-4])


class Fast:
    """Decodes with the fastest decoder that is a Python package, and resizes by OpenCV's linear interpolation.

    That is nvImageCodec on the CPU, which decodes a region alone, or simplejpeg, which decodes everything. Buffers and
    decoders are those of the thread that calls. OpenCV's own threads are turned off: the loader has its two.
    """

    def __init__(self) -> None:
        self._mine = local()

    def __call__(self, path: str, uniform: Callable[[], float], out: np.ndarray) -> tuple[int, ...]:
        """Fill `out`, 224 × 224 × 3 `uint8`, and return x, y, width, height of the part, and 1 if it is mirrored."""
        mine = self._mine
        if not hasattr(mine, "region"):
            self._prepare()
        with open(path, "rb", buffering=0) as file:
            data = file.read()
        box, pixels = mine.region(data, uniform)
        flip = uniform() < 0.5
        if flip:
            mine.resize(pixels, (SIZE, SIZE), mine.turned)
            mine.flip(mine.turned, 1, out)
        else:
            mine.resize(pixels, (SIZE, SIZE), out)
        return (*box, int(flip))

    def _prepare(self) -> None:
        import cv2

        cv2.setNumThreads(1)
        mine = self._mine
        mine.resize, mine.flip = cv2.resize, cv2.flip  # linear is OpenCV's default
        mine.turned = np.empty((SIZE, SIZE, 3), np.uint8)
        mine.buffer = np.empty(0, np.uint8)
        mine.region = self._region_by_simplejpeg
        if fastest_decoder() == "nvImageCodec":
            from nvidia import nvimgcodec

            mine.library = nvimgcodec
            mine.decoder = nvimgcodec.Decoder(
                device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
                backends=[nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)],
                max_num_cpu_threads=1,
            )
            mine.region = self._region_by_nvimgcodec

    def _region_by_nvimgcodec(self, data: bytes, uniform: Callable[[], float]) -> tuple[Box, np.ndarray]:
        library = self._mine.library
        stream = library.CodeStream(data)
        x, y, w, h = box = draw(uniform, stream.width, stream.height)
        pixels = self._room(h, w)
        part = stream.get_sub_code_stream(image_idx=0, region=library.Region([y, x], [y + h, x + w]))
        if self._mine.decoder.decode(part, image=library.as_image(pixels)) is None:
            raise RuntimeError("nvImageCodec did not decode a file")
        return box, pixels

    def _region_by_simplejpeg(self, data: bytes, uniform: Callable[[], float]) -> tuple[Box, np.ndarray]:
        import simplejpeg

        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        x, y, w, h = box = draw(uniform, width, height)
        pixels = simplejpeg.decode_jpeg(data, buffer=self._room(height, width))
        return box, pixels[y : y + h, x : x + w]

    def _room(self, height: int, width: int) -> np.ndarray:
        size = height * width * 3
        if self._mine.buffer.size < size:
            self._mine.buffer = np.empty(2 * size, np.uint8)
        return self._mine.buffer[:size].reshape(height, width, 3)


@cache
def fastest_decoder() -> str:
    """The decoder that `Fast` uses here: the first of `DECODERS` that is installed, or what `DECODER` asks for."""
    wanted = os.environ.get(DECODER)
    for name, module in DECODERS.items():
        if wanted in (None, "", name) and _installed(module):
            return name
    if wanted and wanted not in DECODERS:
        raise ValueError(f"{DECODER}={wanted}: wanted one of {', '.join(DECODERS)}")
    raise ModuleNotFoundError("no decoder for the peers: pip install nvidia-nvimgcodec-cu12 or simplejpeg")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


fast = Fast()


def load_fast(data: str, arrays: Mapping[str, np.ndarray], seed: int | None) -> None:
    """A loader function of hydrax's interface on top of `Fast`."""
    arrays["box"][...] = fast(data, random.Random(seed).random, arrays["image"])
    arrays["index"][...] = number_of(data)


def load_pillow(data: str, arrays: Mapping[str, np.ndarray], seed: int | None) -> None:
    """The same with Pillow, whose resize is the reference."""
    from PIL import Image

    uniform = random.Random(seed).random
    with Image.open(data) as image:
        box = draw(uniform, image.width, image.height)
        flip = uniform() < 0.5
        arrays["image"][...] = _exact(image, box, flip)
    arrays["box"][...] = (*box, flip)
    arrays["index"][...] = number_of(data)


def reference(path: Path, box: Sequence[int]) -> np.ndarray:
    """What a picture should be: decoded whole, cropped, resized by the triangle filter with antialiasing, by Pillow."""
    from PIL import Image

    with Image.open(path) as image:
        return _exact(image, (box[0], box[1], box[2], box[3]), bool(box[4]))


def _exact(image: Any, box: Box, flip: bool) -> np.ndarray:
    from PIL import Image

    x, y, w, h = box
    part = image.convert("RGB").crop((x, y, x + w, y + h))
    pixels = np.asarray(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    return pixels[:, ::-1] if flip else pixels


@dataclass(frozen=True)
class PhotoTask:
    """What a loader is asked to load."""

    data: tuple[str, ...]
    """The files."""
    batch: int = 64
    workers: int = 2
    depth: int = 3
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the subject itself."""
    name: str = "photos"
    random: bool = True

    @property
    def load(self) -> Callable[[str, Mapping[str, np.ndarray], int | None], None]:
        """Fills the arrays of one, for a loader that takes a Python function."""
        return load_fast

    @property
    def folder(self) -> Path:
        """Where a loader may keep what it must write before it can load."""
        return Path(self.data[0]).parent

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Item shape and dtype of each array, for a loader whose arrays are declared."""
        return {"image": ((SIZE, SIZE, 3), "uint8"), "index": ((), "int32"), "box": ((5,), "int32")}


def boxes(paths: Sequence[str]) -> np.ndarray:
    """Parts and flips, for what cannot draw them in the same way, or not say which it drew."""
    from PIL import Image

    sizes: dict[str, tuple[int, int]] = {}
    for path in set(paths):
        with Image.open(path) as image:
            sizes[path] = image.size
    uniform = random.Random(0).random
    return np.array([(*draw(uniform, *sizes[path]), uniform() < 0.5) for path in paths], np.int32)


def judge(paths: Sequence[str], batches: Sequence[Mapping[str, np.ndarray]], batch: int) -> dict[str, float]:
    """Compare the first batches with the reference.

    Returns:
        `psnr_db`, the mean over the pictures of 10 log10(255² / mean squared error); `psnr_low_db`, the worst of them;
        `mean_error`, the mean of picture minus reference in steps of 255 (0 unless a method makes pictures darker or
        brighter); `area`, the mean share of a file's pixels that was taken. Empty for a loader that does not say which
        part it took: then only shape, number and brightness can be checked.

    Raises:
        AssertionError: If they are not what was asked for.
    """
    from PIL import Image

    values: list[float] = []
    errors: list[float] = []
    areas: list[float] = []
    flips = 0
    for arrays in batches:
        images, numbers = arrays["image"], arrays["index"].ravel()
        if images.shape != (batch, SIZE, SIZE, 3) or images.dtype != np.uint8 or len(numbers) != batch:
            raise AssertionError(f"a batch has pictures of {images.dtype} {images.shape} and {len(numbers)} numbers")
        if len(set(numbers.tolist())) < batch or not 0 <= numbers.min() <= numbers.max() < len(paths):
            raise AssertionError("the numbers of a batch are not those of as many files")
        for position, number in enumerate(numbers.tolist()):
            path = Path(paths[number])
            if "box" not in arrays:
                with Image.open(path) as image:
                    whole = np.asarray(image.convert("RGB").resize((32, 32))).astype(np.float64)
                # any part of a photograph resembles it this much, and an empty or a noisy picture does not
                if abs(whole.mean() - images[position].mean()) > 100 or images[position].std() < 1:
                    raise AssertionError(f"picture {position} of a batch is not a part of file {number}")
                continue
            box = [int(value) for value in arrays["box"][position]]
            difference = images[position].astype(np.float64) - reference(path, box)
            mean_square = float(np.mean(difference**2))
            values.append(10 * math.log10(255**2 / max(mean_square, 1e-4)))
            errors.append(float(difference.mean()))
            with Image.open(path) as image:
                areas.append(box[2] * box[3] / (image.width * image.height))
            flips += box[4]
    if not values:
        return {}
    result = {
        "psnr_db": float(np.mean(values)),
        "psnr_low_db": min(values),
        "mean_error": float(np.mean(errors)),
        "area": float(np.mean(areas)),
        "flipped": flips / len(values),
    }
    if result["psnr_db"] < LOWEST_MEAN or result["psnr_low_db"] < LOWEST:
        raise AssertionError(f"the pictures are not what was asked for: {result}")
    # Of 256 draws half are mirrored (standard deviation 0.03), and they take 0.44 of the area (0.017), less than the
    # 0.54 that is drawn, as large parts often do not fit.
    if len(values) >= CHECKED and not (0.35 < result["flipped"] < 0.65 and 0.36 < result["area"] < 0.52):
        raise AssertionError(f"parts or mirrored pictures are not drawn as they should be: {result}")
    return result


def all_paths() -> tuple[str, ...]:
    """The files, as strings, in the order of their numbers; they are read once, so that the page cache has them."""
    folder = Path(os.environ[PHOTOS])
    paths = sorted(folder.glob("*.jpg"))
    for path in paths:
        path.read_bytes()
    return tuple(map(str, paths))
