"""What a startup script tells of its workers, once its time has been taken."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.accounts import maps_jax, memory

SETTLE_S = 1.0


def tell(batches: Iterator[Any], workers: int = 2) -> dict[str, Any]:
    """Take batches until every worker has shown itself and the memory has settled, then weigh the workers."""
    # Not at the top: this module is imported by the scripts, whose own imports are what is timed.
    import jax

    tiny = jax.jit(lambda x: x + 1)
    jax_imported: dict[int, bool] = {}
    start = time.monotonic()
    while (waited := time.monotonic() - start) < SETTLE_S or (len(jax_imported) < workers and waited < 20):
        batch = next(batches)
        pids, flags = (np.asarray(batch.get_array(name)).ravel().tolist() for name in ("pid", "jax"))
        jax_imported.update(zip(pids, map(bool, flags), strict=True))
        del batch
        # hydrax's loader waits for ever for a consumer that never calls jax
        tiny(1)
    weights = [memory(pid) for pid in jax_imported]
    return {
        "workers_seen": len(jax_imported),
        "workers_with_jax": sum(jax_imported.values()),
        "workers_mapping_jaxlib": sum(map(maps_jax, jax_imported)),
        **{f"worker_{key}": max(weight[key] for weight in weights) for key in ("pss_mb", "own_mb", "rss_mb")},
        "workers": weights,
    }
