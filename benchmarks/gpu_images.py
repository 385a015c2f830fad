"""JPEG files to random-resized crops of 224 × 224 in the memory of a GPU. Part of `python -m benchmarks gpu`.

The limit is DALI's own pipeline with the same output, without any loader around it: it reads the same files, decodes a
random part of each (`decoders.image_random_crop`), resizes and mirrors, and nothing takes what comes out.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

from .harness import Case, Experiment, Goal, Metric, target_case
from .photos import photographs

SIZE, BATCH = 224, 256
LIMIT = "raw DALI pipeline"
GRAPH = "hydrax_gpu, a graph of DALI's"

_NEEDS = {
    LIMIT: ("nvidia.dali", "DALI"),
    "hydrax_gpu, decoded by nvImageCodec": ("nvidia.nvimgcodec", "nvImageCodec"),
    GRAPH: ("nvidia.dali", "DALI"),
}


def _missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ImportError:  # not even its parent is there
        return True


def experiment(times: dict[str, float], environment: dict[str, str]) -> Experiment:
    """The limit, the loader with pictures decoded on the device in two ways, and with those decoded by its workers."""
    metrics = (
        Metric("images_s", "images/s, in the GPU's memory", Goal(at_least=1.0), LIMIT),
        Metric("host_us", "µs of CPU an image, the main process"),
    )
    left_out = {
        name: f"{package} is not installed: pip install 'hydrax-gpu[cuda12]' (or [cuda13])"
        for name, (module, package) in _NEEDS.items()
        if _missing(module)
    }

    def case(name: str, function: str, *, judged: bool = False, **settings: Any) -> Case:
        target = f"benchmarks.gpu_images:{function}"
        return target_case(name, target, judged=judged, env=environment, **settings, **times)

    cases = [
        case(LIMIT, "measure_dali"),
        case("hydrax_gpu, decoded by nvImageCodec", "measure_loader", judged=True, encoded_bytes=None),
        case(GRAPH, "measure_graph", judged=True),
        case("hydrax_gpu, decoded by the workers", "measure_loader", encoded_bytes=0),
    ]
    title = f"images: JPEG files of 500×375 pixels to random crops of {SIZE}, mirrored, uint8, {BATCH} a batch"
    return Experiment(
        "images", title, tuple(each for each in cases if each.name not in left_out), metrics, left_out=left_out
    )


def measure_loader(
    encoded_bytes: int | None, window_s: float, warm_s: float, batch: int = BATCH, files: list[str] | None = None
) -> dict[str, Any]:
    """Batches of an `ImageLoader`, each waited for on the device and dropped.

    Raises:
        RuntimeError: pictures were decoded by somebody else than was asked for.
    """
    from hydrax_gpu.loaders import ImageLoader

    paths: list[Any] = files or [os.fspath(path) for path in photographs()]
    load = ImageLoader(SIZE, encoded_bytes=encoded_bytes)
    return _measure(load, load.arrays(), paths, batch, encoded_bytes != 0, window_s, warm_s)


def measure_graph(window_s: float, warm_s: float, batch: int = BATCH, files: list[str] | None = None) -> dict[str, Any]:
    """Batches of a `DaliLoader`, whose graph has the operators of the raw pipeline, with draws of ours.

    Raises:
        RuntimeError: workers ran it.
    """
    import numpy as np

    from hydrax_gpu.loaders import DaliLoader

    from .gpu_graph import random_crop

    paths: list[Any] = files or [os.fspath(path) for path in photographs()]
    arrays = {"image": ((SIZE, SIZE, 3), np.uint8, np.uint8)}
    load = DaliLoader(random_crop, device="gpu", encoded_bytes=1 << 19)
    return _measure(load, arrays, paths, batch, True, window_s, warm_s)


def _measure(
    load: Any, arrays: Any, paths: list[Any], batch: int, on_device: bool, window_s: float, warm_s: float
) -> dict[str, Any]:
    from hydrax_gpu import DataGroup, Dataloader

    group = DataGroup(batch, paths, loader_arrays=arrays, shuffle_first=True)
    workers = max(1, len(os.sched_getaffinity(0)) - 1)
    with Dataloader(load, group, delivery="alias", depth=4, loader_count=workers) as loader:

        def step() -> None:
            taken = next(loader)
            taken.arrays["image"].block_until_ready()

        result = _rate(step, batch, window_s, warm_s)
        report = loader.report()
    if bool(report.pictures) != on_device:
        raise RuntimeError(f"pictures were decoded by {report.pictures or 'the workers'}: {'; '.join(report.notes)}")
    return {**result, "fallbacks": dict(report.fallbacks), "notes": list(report.notes), "verdict": report.verdict}


def measure_dali(
    window_s: float, warm_s: float, batch: int = BATCH, files: list[str] | None = None, device_id: int | None = 0
) -> dict[str, Any]:
    """DALI's pipeline; on the CPU, to be tried, without a `device_id`."""
    from nvidia.dali import fn, pipeline_def

    paths = files or [os.fspath(path) for path in photographs()]
    threads = len(os.sched_getaffinity(0))

    @pipeline_def(batch_size=batch, num_threads=threads, device_id=device_id)
    def pipeline() -> Any:
        encoded, _ = fn.readers.file(files=paths, random_shuffle=True)
        images = fn.decoders.image_random_crop(
            encoded,
            device="cpu" if device_id is None else "mixed",
            random_area=[0.08, 1.0],
            random_aspect_ratio=[3 / 4, 4 / 3],
        )
        images = fn.resize(images, size=(SIZE, SIZE))
        return fn.flip(images, horizontal=fn.random.coin_flip())

    pipe = pipeline()
    pipe.build()

    def step() -> None:
        (images,) = pipe.run()
        assert images.shape()[0] == (SIZE, SIZE, 3)

    def finish() -> None:
        if device_id is not None:
            import cupy

            cupy.cuda.Device(device_id).synchronize()

    return _rate(step, batch, window_s, warm_s, finish)


def _rate(
    step: Callable[[], None], batch: int, window_s: float, warm_s: float, finish: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    for seconds in (warm_s, window_s):
        count, start, cpu = 0, time.perf_counter(), time.process_time()
        while not count or time.perf_counter() - start < seconds:
            step()
            count += 1
        finish()
        passed, used = time.perf_counter() - start, time.process_time() - cpu
    return {"images_s": count * batch / passed, "host_us": 1e6 * used / (count * batch), "batches": count}
