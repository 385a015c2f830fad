"""The calls that are made to CuPy, of which a stub stands in; see `tests/gpu` for the real one.

JAX's part is played by the CPU: it has no streams, and is asked to import host memory.
"""

from __future__ import annotations

import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrax_gpu import ArraySpec, Dequantize, Normalize, NotEnoughMemory, Oklab, UnpackBits
from hydrax_gpu._kernels import sources
from hydrax_gpu._place import backends
from hydrax_gpu._place.conversions import exact
from hydrax_gpu._place.device import Convert, Device
from tests import cupy_stub, loaders
from tests.small import group, loader

needs_library = pytest.mark.skipif(
    not sources.LIBRARY.exists(), reason="the host library, which stands in for the device's kernels, was not built"
)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> cupy_stub.Runtime:
    return cupy_stub.install(monkeypatch)


def on_host(jax_device: Any) -> Device:
    """A CudaDevice whose memory the CPU's JAX can import."""
    from hydrax_gpu._place.cuda import CudaDevice

    class OnHost(CudaDevice):
        dlpack_device = (1, 0)  # type: ignore[assignment]

        def order_reader(self, reader: Any, event: Any) -> None:
            assert reader is None, "the CPU has no streams"
            super().order_reader(1234, event)

        def fence(self, stream: Any) -> None:
            self._fence(self._zero).block_until_ready()

    return OnHost(jax_device)


def names(runtime: cupy_stub.Runtime) -> list[str]:
    return [call[0] for call in runtime.calls]


@needs_library
@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_a_loader_makes_the_calls_in_their_order(runtime: cupy_stub.Runtime, executor: Any) -> None:
    arrays = {"x": ((3,), np.uint8, np.float32), "y": ((), np.int32, np.int32)}
    with backends.replaced(on_host):
        it = loader(training=group(range(40), loader_arrays=arrays), executor=executor, delivery="alias", depth=2)
        with it:
            for batch in it:
                assert batch.arrays["x"].dtype == jnp.float32
                assert np.asarray(batch.arrays["x"]).tolist() == [[i] * 3 for i in batch.indices]
                assert batch.arrays["y"].tolist() == list(batch.indices)
                del batch
    calls = names(runtime)
    assert calls.index("malloc") < calls.index("hostRegister") < calls.index("memcpyAsync")
    assert calls.count("memcpyAsync") == 10 and calls.count("hostRegister") == 1
    copy = calls.index("memcpyAsync")
    assert calls[copy + 1] == "eventRecord", "the host memory is free from there on"
    # of the second batch in a slot, which has to wait for the fence first
    third = [i for i, name in enumerate(calls) if name == "memcpyAsync"][2]
    assert calls[third - 1] == "streamWaitEvent"
    assert runtime.registered
    assert it.report().device == "a stub of a GPU"
    del it
    gc.collect()
    assert not runtime.registered
    assert names(runtime)[-3:].count("free") == 1 and "deviceSynchronize" in names(runtime)


@needs_library
def test_declared_arrays_are_decoded_by_the_same_kernels(runtime: cupy_stub.Runtime) -> None:
    """The host's build of the sources runs in the device's place, with the arguments that the device would get."""
    arrays = {
        "picture": ArraySpec((6, 5, 3), np.uint8, jnp.bfloat16, Normalize((1, 2, 3), (4, 5, 6), 255, "HWC->CHW")),
        "gray": ArraySpec((7, 400), np.float32, np.uint8, Normalize(unit=0.5)),
        "mask": ArraySpec((3, 2), np.uint8, np.bool_, UnpackBits(1, width=13)),
        "codes": ArraySpec((2, 8), np.int8, np.float32, Dequantize("scales", 4)),
        "scales": ArraySpec((2, 2), np.float32, np.float32),
        "four": ArraySpec((2, 8), np.uint8, jnp.bfloat16, Dequantize("halves", 16, 4)),
        "halves": ArraySpec((2, 1), np.float16, np.float16),
        "colours": ArraySpec((9, 3), np.uint8, np.float32, Oklab()),
        "back": ArraySpec((3, 9), np.float32, np.uint8, Oklab("CHW->HWC", inverse=True)),
    }

    def run(**options: Any) -> list[dict[str, Any]]:
        found = []
        it = loader(loaders.fill_with_noise, group(range(20), loader_arrays=arrays), **options)
        with it:
            for batch in it:
                found.append({name: np.array(array) for name, array in batch.arrays.items()})
                del batch
        found.append({"by": it.report().kernels})
        return found

    *expected, by = run()
    assert "host library" in by["by"]
    with backends.replaced(on_host):
        *found, by = run(delivery="alias")
    assert by["by"] == "a stub of a GPU"
    for batch, wanted in zip(found, expected, strict=True):
        for name in arrays:
            np.testing.assert_array_equal(batch[name].view(np.uint8), wanted[name].view(np.uint8), err_msg=name)
    assert names(runtime).count("memcpy") == 2 * 2 + 1 + 2, "each table is uploaded once"


