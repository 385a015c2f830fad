"""One of several processes that fill a cache together, and take the same batches from it.

    python -m tests.multihost.cached ADDRESS PROCESSES NUMBER FOLDER

FOLDER has the caches, and gets a file `<NUMBER>.json` with what was seen in each case; see `main`.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hydrax_gpu import DataGroup, Dataloader
from tests.multihost.member import ARRAYS, fill

P = PartitionSpec
ITEMS, BATCH = 44, 8
LATENT = {"z": ((6,), np.float32, np.float32), "w": ((), np.int32, np.int32)}
FEW = (3, 17)
"""Items that one process loses."""


def shardings() -> dict[str, Any]:
    devices = np.array(jax.devices())
    rows = NamedSharding(Mesh(devices, ("data",)), P("data"))
    return {"x": rows, "y": rows, "z": rows, "w": NamedSharding(rows.mesh, P())}  # of "w" all have all


def group(location: Path, **options: Any) -> DataGroup[Any]:
    known: dict[str, Any] = {"loader_arrays": ARRAYS, "shuffle_first": True, "seed": 5, "remainder": "pad"}
    return DataGroup(BATCH, range(ITEMS), cache_arrays=LATENT, cache_location=location, **known | options)


def encoder() -> Any:
    of = shardings()
    return jax.jit(
        lambda x, y: {"z": x[:, 0, :6] * 2 + 1, "w": y * 3}, out_shardings={name: of[name] for name in LATENT}
    )


encode = jax.jit(lambda z, w: z.sum() + w.sum())  # over all devices: here the processes have to be in step


def run(data: DataGroup[Any], **options: Any) -> dict[str, Any]:
    """What came: for each batch its number, whether it was uncached, its rows, and a sum of all processes."""
    of, batches = shardings(), []
    wanted: dict[str, Any] = {"executor": "thread", "loader_count": 2, "end_at": ("epoch", 1), "timeout_sec": 20}
    names = LATENT if data.loader_size is None else ARRAYS | LATENT
    compute = encoder()
    with Dataloader(fill, data, sharding={name: of[name] for name in names}, **wanted | options) as loader:
        for batch in loader:
            uncached = batch.uncached
            if uncached:
                # a launch that all processes have to take part in
                batch.cache(compute(batch.arrays["x"], batch.arrays["y"]))
            shown = {name: np.asarray(array.addressable_shards[0].data).tolist() for name, array in batch.arrays.items()}
            batches.append(
                {
                    "number": batch.epoch * 100 + batch.group_index,
                    "uncached": uncached,
                    "indices": list(batch.indices),
                    "replaced": batch.replaced.tolist(),
                    "items": list(batch.additional["item"]),
                    "first": shown,
                    "sum": float(encode(batch.arrays["z"], batch.arrays["w"])),
                }
            )
            del batch
        state = loader.state()
    report = loader.report()
    (info,) = report.caches
    return {
        "batches": batches, "state": state, "dropped": report.dropped_batches, "bad": [bad.item for bad in report.bad],
        "written": info.written, "hits": info.hits, "misses": info.misses, "damaged": info.bad,
        "troubles": list(info.troubles),
    }  # fmt: skip


def barrier(name: str) -> None:
    jax.experimental.multihost_utils.sync_global_devices(name)


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
    told: dict[str, Any] = {}
    shared = folder / "shared"
    told["filled"] = run(group(shared), end_at=("epoch", 2))
    told["read"] = run(group(shared))
    told["only"] = run(group(shared, loader_arrays=None), loader_count=0, executor="process")
    barrier("read")
    own = shared if number == 0 else folder / "copy"
    if number:
        shutil.copytree(shared, own)
        damage(own, FEW)
    barrier("damaged")
    told["damaged"] = run(group(own), end_at=("epoch", 3))
    return told


if __name__ == "__main__":
    address, processes, mine, where = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, int(processes), int(mine))
    Path(where, f"{mine}.json").write_text(json.dumps(main(Path(where), int(mine))))
    jax.distributed.shutdown()
