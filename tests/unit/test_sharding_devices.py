"""Global arrays over several devices that have memory of their own; fakes, of which each lies on a CPU device."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrax_gpu import NotEnoughMemory
from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._place import backends
from hydrax_gpu._place.sharded_devices import DeviceRings, ShardLayout
from hydrax_gpu._place.shards import Shards
from hydrax_gpu._spec import Layout
from hydrax_gpu.loader import Delivery
from hydrax_gpu.testing import FakeDevice
from tests.small import group, loader
from tests.unit.test_sharding import ALL, SHARDINGS, check, fill, over


@contextmanager
def fakes(**options: Any) -> Generator[dict[Any, FakeDevice], None, None]:
    """A fake for each of the CPU's devices."""
    devices = {device: FakeDevice(index=device.local_hardware_id, **options) for device in jax.local_devices()}
    with backends.replaced(devices.__getitem__):
        yield devices


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("delivery", ["auto", "alias", "copy"])
@pytest.mark.parametrize("name", ["batch", "all devices", "reversed", "replicated", "single device", "one per array"])
@pytest.mark.usefixtures("no_gc")
def test_every_device_has_its_part(name: str, delivery: Delivery) -> None:
    sharding = SHARDINGS[name]
    with fakes() as devices:
        it = loader(
            fill, group(range(45), 8, loader_arrays=ALL, remainder="pad"), sharding=sharding, delivery=delivery,
            depth=2, executor="thread", end_at=("epoch", 2), timeout_sec=30,
        )  # fmt: skip
        count = 0
        with it:
            for batch in it:
                check(batch, ALL, sharding)
                count += 1
                del batch
        report = it.report()
        assert count == 12
        assert report.device is not None and report.device.endswith("a fake device") and report.pinned
        fenced = [device.fenced for device in devices.values()]
        if delivery == "alias":
            assert report.delivery == ("alias",) and report.device_memory_bytes > 0 and any(fenced)
        else:
            assert report.delivery == ("copy",) and report.device_memory_bytes == 0 and not any(fenced)
        del it
        gc.collect()
        assert not any(device.pinned for device in devices.values())


def test_each_device_has_memory_for_its_part_alone() -> None:
    arrays = {"x": ((1024,), np.uint8, np.uint8), "half": ((1024,), np.uint8, jnp.float16)}
    with fakes() as devices:
        sharding = over(("data", "model"))
        with loader(
            fill, group(range(64), 32, loader_arrays=arrays), sharding=sharding, delivery="alias", depth=3
        ) as it:
            for batch in it:
                check(batch, arrays, sharding)
                del batch
            assert it.report().device_memory_bytes == 8 * 3 * (4 * 1024 * (1 + 1 + 2))
        copied = [sum(nbytes for _, _, nbytes in device.copies) for device in devices.values()]
        assert copied == [2 * 2 * 4 * 1024] * 8, "and is sent no more than that"


@pytest.mark.usefixtures("no_gc")
def test_a_slot_is_free_when_no_device_has_a_part_of_it() -> None:
    arrays = {"x": ((64,), np.float32, np.float32)}
    with fakes() as devices, loader(
        fill, group(range(16), 16, loader_arrays=arrays), sharding=over("data"), delivery="alias", depth=2,
        end_at=("epoch", 20), executor="thread", timeout_sec=30,
    ) as it:  # fmt: skip
        batch = next(it)
        kept = batch.arrays["x"].addressable_shards[3].data
        before = np.array(kept)
        address = kept.unsafe_buffer_pointer()
        del batch
        used: set[int] = set()
        for batch in it:
            (there,) = (s.data for s in batch.arrays["x"].addressable_shards if s.device in kept.devices())
            used.add(there.unsafe_buffer_pointer())
            del batch, there
        assert address not in used and len(used) == 1, "the other slot, again and again"
        np.testing.assert_array_equal(np.asarray(kept), before)
        fences = {device.fenced for device in list(devices.values())}
        assert fences == {max(fences)} != {0}, "each device has its own"
        del kept


def test_a_device_without_room_is_an_error_that_names_it() -> None:
    with fakes(memory=1 << 10, xla_memory=1 << 10), pytest.raises(NotEnoughMemory, match="memory of a fake device"):
        loader(fill, group(range(16), 16, loader_arrays=ALL), sharding=over("data"), delivery="alias").__enter__()


def test_what_cannot_be_pinned_is_copied_all_the_same() -> None:
    with fakes(pin_error="no"):
        it = loader(fill, group(range(16), 8, loader_arrays=ALL), sharding=over("data"), delivery="copy")
        with it:
            for batch in it:
                check(batch, ALL, over("data"))
                del batch
        assert it.report().pinned is False and any("could not be pinned" in note for note in it.report().notes)


def test_one_device_that_is_late_holds_the_host_slot() -> None:
    layout = Layout.build(4, {"x": ((64,), np.float32, np.float32)})
    shards = Shards(over("data", shape=(2,)), [layout], [0])
    jax_devices = jax.local_devices()[:2]
    devices = {each: FakeDevice(jax=False, automatic=False, index=i) for i, each in enumerate(jax_devices)}
    arena = Arena.create(1, layout.nbytes, workers=1, shared=False)
    dtypes = {"x": np.dtype(np.float32)}
    layouts = [
        {
            each: ShardLayout.of(layout, shards.of(0, 4), each, dtypes, ["x"], device.converts)
            for each, device in devices.items()
        }
    ]
    rings = DeviceRings(devices, arena, layouts)
    released: list[int] = []
    layout.batch_views(arena.slot(0))["x"][...] = np.arange(4)[:, None]
    parts = rings.place(0, 7, 0, lambda: released.append(7))
    first, second = (devices[each] for each in jax_devices)
    assert rings.copied() == []
    first.run()
    assert rings.copied() == [], "the other has yet to read its rows"
    second.run()
    assert rings.copied() == [(0, 7)] and rings.copied() == [], "once"
    for i, each in enumerate(jax_devices):
        array = parts["x"][each]
        seen: list[Any] = []
        devices[each].launch(lambda x, seen=seen: seen.append(x.copy()), array)
        devices[each].run()
        np.testing.assert_array_equal(seen[0][:, 0], [2 * i, 2 * i + 1])
        del array
    del parts["x"][jax_devices[0]]
    assert released == [], "the second has its part still"
    parts.clear()
    assert released == [7]
    rings.retire(0)
    assert first.fenced == second.fenced == 1
    rings.close()
