"""What only a GPU can show, each number beside its limit in the same rounds. `python -m benchmarks gpu`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np

from . import gpu_images
from .harness import Case, Experiment, Goal, Metric, target_case

NAMES = ("h2d", "step", "kernels", "images")
ENVIRONMENT = {"JAX_PLATFORMS": "cuda,cpu"}

KERNELS = {
    "convert u8 bf16": ((224, 224, 3), "uint8", "bfloat16", ("Normalize", {})),
    "convert u8 f32 HWC->CHW": ((224, 224, 3), "uint8", "float32", ("Normalize", {"order": "HWC->CHW"})),
    "unpack_bits 1 u8": ((224, 28), "uint8", "uint8", ("UnpackBits", {"bits": 1})),
    "dequantize i8 bf16": ((256, 512), "int8", "bfloat16", ("Dequantize", {"scales": "scales", "block": 32})),
    "srgb_oklab u8 f32": ((224, 224, 3), "uint8", "float32", ("Oklab", {})),
}
"""Item shape, what is loaded, what the batch holds, and the decode between."""


def device() -> tuple[str, str]:
    """The GPU's name, and why nothing can be measured here; one of the two is "".

    Asked in another process, since a JAX that has seen the GPU keeps most of its memory.
    """
    if importlib.util.find_spec("cupy") is None:
        return "", "CuPy is not installed: pip install 'hydrax-gpu[cuda12]' (or [cuda13])"
    script = "import jax; print(); print(jax.default_backend(), jax.local_devices()[0].device_kind)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        return "", f"jax does not start ({done.stderr.strip().splitlines()[-1:]}): `hydrax-gpu doctor` says more"
    backend, name = done.stdout.strip().splitlines()[-1].split(maxsplit=1)
    if backend != "gpu":
        return "", f"jax sees no GPU (its backend is {backend}): `hydrax-gpu doctor` says why"
    return name, ""


def experiments(only: list[str], window_s: float, warm_s: float) -> Iterator[Experiment]:
    """Those that were asked for."""
    times = {"window_s": window_s, "warm_s": warm_s}
    if "h2d" in only:
        yield _h2d(times)
    if "step" in only:
        yield _step(times)
    if "kernels" in only:
        yield _kernels()
    if "images" in only:
        yield gpu_images.experiment(times, ENVIRONMENT)


def _case(name: str, function: str, *, judged: bool = False, **settings: Any) -> Case:
    return target_case(name, f"benchmarks.gpu:{function}", judged=judged, env=ENVIRONMENT, **settings)


# Bytes to the device.


def _h2d(times: dict[str, float]) -> Experiment:
    limit = "cudaMemcpyAsync, pinned"
    metrics = (
        Metric("gb_s", "GB/s to the device", Goal(at_least=0.95), limit),
        Metric("host_us", "µs of CPU a batch, all processes"),
    )
    cases = [
        _case(limit, "measure_memcpy", pinned=True, **times),
        _case("cudaMemcpyAsync, not pinned", "measure_memcpy", pinned=False, **times),
        *(
            _case(f"hydrax_gpu {way}", "measure_loader", judged=True, delivery=way, **times)
            for way in ("alias", "copy")
        ),
        _case("jax.device_put of NumPy", "measure_device_put", **times),
    ]
    return Experiment("h2d", "h2d: batches of 64 MiB of uint8, ready on the host, to the device", tuple(cases), metrics)


_BATCH = (64, 1 << 20)


def measure_memcpy(pinned: bool, window_s: float, warm_s: float) -> dict[str, Any]:
    """Copies of a batch's size from a mapping like the loader's, as fast as the device takes them."""
    import cupy
    import jax

    from hydrax_gpu._mem.mapping import create

    jax.numpy.zeros(()).block_until_ready()
    runtime = cupy.cuda.runtime
    nbytes = int(np.prod(_BATCH))
    mapping = create(3 * nbytes, shared=True)
    mapping.close_fd()
    if pinned:
        runtime.hostRegister(mapping.address, mapping.size, 1)
    target = [runtime.malloc(nbytes) for _ in range(3)]
    stream = cupy.cuda.Stream(non_blocking=True)

    def batches() -> Iterator[None]:
        while True:
            for slot in range(3):
                runtime.memcpyAsync(target[slot], mapping.address + slot * nbytes, nbytes, 1, stream.ptr)
                stream.synchronize()
                yield

    return _rate(batches(), nbytes, window_s, warm_s)


def do_nothing(item: int, arrays: Any, seed: int | None) -> None:
    """A loader function that costs nothing: what is measured is the way to the device."""


@contextmanager
def _loader(delivery: str, arrays: dict[str, Any], load: Any = do_nothing, depth: int = 3, rows: int = 64) -> Any:
    from hydrax_gpu import DataGroup, Dataloader

    group = DataGroup(rows, range(rows * 1000), loader_arrays=arrays)
    with Dataloader(load, group, delivery=delivery, depth=depth, loader_count=2, executor="thread") as loader:
        yield loader


def measure_loader(delivery: str, window_s: float, warm_s: float) -> dict[str, Any]:
    """Batches of a loader, each waited for on the device and dropped."""
    nbytes = int(np.prod(_BATCH))
    with _loader(delivery, {"x": (_BATCH[1:], np.uint8, np.uint8)}) as loader:

        def batches() -> Iterator[None]:
            for batch in loader:
                batch.arrays["x"].block_until_ready()
                del batch
                yield

        result = _rate(batches(), nbytes, window_s, warm_s)
        report = loader.report()
    return {**result, "delivery": report.delivery[0], "pinned": report.pinned, "notes": list(report.notes)}


def measure_device_put(window_s: float, warm_s: float) -> dict[str, Any]:
    """What a loop without a loader does: a NumPy batch, `jax.device_put`, wait."""
    import jax

    host = [np.ones(_BATCH, np.uint8) for _ in range(3)]
    device = jax.local_devices()[0]

    def batches() -> Iterator[None]:
        while True:
            for batch in host:
                jax.device_put(batch, device).block_until_ready()
                yield

    return _rate(batches(), int(np.prod(_BATCH)), window_s, warm_s)


def _rate(batches: Iterator[None], nbytes: int, window_s: float, warm_s: float) -> dict[str, Any]:
    _run_for(batches, warm_s)
    cpu = time.process_time()
    count, seconds = _run_for(batches, window_s)
    return {
        "gb_s": count * nbytes / seconds / 1e9,
        "host_us": 1e6 * (time.process_time() - cpu) / count,
        "batches": count,
    }


def _run_for(batches: Iterator[None], seconds: float) -> tuple[int, float]:
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        next(batches)
        count += 1
    return count, passed


# A training step.


def _step(times: dict[str, float]) -> Experiment:
    limit = "one resident batch"
    metrics = (
        Metric("step_ms", "ms a step", Goal(at_most=1.02), limit),
        Metric("wait_ms", "ms of that waiting in next()"),
    )
    cases = [
        _case(limit, "measure_resident", **times),
        *(_case(f"hydrax_gpu {way}", "measure_steps", judged=True, delivery=way, **times) for way in ("alias", "copy")),
        _case("jax.device_put of NumPy", "measure_put_steps", **times),
    ]
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        cases.append(_case("DALI's JAX iterator", "measure_dali_steps", **times))
    title = (
        "step: 256 images of 224×224×3 uint8 a step, converted to bfloat16, some 10 ms of matrix products on an H100"
    )
    return Experiment("step", title, tuple(cases), metrics)


_IMAGES = (256, 224, 224, 3)


def _train_step() -> tuple[Callable[..., Any], Any]:
    """A jitted step with a state that it passes on, and that state."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def step(state: Any, images: Any) -> Any:
        x = images.reshape(images.shape[0], -1, 588).astype(jnp.bfloat16) / 255
        for _ in range(6):
            x = jnp.tanh(x @ state @ state.T)
        return state + (x.mean() * 1e-6).astype(state.dtype)

    return step, jnp.full((588, 8192), 0.01, jnp.bfloat16)


