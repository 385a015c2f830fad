"""Probes that import what may not be there, may take seconds, hang or crash: each runs in a process of its own.

    python -m hydrax_gpu._doctor.packages jax

prints the findings of the probe `jax` as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

from hydrax_gpu._doctor.finding import Finding

__all__ = ["PROBES", "main"]

_MIB = 1 << 20
_BANDWIDTH_BYTES = 256 * _MIB
_EXTRA = "pip install 'hydrax-gpu[cuda12]' (or [cuda13], to fit the driver)"


def probe_jax() -> list[Finding]:
    """JAX, and the device memory that it leaves."""
    jax = _import("jax")
    if jax is None:
        return [Finding("jax", "absent", "not installed", f"pip install jax, or {_EXTRA}")]
    devices = jax.local_devices()
    backend = jax.default_backend()
    data: dict[str, Any] = {"version": jax.__version__, "backend": backend, "devices": [str(each) for each in devices]}
    text = f"{jax.__version__} on {backend}: {', '.join(str(each) for each in devices)}"
    if backend == "gpu":
        return [Finding("jax", "ok", text, data=data), _memory_beside_xla(jax)]
    plugins = [name for name in ("jax-cuda12-plugin", "jax-cuda13-plugin") if _version(name) is not None]
    data["plugins"] = plugins
    if os.environ.get("JAX_PLATFORMS"):
        fix = f"JAX_PLATFORMS={os.environ['JAX_PLATFORMS']} decides that; unset it to let jax look for a GPU"
    elif plugins:
        fix = f"{plugins[0]} is installed but finds no GPU: see the line of the driver"
    else:
        fix = f"without a GPU nothing is wrong; with one: {_EXTRA}"
    return [Finding("jax", "limited", f"{text}; no GPU", fix, data)]


def _memory_beside_xla(jax: Any) -> Finding:
    jax.numpy.zeros(()).block_until_ready()  # XLA takes its memory
    cupy = _import("cupy")
    fraction = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.75")
    fix = f"set XLA_PYTHON_CLIENT_MEM_FRACTION (now {fraction}) lower: slots of device memory lie beside XLA's"
    if cupy is None:
        return Finding("device memory", "limited", "unknown without CuPy", _EXTRA)
    free, total = cupy.cuda.runtime.memGetInfo()
    text = f"{free / _MIB:,.0f} of {total / _MIB:,.0f} MiB are free beside what XLA has reserved"
    data = {"free_bytes": int(free), "total_bytes": int(total), "fraction": fraction}
    if free < 1024 * _MIB:
        return Finding("device memory", "limited", text, fix, data)
    return Finding("device memory", "ok", text, data=data)


def probe_cupy() -> list[Finding]:
    """CuPy, which runs copies and kernels; pinning; bandwidths."""
    cupy = _import("cupy")
    if cupy is None:
        return [
            Finding("CuPy", "absent", "not installed: delivery='alias' and pinning need it on a GPU", _EXTRA),
            *_without_device("CuPy is not installed", _EXTRA),
        ]
    runtime = cupy.cuda.runtime
    version = runtime.runtimeGetVersion()
    text = f"{cupy.__version__}, CUDA runtime {version // 1000}.{version % 1000 // 10}"
    data = {"version": cupy.__version__, "runtime": version}
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        fix = "see the line of the driver; it must be as new as this runtime"
        return [Finding("CuPy", "limited", f"{text}: {error}", fix, data), *_without_device(str(error), fix)]
    found = [Finding("CuPy", "ok", f"{text}, {count} devices", data=data | {"devices": count})]
    return [*found, *_copies(cupy)]


def _without_device(why: str, fix: str) -> list[Finding]:
    return [Finding(name, "absent", f"not tried: {why}", fix) for name in ("pinning", "bandwidth")]


def _copies(cupy: Any) -> list[Finding]:
    """Pins memory as a loader does, and measures with it."""
    from hydrax_gpu._mem.mapping import create

    runtime = cupy.cuda.runtime
    mapping = create(_BANDWIDTH_BYTES, shared=True)
    try:
        try:
            runtime.hostRegister(mapping.address, mapping.size, 1)
        except runtime.CUDARuntimeError as error:
            fix = "raise the limit of locked memory: `ulimit -l unlimited`, docker run --ulimit memlock=-1"
            return [
                Finding("pinning", "failed", f"{mapping.size // _MIB} MiB of shared memory: {error}", fix),
                Finding("bandwidth", "absent", "not measured: memory cannot be pinned", fix),
            ]
        try:
            return [
                Finding("pinning", "ok", f"{mapping.size // _MIB} MiB of shared memory, huge pages: {mapping.huge}"),
                _bandwidth(cupy, mapping.address, mapping.size),
            ]
        finally:
            runtime.hostUnregister(mapping.address)
    finally:
        mapping.close_fd()


def _bandwidth(cupy: Any, host: int, nbytes: int) -> Finding:
    runtime = cupy.cuda.runtime
    first, second = runtime.malloc(nbytes), runtime.malloc(nbytes)
    stream = cupy.cuda.Stream(non_blocking=True)
    try:
        to_device = _gigabytes_per_second(
            cupy, stream, nbytes, lambda: runtime.memcpyAsync(first, host, nbytes, 1, stream.ptr)
        )
        on_device = _gigabytes_per_second(
            cupy, stream, nbytes, lambda: runtime.memcpyAsync(second, first, nbytes, 3, stream.ptr)
        )
    finally:
        runtime.free(first)
        runtime.free(second)
    text = f"pinned host to device {to_device:.1f} GB/s, device copy {on_device:.0f} GB/s (each byte counted once)"
    return Finding("bandwidth", "ok", text, data={"h2d_gb_per_s": to_device, "d2d_gb_per_s": on_device})


def _gigabytes_per_second(cupy: Any, stream: Any, nbytes: int, copy: Callable[[], object]) -> float:
    """The best of ten, by the device's own clock."""
    best = float("inf")
    for _ in range(10):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record(stream)
        copy()
        end.record(stream)
        end.synchronize()
        best = min(best, cupy.cuda.get_elapsed_time(begin, end) / 1e3)
    return nbytes / best / 1e9


