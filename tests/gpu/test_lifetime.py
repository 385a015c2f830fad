"""No batch in device memory changes under XLA, and this would see it if one did."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu.bodies import kept_by_copy, lifetime
from tests.gpu.machines import CudaMachine

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240), pytest.mark.usefixtures("cupy")]


@pytest.fixture(scope="module")
def machine(cupy: Any) -> CudaMachine:
    return CudaMachine()


def test_a_latch_holds_xla_until_it_is_opened(machine: CudaMachine) -> None:
    """The tests below rest on it."""
    import jax.numpy as jnp

    x, y = jnp.full((2, 64), 3, jnp.uint8), jnp.arange(2)
    machine.results(machine.read({"x": x, "y": y}))  # compiled
    open_latch = machine.hold()
    read = machine.read({"x": x, "y": y})
    try:
        assert not read.is_ready()
    finally:
        open_latch()
    assert machine.results(read).tolist() == [[3, 3, 0], [3, 3, 1]]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_few_batches_at_other_depths(machine: CudaMachine, depth: int) -> None:
    found = lifetime(machine, 500, depth=depth)
    assert not found.wrong, found.first


@pytest.mark.parametrize("executor", ["process", "inline"])
def test_a_few_batches_of_other_executors(machine: CudaMachine, executor: str) -> None:
    found = lifetime(machine, 500, executor=executor)
    assert not found.wrong, found.first


def test_ten_thousand_batches_keep_their_values_with_the_fence(machine: CudaMachine) -> None:
    found = lifetime(machine, 10_000)
    assert not found.wrong, f"{found.wrong} of {found.batches} batches have changed under a computation; {found.first}"


def test_large_batches_keep_their_values_with_the_fence(machine: CudaMachine) -> None:
    found = lifetime(machine, 300, rows=32, item_bytes=1 << 20)
    assert not found.wrong, found.first


def test_without_the_fence_they_do_not(machine: CudaMachine) -> None:
    """Proves the tests above. If it fails, either they show nothing, or XLA holds what it imports until it has read it,
    and no fence is needed: docs/gpu.md must say which."""
    with machine.without_fence():
        assert lifetime(machine, 1000, held=6).wrong > 0


def test_copied_batches_are_kept_for_ever(machine: CudaMachine) -> None:
    def check(batch: Any) -> None:
        assert {array.sharding.memory_kind for array in batch.arrays.values()} == {"device"}

    assert kept_by_copy(machine, 1000, check) == 1000