def _steps(next_images: Callable[[], Any], window_s: float, warm_s: float) -> dict[str, Any]:
    """Steps as a training loop takes them: dispatched ahead, and waited for at the end of the window."""
    step, state = _train_step()
    clock = time.perf_counter
    for seconds in (warm_s, window_s):
        state.block_until_ready()
        count, waited, start = 0, 0.0, clock()
        # not a clock alone: an asynchronous loop would dispatch for ever before anything is done
        while clock() - start < seconds:
            before = clock()
            images = next_images()
            waited += clock() - before
            state = step(state, images)
            del images
            count += 1
            if count % 16 == 0:
                state.block_until_ready()
        state.block_until_ready()
        total = clock() - start
    return {"step_ms": 1e3 * total / count, "wait_ms": 1e3 * waited / count, "steps": count}


def measure_resident(window_s: float, warm_s: float) -> dict[str, Any]:
    import jax.numpy as jnp

    images = jnp.ones(_IMAGES, jnp.uint8)
    return _steps(lambda: images, window_s, warm_s)


def fill_image(item: int, arrays: Any, seed: int | None) -> None:
    """One write of the image, as a decoder that is not the limit would do."""
    arrays["image"][...] = item % 251


def measure_steps(delivery: str, window_s: float, warm_s: float) -> dict[str, Any]:
    arrays = {"image": (_IMAGES[1:], np.uint8, np.uint8)}
    with _loader(delivery, arrays, fill_image, depth=4, rows=_IMAGES[0]) as loader:

        def images() -> Any:
            return next(loader).arrays["image"]  # the batch itself is dropped here, the array by the loop

        result = _steps(images, window_s, warm_s)
        return {**result, "notes": list(loader.report().notes), "verdict": loader.report().verdict}


