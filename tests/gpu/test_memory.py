"""Where batches lie on a real device: pointers, dtypes, pinned memory, several GPUs."""

from __future__ import annotations

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrax_gpu import Dataloader
from hydrax_gpu._place.dlpack import Exporter
from tests.gpu.bodies import CONVERSIONS, DTYPES, check_dtypes, marked
from tests.gpu.load import mark

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cupy")]


@pytest.mark.parametrize("delivery", ["alias", "copy"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_arrives_as_it_is(dtype: str, delivery: Any) -> None:
    check_dtypes(dtype, dtype, delivery, platform="gpu")


@pytest.mark.parametrize("delivery", ["alias", "copy"])
@pytest.mark.parametrize(("source", "wanted"), CONVERSIONS)
def test_dtypes_are_converted_on_the_device_as_on_the_cpu(source: str, wanted: str, delivery: Any) -> None:
    check_dtypes(source, wanted, delivery, platform="gpu")


def test_arrays_lie_in_the_ring_at_the_offsets_of_their_layout() -> None:
    seen = set[int]()
    with Dataloader(mark, marked(60, 8, 4096), depth=3, executor="inline", delivery="alias", end_at=("epoch", 1)) as it:
        for batch in it:
            x, y = batch.arrays["x"], batch.arrays["y"]
            layouts = batch.layouts
            assert y.unsafe_buffer_pointer() - x.unsafe_buffer_pointer() == layouts["y"][3] - layouts["x"][3]
            assert x.unsafe_buffer_pointer() % 256 == 0
            seen.add(x.unsafe_buffer_pointer())
            del batch, x, y
        ring = it._placer._ring
        addresses = {ring._slots[slot].address for slot in range(3)}
    assert seen <= addresses and len(seen) > 1, "a slot of the ring each, and no copy"


def test_host_memory_is_pinned_and_the_report_says_so(cupy: Any) -> None:
    with Dataloader(mark, marked(10, 8, 4096), delivery="alias", loader_count=1) as it:
        next(it)
        attributes = cupy.cuda.runtime.pointerGetAttributes(it._arena.address(0))
        assert attributes.devicePointer or attributes.hostPointer, "cudaHostRegister'ed"
        report = it.report()
    assert report.pinned is True and not [note for note in report.notes if "pin" in note]
    assert report.device in str(report)


def test_pinned_memory_is_imported_without_a_copy() -> None:
    """What `delivery="copy"` rests on: memory kind `pinned_host`, and the same pointer."""
    with Dataloader(mark, marked(10, 8, 4096), delivery="copy", loader_count=1) as it:
        next(it)
        view = np.frombuffer(it._arena.slot(0), np.uint8, 4096)
        pinned = jax.dlpack.from_dlpack(Exporter(view, (3, 0)), copy=False)
        assert pinned.sharding.memory_kind == "pinned_host"
        assert pinned.unsafe_buffer_pointer() == view.ctypes.data
        assert it._placer._imports_pinned, "the loader has not fallen back to another way"
        assert not it.report().notes


@pytest.mark.parametrize("owner", ["device", "xla"])
def test_a_ring_in_either_memory(owner: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from hydrax_gpu._place.cuda import CudaDevice

    if owner == "xla":
        total = CudaDevice(jax.local_devices()[0]).free_memory()[1]
        monkeypatch.setattr(CudaDevice, "free_memory", lambda self: (0, total))
    with (
        caplog.at_level(logging.WARNING),
        Dataloader(mark, marked(200, 8, 1 << 16), delivery="alias", executor="thread", end_at=("epoch", 1)) as it,
    ):
        for batch in it:
            assert np.asarray(batch.arrays["y"]).tolist() == list(batch.indices)
            assert (np.asarray(batch.arrays["x"])[:, 0] == np.asarray(batch.indices) % 251).all()
            del batch
        assert it._placer._ring.memory.owner == owner
    assert ("XLA_PYTHON_CLIENT_MEM_FRACTION" in caplog.text) == (owner == "xla")


def test_a_batch_that_is_read_at_once_is_complete() -> None:
    """The copy is long and the reader quick: only the order between their streams makes this right."""
    with Dataloader(
        mark, marked(60, 32, 1 << 20), depth=2, loader_count=2, executor="thread", delivery="alias", end_at=("epoch", 1)
    ) as it:
        for batch in it:
            last = np.asarray(batch.arrays["x"][-1, -1])
            assert last == batch.indices[-1] % 251
            del batch


@pytest.mark.parametrize("kind", ["slice", "numpy", "donated", "pending"])
def test_what_was_made_of_a_batch_does_not_change(kind: str) -> None:
    derive = {
        "slice": lambda x: x[1:],
        "numpy": np.array,
        "donated": jax.jit(lambda x: x + 0, donate_argnums=0),
        "pending": jax.jit(lambda x: (x.astype(jnp.float32) @ jnp.eye(x.shape[1])).astype(jnp.uint8)),
    }[kind]
    with Dataloader(
        mark, marked(100, 8, 1024), depth=2, executor="thread", delivery="alias", end_at=("epoch", 1)
    ) as it:
        kept = []
        for batch in it:
            kept.append((derive(batch.arrays["x"]), list(batch.indices)))
            del batch
    for array, indices in kept:
        expected = np.array(indices)[-len(array) :] % 251
        np.testing.assert_array_equal(np.asarray(array)[:, 0], expected)


@pytest.mark.skipif("len(__import__('jax').local_devices()) < 2", reason="there is one GPU only")
@pytest.mark.parametrize("delivery", ["alias", "copy"])
def test_two_gpus_have_a_loader_each_in_one_process(delivery: Any) -> None:
    loaders = []
    for device in jax.local_devices()[:2]:
        with jax.default_device(device):
            loaders.append(
                Dataloader(mark, marked(100, 8, 1024), executor="thread", delivery=delivery, end_at=("epoch", 1))
            )
            loaders[-1].__enter__()
    try:
        for batches in zip(*loaders, strict=True):
            for batch, device in zip(batches, jax.local_devices(), strict=False):
                assert batch.arrays["x"].devices() == {device}
                assert np.asarray(batch.arrays["y"]).tolist() == list(batch.indices)
    finally:
        for loader in loaders:
            loader.__exit__(None, None, None)
