"""DALI in its two modes and through `DaliLoader`: `python -m benchmarks.dali` decides and watches over which is used.

The work: a JPEG of 500 × 375 is decoded in a random part (30 % to 100 % of each side), which is resized to 224 × 224;
batch 64, one thread of DALI's. Each case is a process of its own without a `Dataloader`: what DALI costs, and what we
add to it. The files are read from the page cache in all cases.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from . import table
from .accounts import memory
from .harness import Experiment, Metric, run_rounds, target_case

BATCH = 64
SIZE = 224


def graph(sample: Any) -> Any:
    """The work as a graph of `DaliLoader`."""
    from nvidia.dali import fn

    extent = sample.random.uniform((0.3, 1.0), shape=2)
    start = sample.random.uniform((0.0, 1.0), shape=2) * (1 - extent)
    image = fn.decoders.image_slice(sample.data, start, extent, axis_names="HW")
    return fn.resize(image, size=(SIZE, SIZE))


class Loader:
    """`DaliLoader.load_rows`."""

    def __init__(self) -> None:
        from hydrax_gpu.loaders import DaliLoader

        self.load = DaliLoader(graph, num_threads=1)
        self.slot = np.empty((BATCH, SIZE, SIZE, 3), np.uint8)

    def __call__(self, paths: list[Path], seed: int) -> int:
        rows = [{"image": row} for row in self.slot[: len(paths)]]
        outcomes = self.load.load_rows(paths, rows, range(seed, seed + len(paths)))
        return sum(outcome is not None for outcome in outcomes)


def drawn(count: int, seed: int) -> tuple[Any, Any]:
    """Beginnings and extents of the parts, from 0 to 1."""
    random = np.random.default_rng(seed)
    extent = random.uniform(0.3, 1.0, (count, 2)).astype(np.float32)
    return (random.uniform(0, 1, (count, 2)) * (1 - extent)).astype(np.float32), extent


class Pipeline:
    """A bare pipeline of one batch at a time; after an error another one, and the batch is lost."""

    def __init__(self) -> None:
        self.slot = np.empty((BATCH, SIZE, SIZE, 3), np.uint8)
        self.pipe = self.make()

    def make(self) -> Any:
        from nvidia.dali import Pipeline as DaliPipeline
        from nvidia.dali import fn

        pipe = DaliPipeline(batch_size=BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
        with pipe:
            data, start, extent = (fn.external_source(name=name, no_copy=True) for name in ("data", "start", "extent"))
            image = fn.decoders.image_slice(data, start, extent, axis_names="HW")
            pipe.set_outputs(fn.resize(image, size=(SIZE, SIZE)))
        pipe.build()
        return pipe

    def __call__(self, paths: list[Path], seed: int) -> int:
        start, extent = drawn(len(paths), seed)
        data = [np.fromfile(path, np.uint8) for path in paths]
        try:
            (images,) = self.pipe.run(data=data, start=start, extent=extent)
        except RuntimeError:
            self.pipe = self.make()
            return len(paths)
        for row, image in enumerate(images):
            self.slot[row] = image
        return 0


class Dynamic:
    """The same operators in dynamic mode; after an error the batch is lost."""

    def __init__(self) -> None:
        import nvidia.dali.experimental.dynamic as ndd

        self.ndd = ndd
        self.context = ndd.EvalContext(num_threads=1)
        self.slot = np.empty((BATCH, SIZE, SIZE, 3), np.uint8)

    def __call__(self, paths: list[Path], seed: int) -> int:
        ndd = self.ndd
        start, extent = drawn(len(paths), seed)
        data = [np.fromfile(path, np.uint8) for path in paths]
        with self.context:
            try:
                image = ndd.decoders.image_slice(
                    ndd.as_batch(data), ndd.as_batch(list(start)), ndd.as_batch(list(extent)), axis_names="HW"
                )
                images = ndd.resize(image, size=(SIZE, SIZE)).evaluate().tensors
            except RuntimeError:
                return len(paths)
            for row, tensor in enumerate(images):
                self.slot[row] = np.asarray(tensor)
        return 0


MODES: dict[str, Callable[[], Callable[[list[Path], int], int]]] = {
    "pipeline": Pipeline,
    "DaliLoader": Loader,
    "dynamic": Dynamic,
}


def measure(mode: str, batches: int) -> dict[str, Any]:
    """CPU time an image, what one bad sample costs and loses, time to the first batch, memory."""
    from .photos import photographs, read_all

    paths = photographs()
    read_all(paths)
    begin, cpu = time.perf_counter(), time.process_time()
    load = MODES[mode]()
    load(paths[:BATCH], 0)
    first, first_cpu = time.perf_counter() - begin, time.process_time() - cpu

    def timed(some: list[Path], seed: int) -> tuple[float, int]:
        begin = time.process_time()
        lost = load(some, seed)
        return time.process_time() - begin, lost

    bad = Path(__file__).resolve().parents[1] / ".bench" / "truncated.jpg"
    bad.write_bytes(paths[3].read_bytes()[:40_000])
    clean, faulty, lost = [], [], 0
    for number in range(batches):
        at = number * BATCH % len(paths)
        some = paths[at : at + BATCH]
        clean.append(timed(some, number * BATCH)[0])
        if number % 4 == 0:
            seconds, lost = timed([*some[:20], bad, *some[21:]], number * BATCH)
            faulty.append(seconds - clean[-1])
    return {
        "cpu_us": 1e6 * median(clean) / BATCH,
        "bad_ms": 1e3 * median(faulty),
        "lost": lost,
        "first_s": first,
        "first_cpu_s": first_cpu,
        **memory(os.getpid()),
    }


def experiment(batches: int) -> Experiment:
    metrics = (
        Metric("cpu_us", "µs of CPU an image", limit_case="pipeline"),
        Metric("bad_ms", "ms of CPU more for a batch with a truncated file"),
        Metric("lost", "images lost with it"),
        Metric("first_s", "s to the first batch, DALI's import included"),
        Metric("first_cpu_s", "s of CPU for that"),
        Metric("rss_mb", "MB of memory (RSS)"),
    )
    cases = [target_case(mode, "benchmarks.dali:measure", mode=mode, batches=batches) for mode in MODES]
    title = f"dali: random part of a JPEG, resized to {SIZE} x {SIZE}, batch {BATCH}, one thread"
    return Experiment("dali", title, tuple(cases), metrics)


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.dali", description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="rounds (default 5)")
    parser.add_argument("--batches", type=int, default=16, metavar="N", help="batches in each (default 16)")
    options = parser.parse_args()
    about = table.about()
    print(table.describe(about))
    one = experiment(options.batches)
    runs = run_rounds(one, options.repeat, 120.0, 0.0, 1, lambda run: None)
    print(table.render(one.title, list(table.summary_rows(one, runs, about))) + table.others(runs))
    for run in runs:
        if run.error:
            print(f"{run.case}: {run.error}\n{run.stderr}")
    return int(any(run.error for run in runs))


if __name__ == "__main__":
    sys.exit(main())
