"""Runs kernels of libraries that were built with sanitizers, in a process of its own; see `test_kernels_sanitized.py`.

python -m tests.sanitized LIBRARY:KERNEL[:IN:OUT] ...

All arrays end where their memory does, so that an access beyond one is seen. Results are compared with the twins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 by it)
import numpy as np

from hydrax_gpu._kernels import convert, dequantize, pad_ragged, quantize, srgb_oklab, unpack_bits, xxh3
from hydrax_gpu._kernels.formats import TAGS
from hydrax_gpu._kernels.host import Library
from hydrax_gpu._kernels.resize_crop_flip_normalize import Box, Resize, Turn
from tests.kernels import Rows, assert_same_bits, values

SIZES = (0, 1, 2, 3, 15, 16, 17, 31, 33, 255, 1000, 1024, 4097)
PLACES = ((0, 0), (1, 3), (5, 0))
"""Offset of the first row, and gap between rows, in elements."""

DTYPES = {tag: np.dtype(name) for name, tag in TAGS.items() if name != "bool"} | {"i4": np.dtype(np.uint8)}


def filled(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, offset: int, gap: int) -> Rows:
    rows = Rows(shape, dtype, offset, gap, tight=True)
    rows.array[...] = values(rng, shape, dtype)
    return rows


def run_convert(library: Library, rng: np.random.Generator, source: str, wanted: str) -> None:
    given, made = DTYPES[source], DTYPES[wanted]
    ways: tuple[convert.Way, ...] = ("last", "first", "planes", "pixels")
    for way in ways:
        for channels in (1, 3, 5, 16, 17, 1100):
            for pixels in SIZES if channels < 1000 else (0, 1, 3, 33):
                for offset, gap in PLACES:
                    last = way in ("last", "planes")
                    shape = (pixels, channels) if last else (channels, pixels)
                    rows = filled(rng, (2, *shape), given, offset, gap)
                    scale, bias = rng.standard_normal((2, channels)).astype(np.float32)
                    expected = convert.twin(rows.array, scale, bias, way, made)
                    out = Rows(expected.shape, made, offset, gap, tight=True)
                    convert.Convert(library, shape, given, made, way, scale, bias)(rows.array, out.array)
                    assert_same_bits(out.array, expected)


def run_unpack_bits(library: Library, rng: np.random.Generator) -> None:
    for bits in (1, 2, 4):
        for dtype in ("uint8", "float16", "float32"):
            for width in SIZES[1:]:
                for offset, gap in PLACES:
                    packed = filled(rng, (2, 3, -(-width * bits // 8)), np.uint8, offset, gap)
                    becomes = values(rng, (2**bits,), dtype)
                    out = Rows((2, 3, width), dtype, offset, gap, tight=True)
                    unpack_bits.UnpackBits(library, (3, width), bits, "big", becomes)(packed.array, out.array)
                    assert_same_bits(out.array, unpack_bits.twin(packed.array, bits, "big", width, becomes))


def run_dequantize(library: Library, rng: np.random.Generator, codes: str, wanted: str) -> None:
    given, made, each = DTYPES[codes], DTYPES[wanted], 2 if codes == "i4" else 1
    for scale in ("float16", "bfloat16", "float32"):
        for width in SIZES[1:]:
            width = width + width % each
            for block in (each, 32, 5000):
                for offset, gap in PLACES:
                    rows = filled(rng, (2, 3, width // each), given, offset, gap)
                    scales = filled(rng, (2, 3, -(-width // block)), scale, offset, gap)
                    out = Rows((2, 3, width), made, offset, gap, tight=True)
                    kernel = dequantize.Dequantize(library, (3, width), block, given, scales.array.dtype, made)
                    kernel(rows.array, scales.array, out.array)
                    assert_same_bits(out.array, dequantize.twin(rows.array, scales.array, block, made))


def run_pad_ragged(library: Library, rng: np.random.Generator, splits: str, unsigned: str) -> None:
    dtype, split = np.dtype(f"uint{unsigned[1:]}"), np.dtype(f"int{splits[1:]}")
    for _ in range(300):
        single, packed = bool(rng.integers(2)), bool(rng.integers(2))
        packed = packed and not single
        sequences = 1 if single else int(rng.integers(1, 6))
        lines = int(rng.integers(1, 6)) if packed else sequences
        capacity, length, width = (int(rng.integers(1, most)) for most in (40, 20, 4))
        ragged = pad_ragged.Ragged(
            capacity, width, sequences, lines, length, single, packed, bool(rng.integers(2)), dtype.type(7)
        )
        offset, gap = PLACES[rng.integers(len(PLACES))]
        source = filled(rng, (2, capacity, width), dtype, offset, gap)
        ends = Rows((2,) if single else (2, sequences + 1), split, offset, gap, tight=True)
        for row in range(2):
            some = np.sort(rng.integers(0, capacity + 1, sequences + 1))
            some[0] = 0
            if not rng.integers(4):
                some[rng.integers(sequences + 1)] = rng.choice([-1, capacity + 1, -(2**31), 2**31 - 1])
            ends.array[row] = some[-1] if single else some
        out = Rows((2, lines, length, width), dtype, offset, gap, tight=True)
        extras = {
            name: Rows((2, lines, length), kind, offset, gap, tight=True).array
            for name, kind in pad_ragged.EXTRAS.items()
        }
        status = pad_ragged.PadRagged(library, ragged, dtype, split)(source.array, ends.array, out.array, extras)
        for row in range(2):
            expected, more, wanted = pad_ragged.twin(ragged, source.array[row], ends.array[row])
            assert status[row] == wanted
            if not wanted:
                assert_same_bits(out.array[row], expected)
                for name, extra in extras.items():
                    assert_same_bits(extra[row], more[name])


def run_srgb_oklab(library: Library, rng: np.random.Generator) -> None:
    ways: tuple[srgb_oklab.ColourWay, ...] = ("last", "planes", "pixels")
    for way in ways:
        for back in {"last": (False, True), "planes": (False,), "pixels": (True,)}[way]:
            for lab in srgb_oklab.LAB:
                for srgb in srgb_oklab.SRGB:
                    for pixels in SIZES:
                        given, made = (lab, srgb) if back else (srgb, lab)
                        shape = (3, pixels) if way == "pixels" else (pixels, 3)
                        rows = filled(rng, (2, *shape), given, 1, 2)
                        out = Rows((2, *((3, pixels) if way == "planes" else (pixels, 3))), made, 1, 2, tight=True)
                        expected = np.empty(out.array.shape, made)
                        kind = (shape, np.dtype(given), np.dtype(made), way, back)
                        srgb_oklab.SrgbOklab(None, *kind)(rows.array, expected)
                        srgb_oklab.SrgbOklab(library, *kind)(rows.array, out.array)
                        assert_same_bits(out.array, expected)


def run_quantize(library: Library, rng: np.random.Generator) -> None:
    for dtype in quantize.INPUTS:
        for count in (*SIZES[1:], 64 * 256 + 1):
            for offset, gap in PLACES:
                rows = filled(rng, (2, count), dtype, offset, gap)
                out = Rows((2, quantize.record_nbytes(count)), np.uint8, 4 * offset, 4 * gap, tight=True)
                quantize.Quantize(library, count, np.dtype(dtype))(rows.array, out.array)
                for got, expected in zip(quantize.parts(out.array, count), quantize.twin(rows.array), strict=True):
                    assert_same_bits(got, expected)


def run_resize(library: Library, rng: np.random.Generator) -> None:
    outputs, layouts = ("uint8", "float16", "float32"), ("HWC", "CHW")
    for case in range(250):
        pixel, dtype, layout = (1, 3, 4)[case % 3], np.dtype(outputs[case % 2 * (case % 3)]), layouts[case // 2 % 2]
        channels = min(pixel, 3)
        rows, columns, height, width = (int(side) for side in rng.integers(1, 40, 4))
        if not case % 10:
            columns *= 40
        picture = filled(rng, (rows, columns, pixel), np.uint8, case % 5, 0).array
        x, y = int(rng.integers(0, 8 * columns)), int(rng.integers(0, 8 * rows))
        box = Box(x, y, int(rng.integers(1, 8 * columns - x + 1)), int(rng.integers(1, 8 * rows - y + 1)))
        shape = (height, width, channels) if layout == "HWC" else (channels, height, width)
        kind: Any = (height, width, channels, layout, dtype)
        turn = Turn(*(bool(part) for part in rng.integers(0, 2, 3)))
        expected = np.empty(shape, dtype)
        Resize(None, *kind)(picture, box, expected, turn=turn)
        for direct in (False, True):
            out = Rows((1, *shape), dtype, case % 4, 0, tight=True).array[0]
            Resize(library, *kind)(picture, box, out, turn=turn, direct=direct)
            assert_same_bits(out, expected)


def run_xxh3(library: Library, rng: np.random.Generator) -> None:
    for nbytes in (xxh3.SHORTEST, 1024, 1025, 1089, 17_408, 32 * 1024 + 1, 70_001):
        for offset, gap in PLACES:
            records = filled(rng, (2, nbytes), np.uint8, offset, gap)
            seeds, sums = filled(rng, (2,), np.uint64, 0, 0).array, Rows((2,), np.uint64, 0, 0, tight=True).array
            xxh3.Xxh3(library, nbytes)(records.array, seeds, sums)
            assert_same_bits(sums, xxh3.twin(records.array, seeds))


RUNS: dict[str, Callable[..., None]] = {
    "convert": run_convert,
    "dequantize": run_dequantize,
    "pad_ragged": run_pad_ragged,
    "quantize": run_quantize,
    "resize_crop_flip_normalize": run_resize,
    "srgb_oklab": run_srgb_oklab,
    "unpack_bits": run_unpack_bits,
    "xxh3": run_xxh3,
}

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        path, name, *combination = argument.split(":")
        RUNS[name](Library(path, 1), np.random.default_rng(0), *combination)
        print(f"{name} {' '.join(combination)}".strip(), flush=True)
