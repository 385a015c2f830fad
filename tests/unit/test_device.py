"""A loader whose batches go to a device, which is a fake one of host memory: what the user sees of it.

How the device and the host may overlap is the matter of `tests/property/test_device_ring.py`.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import mmap
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrax_gpu import (
    ArraySpec,
    BatchTimeoutError,
    Dataloader,
    Dequantize,
    Normalize,
    NotEnoughMemory,
    Oklab,
    PadRagged,
    UnpackBits,
)
from hydrax_gpu._place import backends
from hydrax_gpu._place.dlpack import Exporter
from hydrax_gpu.loader import Delivery, ExecutorName
from hydrax_gpu.testing import FakeArray, FakeDevice
from tests import loaders
from tests.race.pattern import assert_intact, fill, pattern_group
from tests.small import group, loader

MIXED = {
    "x": ((3,), np.uint8, np.float32),
    "y": ((), np.int32, np.int32),
    "z": ((2, 5), np.float32, jnp.bfloat16),
    "n": ((), np.float32, np.int8),  # which no kernel converts
}


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def values(batch: Any) -> dict[str, list[Any]]:
    return {name: np.asarray(array.astype(jnp.float32)).tolist() for name, array in batch.arrays.items()}


def run(it: Dataloader[Any]) -> list[dict[str, list[Any]]]:
    found: list[dict[str, list[Any]]] = []
    with it:
        for batch in it:
            for name, array in batch.arrays.items():
                assert array.dtype == jnp.dtype(MIXED[name][2])
            found.append(values(batch))
            del batch
    return found


@pytest.mark.parametrize("remainder", ["drop", "pad", "short"])
@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
@pytest.mark.parametrize("delivery", ["auto", "alias", "copy"])
def test_the_values_are_those_of_the_cpu(delivery: Delivery, executor: ExecutorName, remainder: Any) -> None:
    def it() -> Dataloader[Any]:
        training = group(range(10), loader_arrays=MIXED, remainder=remainder)
        validation = group(range(50, 57), 3, loader_arrays={"y": MIXED["y"]}, remainder=remainder)
        return loader(
            training=training, validation=("epoch", 1, validation), executor=executor, delivery=delivery,
            end_at=("epoch", 3), timeout_sec=30,
        )  # fmt: skip

    expected = run(it())
    device = FakeDevice()
    with device.in_use():
        on_device = it()
        assert run(on_device) == expected
    report = on_device.report()
    assert report.device == "a fake device" and report.pinned is True
    assert set(report.delivery) == {"alias" if delivery == "alias" else "copy"}
    assert bool(report.device_memory_bytes) == (delivery == "alias")
    assert "device        a fake device" in str(report)
    assert device.idle


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("delivery", ["alias", "copy"])
@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_a_thousand_batches_without_a_jax_call_and_nothing_is_left(executor: ExecutorName, delivery: Delivery) -> None:
    device = FakeDevice()
    with device.in_use():
        it = Dataloader(
            fill, pattern_group(), loader_count=2, depth=2, executor=executor, delivery=delivery,
            end_at=("batch", 1000), timeout_sec=30,
        )  # fmt: skip
        count = 0
        with it:
            for batch in it:
                count += 1
                del batch
    assert count == 1000
    assert len(device.pinned) == 1, "pinned as long as it is mapped"
    if delivery == "alias":
        assert 998 <= device.fenced <= 1000, "a fence a batch, but for those after the end"
    gone = weakref.ref(it)
    del it
    gc.collect()
    assert gone() is None
    assert not device.pinned, "unpinned before it was unmapped"
    assert device.free_bytes("device") == device.free_bytes("xla") == 1 << 30


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_computations_that_run_late_read_their_own_batch(depth: int) -> None:
    """As on CUDA: the batch is dropped and released before the computation that reads it has run."""
    device = FakeDevice(jax=False)
    results: list[tuple[Any, Any, list[int], list[int]]] = []
    with device.in_use(), Dataloader(
        fill, pattern_group(), loader_count=2, depth=depth, executor="thread", delivery="alias",
        end_at=("batch", 120), timeout_sec=30,
    ) as it:  # fmt: skip
        open_latch = device.latch()
        for batch in it:
            arrays: dict[str, FakeArray] = dict(batch.arrays)
            indices, seeds = list(batch.indices), list(batch.seeds)

            def read(pattern: Any, index: Any, indices: Any = indices, seeds: Any = seeds) -> None:
                results.append((pattern.copy(), index.copy(), indices, seeds))

            device.launch(read, arrays["pattern"], arrays["index"])
            del batch, arrays
            if batch_number(it) % depth == 0:
                # all that was handed out has yet to be read; only now does XLA get on with it
                open_latch()
                open_latch = device.latch()
        open_latch()
        device.run()
    assert len(results) == 120
    for pattern, index, indices, seeds in results:
        assert_intact(pattern, index, indices, seeds)


def batch_number(it: Dataloader[Any]) -> int:
    return it.report().training_batches


def test_a_loader_waits_for_a_computation_that_does_not_end_and_does_not_write_over_it() -> None:
    device = FakeDevice(jax=False)
    seen: list[Any] = []
    it = loader(training=group(range(100)), executor="thread", delivery="alias", depth=2, timeout_sec=0.5)
    with device.in_use(), it:
        open_latch = device.latch()
        for _ in range(4):  # depth on the host, and as many on the device
            batch = next(it)
            device.launch(lambda x, y: seen.append(y.tolist()), *batch.arrays.values())
            del batch
        with pytest.raises(BatchTimeoutError, match=r"slot \d (copying|retired)") as caught:
            next(it)
        assert "2 slots wait to be copied to the device" in str(caught.value)
        open_latch()
        expected = [list(range(4 * n, 4 * n + 4)) for n in range(4)]
        assert seen == expected
        next(it)


def test_without_fences_this_would_be_corrupted() -> None:
    """Proves the two tests above."""
    device = FakeDevice(jax=False, fences=False)
    seen: list[Any] = []
    with device.in_use(), loader(executor="inline", delivery="alias", depth=1, end_at=None) as it:
        open_latch = device.latch()
        for _ in range(3):
            batch = next(it)
            device.launch(lambda x, y: seen.append(y.tolist()), *batch.arrays.values())
            del batch
        open_latch()
    assert len({tuple(batch) for batch in seen}) < 3


def test_the_fence_is_up_before_the_consumer_has_another_batch() -> None:
    """Which may be ready already: then nobody need look for what was released, and the consumer would go on."""
    device = FakeDevice()
    it = loader(training=group(range(400)), executor="thread", delivery="alias", depth=4, timeout_sec=30)
    with device.in_use(), it:
        batch = next(it)
        for number in range(1, 50):
            while it._runner.outbox.empty():  # another is ready
                pass
            del batch
            batch = next(it)
            assert device.fenced == number
        del batch


def test_batches_outlive_their_loader() -> None:
    device = FakeDevice()
    with device.in_use(), loader(executor="thread", delivery="alias", depth=2) as it:
        kept = [next(it), next(it)]
    del it
    gc.collect()
    assert device.free_bytes("device") < 1 << 30
    assert [np.asarray(batch.arrays["y"]).tolist() for batch in kept] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    kept.clear()
    gc.collect()
    assert device.free_bytes("device") == 1 << 30


@pytest.mark.parametrize("kind", ["array", "slice", "numpy view", "donated", "other device", "pending"])
def test_what_was_made_of_a_batch_does_not_change(kind: str) -> None:
    """Each way to go on with an array after its batch is gone; the next batches fill all slots in between."""
    derive = {
        "array": lambda x: x,
        "slice": lambda x: x[1:],
        "numpy view": np.asarray,
        "donated": jax.jit(lambda x: x * 1, donate_argnums=0),
        "other device": lambda x: jax.device_put(x, jax.devices()[1]),
        "pending": jax.jit(lambda x: x + 0),
    }[kind]
    device = FakeDevice()
    with device.in_use(), loader(executor="thread", delivery="alias", depth=2, end_at=None, timeout_sec=30) as it:
        batch = next(it)
        array = batch.arrays["y"]
        del batch
        kept = derive(array)
        expected = [0, 1, 2, 3][-len(kept) :]
        del array
        for _ in range(8):
            next(it)
        assert np.asarray(kept).tolist() == expected


def test_memory_that_cannot_be_pinned_is_said_once_and_works(caplog: pytest.LogCaptureFixture) -> None:
    expected = run(loader(training=group(loader_arrays=MIXED)))
    for delivery in ("alias", "copy"):
        caplog.clear()
        with FakeDevice(pin_error="cudaErrorMemoryAllocation: out of memory").in_use():
            it = loader(training=group(loader_arrays=MIXED), delivery=delivery)
            assert run(it) == expected
        assert it.report().pinned is False
        (note,) = it.report().notes
        assert "could not be pinned" in note and "cudaErrorMemoryAllocation" in note and "ulimit -l" in note
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [note]
        assert "host memory not pinned" in str(it.report())


def test_an_import_that_jax_refuses_is_said_once_and_works(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = list[int]()

    def refuse(self: Any, view: Any) -> Any:
        calls.append(1)
        raise RuntimeError("UNIMPLEMENTED: kDLCUDAHost")

    monkeypatch.setattr(FakeDevice, "copy_to_jax", refuse)
    with FakeDevice().in_use():
        it = loader(training=group(range(40)), delivery="copy", depth=2, executor="thread", timeout_sec=30)
        with it:
            for number in range(10):
                assert next(it).arrays["y"].tolist() == list(range(4 * number, 4 * number + 4))
    assert len(calls) == 1
    (note,) = it.report().notes
    assert "RuntimeError: UNIMPLEMENTED: kDLCUDAHost" in note
    assert [record.getMessage() for record in caplog.records].count(note) == 1


@pytest.mark.parametrize("delivery", ["alias", "copy"])
def test_numbers_of_64_bits_are_narrowed_by_jax_alone(monkeypatch: pytest.MonkeyPatch, delivery: Any) -> None:
    monkeypatch.setattr(FakeDevice, "copy_to_jax", None)
    device = FakeDevice()
    arrays = {"x": ((), np.int64, np.int64), "y": ((), np.int32, np.int32)}
    with device.in_use(), loader(training=group(loader_arrays=arrays), delivery=delivery) as it:
        batch = next(it)
        assert batch.arrays["x"].dtype == np.int32 and batch.arrays["x"].tolist() == [0, 1, 2, 3]
    assert not device.copies


def test_slots_lie_in_memory_of_xlas_if_there_is_no_other() -> None:
    device = FakeDevice(memory=1 << 20)
    with device.in_use():
        it = loader(delivery="alias")
        with it:
            batch = next(it)
            assert device.free_bytes("xla") < 1 << 30 and device.free_bytes("device") == 1 << 20
            del batch
    assert any("XLA_PYTHON_CLIENT_MEM_FRACTION" in note for note in it.report().notes)


@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_no_room_on_the_device_is_an_error_that_says_what_to_do(executor: ExecutorName) -> None:
    device = FakeDevice(memory=1 << 20, xla_memory=100)
    with device.in_use(), pytest.raises(NotEnoughMemory) as caught, loader(delivery="alias", executor=executor):
        pass
    text = str(caught.value)
    assert "3 slots in the memory of a fake device need" in text
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" in text and "delivery='copy'" in text
    assert caught.value.free == 0


def test_the_device_is_the_default_one_of_the_thread_that_made_the_loader() -> None:
    asked: list[Any] = []

    def find(jax_device: Any) -> FakeDevice:
        asked.append(jax_device)
        return FakeDevice()

    with (
        backends.replaced(find),
        jax.default_device(jax.devices()[3]),
        loader(executor="thread", delivery="alias") as it,
    ):
        next(it)
    assert asked == [jax.devices()[3]]


@pytest.mark.parametrize("delivery", ["alias", "copy"])
def test_the_cpu_devices_are_told_apart_too(delivery: Delivery) -> None:
    with jax.default_device(jax.devices()[2]), loader(executor="thread", delivery=delivery) as it:
        for batch in it:
            assert batch.arrays["y"].devices() == {jax.devices()[2]}
            del batch


def test_a_placement_func_on_a_device_gets_host_memory() -> None:
    device = FakeDevice()
    with device.in_use():
        it = loader(placement_func=lambda arrays, *_: {name: jnp.array(array) for name, array in arrays.items()})
        with it:
            assert next(it).arrays["y"].tolist() == [0, 1, 2, 3]
    assert it.report().delivery == ("user",) and it.report().device is None and not device.copies


class NotCuda:
    platform = "gpu"
    device_kind = "Radeon"

    class client:
        platform_version = "rocm 60000"


def test_a_device_that_we_cannot_use_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends.find(jax.devices()[0]) == (None, "")
    assert backends.find(NotCuda()) == (None, "Radeon is not a CUDA device (gpu rocm 60000)")
    monkeypatch.setattr(NotCuda.client, "platform_version", "cuda 12080")
    monkeypatch.setitem(sys.modules, "cupy", None)
    found, reason = backends.find(NotCuda())
    assert found is None and "pip install 'hydrax-gpu[cuda12]'" in reason


def test_batches_are_copied_by_jax_where_we_cannot_use_the_device(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hydrax_gpu._place.backends.find", lambda _: (None, "it is a toaster"))
    it = loader(executor="thread", delivery="alias")
    with it:
        assert next(it).arrays["y"].tolist() == [0, 1, 2, 3]
    notes = [note for note in it.report().notes if "it is a toaster" in note]
    assert len(notes) == 1
    assert [record.getMessage() for record in caplog.records].count(notes[0]) == 1


# Declared arrays that are decoded there.

DECODED = {
    "picture": ArraySpec((6, 5, 3), np.uint8, jnp.bfloat16, Normalize((1, 2, 3), (4, 5, 6), 255, "HWC->CHW")),
    "gray": ArraySpec((7, 4), np.float32, np.uint8, Normalize(unit=0.5)),
    "mask": ArraySpec((3, 2), np.uint8, np.bool_, UnpackBits(1, width=13)),
    "codes": ArraySpec((2, 8), np.int8, np.float32, Dequantize("scales", 4)),
    "scales": ArraySpec((2, 2), np.float32, np.float32),
    "colours": ArraySpec((9, 3), np.uint8, np.float32, Oklab()),
    "plain": ArraySpec((), np.int32, np.float32),
}
RAGGED = {
    "values": ArraySpec((10,), np.int32, np.int32, PadRagged("splits", 5)),
    "splits": ArraySpec((3,), np.int32, np.int32),
    "mask": DECODED["mask"],
}


def contents(it: Dataloader[Any]) -> list[dict[str, Any]]:
    found = []
    with it:
        for batch in it:
            found.append({name: np.array(array) for name, array in batch.arrays.items()})
            del batch
    return found


@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
@pytest.mark.parametrize("remainder", ["pad", "short"])
def test_declared_arrays_are_decoded_on_the_device_as_by_the_workers(executor: Any, remainder: Any) -> None:
    def it(**options: Any) -> Dataloader[Any]:
        training = group(range(10), loader_arrays=DECODED, remainder=remainder)
        return loader(loaders.fill_with_noise, training, executor=executor, timeout_sec=30, **options)

    expected = contents(it())
    device = FakeDevice()
    with device.in_use():
        on_device = it(delivery="alias")
        found = contents(on_device)
    assert [list(batch) for batch in found] == [list(batch) for batch in expected]
    for batch, wanted in zip(found, expected, strict=True):
        for name in batch:
            assert batch[name].dtype == wanted[name].dtype
            np.testing.assert_array_equal(batch[name], wanted[name], err_msg=name)
    layout = on_device._training[0]._layout
    assert all(nbytes <= layout.wire_nbytes for _, _, nbytes in device.copies), "only what was loaded comes over"
    for slot in range(3):
        assert not any(on_device._arena.slot(slot)[layout.wire_nbytes : layout.nbytes]), "no worker has decoded"
    assert "a fake device" in on_device.report().kernels


def test_what_may_be_an_items_fault_is_decoded_by_the_workers() -> None:
    def it(**options: Any) -> Dataloader[Any]:
        return loader(loaders.fill_ragged, group(range(8), loader_arrays=RAGGED), **options)

    expected = contents(it())
    with FakeDevice().in_use():
        on_device = it(delivery="alias")
        found = contents(on_device)
    for batch, wanted in zip(found, expected, strict=True):
        for name in wanted:
            np.testing.assert_array_equal(batch[name], wanted[name])
    assert "fake" not in on_device.report().kernels and on_device.report().kernels
    assert on_device.report().delivery == ("alias",)


def test_workers_decode_what_the_device_cannot_be_made_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, layout: Any) -> Any:
        raise RuntimeError("NVRTC_ERROR_COMPILATION")

    expected = contents(loader(loaders.fill_with_noise, group(range(8), loader_arrays=DECODED)))
    monkeypatch.setattr(FakeDevice, "decoder", broken)
    with FakeDevice().in_use():
        it = loader(loaders.fill_with_noise, group(range(8), loader_arrays=DECODED), delivery="alias")
        for batch, wanted in zip(contents(it), expected, strict=True):
            for name in wanted:
                np.testing.assert_array_equal(batch[name], wanted[name])
    (note,) = it.report().notes
    assert "RuntimeError: NVRTC_ERROR_COMPILATION" in note and "fake" not in it.report().kernels


@pytest.mark.parametrize("delivery", ["auto", "copy"])
def test_copied_batches_are_decoded_by_the_workers(delivery: Any) -> None:
    with FakeDevice().in_use():
        it = loader(loaders.fill_with_noise, group(range(8), loader_arrays=DECODED), delivery=delivery)
        assert len(contents(it)) == 2
    assert "fake" not in it.report().kernels


def test_a_capsule_says_where_its_memory_lies_and_nobody_reads_it() -> None:
    # A page that must not be touched: reading it would be a segmentation fault.
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 5]
    page = libc.mmap(None, 4096, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 2**64 - 1, 0)
    lease = (ctypes.c_ubyte * 4096).from_address(page)
    gone = weakref.ref(lease)
    asked: list[Any] = []
    for dtype in ("uint8", "float32", "bool", jnp.bfloat16, jnp.float8_e4m3fn):
        view = np.ndarray((4, 8), dtype, buffer=lease)
        exporter = Exporter(view, (2, 5), asked.append)
        assert exporter.__dlpack_device__() == (2, 5)
        capsule = exporter.__dlpack__(stream=17)
        header = (ctypes.c_int32 * 8).from_address(pointer(capsule))
        assert header[2:4] == [2, 5], "device type and index"
        assert int.from_bytes(bytes(header)[:8], "little") == page
        del capsule, exporter, view
    assert asked == [17] * 5
    del lease
    assert gone() is None


def pointer(capsule: Any) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = get(capsule, b"dltensor")
    assert address is not None
    return address
