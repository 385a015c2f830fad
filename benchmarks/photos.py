"""1,024 photographic JPEG files of about 500 × 375 pixels and 106 KB: what ImageNet's files are like, freely available.

`python -m benchmarks.photos` makes them, if they are not there, and says what they are.

They are cut from the photographs that the wheels of scikit-image and scikit-learn ship (downloads are not needed). Each
file is a random part of one of them, turned by a few degrees, perhaps mirrored, resized, with brightness, contrast and
sensor noise of its own. Its size is drawn, and the JPEG quality follows from it, as sizes are what a decoder's time
depends on. Everything is drawn from the file's number: the same versions of Pillow and NumPy make the same bytes.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

COUNT = 1024
LONG, SHORT = 500, 375
"""Width and height of a landscape picture; one in four is a portrait."""
DRAWN_BYTES, SIZE_SPREAD = 119_000, 0.3
"""Mean of the sizes that are drawn, and the standard deviation of their logarithm. Smooth pictures stay below what is
drawn for them, so the files are 106 KB on average."""
QUALITIES = (60, 98)
"""The lowest and the highest JPEG quality that is used to reach a size."""
SUBSAMPLING = {"4:2:0": 0.9, "4:2:2": 0.05, "4:4:4": 0.05}
"""How many of the files have which; photographs as cameras and web sites write them are 4:2:0."""
SOURCES = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/motorcycle_right.png"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
"""Package and path within it. Drawings, textures and microscopy are left out: they compress unlike photographs."""
CACHE = Path(__file__).resolve().parents[1] / ".bench"


@dataclass(frozen=True)
class Corpus:
    """What the files are like."""

    files: int
    mean_bytes: float
    low_bytes: int
    high_bytes: int
    portraits: int
    quality: tuple[int, int, int]
    """Lowest, median and highest."""

    def __str__(self) -> str:
        return (
            f"{self.files:,} JPEG files of {LONG} × {SHORT} or {SHORT} × {LONG} ({self.portraits} portraits), "
            f"{self.mean_bytes / 1e3:.1f} KB on average ({self.low_bytes / 1e3:.0f} .. {self.high_bytes / 1e3:.0f}), "
            f"quality {self.quality[0]} .. {self.quality[2]}, median {self.quality[1]}"
        )


def photographs(folder: Path | None = None, count: int | None = None) -> list[Path]:
    """The first `count` files, made before if they are not there yet.

    Args:
        folder: Where they are kept, by default `.bench` in the repository. There they lie in a folder named after the
            recipe: files made by another version of this module, of Pillow or of NumPy are removed and made anew.
        count: How many, all `COUNT` if None.

    Raises:
        ValueError: If `count` is not from 1 to `COUNT`.
        FileNotFoundError: If one of the photographs is not there; the message says what to install.
    """
    count = COUNT if count is None else count
    if not 1 <= count <= COUNT:
        raise ValueError(f"{count} photographs: there are 1 to {COUNT}")
    kept = folder or CACHE
    mine = kept / f"photos-{_recipe()}"
    if not mine.is_dir():
        _make_all(kept, mine)
    return [mine / _name(index) for index in range(count)]


def read_all(paths: Sequence[Path]) -> int:
    """Read every file once, so that the page cache holds them all. Returns their size in bytes."""
    return sum(len(path.read_bytes()) for path in paths)


def describe(paths: Sequence[Path]) -> Corpus:
    """Sizes, orientation and quality, as they are in the files."""
    from PIL import Image

    sizes, qualities, portraits = [], [], 0
    for path in paths:
        sizes.append(path.stat().st_size)
        with Image.open(path) as image:
            portraits += image.height > image.width
            qualities.append(_quality_of(image))
    qualities.sort()
    quality = (qualities[0], qualities[len(qualities) // 2], qualities[-1])
    return Corpus(len(sizes), sum(sizes) / len(sizes), min(sizes), max(sizes), portraits, quality)


def make(index: int) -> bytes:
    """The bytes of file number `index`, a pure function of it."""
    from PIL import Image, ImageFilter, ImageOps

    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([0x9407, index])))
    source = _source(int(random.integers(len(SOURCES))))
    portrait = random.random() < 0.25
    size = (SHORT, LONG) if portrait else (LONG, SHORT)
    degrees = random.uniform(-8.0, 8.0)
    left, top, right, bottom = _part(source.size, size, degrees, random)
    # turned about the centre of the part, which lies so that its corners do not leave the picture
    centre = ((left + right) / 2, (top + bottom) / 2)
    turned = source.rotate(degrees, Image.Resampling.BICUBIC, center=centre)
    image = turned.resize(size, Image.Resampling.LANCZOS, box=(left, top, right, bottom))
    # as cameras and whatever makes pictures smaller do
    image = image.filter(ImageFilter.UnsharpMask(radius=1.0, percent=int(random.integers(30, 120)), threshold=0))
    if random.random() < 0.5:
        image = ImageOps.mirror(image)
    pixels = np.asarray(image, np.float32)
    pixels = (pixels - 128.0) * np.float32(random.uniform(0.8, 1.15)) + np.float32(128.0 + random.uniform(-20, 20))
    # noise of a camera: that of the light, which grows with the root of the brightness, and some of the electronics
    strength = np.float32(random.uniform(0.5, 3.5))
    deviation = strength * (0.4 + np.sqrt(np.clip(pixels, 0, 255) / 255))
    pixels += random.standard_normal(pixels.shape, np.float32) * deviation
    image = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    # the mean of a log-normal distribution is exp(mu + sigma² / 2)
    mu = math.log(DRAWN_BYTES) - SIZE_SPREAD**2 / 2
    wanted = math.exp(random.normal(mu, SIZE_SPREAD))
    subsampling = random.choice(list(SUBSAMPLING), p=list(SUBSAMPLING.values()))
    return _encode(image, wanted, str(subsampling))


def _part(
    whole: tuple[int, int], size: tuple[int, int], degrees: float, random: np.random.Generator
) -> tuple[float, float, float, float]:
    """A box of `size`'s shape, at a random place, which stays within `whole` when it is turned."""
    aspect = size[0] / size[1]
    angle = math.radians(abs(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    # a box of width w and height h, turned, is w cos + h sin wide and w sin + h cos high
    width_of, height_of = aspect * cosine + sine, aspect * sine + cosine
    largest = min(whole[0] / width_of, whole[1] / height_of)
    height = largest * math.sqrt(random.uniform(0.6, 1.0))
    room_x, room_y = whole[0] - height * width_of, whole[1] - height * height_of
    x = height * width_of / 2 + random.random() * room_x
    y = height * height_of / 2 + random.random() * room_y
    return x - height * aspect / 2, y - height / 2, x + height * aspect / 2, y + height / 2


def _encode(image: Any, wanted: float, subsampling: str) -> bytes:
    """The JPEG whose size is nearest to what is wanted, among all qualities that are allowed."""

    def at(quality: int) -> bytes:
        out = BytesIO()
        image.save(out, "JPEG", quality=quality, subsampling=subsampling, optimize=False)
        return out.getvalue()

    low, high = QUALITIES
    while low < high:
        middle = (low + high) // 2
        if len(at(middle)) < wanted:
            low = middle + 1
        else:
            high = middle
    around = [at(quality) for quality in (low - 1, low) if quality >= QUALITIES[0]]
    return min(around, key=lambda data: abs(len(data) - wanted))


def _make_all(kept: Path, mine: Path) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    for index in range(len(SOURCES)):
        _source(index)  # from one thread, before the others need them
    unfinished = Path(mkdtemp(prefix="making-", dir=kept))

    def write(index: int) -> None:
        (unfinished / _name(index)).write_bytes(make(index))

    print(f"making {COUNT} photographs, once, in a minute or so", file=sys.stderr)
    try:
        with ThreadPoolExecutor(2) as threads:
            for _ in threads.map(write, range(COUNT)):
                pass
        for old in kept.glob("photos-*"):
            shutil.rmtree(old)
        unfinished.chmod(0o755)
        # a folder under its final name is complete
        os.rename(unfinished, mine)
    except BaseException:
        shutil.rmtree(unfinished)
        raise


@cache
def _recipe() -> str:
    """Changes when the files would: with this module, and with the versions of what makes them."""
    recipe = hashlib.sha256(Path(__file__).read_bytes())
    recipe.update(f"Pillow {version('Pillow')}, NumPy {version('numpy')}".encode())
    for package, path in SOURCES:
        recipe.update(_locate(package, path).read_bytes())
    return recipe.hexdigest()[:16]


@cache
def _source(index: int) -> Any:
    from PIL import Image

    with Image.open(_locate(*SOURCES[index])) as image:
        return image.convert("RGB")


def _locate(package: str, path: str) -> Path:
    """Where a photograph lies; its package is not imported, which would take a second."""
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        if (found := Path(folder) / path).is_file():
            return found
    where = f"not in {folders[0]}" if folders else f"the package {package!r} is not installed"
    raise FileNotFoundError(
        f"the photograph {path} is missing: {where}. Install scikit-image, scikit-learn and Pillow "
        "(pip install -e '.[bench]')"
    )


def _name(index: int) -> str:
    return f"{index:04d}.jpg"


def _quality_of(image: Any) -> int:
    """The quality of libjpeg's scale that gives the file's luminance table (JPEG standard, Annex K, scaled)."""
    # the table's first entry is 16 at quality 50; entries that were clipped at 1 say nothing, the sum says enough
    total = sum(image.quantization[0])
    return min(range(1, 101), key=lambda quality: abs(_table_sum(quality) - total))


@cache
def _table_sum(quality: int) -> int:
    from PIL import Image

    out = BytesIO()
    Image.new("L", (8, 8)).save(out, "JPEG", quality=quality)
    out.seek(0)
    with Image.open(out) as image:
        return sum(image.quantization[0])


def main() -> int:
    """Make the files and say what they are like."""
    paths = photographs()
    print(f"{describe(paths)}\n{paths[0].parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
