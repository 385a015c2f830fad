"""Probes of the machine itself, which need nothing but the standard library and run at once."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import shutil
from pathlib import Path

from hydrax_gpu._doctor.finding import Finding
from hydrax_gpu._kernels.choice import choose
from hydrax_gpu._mem.limits import room

__all__ = ["PROBES"]

_MIB = 1 << 20
_GIB = 1 << 30

_DRIVER_FIX = (
    "install the NVIDIA driver (https://www.nvidia.com/drivers), and in a container start it with the GPUs: "
    "docker run --gpus all"
)


def machine() -> Finding:
    """Processors, kernel and Python."""
    model = re.search(r"^(?:model name|CPU part)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    cores = len(os.sched_getaffinity(0))
    name = model[1] if model else platform.machine()
    return Finding(
        "machine",
        "ok",
        f"{cores} cores ({name}), Linux {platform.release()}, Python {platform.python_version()}",
        data={"cores": cores, "cpu": name, "kernel": platform.release(), "python": platform.python_version()},
    )


def memory() -> Finding:
    """What the slots can have."""
    left = room(shared=True)
    if left is None:
        return Finding("host memory", "limited", "unknown", "mount /proc, so that memory can be checked before a run")
    text = f"{left.bytes / _GIB:.1f} GiB free by the {left.what}"
    data = {"free_bytes": left.bytes, "limit": left.what}
    if left.bytes < _GIB:
        return Finding("host memory", "limited", text, left.fix, data)
    return Finding("host memory", "ok", text, data=data)


def shared_memory() -> Finding:
    """`/dev/shm`, which other libraries use and we do not."""
    try:
        stat = os.statvfs("/dev/shm")
    except OSError as error:
        return Finding("/dev/shm", "limited", f"{error.strerror}; hydrax_gpu does not use it", _shm_fix())
    size, free = stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize
    text = f"{free / _GIB:.2f} of {size / _GIB:.2f} GiB free; hydrax_gpu does not use it (its memory has no name)"
    data = {"size_bytes": size, "free_bytes": free}
    if size < 256 * _MIB:
        return Finding("/dev/shm", "limited", text, _shm_fix(), data)
    return Finding("/dev/shm", "ok", text, data=data)


def _shm_fix() -> str:
    return "only for other libraries: docker run --shm-size=8g, or mount a larger tmpfs there"


def locked_memory() -> Finding:
    """The limit of locked memory, which pinning may be subject to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    data = {"soft_bytes": _number(soft), "hard_bytes": _number(hard)}
    if soft == resource.RLIM_INFINITY:
        return Finding("memlock limit", "ok", "unlimited", data=data)
    text = f"{soft / _MIB:.1f} MiB"
    if soft < 64 * _MIB:
        # the NVIDIA driver pins memory by itself and seldom minds, but a container's may
        fix = "if slots cannot be pinned: `ulimit -l unlimited`, docker run --ulimit memlock=-1, or limits.conf"
        return Finding("memlock limit", "limited", text, fix, data)
    return Finding("memlock limit", "ok", text, data=data)


def open_files() -> Finding:
    """A worker needs two file descriptors, and three more while it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    data = {"soft": _number(soft), "hard": _number(hard)}
    if soft < 256:
        return Finding("open files", "limited", f"{soft}", "`ulimit -n 4096` before the start", data)
    return Finding("open files", "ok", f"{soft}", data=data)


def host_kernels() -> Finding:
    """What decodes declared arrays on the CPU."""
    choice = choose()
    compilers = [name for name in ("c++", "g++", "clang++") if shutil.which(name)]
    data = {"path": choice.path, "reason": choice.reason, "compilers": compilers}
    if choice.path is not None:
        return Finding("CPU kernels", "ok", "the host library is built", data=data)
    fix = "build it: `python -m hydrax_gpu._kernels.build`"
    if not compilers:
        fix = f"install a C++ compiler (on Debian: apt install g++), then {fix}"
    return Finding("CPU kernels", "limited", f"NumPy does their work: {choice.reason}", fix, data)


def driver() -> Finding:
    """The NVIDIA driver and its devices, asked without any package."""
    version = re.search(r"Module\s+(\d+\.\d+(?:\.\d+)?)", _read("/proc/driver/nvidia/version"))
    kernel_module = version[1] if version else None
    data: dict[str, object] = {"kernel_module": kernel_module}
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        if kernel_module is not None:
            return Finding(
                "NVIDIA driver", "limited", f"kernel module {kernel_module}, but there is no libcuda.so.1", _DRIVER_FIX,
                data,
            )  # fmt: skip
        return Finding("NVIDIA driver", "absent", "no driver (no libcuda.so.1)", _DRIVER_FIX, data)
    code = cuda.cuInit(0)
    if code != 0:
        return Finding("NVIDIA driver", "failed", f"cuInit fails with code {code}", _init_fix(code), data)
    number, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    names: list[str] = []
    for index in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, 256, device)
        names.append(name.value.decode(errors="replace"))
    supported = f"{number.value // 1000}.{number.value % 1000 // 10}"
    data |= {"cuda": supported, "devices": names}
    if not names:
        return Finding("NVIDIA driver", "absent", f"for CUDA {supported}, but it shows no device", _init_fix(100), data)
    module = f" {kernel_module}" if kernel_module else ""
    return Finding("NVIDIA driver", "ok", f"driver{module} for CUDA up to {supported}: {', '.join(names)}", data=data)


def _init_fix(code: int) -> str:
    if code == 100:
        return (
            "no device is visible: look at CUDA_VISIBLE_DEVICES, `nvidia-smi`, and in a container docker run --gpus all"
        )
    return {
        3: "the driver is not initialised: run `nvidia-smi` as root once, or load the kernel module (modprobe nvidia)",
        803: "the driver's library and its kernel module differ: reboot after a driver update",
    }.get(code, "see `nvidia-smi` and the kernel's log (`dmesg | grep NVRM`)")


def storage() -> Finding:
    """The kernel's part of GPUDirect Storage."""
    if Path("/proc/driver/nvidia-fs/stats").exists():
        return Finding("GPUDirect Storage", "ok", "the kernel module nvidia-fs is loaded", data={"nvidia_fs": True})
    return Finding(
        "GPUDirect Storage",
        "absent",
        "the kernel module nvidia-fs is not loaded: files are read through host memory",
        "nothing needs it; to have it, install nvidia-gds and load nvidia-fs",
        {"nvidia_fs": False},
    )


def _number(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


PROBES = (machine, memory, shared_memory, locked_memory, open_files, host_kernels, driver, storage)
"""In the order of the page."""
