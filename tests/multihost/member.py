"""One of several processes of a run: loads batches in many ways, and writes down what it was given.

    python -m tests.multihost.member ADDRESS PROCESSES NUMBER FILE

It has two devices of its own. FILE gets a JSON object with the results of each case in `CASES`, see there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hydrax_gpu import DataGroup, Dataloader, ErrorPolicy

DEVICES = 2
"""Devices of a process."""

ENVIRONMENT = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}", "JAX_PLATFORMS": "cpu"}

P = PartitionSpec
ARRAYS = {"x": ((4, 16), np.float32, np.float32), "y": ((), np.int32, np.int32)}
BATCH = 8
BAD = (5, 9, 17, 30, 31, 64)


def fill(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
    """Every number of `x` is another."""
    arrays["x"][...] = item * 64 + np.arange(64).reshape(4, 16)
    arrays["y"][...] = item
    return {"item": item, "process": os.getpid()}


def fails(item: int, arrays: Any, seed: int | None) -> dict[str, Any]:
    """Cannot load some items."""
    if item in BAD:
        raise ValueError(f"item {item} is bad")
    return fill(item, arrays, seed)


def meshes() -> dict[str, Any]:
    """Shardings over the devices of all processes, by name."""
    devices = np.array(jax.devices())
    grid = devices.reshape(jax.process_count(), DEVICES)
    data = NamedSharding(Mesh(devices, ("data",)), P("data"))
    whole = NamedSharding(Mesh(devices, ("data",)), P())
    by_host = Mesh(grid, ("data", "model"))
    across = Mesh(grid.T, ("data", "model"))  # each model replica is spread over all processes
    return {
        "batch": data,
        "batch × model": {
            "x": NamedSharding(by_host, P("data", None, "model")), "y": NamedSharding(by_host, P("data")),
        },
        "model over processes": {
            "x": NamedSharding(across, P("data", "model")), "y": NamedSharding(across, P("data")),
        },
        "replicated": whole,
        "one per array": {"x": data, "y": whole},
        "rows with gaps": NamedSharding(Mesh(grid.T.ravel(), ("data",)), P("data")),
        "reversed": NamedSharding(Mesh(devices[::-1], ("data",)), P("data")),
    }  # fmt: skip


def group(length: int, remainder: Any = "drop", **options: Any) -> DataGroup[Any]:
    return DataGroup(
        BATCH, range(length), loader_arrays=ARRAYS, shuffle_first=True, seed=7, remainder=remainder, **options
    )


@jax.jit
def total(array: Any) -> Any:
    return array.sum()


def described(batch: Any) -> dict[str, Any]:
    """What of a batch is this process's."""
    shards = {
        name: [
            [[[part.start, part.stop] for part in shard.index], np.asarray(shard.data).tolist()]
            for shard in array.addressable_shards
        ]
        for name, array in batch.arrays.items()
    }
    return {
        "training": batch.is_training,
        "indices": list(batch.indices),
        "global": list(batch.global_indices),
        "rows": list(batch.global_rows),
        "valid": batch.valid.tolist(),
        "replaced": batch.replaced.tolist(),
        "items": list(batch.additional.get("item", ())),
        "data": list(batch.data),
        "seeds": list(batch.seeds) if batch.is_training else None,
        "shapes": {name: list(array.shape) for name, array in batch.arrays.items()},
        "shards": shards,
        # over all devices: here the processes have to agree
        "sum": int(total(batch.arrays["y"])),
    }


def run(loader: Dataloader[Any]) -> dict[str, Any]:
    """A whole run: its batches, its state at the end, and what its report says."""
    with loader:
        batches = []
        for batch in loader:
            batches.append(described(batch))
            del batch
    report = loader.report()
    return {
        "batches": batches,
        "state": loader.state(),
        "notes": list(report.notes),
        "bad": {str(bad.item): bad.count for bad in report.bad},
        "dropped": report.dropped_batches,
        "delivery": list(report.delivery),
        "counted": [report.items, report.padded_rows, report.replaced_items],
    }


def refusal(make: Callable[[], object]) -> str:
    try:
        make()
    except ValueError as error:
        return str(error)
    return ""


def load(sharding: Any, training: DataGroup[Any], function: Any = fill, **options: Any) -> Dataloader[Any]:
    options = {"executor": "inline", "end_at": ("epoch", 2)} | options
    return Dataloader(function, training, sharding=sharding, **options)


def each_sharding() -> dict[str, Any]:
    """For each sharding a run of two epochs with padding, and with validation in between."""
    return {
        name: run(
            load(sharding, group(29, "pad"), validation=("batch", 3, group(16)), delivery=("alias", "copy")[i % 2])
        )
        for i, (name, sharding) in enumerate(meshes().items())
    }


def each_size() -> dict[str, Any]:
    """For sizes that nobody chose, runs of an epoch."""
    batch = meshes()["batch"]
    return {
        f"{size} {remainder}": run(load(batch, group(size, remainder), end_at=("epoch", 1)))["batches"]
        for size in (99, 101)
        for remainder in ("drop", "pad")
    }


def bad_items() -> dict[str, Any]:
    """Items that fail: by default; found by workers; and known to be bad from the beginning."""
    batch = meshes()["batch"]
    first = run(load(batch, group(80, "pad"), fails))
    skip = ErrorPolicy(mode="drop", skip=[*_bad(BAD[:3])])
    return {
        "default": first,
        "threads": run(load(batch, group(80, "pad"), fails, executor="thread", loader_count=2)),
        "skip list": run(load(batch, group(80, "pad"), on_error=skip)),
        "resumed": run(load(batch, group(80, "pad"), fails, start_at=first["state"], end_at=("epoch", 3))),
    }


def _bad(items: Any) -> Any:
    from hydrax_gpu import BadItem

    return [BadItem(item=item) for item in items]


def refused() -> dict[str, Any]:
    """What cannot be done with several processes."""
    theirs = [device for device in jax.devices() if device.process_index != jax.process_index()]
    return {
        "short": refusal(lambda: load(meshes()["batch"], group(101, "short"))),
        "out of order": refusal(lambda: load(meshes()["batch"], group(101), deterministic=False)),
        "of others": refusal(lambda: load(NamedSharding(Mesh(np.array(theirs), ("data",)), P("data")), group(101))),
    }


CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "each sharding": each_sharding,
    "each size": each_size,
    "bad items": bad_items,
    "refused": refused,
}


def main(address: str, processes: str, number: str, file: str) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, int(processes), int(number))
    Path(file).write_text(json.dumps({name: case() for name, case in CASES.items()}))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