def measure_put_steps(window_s: float, warm_s: float) -> dict[str, Any]:
    import jax

    host = [np.full(_IMAGES, value, np.uint8) for value in range(4)]
    turn = iter(range(10**9))
    return _steps(lambda: jax.device_put(host[next(turn) % 4]), window_s, warm_s)


def measure_dali_steps(window_s: float, warm_s: float) -> dict[str, Any]:
    from nvidia.dali import fn, pipeline_def
    from nvidia.dali.plugin.jax import DALIGenericIterator

    host = [np.full(_IMAGES, value, np.uint8) for value in range(4)]

    @pipeline_def(batch_size=_IMAGES[0], num_threads=2, device_id=0)
    def pipeline() -> Any:
        return fn.external_source(lambda info: host[info % 4], batch=True, layout="HWC").gpu()

    iterator = DALIGenericIterator([pipeline()], ["image"])
    return _steps(lambda: next(iterator)["image"], window_s, warm_s)


# Kernels.


def _kernels() -> Experiment:
    limit = "device copy"
    metrics = (Metric("gb_s", "GB/s, bytes read and written", Goal(at_least=0.7), limit),)
    cases = [_case(limit, "measure_device_copy")]
    cases += [_case(name, "measure_kernel", judged=True, kernel=name) for name in KERNELS]
    return Experiment("kernels", "kernels on the device: a batch of 256 items", tuple(cases), metrics)


def measure_device_copy(nbytes: int = 256 << 20) -> dict[str, Any]:
    import cupy

    runtime = cupy.cuda.runtime
    first, second = runtime.malloc(nbytes), runtime.malloc(nbytes)
    stream = cupy.cuda.Stream(non_blocking=True)
    seconds = _device_seconds(stream, lambda: runtime.memcpyAsync(second, first, nbytes, 3, stream.ptr))
    return {"gb_s": 2 * nbytes / seconds / 1e9}


def measure_kernel(kernel: str) -> dict[str, Any]:
    """One decode of a batch, by the device's own clock."""
    import ctypes

    import cupy
    import jax

    import hydrax_gpu
    from hydrax_gpu._place.cuda import CudaDevice
    from hydrax_gpu._spec import Layout

    shape, source, wanted, (kind, options) = KERNELS[kernel]
    specs: dict[str, Any] = {
        "a": hydrax_gpu.ArraySpec(shape, source, wanted, getattr(hydrax_gpu, kind)(**options)),
    }
    if "scales" in options:
        specs["scales"] = ((*shape[:-1], shape[-1] // options["block"]), np.float32, np.float32)
    layout = Layout.build(256, specs)
    device = CudaDevice(jax.local_devices()[0])
    memory = device.allocate(layout.nbytes, "device")
    cupy.cuda.runtime.memset(memory.address, 1, layout.nbytes)
    window: Any = (ctypes.c_ubyte * layout.nbytes).from_address(memory.address)
    decode, stream = device.decoder(layout), device.new_stream()
    loaded, batch = layout.wire_views(window), layout.batch_views(window)
    seconds = _device_seconds(stream, lambda: decode(stream, loaded, batch))
    moved = sum(array.nbytes for array in layout.wire) + batch["a"].nbytes
    return {"gb_s": moved / seconds / 1e9, "us": 1e6 * seconds}


def _device_seconds(stream: Any, work: Callable[[], object], rounds: int = 30, each: int = 10) -> float:
    """The median of rounds, a few launches each."""
    import cupy

    times: list[float] = []
    for _ in range(rounds):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record(stream)
        for _ in range(each):
            work()
        end.record(stream)
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3 / each)
    return median(times[rounds // 3 :])
