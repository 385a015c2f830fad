"""`python -m benchmarks.decoders`: which library decodes photographs with the least CPU, whole and in part.

Every decoder that is installed decodes the same photographs (`photos.py`), and of each the same random-resized crop:
the whole picture and then its part, or the part alone if the library can do that. One thread, files in memory,
interleaved rounds, medians of CPU time. What is decoded is compared with Pillow's.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hydrax_gpu._decode import draws, turbo
from hydrax_gpu._decode.contract import Buffer
from hydrax_gpu._decode.geometry import Pixels
from hydrax_gpu._decode.jpeg import Header, scan
from hydrax_gpu._kernels.choice import choose
from hydrax_gpu._kernels.resize_crop_flip_normalize import Box, Resize
from hydrax_gpu.loaders import ImageLoader

from . import photos, table

SIDE = 224
SEED = 5


@dataclass(frozen=True)
class Photo:
    """A file, what its header says, and the part that is wanted of it."""

    path: str
    data: bytes
    array: Any
    header: Header
    part: Pixels


@dataclass(frozen=True)
class Subject:
    """A way to get the part; `whole` tells whether the whole picture was decoded for it."""

    name: str
    version: str
    whole: bool
    decode: Callable[[Photo], Any]


def _cut(pixels: Any, part: Pixels) -> Any:
    return pixels[part.y : part.y + part.height, part.x : part.x + part.width]


def by_reader(whole: bool) -> Subject:
    """Our reader of libjpeg-turbo."""
    host = choose().path
    if host is None:
        raise ImportError("the kernels' host library was not built")
    decoder = turbo.Turbo(turbo.open_turbo(host), Buffer())

    def decode(photo: Photo) -> Any:
        part = Pixels(0, 0, photo.header.width, photo.header.height) if whole else photo.part
        pixels, x, y = decoder.decode(photo.array, photo.header, part, 8, gray=False)
        return _cut(pixels, Pixels(photo.part.x - x, photo.part.y - y, photo.part.width, photo.part.height))

    return Subject("libjpeg-turbo, hydrax_gpu's reader", importlib.metadata.version("Pillow"), whole, decode)


def by_simplejpeg() -> Subject:
    import simplejpeg

    buffer = np.empty(1 << 22, np.uint8)
    return Subject(
        "simplejpeg",
        importlib.metadata.version("simplejpeg"),
        True,
        lambda photo: _cut(simplejpeg.decode_jpeg(photo.data, buffer=buffer), photo.part),
    )


def by_turbojpeg() -> Subject:
    import turbojpeg

    decoder = turbojpeg.TurboJPEG()
    buffer = np.empty(1 << 22, np.uint8)

    def decode(photo: Photo) -> Any:
        shape = photo.header.height, photo.header.width, 3
        into = buffer[: shape[0] * shape[1] * 3].reshape(shape)
        return _cut(decoder.decode(photo.data, pixel_format=turbojpeg.TJPF_RGB, dst=into), photo.part)

    return Subject("PyTurboJPEG", importlib.metadata.version("PyTurboJPEG"), True, decode)


def by_opencv() -> Subject:
    import cv2

    cv2.setNumThreads(1)
    return Subject(
        "OpenCV",
        cv2.__version__,
        True,
        lambda photo: _cut(cv2.imdecode(photo.array, cv2.IMREAD_COLOR_RGB), photo.part),
    )


def by_pillow() -> Subject:
    from PIL import Image

    return Subject(
        "Pillow",
        Image.__version__,
        True,
        lambda photo: _cut(np.asarray(Image.open(io.BytesIO(photo.data)).convert("RGB")), photo.part),
    )


def by_nvimgcodec(whole: bool) -> Subject:
    from nvidia import nvimgcodec

    decoder = nvimgcodec.Decoder(
        device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
        backends=[nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)],
        max_num_cpu_threads=1,
    )

    def decode(photo: Photo) -> Any:
        stream = nvimgcodec.CodeStream(photo.data)
        if whole:
            return _cut(np.asarray(decoder.decode(stream)), photo.part)
        x, y, width, height = photo.part
        region = nvimgcodec.Region([y, x], [y + height, x + width])
        return np.asarray(decoder.decode(stream.get_sub_code_stream(image_idx=0, region=region)))

    return Subject("nvImageCodec", nvimgcodec.__version__, whole, decode)


SUBJECTS: Sequence[Callable[[], Subject]] = (
    lambda: by_reader(False),
    lambda: by_reader(True),
    by_simplejpeg,
    by_turbojpeg,
    lambda: by_nvimgcodec(False),
    lambda: by_nvimgcodec(True),
    by_opencv,
    by_pillow,
)


def read(paths: Sequence[Path]) -> list[Photo]:
    """The photographs, with a random-resized crop each."""
    found: list[Photo] = []
    for number, path in enumerate(paths):
        data = path.read_bytes()
        header = scan(data)
        assert header is not None
        box = draws.random_box(SEED + 1009 * number, header.width, header.height, (0.08, 1.0), (3 / 4, 4 / 3))
        part = Pixels(*(value // 8 for value in box))
        found.append(Photo(str(path), data, np.frombuffer(data, np.uint8), header, part))
    return found


def psnr(got: Any, wanted: Any) -> float:
    error = float(np.mean((got.astype(np.float64) - wanted) ** 2))
    return 99.0 if not error else 10 * np.log10(255**2 / error)


def resizers() -> dict[str, Callable[[Any, Any], Any]]:
    """What resizes a part to the row: ours, OpenCV's two, Pillow's."""
    host = choose().path
    found: dict[str, Callable[[Any, Any], Any]] = {}
    from hydrax_gpu._kernels.host import load

    kernel = Resize(None if host is None else load(host), SIDE, SIDE, 3, "HWC", np.dtype(np.uint8))

    def ours(pixels: Any, out: Any) -> Any:
        kernel(pixels, Box(0, 0, 8 * pixels.shape[1], 8 * pixels.shape[0]), out)
        return out

    found["hydrax_gpu's kernel (antialiased)"] = ours
    try:
        import cv2

        found["OpenCV linear (not antialiased)"] = lambda pixels, out: cv2.resize(pixels, (SIDE, SIDE), dst=out)
        found["OpenCV area"] = lambda pixels, out: cv2.resize(
            pixels, (SIDE, SIDE), dst=out, interpolation=cv2.INTER_AREA
        )
    except ImportError:
        pass
    from PIL import Image

    found["Pillow bilinear (antialiased)"] = lambda pixels, out: np.asarray(
        Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    )
    return found


def timed(work: Callable[[Photo], Any], sample: Sequence[Photo]) -> float:
    """CPU microseconds a photograph."""
    begin = time.process_time_ns()
    for photo in sample:
        work(photo)
    return (time.process_time_ns() - begin) / 1000 / len(sample)


def medians(works: dict[str, Callable[[Photo], Any]], sample: Sequence[Photo], rounds: int) -> dict[str, float]:
    """Interleaved, so that a disturbance meets all."""
    for work in works.values():
        timed(work, sample[:8])
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(timed(work, sample))
    return {name: statistics.median(each) for name, each in times.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.decoders", description=__doc__)
    parser.add_argument("--count", type=int, default=256, help="photographs (default 256)")
    parser.add_argument("--rounds", type=int, default=7, help="of which the medians are taken (default 7)")
    options = parser.parse_args(argv)
    from PIL import Image

    sample = read(photos.photographs(count=options.count))
    print(table.describe(table.about()))
    print(photos.describe([Path(photo.path) for photo in sample]))
    subjects: dict[str, Subject] = {}
    for make in SUBJECTS:
        try:
            subject = make()
        except Exception as error:  # a row that is left out, whatever the reason
            print(f"left out: {type(error).__name__}: {error}")
            continue
        subjects[f"{subject.name}, {'whole' if subject.whole else 'part'}"] = subject
    wrong = {name: 0 for name in subjects}
    for photo in sample[:32]:
        wanted = _cut(np.asarray(Image.open(io.BytesIO(photo.data)).convert("RGB")), photo.part).astype(np.float64)
        for name, subject in subjects.items():
            wrong[name] += psnr(np.asarray(subject.decode(photo)), wanted) < 45
    found = medians({name: subject.decode for name, subject in subjects.items()}, sample, options.rounds)
    print("\ndecoding the part that a random-resized crop needs\n\n| decoder | version | decodes | CPU µs/photograph |")
    print("|---|---|---|---|")
    for name, subject in sorted(subjects.items(), key=lambda entry: found[entry[0]]):
        print(f"| {subject.name} | {subject.version} | {'whole' if subject.whole else 'part'} | {found[name]:,.0f} |")

    parts = {photo.path: np.ascontiguousarray(subjects[next(iter(subjects))].decode(photo)) for photo in sample}
    out = np.empty((SIDE, SIDE, 3), np.uint8)
    works: dict[str, Callable[[Photo], Any]] = {
        name: (lambda photo, resize=resize: resize(parts[photo.path], out)) for name, resize in resizers().items()
    }
    exact = "Pillow bilinear (antialiased)"
    ratios = {
        name: statistics.fmean(psnr(np.array(work(photo)), np.array(works[exact](photo))) for photo in sample[:32])
        for name, work in works.items()
    }
    loader = ImageLoader(SIDE)
    works["ImageLoader, all of it: read, draw, decode, resize, flip"] = lambda photo: loader(
        photo.path, {"image": out}, zlib.crc32(photo.path.encode())
    )
    found = medians(works, sample, options.rounds)
    print(f"\nresizing it to {SIDE} × {SIDE}\n\n| by | CPU µs/photograph | PSNR against Pillow, dB |\n|---|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:,.0f} | {f'{ratios[name]:.1f}' if name in ratios else ''} |")
    failed = [name for name, count in wrong.items() if count]
    if failed:
        print(f"not what Pillow decodes: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
