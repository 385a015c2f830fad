"""NVRTC by ctypes, which compiles for CUDA without a GPU, a driver or CuPy; and what a cubin says of its kernels.

The wheel of CUDA 12 is the one that still compiles for sm_70.
"""

from __future__ import annotations

import ctypes
import importlib.util
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Compiled:
    """A cubin, what the compiler said, and for each of its kernels the bytes of local memory that it needs."""

    cubin: bytes
    log: str
    local: dict[str, int]


@cache
def library() -> ctypes.CDLL:
    """NVRTC; skips the test where it is not installed."""
    spec = importlib.util.find_spec("nvidia.cuda_nvrtc") if importlib.util.find_spec("nvidia") else None
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("NVRTC is not installed (nvidia-cuda-nvrtc-cu12, of the extra `dev`): nothing compiles for CUDA")
    folder = Path(next(iter(spec.submodule_search_locations))) / "lib"
    return ctypes.CDLL(str(folder / "libnvrtc.so.12"))


def compile_cuda(source: str, name: str, arch: str, options: Sequence[str]) -> Compiled:
    """Compiles for a real architecture such as `sm_80`.

    Raises:
        ValueError: the compiler refused; the text is its log.
    """
    nvrtc = library()
    program = ctypes.c_void_p()
    assert not nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
    try:
        given = [option.encode() for option in (f"-arch={arch}", *options)]
        failed = nvrtc.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
        log = _fetched(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).rstrip(b"\0").decode()
        if failed:
            raise ValueError(log)
        cubin = _fetched(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return Compiled(cubin, log, local_memory(cubin))


def _fetched(size: ctypes._CFuncPtr, get: ctypes._CFuncPtr, program: ctypes.c_void_p) -> bytes:
    count = ctypes.c_size_t()
    assert not size(program, ctypes.byref(count))
    data = ctypes.create_string_buffer(count.value)
    assert not get(program, data)
    return data.raw


EIATTR_FRAME_SIZE, EIATTR_MIN_STACK_SIZE = 0x11, 0x12


def sections(cubin: bytes) -> dict[str, bytes]:
    """The sections of an ELF file by name."""
    (offset,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, offset + k * size) for k in range(count)]
    text = headers[names][4]
    result: dict[str, bytes] = {}
    for name, kind, _, _, begin, length, *_ in headers:
        label = cubin[text + name : cubin.index(b"\0", text + name)].decode()
        result[label] = bytes(length) if kind == 8 else cubin[begin : begin + length]
    return result


def local_memory(cubin: bytes) -> dict[str, int]:
    """For each kernel in a cubin its stack frame in bytes, where spilled registers and local arrays lie."""
    found = sections(cubin)
    symbols, strings = found[".symtab"], found[".strtab"]

    def name(index: int) -> str:
        (begin,) = struct.unpack_from("<I", symbols, 24 * index)
        return strings[begin : strings.index(b"\0", begin)].decode()

    kernels = {section.removeprefix(".text."): 0 for section in found if section.startswith(".text.")}
    info = found[".nv.info"]
    at = 0
    while at < len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if form == 4:
            if attribute in (EIATTR_FRAME_SIZE, EIATTR_MIN_STACK_SIZE):
                symbol, amount = struct.unpack_from("<II", info, at)
                kernels[name(symbol)] = max(kernels.get(name(symbol), 0), amount)
            at += size
    return kernels
