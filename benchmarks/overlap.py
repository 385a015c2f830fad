"""Training overlap: how much slower a training step is with its batches loaded than with one that is there already.

The step is jitted, reads the whole batch, and computes for a quarter longer than one worker takes to load a batch, so
that a loader which adds nothing hides all its work. It has one core (XLA on the CPU is told so), the loader's one
worker the other: whatever a loader does beside its worker's work slows the step down. On a machine that others use as
well, the time of a step says little; what all processes computed for it, beside the step and the loader function by
themselves, says more. It can be below zero for a loader that has operators of its own in the function's place.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from . import peers, workloads
from .consume import check_epoch, to_jax
from .harness import PEAK, Experiment, Goal, Metric, target_case
from .peers import Chosen

BATCH, WORKERS = 32, 1
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
GOAL = Goal(at_most=1.05)
CALIBRATION = 5
ROOM = 1.25
"""How much longer the step takes than the loading of its batch."""

Step = Callable[[Any, Any], Any]


def experiments(
    subjects: Sequence[Chosen], warm_s: float, window_s: float, file: Path, memory: bool = False
) -> list[Experiment]:
    """Normalised records, batch 32, one worker. `file` holds them."""
    env = {workloads.RECORD_FILE: str(file), workloads.FOLDER: str(file.parent), "XLA_FLAGS": ONE_THREAD}
    times: dict[str, Any] = {"warm_s": warm_s, "window_s": window_s}
    limit = target_case("limit", "benchmarks.overlap:limit", env=env, memory=memory, batch=BATCH, **times)
    subjects = [*subjects, Chosen(peers.DECODE)]
    cases, left_out = peers.cases(
        subjects,
        "records",
        "benchmarks.overlap:loader",
        env=env,
        memory=memory,
        batch=BATCH,
        workers=WORKERS,
        **times,
    )
    metrics = (
        Metric("slowdown", "× the step on one batch that is there", GOAL, limit_case="limit"),
        Metric("step_ms", "ms: a step with its batch loaded"),
        Metric("resident_ms", "ms: the step on one batch that is there"),
        Metric("added_ms", "ms of CPU a step, beside the step and the loader function by themselves"),
        Metric("load_ms", "ms of CPU: a batch by the loader function alone"),
        *([PEAK] if memory else []),
    )
    title = (
        f"overlap: a jitted step on {workloads.RECORD_SHAPE} float32 records, batch {BATCH}, {ROOM} × as long as "
        "loading; limit: a bare loop loads beside it"
    )
    return [Experiment("overlap", title, (limit, *cases), metrics, left_out=left_out)]


def loader(
    subject: str, module: str | None, batch: int, workers: int, warm_s: float, window_s: float
) -> dict[str, Any]:
    """A loader."""
    task = workloads.normalized(batch, workers)
    load_ms, step, there = prepare(task)
    made = peers.make(subject, module)

    def loaded(batches: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        for one in batches:
            yield one, to_jax(made, one)["image"]

    before = run(step, there, window_s / 4)
    with made.open(task) as batches:
        check_epoch(task, made, batches)
        run(step, loaded(batches), warm_s, made.after)
        found = run(step, loaded(batches), window_s, made.after)
        notes = made.notes()
    after = run(step, there, window_s / 4)
    result = {**summary(found, before, after, load_ms), **notes}
    return {**result, "versions": made.versions(), "settings_of_peer": made.settings}


def limit(batch: int, warm_s: float, window_s: float) -> dict[str, Any]:
    """The step on one batch that is there, while another process loads as many batches as the steps take."""
    import multiprocessing

    task = workloads.normalized(batch, WORKERS)
    load_ms, step, there = prepare(task)
    before = run(step, there, window_s / 4)
    context = multiprocessing.get_context("spawn")
    ready, wanted = context.Event(), context.Semaphore(0)
    process = context.Process(target=bare_loop, args=(batch, ready, wanted), daemon=True)
    process.start()
    if not ready.wait(60):
        raise RuntimeError("the bare loop did not start within 60 s")

    def paced() -> Iterator[tuple[Any, Any]]:
        for one in there:
            wanted.release()
            yield one

    run(step, paced(), warm_s)
    found = run(step, paced(), window_s)
    process.terminate()
    process.join()
    after = run(step, there, window_s / 4)
    return summary(found, before, after, load_ms)


def bare_loop(batch: int, ready: Any, wanted: Any) -> None:
    """Load a batch to the same memory each time one is wanted."""
    task = workloads.normalized(batch)
    fill = _fill(task)
    fill(0)
    ready.set()
    for number in itertools.count(1):
        wanted.acquire()
        fill(number)


def _fill(task: workloads.Task) -> Callable[[int], dict[str, np.ndarray]]:
    arrays = {name: np.empty((task.batch, *shape), dtype) for name, (shape, dtype) in task.arrays.items()}
    rows = [{name: array[row, ...] for name, array in arrays.items()} for row in range(task.batch)]

    def fill(number: int) -> dict[str, np.ndarray]:
        start = number * task.batch % len(task.data)
        for item, row in zip(task.data[start : start + task.batch], rows, strict=True):
            task.load(item, row, None)
        return arrays

    return fill


def prepare(task: workloads.Task) -> tuple[float, Step, Iterator[tuple[Any, Any]]]:
    """CPU time of one thread to load a batch in ms, a step that takes `ROOM` times as long, and one batch without end.

    JAX is started in here, as it is in a training script before its loader. CPU time is what is compared, since other
    processes do not change it as much.
    """
    fill = _fill(task)
    times = [_timed(lambda number=number: fill(number)) for number in range(len(task.data) // task.batch)]
    load_s = median(times[1:])
    import jax
    import jax.numpy as jnp

    image = jnp.array(fill(0)["image"])
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((256, 256)) / 16, jnp.float32)

    @jax.jit
    def compute(state: Any, batch: Any, rounds: Any) -> Any:
        features = jnp.reshape(batch, (batch.shape[0], -1, 256)).mean(1)
        return jax.lax.fori_loop(0, rounds, lambda _, x: jnp.tanh(x @ weights), state + features)

    state = jnp.zeros((task.batch, 256), jnp.float32)

    def seconds(rounds: int) -> float:
        return median(_timed(lambda: compute(state, image, rounds).block_until_ready()) for _ in range(CALIBRATION))

    seconds(1)
    # what is there without a round, and what a round adds
    fixed, many = seconds(0), 200
    each = max(1e-7, (seconds(many) - fixed) / many)
    rounds = max(1, round((ROOM * load_s - fixed) / each))
    return 1e3 * load_s, (lambda x, batch: compute(x, batch, rounds)), itertools.repeat((None, image))


def _timed(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def run(
    step: Step, batches: Iterator[tuple[Any, Any]], seconds: float, after: Callable[[Any], None] = lambda batch: None
) -> dict[str, float]:
    """Train for that long: dispatch a step, take the next batch while it runs, wait for the step."""
    import jax.numpy as jnp

    from .accounts import Window

    state, taken = jnp.zeros((BATCH, 256), jnp.float32), 0
    one, image = next(batches)
    window, end = Window(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        new = step(state, image)
        after(one)
        one, image = next(batches)
        state = new.block_until_ready()
        taken += 1
    usage = window.close()
    del one, image
    return {"step_ms": 1e3 * usage.wall_s / taken, **usage.per_item(taken * BATCH)}


def summary(
    found: dict[str, float], before: dict[str, float], after: dict[str, float], load_ms: float
) -> dict[str, float]:
    """The step beside what it took just before and just after without a loader."""
    resident = (before["step_ms"] + after["step_ms"]) / 2
    alone_us = (before["cpu_us_per_item"] + after["cpu_us_per_item"]) / 2
    added_ms = (found["cpu_us_per_item"] - alone_us) * BATCH / 1e3 - load_ms
    return {
        **found,
        "resident_ms": resident,
        "load_ms": load_ms,
        "added_ms": added_ms,
        "slowdown": found["step_ms"] / resident,
    }