def probe_nvimgcodec() -> list[Finding]:
    """nvImageCodec, and whether the GPU has a JPEG engine of its own."""
    codec = _import("nvidia.nvimgcodec")
    if codec is None:
        fix = "for image decoding: pip install 'hydrax-gpu[image]', on a GPU [cuda12] or [cuda13]"
        return [Finding("nvImageCodec", "absent", "not installed", fix)]
    version = str(getattr(codec, "__version__", "?"))
    data: dict[str, Any] = {"version": version}
    try:
        codec.Decoder(device_id=codec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=[codec.Backend(codec.BackendKind.CPU_ONLY)])
    except Exception as error:
        fix = "reinstall nvidia-nvimgcodec of the CUDA version that is installed"
        return [Finding("nvImageCodec", "failed", f"{version}: {_line(error)}", fix, data)]
    kinds: list[str] = []
    for kind in ("GPU_ONLY", "HYBRID_CPU_GPU", "HW_GPU_ONLY"):
        try:
            backends = [codec.Backend(getattr(codec.BackendKind, kind))]
            image = codec.Decoder(device_id=0, backends=backends).decode(_JPEG)
        except Exception:
            continue
        if image is not None:
            kinds.append(kind)
    data["gpu_backends"] = kinds
    found = [Finding("nvImageCodec", "ok", f"{version}, decodes on the CPU", data=data)]
    fix = f"see the line of the driver; with a driver: {_EXTRA}, which brings nvJPEG"
    if "HW_GPU_ONLY" in kinds:
        return [*found, Finding("JPEG engine", "ok", "the GPU decodes JPEG by its own engine")]
    if kinds:
        fix = "nothing to be done: it comes with the GPU (A100, H100 and later data-centre GPUs have it)"
        return [*found, Finding("JPEG engine", "limited", f"none; nvJPEG decodes by {', '.join(kinds)}", fix)]
    return [*found, Finding("JPEG engine", "absent", "no JPEG can be decoded on a GPU", fix)]


def probe_dali() -> list[Finding]:
    """DALI."""
    if _version("nvidia-dali-cuda120") is None and _version("nvidia-dali-cuda130") is None:
        return [Finding("DALI", "absent", "not installed", "for DaliLoader: pip install 'hydrax-gpu[dali]'")]
    dali = _import("nvidia.dali")
    if dali is None:
        return [
            Finding("DALI", "failed", "installed, but cannot be imported", "reinstall it: see `python -m nvidia.dali`")
        ]
    return [Finding("DALI", "ok", str(dali.__version__), data={"version": str(dali.__version__)})]


def probe_kvikio() -> list[Finding]:
    """The library for GPUDirect Storage."""
    kvikio = _import("kvikio")
    if kvikio is None:
        return [
            Finding("kvikio", "absent", "not installed", "only for GPUDirect Storage: pip install 'hydrax-gpu[gds]'")
        ]
    version = str(getattr(kvikio, "__version__", "?"))
    return [Finding("kvikio", "ok", version, data={"version": version})]


PROBES: dict[str, Callable[[], list[Finding]]] = {
    "jax": probe_jax,
    "cupy": probe_cupy,
    "nvimgcodec": probe_nvimgcodec,
    "dali": probe_dali,
    "kvikio": probe_kvikio,
}
"""By name, in the order of the page."""


def main(name: str) -> None:
    """Prints the findings of a probe, as the last line."""
    started = time.monotonic()
    found = PROBES[name]()
    seconds = round(time.monotonic() - started, 2)
    sys.stdout.write("\n" + json.dumps({"findings": [each.as_json() for each in found], "seconds": seconds}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # what some of these libraries do at exit has hung


def _import(name: str) -> Any | None:
    """The module; None when it is not there. What else is wrong with it is raised."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            return None
        raise


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]


# A colour JPEG of 16 by 16 pixels, 4:2:0.
_JPEG = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb004300080606070605080707070909080a0c140d0c0b0b0c1912130f141d1a1f1e1d"
    "1a1c1c20242e2720222c231c1c2837292c30313434341f27393d38323c2e333432ffdb0043010909090c0b0c180d0d1832211c2132323232"
    "32323232323232323232323232323232323232323232323232323232323232323232323232323232323232323232ffc00011080010001003"
    "012200021101031101ffc4001f0000010501010101010100000000000000000102030405060708090a0bffc400b510000201030302040305"
    "0504040000017d01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a2526272829"
    "2a3435363738393a434445464748494a535455565758595a636465666768696a737475767778797a838485868788898a9293949596979899"
    "9aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9"
    "faffc4001f0100030101010101010101010000000000000102030405060708090a0bffc400b5110002010204040304070504040001027700"
    "0102031104052131061241510761711322328108144291a1b1c109233352f0156272d10a162434e125f11718191a262728292a3536373839"
    "3a434445464748494a535455565758595a636465666768696a737475767778797a82838485868788898a92939495969798999aa2a3a4a5a6"
    "a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4c5c6c7c8c9cad2d3d4d5d6d7d8d9dae2e3e4e5e6e7e8e9eaf2f3f4f5f6f7f8f9faffda000c030100"
    "02110311003f00f37f07ff00cb3afa03c1ff00f2cebe7ff07ffcb3afa03c1fff002ce803ffd9"
)

if __name__ == "__main__":
    main(sys.argv[1])
