"""Sources: what reading an item costs by each kind of file, beside a system call that reads the same bytes."""

from __future__ import annotations

import importlib.util
import io
import os
import pickle
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .accounts import Window
from .harness import Experiment, Goal, Metric, target_case

COUNT = 4096
SHAPE = (64, 64, 3)
BATCH = 64
PART = 256
"""Rows of a row group or a record batch: 3 MiB."""
KINDS = ("npy", "tar", "arrow", "parquet")
NEED = {"arrow": "pyarrow", "parquet": "pyarrow"}

Rows = Sequence[dict[str, Any]]


def experiments(warm_s: float, window_s: float) -> list[Experiment]:
    """Shuffled items of 12 KiB and a label: by a source's own loader, as a worker calls it; and in a Dataloader."""
    metrics = (
        Metric("items_per_s", "items/s", limit_case="limit"),
        Metric("cpu_us_per_item", "CPU µs/item", Goal(at_most=4.0), limit_case="limit"),
    )
    times = {"warm_s": warm_s, "window_s": window_s}
    there = [kind for kind in KINDS if importlib.util.find_spec(NEED.get(kind, "numpy"))]
    cases = [target_case("limit", "benchmarks.sources:limit", **times)]
    for kind in there:
        cases.append(target_case(kind, "benchmarks.sources:alone", judged=True, kind=kind, **times))
    for kind in there:
        cases.append(target_case(f"{kind}, Dataloader", "benchmarks.sources:loaded", kind=kind, **times))
    title = f"sources: {SHAPE} uint8 and an int32 from {COUNT} shuffled items, batch {BATCH}, in one process"
    left_out = {kind: f"{NEED[kind]} is not installed" for kind in KINDS if kind not in there}
    return [Experiment("sources", title, tuple(cases), metrics, left_out=left_out)]


def limit(warm_s: float, window_s: float) -> dict[str, Any]:
    """One `preadv` an item, into its row of a batch; and nothing else."""
    images, _ = items()
    size = images[0].nbytes
    slot = np.empty((BATCH, *SHAPE), np.uint8)
    rows = [slot[i].reshape(-1).data for i in range(BATCH)]
    with tempfile.TemporaryFile() as file:
        file.write(images.tobytes())
        file.flush()
        fd = file.fileno()

        def load(numbers: list[int]) -> None:
            for number, row in zip(numbers, rows, strict=True):
                os.preadv(fd, [row], number * size)

        result = measured(load, warm_s, window_s)
        check(slot, images, load)
    return result


def alone(kind: str, warm_s: float, window_s: float) -> dict[str, Any]:
    """A source's loader, called with batches of descriptors that have been through a pickle."""
    images, labels = items()
    slot, label = np.empty((BATCH, *SHAPE), np.uint8), np.empty(BATCH, np.int32)
    rows = [{"image": slot[i], "label": label[i, ...]} for i in range(BATCH)]
    with tempfile.TemporaryDirectory() as folder:
        source, fill = make(kind, Path(folder), images, labels)
        loader = pickle.loads(pickle.dumps(source.loader(fill)))
        seeds = [0] * BATCH

        def load(numbers: list[int]) -> None:
            outcomes = loader.load_rows(pickle.loads(pickle.dumps([source[i] for i in numbers])), rows, seeds)
            if any(outcomes):
                raise next(outcome for outcome in outcomes if outcome)

        result = measured(load, warm_s, window_s)
        check(slot, images, load)
    return result


def loaded(kind: str, warm_s: float, window_s: float) -> dict[str, Any]:
    """The same in a `Dataloader`, inline, with all that it does beside."""
    from hydrax_gpu import DataGroup, Dataloader

    images, labels = items()
    arrays = {"image": (SHAPE, np.uint8, np.uint8), "label": ((), np.int32, np.int32)}
    with tempfile.TemporaryDirectory() as folder:
        source, fill = make(kind, Path(folder), images, labels)
        group = DataGroup(BATCH, source, loader_arrays=arrays, shuffle_first=True)
        with Dataloader(source.loader(fill), group, executor="inline", on_error="raise") as loader:
            batch = next(loader)
            if not (np.asarray(batch.arrays["image"]) == images[list(batch.indices)]).all():
                raise AssertionError("the first batch does not hold its items")
            del batch

            def load(_: list[int]) -> None:
                next(loader)

            return measured(load, warm_s, window_s)


def items() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Noise, and its numbers."""
    images = np.random.default_rng(0).integers(0, 256, (COUNT, *SHAPE), np.uint8)
    return images, np.arange(COUNT, dtype=np.int32)


def batches() -> Iterator[list[int]]:
    """Numbers of shuffled items, for ever."""
    rng = np.random.default_rng(1)
    while True:
        yield from rng.permutation(COUNT).reshape(-1, BATCH).tolist()


def measured(load: Callable[[list[int]], None], warm_s: float, window_s: float) -> dict[str, Any]:
    """Throughput and CPU time an item."""
    source = batches()
    end = time.perf_counter() + warm_s
    for _ in range(COUNT // BATCH):  # each item once at least: what is decoded is kept
        load(next(source))
    while time.perf_counter() < end:
        load(next(source))
    window, count = Window(), 0
    end = time.perf_counter() + window_s
    while time.perf_counter() < end:
        load(next(source))
        count += BATCH
    return window.close().per_item(count)


def check(slot: np.ndarray[Any, Any], images: np.ndarray[Any, Any], load: Callable[[list[int]], None]) -> None:
    """Raise if a batch is not what it should be: a source that reads nothing would be the fastest."""
    numbers = list(range(COUNT - BATCH, COUNT))
    load(numbers)
    if not (slot == images[numbers]).all():
        raise AssertionError("the batch does not hold its items")


def make(kind: str, folder: Path, images: Any, labels: Any) -> tuple[Any, Any]:
    """The source, and what fills the arrays where it cannot itself."""
    from hydrax_gpu import sources

    if kind == "npy":
        np.save(folder / "image.npy", images)
        np.save(folder / "label.npy", labels)
        return sources.NpySource({"image": folder / "image.npy", "label": folder / "label.npy"}), None
    if kind == "tar":
        with tarfile.open(folder / "a.tar", "w") as archive:
            for number, image in enumerate(images):
                for name, data in ((f"{number}.bin", image.tobytes()), (f"{number}.cls", b"%d" % number)):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        return sources.TarSource(folder / "a.tar", fields={"image": "bin", "label": "cls"}), fill_bytes
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), int(np.prod(SHAPE)))
    tensor = pa.fixed_shape_tensor(pa.uint8(), SHAPE)
    table = pa.table({"image": pa.ExtensionArray.from_storage(tensor, flat), "label": labels})
    if kind == "parquet":
        pq.write_table(table, folder / "a.parquet", row_group_size=PART, use_dictionary=False)
        return sources.ParquetSource(folder / "a.parquet"), None
    with pa.ipc.new_file(folder / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=PART)
    return sources.ArrowSource(folder / "a.arrow"), None


def fill_bytes(value: Any, arrays: Any, seed: int | None) -> None:
    """A picture's bytes, and its label."""
    arrays["image"][...] = np.frombuffer(value["image"], np.uint8).reshape(SHAPE)
    arrays["label"][...] = value["label"]
