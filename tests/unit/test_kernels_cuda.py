"""The kernels compile for CUDA, without a GPU; and what a launch is made of."""

from __future__ import annotations

import ctypes
import importlib
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydrax_gpu._kernels import build, device, sources
from tests import nvrtc
from tests.kernels import host

KERNELS = [path.stem for path in sources.kernels()]
ARCHITECTURES = pytest.mark.parametrize("arch", device.ARCHITECTURES)

# Kernels of many combinations, of which CUDA compiles one at a time: their inputs and outputs. All combinations on all
# architectures would take minutes. Each combination is compiled for one of them, such that each input and each output
# is compiled for every one.
COMBINATIONS = {
    "convert": (("u8", "i8", "u16", "i16", "i32", "f16", "bf16", "f32"), ("u8", "f16", "bf16", "f32")),
    "dequantize": (("i8", "i4", "f8e4m3fn", "f8e5m2"), ("f16", "bf16", "f32")),
    "pad_ragged": (("i32", "i64"), ("u8", "u16", "u32", "u64")),
}


def chosen(kernel: str, arch: str) -> list[tuple[str, ...]]:
    """The combinations of a kernel that are compiled for an architecture."""
    if kernel not in COMBINATIONS:
        return [()]
    inputs, outputs = COMBINATIONS[kernel]
    turn = device.ARCHITECTURES.index(arch)
    return [(a, b) for i, a in enumerate(inputs) for j, b in enumerate(outputs) if (i + j) % 4 == turn]


@cache
def compiled(kernel: str, arch: str, combination: tuple[str, ...]) -> nvrtc.Compiled:
    source = (sources.folder() / f"{kernel}.cu").read_text()
    return nvrtc.compile_cuda(source, f"{kernel}.cu", arch, device.options(*combination))


@ARCHITECTURES
@pytest.mark.parametrize("kernel", KERNELS)
def test_nvrtc_compiles_every_kernel_without_local_memory(kernel: str, arch: str) -> None:
    for combination in chosen(kernel, arch):
        local = compiled(kernel, arch, combination).local
        assert local, "a cubin without a kernel proves nothing"
        assert not any(local.values()), {name: size for name, size in local.items() if size}


def test_each_combination_is_compiled_for_some_architecture_and_each_type_for_all() -> None:
    for kernel, (inputs, outputs) in COMBINATIONS.items():
        assert sorted(each for arch in device.ARCHITECTURES for each in chosen(kernel, arch)) == sorted(
            (a, b) for a in inputs for b in outputs
        )
        for arch in device.ARCHITECTURES:
            assert len(outputs) < 4 or {a for a, _ in chosen(kernel, arch)} == set(inputs)
            assert len(inputs) < 4 or {b for _, b in chosen(kernel, arch)} == set(outputs)


def test_the_entries_of_both_targets_have_the_same_names() -> None:
    library = host()
    for kernel in KERNELS:
        for arch in device.ARCHITECTURES:
            for combination in chosen(kernel, arch):
                for name in compiled(kernel, arch, combination).local:
                    # NVRTC's own functions, such as its division of 64-bit integers, begin with a dollar
                    assert name.startswith("$") or library.entry(name)


SPILLS = """
extern "C" __global__ void __launch_bounds__(256, 8) spills(float* p, int n) {
    float a[64];
    for (int i = 0; i < 64; i++) a[i] = p[i * threadIdx.x];
    for (int j = 0; j < n; j++)
        for (int i = 0; i < 64; i++) a[i] = a[i] * a[(i + 7) & 63] + 1;
    for (int i = 0; i < 64; i++) p[i + threadIdx.x * 64] = a[i];
}
extern "C" __global__ void indexes(float* p, int n) {
    float a[32];
    for (int i = 0; i < 32; i++) a[i] = p[i];
    a[n] = 1;
    for (int i = 0; i < 32; i++) p[i] = a[i] * a[(i + n) & 31];
}
extern "C" __global__ void does_neither(float* p) { p[0] = 1; }
"""


