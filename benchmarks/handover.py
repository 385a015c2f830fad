"""Hand-over: what it costs the main thread to take a batch that is ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from . import peers, workloads
from .harness import Experiment, Goal, Metric, target_case
from .peers import Chosen
from .workloads import Task

SIZES: dict[str, tuple[int, tuple[int, ...]]] = {"small": (64, (8, 8, 3)), "large": (32, (128, 128, 3))}
DELIVERIES = ("alias", "copy")
UNMEASURED = 20


def experiments(subjects: Sequence[Chosen], steps: int, pause_s: float) -> list[Experiment]:
    """Small and large batches; ours delivered both ways."""
    metrics = (
        Metric("handover_us", "µs: next(), and reading two arrays", Goal(at_most=150.0)),
        Metric("next_us", "µs: of that, next()"),
        Metric("release_us", "µs: dropping the batch"),
        Metric("from_dlpack_us", "µs: limit, from_dlpack of two arrays"),
        Metric("jit_us", "µs: limit, one jitted identity of two arrays"),
        Metric("from_dlpack_hot_us", "µs: the same without a pause, from_dlpack"),
        Metric("jit_hot_us", "µs: the same without a pause, jitted identity"),
    )
    result: list[Experiment] = []
    for size, (batch, shape) in SIZES.items():
        cases = []
        for name, module in ((one.name, one.module) for one in subjects):
            ours = name == "hydrax_gpu"
            for delivery in DELIVERIES if ours else (None,):
                label = f"{name} {delivery}" if delivery else name
                settings = {"subject": name, "module": module, "size": size, "steps": steps, "pause_s": pause_s}
                options = {"delivery": delivery} if delivery else {}
                cases.append(
                    target_case(label, "benchmarks.handover:measure", judged=ours, options=options, **settings)
                )
        title = f"handover, {size}: batch {batch} of {shape} uint8 and an int32, ready before it is asked for"
        result.append(Experiment(f"handover-{size}", title, tuple(cases), metrics))
    return result


def measure(
    subject: str, module: str | None, size: str, steps: int, pause_s: float, options: dict[str, Any]
) -> dict[str, Any]:
    """The loader's hand-over, then the two limits in the same process and with the same pauses."""
    batch, shape = SIZES[size]
    task = workloads.small(batch, shape, **options)
    result = _loader(task, subject, module, steps, pause_s)
    return {**result, **_limits(task, steps, pause_s), "steps": steps}


def _loader(task: Task, subject: str, module: str | None, steps: int, pause_s: float) -> dict[str, float]:
    loader = peers.make(subject, module)
    clock, cpu = time.perf_counter, time.thread_time
    rows: list[tuple[float, float, float, float]] = []
    with loader.open(task) as batches:
        for step in range(UNMEASURED + steps):
            # long enough for the workers to fill every slot: what is measured is not the loading
            time.sleep(pause_s)
            before, start = cpu(), clock()
            batch = next(batches)
            taken = clock()
            arrays = loader.arrays(batch)
            image, label = arrays["image"], arrays["label"]
            done, after = clock(), cpu()
            if step == 0:
                task.check(arrays)
            image.block_until_ready()
            label.block_until_ready()
            loader.after(batch)
            dropping = clock()
            del batch, arrays, image, label
            rows.append((taken - start, done - start, after - before, clock() - dropping))
    columns = zip(*rows[UNMEASURED:], strict=True)
    taken_us, done_us, cpu_us, release_us = (1e6 * median(column) for column in columns)
    return {"next_us": taken_us, "handover_us": done_us, "handover_cpu_us": cpu_us, "release_us": release_us}


def _limits(task: Task, steps: int, pause_s: float) -> dict[str, float]:
    import jax

    values = [_aligned((task.batch, *shape), dtype) for shape, dtype in task.arrays.values()]
    identity = jax.jit(lambda a, b: (a, b))

    def alias() -> Any:
        return [jax.dlpack.from_dlpack(value) for value in values]

    def copy() -> Any:
        return identity(*values)

    return {
        "from_dlpack_us": _median_us(alias, steps, pause_s),
        "jit_us": _median_us(copy, steps, pause_s),
        "from_dlpack_hot_us": _median_us(alias, steps, 0.0),
        "jit_hot_us": _median_us(copy, steps, 0.0),
    }


def _median_us(call: Callable[[], Any], steps: int, pause_s: float) -> float:
    """The median of a call between pauses: after one, caches are as cold as they are for a loader's consumer."""
    import jax

    clock, times = time.perf_counter, []
    for _ in range(UNMEASURED + steps):
        if pause_s:
            time.sleep(pause_s)
        start = clock()
        result = call()
        times.append(clock() - start)
        jax.block_until_ready(result)
        del result
    return 1e6 * median(times[UNMEASURED:])


def _aligned(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Zeros at a multiple of 256 bytes: jax copies what is less aligned than it wants."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 256, np.uint8)
    start = -raw.ctypes.data % 256
    return raw[start : start + size].view(dtype).reshape(shape)
