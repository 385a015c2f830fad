"""The cache: reading latents beside a plain read of the same bytes, in order and not; and what it costs to fill it."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .harness import Experiment, Goal, Metric, target_case

BATCH, BATCHES = 64, 64
LATENT = (64, 64, 4)
ARRAYS = {"latent": (LATENT, "float32", "float32")}
PICTURES = {"image": ((8,), "float32", "float32")}
BATCH_BYTES = BATCH * int(np.prod(LATENT)) * 4
PASSES = 5
SLOTS = 3
"""That a loader has by default. One buffer stays in a cache that several of 4 MiB do not stay in."""
FILLS = 3
FILL_BATCHES = 16
LAYERS = 100
"""Of the encoder: together some quarter of a second a batch on two cores, which all of it keeps busy. That is what the
VAE of a latent diffusion model takes for as many pictures of 512 × 512 on a large GPU; on a CPU it takes minutes."""

SHUFFLED = (256, 1024, 4096, 65536)
"""Bytes of an item, of those that are read in random order."""
SHUFFLED_BATCHES = 200
SHUFFLED_BYTES = 128 << 20

WAYS: tuple[tuple[str, str, int], ...] = (("1 thread", "thread", 1), ("2 threads", "thread", 2),
                                          ("2 processes", "process", 2))  # fmt: skip


def experiments() -> list[Experiment]:
    """Reading, with the files in the page cache and not, and filling."""
    reading = (
        Metric("ratio", "of the limit's bytes a second", Goal(at_least=0.8)),
        Metric("gbps", "GB/s"),
        Metric("limit_gbps", "GB/s: limit, readinto of one buffer"),
        Metric("cpu_ms", "ms of CPU a batch"),
        Metric("limit_cpu_ms", "ms of CPU a batch: limit"),
        Metric("slots_gbps", f"GB/s: the same, {SLOTS} buffers in turns"),
        Metric("slots_cpu_ms", f"ms of CPU a batch: the same, {SLOTS} buffers in turns"),
    )
    cold = tuple(Metric(m.key, m.label) for m in reading)
    filling = (
        Metric("cost", "of the loop's time without a cache, more", Goal(at_most=0.03)),
        Metric("plain_ms", "ms a batch without a cache"),
        Metric("filling_ms", "ms a batch with one"),
        Metric("cpu_ms", "ms of CPU a batch, more"),
        Metric("write_cpu_ms", "ms of CPU: limit, write of the same bytes"),
    )
    scattered = (
        Metric("ratio", "of the limit's CPU time"),
        Metric("cpu_us", "µs of CPU a batch"),
        Metric("limit_cpu_us", "µs of CPU a batch: limit, pread of each record"),
        Metric("one_by_one_cpu_us", "µs of CPU a batch: without the host library"),
    )
    shape = f"{BATCHES} batches of {BATCH} × {LATENT} float32"
    cases = {
        state: tuple(
            target_case(
                label, "benchmarks.cache:read", judged=state == "page-cached" and label == "2 threads",
                executor=executor, workers=workers, cold=state == "cold",
            )
            for label, executor, workers in WAYS
        )
        for state in ("page-cached", "cold")
    }  # fmt: skip
    return [
        Experiment("cache-read", f"cache: {shape}, page-cached, checksums on", cases["page-cached"], reading),
        Experiment("cache-cold", f"cache: {shape}, dropped from the page cache", cases["cold"], cold),
        Experiment(
            "cache-shuffled",
            f"cache: batches of {BATCH} items in random order, page-cached, checksums on; the store alone",
            tuple(
                target_case(f"{size:,} bytes an item", "benchmarks.cache:shuffled", judged=False, size=size)
                for size in SHUFFLED
            ),
            scattered,
        ),
        Experiment(
            "cache-fill",
            f"cache: {FILL_BATCHES} batches of {BATCH} × {LATENT} float32 encoded, with and without filling a cache",
            (target_case("hydrax_gpu", "benchmarks.cache:fill", judged=True),),
            filling,
        ),
    ]


def load(item: int, arrays: Any, seed: int | None) -> None:
    """Next to nothing: the encoder is what takes time."""
    arrays["image"][...] = item


def read(executor: str, workers: int, cold: bool) -> dict[str, Any]:
    """Passes over a cache by the loader and by readinto, in turns, in one process."""
    from hydrax_gpu import DataGroup, Dataloader

    with _folder() as folder:
        _make(folder)
        plain = folder / "plain"
        with plain.open("wb") as file:
            for data in sorted(folder.glob("*.0.bin")):
                file.write(data.read_bytes())
            os.fsync(file.fileno())
        group = DataGroup(BATCH, range(BATCH * BATCHES), cache_arrays=ARRAYS, cache_location=folder)
        ours: list[tuple[float, float]] = []
        limits: list[tuple[float, float]] = []
        slots: list[tuple[float, float]] = []
        options: dict[str, Any] = {"executor": executor, "loader_count": workers, "delivery": "alias"}
        with Dataloader(load, group, **options) as loader:
            for number in range(PASSES + 1):
                if cold:
                    _drop(folder)
                passed = _timed(partial(_take, loader, BATCHES, check=number == 0), _children(loader))
                if cold:
                    _drop(folder)
                limit = _timed(partial(_readinto, plain, 1), [])
                if cold:
                    _drop(folder)
                several = _timed(partial(_readinto, plain, SLOTS), [])
                if number:  # the first is not measured: processes and caches are warm after it
                    ours.append(passed)
                    limits.append(limit)
                    slots.append(several)
    ratios = [limit[0] / mine[0] for mine, limit in zip(ours, limits, strict=True)]
    gigabytes = BATCH_BYTES * BATCHES / 1e9
    return {
        "ratio": median(ratios),
        "gbps": gigabytes / median(each[0] for each in ours),
        "limit_gbps": gigabytes / median(each[0] for each in limits),
        "cpu_ms": 1e3 / BATCHES * median(each[1] for each in ours),
        "limit_cpu_ms": 1e3 / BATCHES * median(each[1] for each in limits),
        "slots_gbps": gigabytes / median(each[0] for each in slots),
        "slots_cpu_ms": 1e3 / BATCHES * median(each[1] for each in slots),
    }


def shuffled(size: int) -> dict[str, Any]:
    """Items in random order: by the store, with and without the host library, and by one pread an item, in turns."""
    from hydrax_gpu import DataGroup
    from hydrax_gpu._cache import Keys, Store
    from hydrax_gpu._groupcache import store_spec
    from hydrax_gpu.group import cache_of, plan_of

    count = min(1 << 16, SHUFFLED_BYTES // size)
    items, rng = range(count), np.random.default_rng(0)
    with _folder() as folder:
        arrays = {"x": ((size,), "uint8", "uint8")}
        group = DataGroup(BATCH, items, loader_arrays=PICTURES, cache_arrays=arrays, cache_location=folder)
        declared = cache_of(group)
        assert declared is not None
        spec = store_spec(declared, plan_of(group), items, validation=False)
        store, slow = Store.open(spec), Store.open(replace(spec, kernels=None))
        for begin in range(0, count, 1024):
            rows = np.arange(begin, min(begin + 1024, count))
            content = rng.integers(0, 256, (len(rows), size), np.uint8)
            store.write(Keys(rows, np.zeros(len(rows), np.int64)), {"x": content})
        slow.refresh()
        orders = [rng.permutation(count)[:BATCH] for _ in range(SHUFFLED_BATCHES)]
        out, none = np.empty((BATCH, size), np.uint8), np.zeros(BATCH, np.int64)
        fd = os.open(next(folder.glob("*.0.bin")), os.O_RDONLY)
        targets = [memoryview(row) for row in out]

        def read_by(which: Store) -> None:
            for order in orders:
                if which.read(Keys(order, none), {"x": out}).bad:
                    raise AssertionError("entries that were just written are not good")

        def pread() -> None:
            for order in orders:
                for target, item in zip(targets, order.tolist(), strict=True):
                    os.preadv(fd, [target], item * size)

        ways = {"cpu_us": partial(read_by, store), "one_by_one_cpu_us": partial(read_by, slow), "limit_cpu_us": pread}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(PASSES + 1):
            for name, way in ways.items():
                passed = _timed(way, [])[1]
                if number:
                    times[name].append(1e6 * passed / SHUFFLED_BATCHES)
        os.close(fd)
        store.close()
        slow.close()
    found = {name: median(each) for name, each in times.items()}
    return {"ratio": found["cpu_us"] / found["limit_cpu_us"], **found}


def fill() -> dict[str, Any]:
    """The same loop with and without a cache to fill, in turns; each time another, empty one."""
    encoder = _encoder()
    plain: list[tuple[float, float]] = []
    filling: list[tuple[float, float]] = []
    for number in range(FILLS + 1):
        with _folder() as folder:
            for location, times in ((None, plain), (folder / "cache", filling)):
                passed = _timed(partial(_encode_all, encoder, location), [])
                if number:
                    times.append(passed)
    costs = [mine[0] / base[0] - 1 for mine, base in zip(filling, plain, strict=True)]
    with _folder() as folder:
        writes = [_timed(partial(_write, folder / "plain", number), [])[1] for number in range(FILL_BATCHES)]
    return {
        "cost": median(costs),
        "write_cpu_ms": 1e3 * median(writes),
        "plain_ms": 1e3 / FILL_BATCHES * median(each[0] for each in plain),
        "filling_ms": 1e3 / FILL_BATCHES * median(each[0] for each in filling),
        "cpu_ms": 1e3 / FILL_BATCHES * (median(each[1] for each in filling) - median(each[1] for each in plain)),
    }


def _encoder() -> Any:
    import jax
    import jax.numpy as jnp

    weights = jax.random.normal(jax.random.key(0), (64, 64)) / 8

    @jax.jit
    def encode(images: Any) -> Any:
        start = jnp.broadcast_to(images[:, :1, None], (BATCH, 256, 64)).reshape(-1, 64)
        x = jax.lax.fori_loop(0, LAYERS, lambda _, x: jnp.tanh(x @ weights), start)
        return x.reshape(BATCH, *LATENT)

    return encode


def _encode_all(encoder: Any, location: Path | None) -> None:
    from hydrax_gpu import DataGroup, Dataloader

    items = range(BATCH * FILL_BATCHES)
    group = DataGroup(BATCH, items, loader_arrays=PICTURES, cache_arrays=ARRAYS, cache_location=location)
    with Dataloader(load, group, executor="thread", end_at=("epoch", 1)) as loader:
        for batch in loader:
            latents = encoder(batch.arrays["image"])
            batch.cache({"latent": latents})
            latents.block_until_ready()  # as the training step that follows does
            del batch, latents
    if location is not None and loader.report().caches[0].written != len(items):
        raise AssertionError(f"not everything was written:\n{loader.report()}")


def _make(folder: Path) -> None:
    from hydrax_gpu import DataGroup
    from hydrax_gpu._cache import Keys, Store
    from hydrax_gpu._groupcache import store_spec
    from hydrax_gpu.group import cache_of, plan_of

    items = range(BATCH * BATCHES)
    group = DataGroup(BATCH, items, loader_arrays=PICTURES, cache_arrays=ARRAYS, cache_location=folder)
    declared = cache_of(group)
    assert declared is not None
    store = Store.open(store_spec(declared, plan_of(group), items, validation=False))
    for batch in range(BATCHES):
        rows = np.arange(batch * BATCH, (batch + 1) * BATCH)
        latents = np.random.default_rng(batch).random((BATCH, *LATENT), np.float32)
        latents[:, 0, 0, 0] = rows
        store.write(Keys(rows, np.zeros(BATCH, np.int64)), {"latent": latents})
    store.close()


def _take(loader: Any, batches: int, *, check: bool) -> None:
    for _ in range(batches):
        batch = next(loader)
        if check and (np.asarray(batch.arrays["latent"])[:, 0, 0, 0] != batch.indices).any():
            raise AssertionError("a batch does not hold its items")
        del batch


def _readinto(path: Path, buffers: int) -> None:
    with path.open("rb", buffering=0) as file:
        for buffer in itertools.cycle([bytearray(BATCH_BYTES) for _ in range(buffers)]):
            if not file.readinto(buffer):
                break


def _write(path: Path, number: int) -> None:
    latents = np.full(BATCH_BYTES, number, np.uint8)
    with path.open("r+b" if number else "w+b", buffering=0) as file:
        file.seek(number * BATCH_BYTES)
        file.write(latents)


def _drop(folder: Path) -> None:
    for path in folder.iterdir():
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _timed(call: Any, processes: list[int]) -> tuple[float, float]:
    """Seconds that a call takes, and of CPU, that of other processes included."""
    clock, cpu = time.perf_counter(), time.process_time() + _cpu_of(processes)
    call()
    return time.perf_counter() - clock, time.process_time() + _cpu_of(processes) - cpu


def _cpu_of(processes: list[int]) -> float:
    total = 0.0
    for pid in processes:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def _children(loader: Any) -> list[int]:
    return [worker.pid for worker in loader.report().workers if worker.pid != os.getpid()]


@contextmanager
def _folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="hydrax_gpu-benchmark-") as name:
        yield Path(name)
