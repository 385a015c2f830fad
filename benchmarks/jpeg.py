"""JPEG: photographs in files of the page cache to random-resized, half mirrored pictures of 224 × 224."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from . import jpeg_limits
from .accounts import Window
from .consume import take
from .harness import Case, Experiment, Goal, Metric, Versus, target_case
from .jpeg_peers import OURS, PEERS, SUBJECTS
from .photo_work import CHECKED, DECODERS, PHOTOS, PhotoTask, all_paths, fastest_decoder, judge

BATCH, WORKERS, DEPTH = 64, 2, 3
LIMIT = "limit: part + resize"
LIMITS = {"limit: Huffman alone": "huffman", LIMIT: "region", "limit: whole + resize": "full"}
"""Two threads, no loader, and of libjpeg-turbo: entropy decoding; the part's rows, then OpenCV's linear resize;
everything, then the same resize."""
NO_OPENCV = "OpenCV is not installed (pip install opencv-python-headless)"
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


def experiments(
    photographs: Path,
    module: str | None,
    peers: Iterable[str],
    pythons: Mapping[str, str],
    only: Sequence[str] | None,
    warm_s: float,
    window_s: float,
) -> list[Experiment]:
    """One experiment: the limits, hydrax_gpu with `ImageLoader` and with Pillow, the peers that are installed."""
    if unknown := pythons.keys() - PEERS.keys():
        raise SystemExit(f"--python: no peer {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
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
        if kind != "huffman" and not _has(sys.executable, "cv2"):
            left_out[name] = NO_OPENCV
            continue
        settings = {"kind": kind, "libjpeg": path, "batch": BATCH, "workers": WORKERS, **times}
        case = target_case(name, "benchmarks.jpeg_limits:measure", env=env, memory=True, **settings)
        # the table of settings says whose library it is, and not where it lies on this machine
        cases.append(replace(case, settings={**settings, "libjpeg": f"{library} libjpeg-turbo"}))
    for name in ("hydrax_gpu", *OURS, *peers):
        python = pythons.get(name, sys.executable)
        library = module or SUBJECTS[name].module if name == "hydrax_gpu" else SUBJECTS[name].module
        if not _has(python, library):
            left_out[name] = f"{library} is not installed"
            continue
        if SUBJECTS[name].by_function:
            if not _has(python, "cv2"):
                left_out[name] = NO_OPENCV
                continue
            if not any(_has(python, decoder) for decoder in DECODERS.values()):
                left_out[name] = f"none of {', '.join(DECODERS)} is installed"
                continue
        judged = name == "hydrax_gpu"
        # a row without the compiled kernels would be one of something else: it fails, and says how to build them
        kernels = {KERNELS: os.environ.get(KERNELS) or "host"} if judged else {}
        settings = {"subject": name, "module": module if judged else None, **times}
        cases.append(
            target_case(
                name,
                "benchmarks.jpeg:loader",
                judged=judged,
                env={**env, **kernels},
                python=python,
                memory=True,
                **settings,
            )
        )
    if only is not None:
        unknown = set(only) - {case.name for case in cases} - left_out.keys()
        if unknown:
            raise SystemExit(
                f"no case {', '.join(sorted(unknown))}: there are {', '.join(case.name for case in cases)}"
            )
        cases = [case for case in cases if case.name in only]
        left_out = {name: reason for name, reason in left_out.items() if name in only}
    metrics = (
        Metric("cpu_us_per_item", "CPU µs/image, all processes", Goal(at_most=1.05), limit_case=LIMIT),
        Metric("items_per_s", "images/s", limit_case=LIMIT),
        Metric("psnr_db", "dB: PSNR against the reference, mean", Goal(at_least=43.0)),
        Metric("psnr_low_db", "dB: the worst picture"),
        Metric("mean_error", "mean error, of 255"),
        Metric("peak_pss_mb", "MB: all processes (PSS) at their peak"),
    )
    others = tuple(case.name for case in cases if case.name in PEERS)
    versus = Versus("cpu_us_per_item", "× CPU of the best other", "hydrax_gpu", others, Goal(at_least=1.25))
    title = f"jpeg: random-resized crop to 224, flip, uint8 HWC, batch {BATCH}, {WORKERS} workers"
    return [Experiment("jpeg", title, tuple(cases), metrics, versus if others else None, left_out)]


def loader(subject: str, module: str | None, warm_s: float, window_s: float) -> dict[str, Any]:
    """A loader: its first pictures are compared with the reference, then its speed is measured."""
    task = PhotoTask(all_paths(), BATCH, WORKERS, DEPTH)
    made = SUBJECTS[subject](module) if module else SUBJECTS[subject]()
    with made.open(task) as batches:
        first: list[dict[str, np.ndarray]] = []
        while len(first) * task.batch < CHECKED:
            batch = next(batches)
            # a copy: what a loader lends may be used again
            first.append({name: np.array(array) for name, array in made.judged(batch).items()})
            made.after(batch)
            del batch
        result = judge(task.paths, first, task.batch)
        take(made, batches, warm_s)
        window = Window()
        taken = take(made, batches, window_s)
        usage = window.close()
        notes = made.notes()
    return usage.per_item(taken * task.batch) | result | notes | {"versions": versions()}


def versions() -> dict[str, str]:
    """What this interpreter has of what may be measured, and the decoder that peers with a Python function use."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    with suppress(ModuleNotFoundError):
        found["peers' decoder"] = fastest_decoder()
    return found


@cache
def _has(python: str, module: str) -> bool:
    """Whether that interpreter has the module; a parent package is imported for it, the module is not."""
    # a parent package that is missing is an exception, which is a no as well
    code = f"from importlib.util import find_spec; raise SystemExit(find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", code], capture_output=True, cwd=Path(__file__).parents[1]).returncode == 0