@ARCHITECTURES
def test_a_kernel_that_spills_or_has_a_local_array_is_found_out(arch: str) -> None:
    local = nvrtc.compile_cuda(SPILLS, "spills.cu", arch, ()).local
    assert local["does_neither"] == 0
    assert local["spills"] > 0
    assert local["indexes"] > 0


def test_what_does_not_compile_is_an_error_with_the_compilers_words() -> None:
    with pytest.raises(ValueError, match='identifier "nonsense" is undefined'):
        nvrtc.compile_cuda("__global__ void f() { nonsense; }", "f.cu", "sm_80", ())


@pytest.mark.parametrize("kernel", KERNELS)
def test_nvcc_compiles_every_kernel_where_it_is_present(kernel: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed on this machine; NVRTC compiles the same")
    first = chosen(kernel, device.ARCHITECTURES[0])[0]
    command = [nvcc, "-arch=sm_80", "-cubin", *device.options(*first), str(sources.folder() / f"{kernel}.cu")]
    done = subprocess.run([*command, "-o", str(tmp_path / "cubin")], capture_output=True, text=True, timeout=100)
    assert not done.returncode, done.stderr
    local = nvrtc.local_memory((tmp_path / "cubin").read_bytes())
    assert local
    assert not any(local.values())


# Launches.


@given(st.integers(1, 10**6), st.integers(1, 10**7), st.integers(1, 200), st.integers(1, 8))
def test_a_grid_is_legal_and_neither_larger_than_the_work_nor_than_some_waves(
    rows: int, tiles: int, multiprocessors: int, blocks_each: int
) -> None:
    x, y = device.grid(rows, tiles, multiprocessors=multiprocessors, blocks_each=blocks_each)
    assert 1 <= x <= tiles
    assert 1 <= y <= min(rows, 65535)
    wave = multiprocessors * blocks_each
    assert x * y <= 4 * wave
    # no multiprocessor is idle while there is work for it
    assert x * y >= min(rows * tiles, wave) / 2


def test_the_grid_of_a_usual_batch_fills_an_h100() -> None:
    # 64 pictures of 224 x 224 x 3 in tiles of 1,008 elements on 132 multiprocessors with 4 blocks each
    assert device.grid(64, 150, multiprocessors=132, blocks_each=4) == (33, 64)
    assert device.grid(1, 1, multiprocessors=132, blocks_each=4) == (1, 1)


def test_the_number_of_threads_is_that_of_the_sources() -> None:
    header = (sources.folder() / "common.cuh").read_text()
    assert re.findall(r"#define HX_THREADS (\d+)", header) == [str(device.THREADS)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_arguments_structure_is_that_of_the_source(kernel: str, tmp_path: Path) -> None:
    """Member by member, by a compiler that is asked for the offsets."""
    command = build.compiler()
    if command is None:
        pytest.skip("there is no C++ compiler on this machine to ask for a structure's offsets")
    args: Any = importlib.import_module(f"hydrax_gpu._kernels.{kernel}").Args
    struct = re.search(r"struct (\w+Args) \{", (sources.folder() / f"{kernel}.cu").read_text())
    assert struct
    checks = [f"static_assert(sizeof({struct[1]}) == {ctypes.sizeof(args)});"]
    for name, _ in args._fields_:
        offset = getattr(args, name).offset
        checks.append(f"static_assert(__builtin_offsetof({struct[1]}, {name.rstrip('_')}) == {offset});")
    program = f'#include "{kernel}.cu"\n' + "\n".join(checks)
    first = chosen(kernel, device.ARCHITECTURES[0])[0]
    flags = [*build.FLAGS, "-O0", *(option for option in device.options(*first) if option[:2] in ("-I", "-D"))]
    done = subprocess.run(
        [*command, *flags, "-fsyntax-only", "-Wno-invalid-offsetof", "-"],
        input=program, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert not done.returncode, done.stderr
    assert np.dtype(args).itemsize == ctypes.sizeof(args), "CuPy passes the structure as a NumPy record"
