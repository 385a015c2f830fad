"""JPEG: photographs in files of the page cache to random-resized, half mirrored pictures of 224 × 224."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from . import jpeg_limits, peers
from .accounts import Window
from .consume import take
from .harness import Case, Experiment, Goal, Metric, Versus, target_case
from .peers import NO_OPENCV, Chosen, has_module, lacks_decoder
from .peers.base import versions as versions_of
from .peers.hydrax import HydraxGpu, HydraxGpuImages, HydraxGpuPillow
from .photo_work import CHECKED, PHOTOS, PhotoTask, all_paths, fastest_decoder, judge

BATCH, WORKERS, DEPTH = 64, 2, 3
LIMIT = "limit: part + resize"
LIMITS = {"limit: Huffman alone": "huffman", LIMIT: "region", "limit: whole + resize": "full"}
"""Two threads, no loader, and of libjpeg-turbo: entropy decoding; the part's rows, then OpenCV's linear resize;
everything, then the same resize."""
OURS: dict[str, type[HydraxGpu]] = {
    "hydrax_gpu": HydraxGpuImages,
    "hydrax_gpu + peers' decoder": HydraxGpu,
    "hydrax_gpu + Pillow": HydraxGpuPillow,
}
"""`ImageLoader`, and `Dataloader` with other functions: what the loader itself adds, or saves."""
KERNELS = "HYDRAX_GPU_KERNELS"
"""Environment variable that says what does the work of hydrax_gpu's kernels."""
PACKAGES = (
    "hydrax-gpu",
    "numpy",
    "Pillow",
    "opencv-python-headless",
    "opencv-python",
    "nvidia-nvimgcodec-cu12",
    "nvidia-nvimgcodec-cu13",
    "simplejpeg",
    "jax",
    "hydrax",
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "spdl",
    "grain",
    "torch",
    "ffcv",
    "tensorflow-cpu",
    "tensorflow",
)


def experiments(photographs: Path, chosen: Sequence[Chosen], warm_s: float, window_s: float) -> list[Experiment]:
    """One experiment: the limits, hydrax_gpu with `ImageLoader` and with Pillow, the peers that are installed."""
    env = {PHOTOS: str(photographs)}
    times: dict[str, Any] = {"warm_s": warm_s, "window_s": window_s}
    cases: list[Case] = []
    left_out: dict[str, str] = {}
    for name, kind in LIMITS.items():
        try:
            library, path = jpeg_limits.preferred()
        except jpeg_limits.MissingToolError as problem:
            left_out[name] = str(problem)
            continue
        if kind != "huffman" and not has_module(sys.executable, "cv2"):
            left_out[name] = NO_OPENCV
            continue
        settings = {"kind": kind, "libjpeg": path, "batch": BATCH, "workers": WORKERS, **times}
        case = target_case(name, "benchmarks.jpeg_limits:measure", env=env, memory=True, **settings)
        # the table of settings says whose library it is, and not where it lies on this machine
        cases.append(replace(case, settings={**settings, "libjpeg": f"{library} libjpeg-turbo"}))
    module = chosen[0].module
    ours = [Chosen(name, module if name == "hydrax_gpu" else None) for name in OURS]
    for one in [*ours, *chosen[1:]]:
        kind = OURS.get(one.name) or peers.kind(one.name)
        if "photos" not in {*kind.workloads, *kind.unfit}:
            continue
        reason = kind.unfit.get("photos") or peers.absent(kind, one.python, one.module, jax=kind.jax_arrays)
        if reason is None and kind.by_function:
            reason = lacks_decoder(one.python)
        if reason is not None:
            left_out[one.name] = reason
            continue
        judged = one.name == "hydrax_gpu"
        # a row without the compiled kernels would be one of something else: it fails, and says how to build them
        kernels = {KERNELS: os.environ.get(KERNELS) or "host"} if judged else {}
        settings = {"subject": one.name, "module": one.module, **times}
        cases.append(
            target_case(
                one.name,
                "benchmarks.jpeg:loader",
                judged=judged,
                env={**env, **kernels},
                python=one.python,
                memory=True,
                peer=one.name not in OURS,
                **settings,
            )
        )
    metrics = (
        Metric("cpu_us_per_item", "CPU µs/image, all processes", Goal(at_most=1.05), limit_case=LIMIT),
        Metric("items_per_s", "images/s", limit_case=LIMIT),
        Metric("psnr_db", "dB: PSNR against the reference, mean", Goal(at_least=43.0)),
        Metric("psnr_low_db", "dB: the worst picture"),
        Metric("mean_error", "mean error, of 255"),
        Metric("peak_pss_mb", "MB: all processes (PSS) at their peak"),
    )
    others = tuple(case.name for case in cases if case.name not in {*LIMITS, *OURS})
    versus = Versus("cpu_us_per_item", "× CPU of the best other", "hydrax_gpu", others, Goal(at_least=1.25))
    title = f"jpeg: random-resized crop to 224, flip, uint8 HWC, batch {BATCH}, {WORKERS} workers"
    return [Experiment("jpeg", title, tuple(cases), metrics, versus if others else None, left_out)]


def loader(subject: str, module: str | None, warm_s: float, window_s: float) -> dict[str, Any]:
    """A loader: its first pictures are compared with the reference, then its speed is measured."""
    task = PhotoTask(all_paths(), BATCH, WORKERS, DEPTH)
    made = (OURS[subject](module) if module else OURS[subject]()) if subject in OURS else peers.make(subject)
    with made.open(task) as batches:
        first: list[dict[str, np.ndarray]] = []
        while len(first) * task.batch < CHECKED:
            batch = next(batches)
            # a copy: what a loader lends may be used again
            first.append({name: np.array(array) for name, array in made.judged(batch).items()})
            made.after(batch)
            del batch
        result = judge(task.data, first, task.batch)
        take(made, batches, warm_s)
        window = Window()
        taken = take(made, batches, window_s)
        usage = window.close()
        notes = made.notes()
    return usage.per_item(taken * task.batch) | result | notes | {"versions": versions()}


def versions() -> dict[str, str]:
    """What this interpreter has of what may be measured, and the decoder that peers with a Python function use."""
    found = versions_of(PACKAGES)
    with suppress(ModuleNotFoundError):
        found["peers' decoder"] = fastest_decoder()
    return found
