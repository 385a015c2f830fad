"""Kernels: each one's host build beside its NumPy twin, and beside copying as many bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from .harness import Experiment, Goal, Metric, target_case

CASES = (
    "convert u8 f32 HWC",
    "convert u8 f32 HWC->CHW",
    "convert u8 bf16 HWC->CHW",
    "convert u8 f16 HWC->CHW",
    "convert f32 u8 HWC",
    "unpack_bits 1 bit u8",
    "unpack_bits 4 bits f32",
    "dequantize i8 bf16",
    "dequantize i4 f32",
    "dequantize f8e4m3fn f32",
    "quantize f32",
    "pad_ragged padded i32",
    "pad_ragged packed i32",
    "srgb_oklab u8 f32",
    "oklab_srgb f32 u8",
)
ROWS = 16
ROUNDS = 9


def experiments() -> list[Experiment]:
    """A batch of 16 rows on one thread. CPU time; the three take turns."""
    metrics = (
        Metric("host_gbs", "GB/s of the host build, bytes read and written"),
        Metric("of_twin", "times as fast as the NumPy twin", Goal(at_least=1.0)),
        Metric("of_copy", "of the time that copying takes: half the bytes to as many"),
    )
    cases = [target_case(name, "benchmarks.kernels:measure", judged=True, kernel=name) for name in CASES]
    return [Experiment("kernels", f"kernels: {ROWS} rows on one thread", tuple(cases), metrics)]


def measure(kernel: str) -> dict[str, Any]:
    """GB/s, and the ratios to the other two, as medians of rounds in which all three are measured."""
    import numpy as np

    from hydrax_gpu._kernels import sources
    from hydrax_gpu._kernels.host import Library

    host, inputs, outputs = bound(kernel, Library(str(sources.LIBRARY)))
    twin, *_ = bound(kernel, None)
    moved = sum(array.nbytes for array in (*inputs, *outputs))
    source = np.ones(moved // 2, np.uint8)
    target = np.empty_like(source)

    def copy() -> None:
        np.copyto(target, source)

    times: list[tuple[float, float, float]] = []
    repeat = [max(1, int(0.02 / seconds(each, 1))) for each in (host, twin, copy)]
    for _ in range(ROUNDS):
        times.append(tuple(seconds(each, n) for each, n in zip((host, twin, copy), repeat, strict=True)))  # type: ignore[arg-type]
    return {
        "host_gbs": median(moved / host for host, _, _ in times) / 1e9,
        "of_twin": median(twin / host for host, twin, _ in times),
        "of_copy": median(host / copy for host, _, copy in times),
    }


def seconds(work: Callable[[], None], repeat: int) -> float:
    """CPU seconds of one call."""
    begin = time.process_time_ns()
    for _ in range(repeat):
        work()
    return max(1e-9, (time.process_time_ns() - begin) / repeat / 1e9)


def bound(name: str, library: Any) -> tuple[Callable[[], None], list[Any], list[Any]]:
    """What does one batch, by the library or else by NumPy; and the arrays that it reads and writes."""
    import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 by it)
    import numpy as np

    from hydrax_gpu._kernels import convert, dequantize, pad_ragged, quantize, srgb_oklab, unpack_bits

    rng = np.random.default_rng(0)
    dtypes = {"u8": "uint8", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "i4": "uint8"}
    dtypes |= {"f8e4m3fn": "float8_e4m3fn", "i32": "int32"}
    kind, *words = name.split()
    if kind == "convert":
        source, wanted, order = words
        given = rng.integers(0, 256, (ROWS, 224, 224, 3), np.uint8).astype(dtypes[source])
        out = np.empty((ROWS, 3, 224, 224) if "->" in order else given.shape, dtypes[wanted])
        way: Any = "planes" if "->" in order else "last"
        scale, bias = rng.random((2, 3), np.float32)
        kernel = convert.Convert(library, given.shape[1:], given.dtype, out.dtype, way, scale, bias)
        return lambda: kernel(given, out), [given], [out]
    if kind == "unpack_bits":
        bits, wanted = int(words[0]), dtypes[words[-1]]
        packed = rng.integers(0, 256, (ROWS, 512, 512 * bits // 8), np.uint8)
        mask = np.empty((ROWS, 512, 512), wanted)
        unpack = unpack_bits.UnpackBits(library, (512, 512), bits, "big", np.arange(2**bits).astype(wanted))
        return lambda: unpack(packed, mask), [packed], [mask]
    if kind == "dequantize":
        codes = rng.integers(0, 120, (ROWS, 512, 256 if words[0] == "i4" else 512), np.uint8).view(dtypes[words[0]])
        scales = rng.random((ROWS, 512, 16), np.float32).astype(np.float16)
        made = np.empty((ROWS, 512, 512), dtypes[words[1]])
        spread = dequantize.Dequantize(library, (512, 512), 32, codes.dtype, scales.dtype, made.dtype)
        return lambda: spread(codes, scales, made), [codes, scales], [made]
    if kind == "quantize":
        floats = rng.standard_normal((ROWS, 512 * 512), np.float32)
        records = np.empty((ROWS, quantize.record_nbytes(512 * 512)), np.uint8)
        shrink = quantize.Quantize(library, 512 * 512, floats.dtype)
        return lambda: None if shrink(floats, records).all() else fail(), [floats], [records]
    if kind == "pad_ragged":
        packed_lines = words[0] == "packed"
        lengths = rng.integers(100, 1000, (ROWS, 128))
        splits = np.concatenate([np.zeros((ROWS, 1), int), np.cumsum(lengths, 1)], 1).astype(np.int32)
        ragged = pad_ragged.Ragged(
            128 * 1000, 1, 128, 128, 1024, False, packed_lines, False, np.int32(0)
        )  # fmt: skip
        tokens = rng.integers(0, 50_000, (ROWS, ragged.capacity), np.int32)
        lines = np.empty((ROWS, 128, 1024), np.int32)
        extras = {each: np.empty(lines.shape, dtype) for each, dtype in pad_ragged.EXTRAS.items()}
        pad = pad_ragged.PadRagged(library, ragged, tokens.dtype, splits.dtype)
        read = [tokens[:, : int(splits[:, -1].mean())], splits]
        return lambda: None if not pad(tokens, splits, lines, extras).any() else fail(), read, [lines, *extras.values()]
    back = kind == "oklab_srgb"
    colours = (
        rng.random((ROWS, 224, 224, 3), np.float32) if back else rng.integers(0, 256, (ROWS, 224, 224, 3), np.uint8)
    )
    other = np.empty(colours.shape, dtypes[words[1]])
    recolour = srgb_oklab.SrgbOklab(library, colours.shape[1:], colours.dtype, other.dtype, "last", back)
    return lambda: recolour(colours, other), [colours], [other]


def fail() -> None:
    """The benchmark's own data is never at fault."""
    raise AssertionError("the row splits of the benchmark are not sound")
