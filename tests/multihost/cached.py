"""One of several processes that fill a cache together, and take the same batches from it.

    python -m tests.multihost.cached ADDRESS PROCESSES NUMBER FOLDER

FOLDER has the caches, and gets a file `<NUMBER>.json` with what was seen in each case; see `main`.
"""

from __future__ import annotations

import json
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hydrax_gpu import CacheDamaged, DataGroup, Dataloader
from tests.multihost.member import ARRAYS, fill

P = PartitionSpec
ITEMS, BATCH = 44, 8
LATENT = {"z": ((6,), np.float32, np.float32), "w": ((), np.int32, np.int32)}
FEW = (3, 17)
"""Items of which records are damaged. The second is in a row of the process that has no need of them."""


@cache
def shardings(replicated: bool) -> dict[str, Any]:
    devices = np.array(jax.devices())
    rows = NamedSharding(Mesh(devices, ("data",)), P("data"))
    return {"x": rows, "y": rows, "z": rows, "w": NamedSharding(rows.mesh, P()) if replicated else rows}


def group(location: Path, **options: Any) -> DataGroup[Any]:
    known: dict[str, Any] = {"loader_arrays": ARRAYS, "cache_arrays": LATENT} | {"shuffle_first": True, "seed": 5}
    return DataGroup(BATCH, range(ITEMS), cache_location=location, remainder="pad", **known | options)


@cache
def encoder(replicated: bool) -> Any:
    of = shardings(replicated)
    return jax.jit(
        lambda x, y: {"z": x[:, 0, :6] * 2 + 1, "w": y * 3}, out_shardings={name: of[name] for name in LATENT}
    )


total = jax.jit(lambda arrays: sum(array.sum() for array in arrays.values()))
"""Over all devices: here the processes have to be in step."""


def run(data: DataGroup[Any], *, replicated: bool = False, **options: Any) -> dict[str, Any]:
    """What came: for each batch its number, whether it was uncached, its rows, and a sum of all processes."""
    of, batches = shardings(replicated), []
    wanted: dict[str, Any] = {"executor": "thread", "loader_count": 2, "end_at": ("epoch", 1), "timeout_sec": 20}
    names = {**(data.loader_layouts or {}), **(data.cache_layouts or {})}
    loader = Dataloader(fill, data, sharding={name: of[name] for name in names}, **wanted | options)
    error = ""
    with loader:
        try:
            for batch in loader:
                uncached = batch.uncached
                if uncached:  # a launch that all processes have to take part in
                    batch.cache(encoder(replicated)(batch.arrays["x"], batch.arrays["y"]))
                batches.append(
                    {
                        "number": batch.epoch * 100 + batch.group_index,
                        "uncached": uncached,
                        "global": list(batch.global_indices),
                        "rows": list(batch.global_rows),
                        "indices": list(batch.indices),
                        "replaced": batch.replaced.tolist(),
                        "items": list(batch.additional["item"]),
                        "arrays": {
                            name: [
                                [shard.index[0].indices(BATCH)[:2], np.asarray(shard.data).tolist()]
                                for shard in array.addressable_shards
                            ]
                            for name, array in batch.arrays.items()
                        },
                        "sum": float(total(dict(batch.arrays))),
                    }
                )
                del batch
        except CacheDamaged as damaged:  # on all processes, in this case
            error = str(damaged)
    report = loader.report()
    (info,) = report.caches
    return {
        "batches": batches, "state": loader.state(), "dropped": report.dropped_batches, "error": error,
        "bad": [bad.item for bad in report.bad], "written": info.written, "present": info.present, "hits": info.hits,
        "misses": info.misses, "damaged": info.bad, "troubles": list(info.troubles),
    }  # fmt: skip


def damage(location: Path, items: Any) -> None:
    """Flips a bit in the record of each of these items, which is found by its content."""
    for path in location.glob("*.0.bin"):
        data = bytearray(path.read_bytes())
        for item in items:
            record = (np.arange(6, dtype=np.float32) + 64 * item) * 2 + 1
            if (place := data.find(record.tobytes())) >= 0:
                data[place] ^= 1
        path.write_bytes(data)


def main(folder: Path, number: int) -> dict[str, Any]:
    """All cases, in the same order on all processes."""
    told: dict[str, Any] = {}
    shared, mine = folder / "shared", folder / f"copy {number}"
    # with one slot: the second epoch is planned when the first is nearly written
    told["filled"] = run(group(shared), depth=1, end_at=("epoch", 2))
    told["half"] = run(group(shared), end_at=("batch", 3))
    told["rest"] = run(group(shared), start_at=told["half"]["state"])
    told["only"] = run(group(shared, loader_arrays=None), loader_count=0, executor="process")
    told["direct"] = run(group(folder / "direct", cache_arrays=None), loader_count=1, end_at=("epoch", 2))
    for case in "damaged", "lost", "both":
        multihost_utils.sync_global_devices(f"before {case}")
        shutil.rmtree(mine, ignore_errors=True)
        shutil.copytree(shared, mine)
        if case == "lost":
            if number:  # a directory that is not shared, and lacks what the process has written itself
                min(mine.glob("*.journal"), key=lambda path: path.stat().st_size).unlink()
            told["lost, only"] = run(group(mine, loader_arrays=None))
            told[case] = run(group(mine))
        elif case == "both":
            damage(mine, FEW[:1])
            told[case] = run(group(mine), replicated=True)
        else:
            if number:
                damage(mine, FEW)
            told[case] = run(group(mine), depth=1, end_at=("epoch", 2))
    return told


if __name__ == "__main__":
    address, processes, mine, where = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, int(processes), int(mine))
    Path(where, f"{mine}.json").write_text(json.dumps(main(Path(where), int(mine))))
    jax.distributed.shutdown()
