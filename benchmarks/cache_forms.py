"""What the forms of a cache take and cost: bytes on disk and CPU time, for latents of pictures and for noise."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from .harness import Experiment, Metric, target_case

LATENT = (64, 64, 4)
BATCH, BATCHES, PASSES = 32, 4, 5
FORMS: tuple[str | None, ...] = (None, "lz4", "zstd", "int8")
CONTENTS = ("pictures", "noise")


def experiment() -> Experiment:
    """Each form by each content. There is no limit here: `cache-read` has that of reading without any form."""
    metrics = (
        Metric("bytes", "bytes on disk for each byte of the arrays"),
        Metric("read_us", "µs of CPU an item, read, checked and decoded"),
        Metric("write_us", "µs of CPU an item, encoded and written"),
        Metric("error", "largest error, in standard deviations of the values"),
    )
    cases = tuple(
        target_case(f"{form or 'none'}, {content}", "benchmarks.cache_forms:measure", form=form, content=content)
        for content in CONTENTS
        for form in FORMS
    )
    return Experiment("cache-forms", f"cache: items of {LATENT} float32, by their form on disk", cases, metrics)


def measure(form: Any, content: str) -> dict[str, float]:
    """Writes a cache of a few batches, and reads it as a worker does; the thread's CPU time, by medians."""
    from hydrax_gpu import DataGroup
    from hydrax_gpu._exec.rowstore import RowStore
    from hydrax_gpu._groupcache import store_spec
    from hydrax_gpu.group import cache_of, plan_of

    items, size = range(BATCH * BATCHES), int(np.prod(LATENT)) * 4
    batches = [latents(content, number) for number in range(BATCHES)]
    arrays: Any = {"latent": (LATENT, "float32", "float32")}
    writes: list[float] = []
    reads: list[float] = []
    out = np.empty((BATCH, *LATENT), np.float32)
    for _ in range(PASSES):
        with TemporaryDirectory(prefix="hydrax_gpu-benchmark-") as name:
            group = DataGroup(BATCH, items, loader_arrays=arrays, cache_location=name, cache_compression=form)
            declared = cache_of(group)
            assert declared is not None
            spec = store_spec(declared, plan_of(group), items, validation=False)
            store = RowStore(spec, 0)
            for number, latent in enumerate(batches):
                begin = time.thread_time()
                store.write(_items(number), 0, {"latent": latent}, [None] * BATCH)
                writes.append(time.thread_time() - begin)
            error = 0.0
            for number, latent in enumerate(batches):
                begin = time.thread_time()
                unread, _ = store.read(_items(number), 0, {"latent": out})
                reads.append(time.thread_time() - begin)
                if unread:
                    raise AssertionError(f"{len(unread)} items could not be read")
                error = max(error, float(np.abs(out - latent).max() / latent.std()))
            stored = sum(path.stat().st_size for path in Path(name).glob("*.0.bin"))
            store.close()
    return {
        "bytes": stored / (len(items) * size),
        "read_us": 1e6 * median(reads) / BATCH,
        "write_us": 1e6 * median(writes) / BATCH,
        "error": error,
    }


def latents(content: str, number: int) -> npt.NDArray[np.float32]:
    """A batch of made-up latents.

    "noise" is Gaussian. "pictures" are smooth pictures, with the 1/f spectrum of photographs, of which a random linear
    map makes 4 channels of each patch of 8 × 8 × 3, normalised: neighbours are alike, and no two values equal.
    """
    rng = np.random.default_rng(number)
    if content == "noise":
        return rng.standard_normal((BATCH, *LATENT), np.float32)
    side = LATENT[0] * 8
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = np.inf
    patches = np.random.default_rng(0).standard_normal((8 * 8 * 3, LATENT[2])).astype(np.float32)
    made = np.empty((BATCH, *LATENT), np.float32)
    for row in range(BATCH):
        planes = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, side, side))) / frequency, s=(side, side))
        tiles = planes.reshape(3, LATENT[0], 8, LATENT[1], 8).transpose(1, 3, 2, 4, 0).reshape(*LATENT[:2], -1)
        made[row] = tiles.astype(np.float32) @ patches
    return ((made - made.mean()) / made.std()).astype(np.float32)


def _items(number: int) -> list[int]:
    return list(range(number * BATCH, (number + 1) * BATCH))
