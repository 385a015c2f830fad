"""Shards: what it costs to hand a batch over to several devices, for each of them."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from .harness import Experiment, Goal, Metric, target_case

DEVICES = (1, 2, 4, 8)
SIZES: dict[str, tuple[int, ...]] = {"small": (8, 8, 3), "large": (128, 128, 3)}
ROWS = 32
"""Rows of a device: 6 KiB and 1.5 MiB of pictures, and 32 labels."""
ROUNDS = 60
UNMEASURED = 5


def experiments() -> list[Experiment]:
    """Both ways on one to eight CPU devices of one process."""
    metrics = (
        Metric("alias_us", "µs a device: shared with JAX"),
        Metric("alias_limit_us", "µs: limit, from_dlpack of each part, and the global arrays of these"),
        Metric("alias_of_limit", "shared, of the limit", Goal(at_most=1.5)),
        Metric("copy_us", "µs a device: copied"),
        Metric("copy_limit_us", "µs: limit, a memcpy, and device_put of both arrays with the sharding"),
        Metric("copy_of_limit", "copied, of the limit", Goal(at_most=1.25)),
    )
    result: list[Experiment] = []
    for size, shape in SIZES.items():
        cases = [
            target_case(
                f"{count} devices" if count > 1 else "1 device",
                "benchmarks.shards:measure",
                judged=True,
                env={"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"},
                devices=count,
                shape=shape,
            )
            for count in DEVICES
        ]
        title = f"shards, {size}: {ROWS} of {shape} uint8 and an int32 for each device, processor time"
        result.append(Experiment(f"shards-{size}", title, tuple(cases), metrics))
    return result


def measure(devices: int, shape: list[int]) -> dict[str, Any]:
    """The placement of a full slot, without what loads it, and JAX's own calls in turn with it."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from hydrax_gpu._mem.arena import Arena
    from hydrax_gpu._place.dlpack import to_jax
    from hydrax_gpu._place.sharded import ShardedPlacer
    from hydrax_gpu._place.shards import Shards
    from hydrax_gpu._plan import BatchPlan
    from hydrax_gpu._spec import Layout

    if len(jax.devices()) != devices:
        raise AssertionError(f"there are {len(jax.devices())} devices, wanted {devices}")
    rows = ROWS * devices
    layout = Layout.build(rows, {"image": (tuple(shape), "uint8", "uint8"), "label": ((), "int32", "int32")})
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    arena = Arena.create(1, layout.nbytes, workers=1, shared=False)
    views = layout.batch_views(arena.slot(0))
    for view in views.values():
        view[...] = 1
    batch = BatchPlan(0, False, 0, 0, 0, 0, 0, rows, rows, list(range(rows)), None, 0)
    shards = Shards(sharding, [layout], [0])

    def ours(delivery: Any) -> Callable[[], Any]:
        placer = ShardedPlacer(arena, shards, delivery)
        return lambda: placer.place(0, 0, 0, batch, None, lambda: None).arrays

    def alias() -> Any:
        return [
            jax.make_array_from_single_device_arrays(
                view.shape, sharding, [to_jax(view[k * ROWS : (k + 1) * ROWS], k) for k in range(devices)]
            )
            for view in views.values()
        ]

    def copy() -> Any:
        return jax.device_put([view.copy() for view in views.values()], sharding)

    calls = {"alias_us": ours("alias"), "alias_limit_us": alias, "copy_us": ours("copy"), "copy_limit_us": copy}
    times: dict[str, list[float]] = {name: [] for name in calls}
    draws = random.Random(0)
    gc.disable()
    for round_ in range(UNMEASURED + ROUNDS):
        order = list(calls.items())
        draws.shuffle(order)  # who comes after a large copy finds cold caches, and that is not to be always the same
        for name, call in order:
            begin = time.process_time_ns()
            arrays = call()
            jax.block_until_ready(arrays)
            del arrays
            if round_ >= UNMEASURED:
                times[name].append((time.process_time_ns() - begin) / 1e3 / devices)
    medians = {name: median(values) for name, values in times.items()}
    return {
        **medians,
        "alias_of_limit": medians["alias_us"] / medians["alias_limit_us"],
        "copy_of_limit": medians["copy_us"] / medians["copy_limit_us"],
    }
