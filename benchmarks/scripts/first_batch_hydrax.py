"""The script that a user of hydrax would write, up to its first batch."""

import time

import numpy as np
from hydrax import DataGroup, Dataloader

from benchmarks.accounts import emit
from benchmarks.scripts.tell import tell
from benchmarks.workloads import load_small_and_tell

if __name__ == "__main__":
    scalar = ((1,), np.int32, "int32")
    arrays = {"image": ((8, 8, 3), np.uint8, "uint8"), "label": scalar, "pid": scalar, "jax": scalar}
    group = DataGroup(64, range(1_000_000), loader_arrays=arrays)
    with Dataloader(load_small_and_tell, group, loader_count=2) as loader:
        batches = iter(loader)
        batch = next(batches)
        batch.get_array("image").block_until_ready()
        batch.get_array("label").block_until_ready()
        done_at = time.monotonic()
        del batch
        told = tell(batches)
        closing = time.monotonic()
    emit({**told, "close_s": time.monotonic() - closing, "done_at": done_at})
