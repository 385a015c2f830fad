"""Batches on a GPU by the default placement; docs/gpu.md says what these tests have shown so far."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrax_gpu import DataGroup, Dataloader, TrainingBatch
from hydrax_gpu.loader import Delivery, ExecutorName
from tests import loaders
from tests.race.pattern import assert_intact, fill, pattern_group

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("delivery", ["auto", "alias", "copy"])
@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_batches_are_on_the_gpu_and_hold_what_was_loaded(executor: ExecutorName, delivery: Delivery) -> None:
    with Dataloader(
        fill, pattern_group(), loader_count=2, executor=executor, delivery=delivery, end_at=("batch", 200)
    ) as loader:
        for batch in loader:
            assert isinstance(batch, TrainingBatch)
            assert {device.platform for device in batch.arrays["pattern"].devices()} == {"gpu"}
            assert_intact(batch.arrays["pattern"], batch.arrays["index"], batch.indices, batch.seeds)
            del batch


def test_batches_do_not_change_while_computations_that_read_them_are_pending() -> None:
    @jax.jit
    def slow(pattern: jax.Array, weight: jax.Array) -> jax.Array:
        weight = jax.lax.fori_loop(0, 50, lambda _, w: jnp.tanh(w @ w), weight)
        return pattern + (weight[0, 0] * 0).astype(pattern.dtype)

    weight = jnp.full((1024, 1024), 0.001)
    kept: list[tuple[Any, Any, list[int], list[int]]] = []
    with Dataloader(fill, pattern_group(), loader_count=2, depth=3, end_at=("batch", 100)) as loader:
        for batch in loader:
            assert isinstance(batch, TrainingBatch)
            out = slow(batch.arrays["pattern"], weight)
            kept.append((out, batch.arrays["index"] + 0, list(batch.indices), list(batch.seeds)))
            del batch
    for out, index, indices, seeds in kept:
        assert_intact(out, index, indices, seeds)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "bfloat16"])
def test_dtypes_are_converted_to_the_declared_ones(dtype: str) -> None:
    group = DataGroup(8, range(64), loader_arrays={"x": ((5,), np.uint8, dtype)})
    with Dataloader(loaders.fill, group, loader_count=2, end_at=("epoch", 1)) as loader:
        for batch in loader:
            assert batch.arrays["x"].dtype == jnp.dtype(dtype)
            np.testing.assert_array_equal(
                np.asarray(batch.arrays["x"].astype(jnp.int32)), np.repeat(np.asarray(batch.indices)[:, None], 5, 1)
            )
            del batch