def test_memory_of_xlas_own_is_what_it_says(runtime: cupy_stub.Runtime) -> None:
    device = on_host(jax.devices()[0])
    memory = device.allocate(1000, "xla")
    assert memory.owner == "xla" and memory.nbytes == 1000
    assert memory.keep.unsafe_buffer_pointer() == memory.address
    assert "malloc" not in names(runtime)


def test_what_cuda_refuses(runtime: cupy_stub.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    device = on_host(jax.devices()[0])
    runtime.refuse = {"malloc", "hostRegister"}
    with pytest.raises(MemoryError, match="cudaErrorRefused: malloc"):
        device.allocate(10, "device")
    with pytest.raises(OSError, match="cudaErrorRefused: hostRegister"):
        device.pin(4096, 4096)
    with backends.replaced(on_host):
        it = loader(delivery="copy")
        with it:
            assert next(it).arrays["y"].tolist() == [0, 1, 2, 3]
        assert any("cudaErrorRefused: hostRegister" in note for note in it.report().notes)


def test_the_free_memory_is_asked_after_xla_has_taken_its_own(runtime: cupy_stub.Runtime) -> None:
    runtime.memory = (100 << 20, 80 << 30)
    with backends.replaced(on_host):
        it = loader(delivery="alias")
        with it:
            next(it)
        assert any("lie in memory of XLA's" in note for note in it.report().notes)


def test_no_room_at_all(runtime: cupy_stub.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydrax_gpu._place.cuda import CudaDevice

    def none(self: Any, nbytes: int, owner: Any) -> Any:
        raise MemoryError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(CudaDevice, "allocate", none)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    with backends.replaced(on_host), pytest.raises(NotEnoughMemory) as caught, loader(delivery="alias"):
        pass
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION (0.95) lower" in str(caught.value)


def test_a_reader_without_a_stream_is_refused(runtime: cupy_stub.Runtime) -> None:
    from hydrax_gpu._place.cuda import CudaDevice

    device = CudaDevice(jax.devices()[0])
    event = device.new_event()
    with pytest.raises(RuntimeError, match="delivery='copy'"):
        device.order_reader(None, event)
    device.order_reader(-1, event)
    assert names(runtime) == []
    device.order_reader(77, event)
    assert runtime.calls == [("streamWaitEvent", 77, event.ptr)]
    assert device.dlpack_device == (2, 0) and device.name == "a stub of a GPU"


DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32", jnp.bfloat16]
PAIRS = [(np.dtype(a), np.dtype(b)) for a in DTYPES for b in DTYPES if exact(np.dtype(a), np.dtype(b))]


def interesting(dtype: np.dtype[Any]) -> Any:
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        spread = np.random.default_rng(0).integers(info.min, info.max, 5000, dtype=dtype, endpoint=True)
        return np.concatenate([spread, np.array([info.min, info.max, 0, 1], dtype)])
    bits = np.random.default_rng(0).integers(0, 256, 20_000 * dtype.itemsize, dtype=np.uint8).view(dtype)
    with np.errstate(over="ignore"):
        edges = np.array([0.0, -0.0, np.inf, -np.inf, 1.0, 65504.0, 65520.0, 1e-8, -1e-8], np.float32).astype(dtype)
    values = np.concatenate([bits, edges])
    return values[~np.isnan(values.astype(np.float32))]


@needs_library
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_a_conversion_by_the_kernel_is_that_of_numpy_and_of_xla(runtime: cupy_stub.Runtime, pair: Any) -> None:
    """To the bit, -0 included. Which pairs these are is what `exact` says."""
    source, destination = pair
    device = on_host(jax.devices()[0])
    given = interesting(source)
    out = np.empty(given.shape, destination)
    device.convert(device.new_stream(), Convert(given.ctypes.data, source, out.ctypes.data, destination, given.size))
    with np.errstate(over="ignore"):
        expected = given.astype(destination)
    width = np.dtype(f"u{destination.itemsize}")
    np.testing.assert_array_equal(out.view(width), expected.view(width))
    # XLA on the CPU flushes no subnormals when it converts; one that does would differ here
    by_xla = np.asarray(jax.jit(lambda x: x.astype(destination))(given))
    np.testing.assert_array_equal(out.view(width), by_xla.view(width))


def test_what_the_kernel_rounds_otherwise_is_left_to_xla() -> None:
    assert not exact(np.dtype("float32"), np.dtype("uint8")), "to nearest against towards zero"
    assert not exact(np.dtype("int32"), np.dtype("float16")), "rounded twice"
    assert not exact(np.dtype("uint8"), np.dtype("uint8"))
    assert len(PAIRS) == 4 * 3 + 3 * 2 + 1
