"""The kernels' host build under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hydrax_gpu._kernels import build, sources
from tests.kernels import host
from tests.sanitized import RUNS

ROOT = Path(__file__).resolve().parents[2]

# One combination a kernel costs a second to build; these have every conversion of formats between them, and float32 to
# every dtype that is rounded to by instructions written by hand.
COMBINATIONS: dict[str, list[tuple[str, ...]]] = {
    "convert": [("u8", "f32"), ("bf16", "f16"), ("f32", "u8"), ("f32", "f16"), ("f32", "bf16")],
    "dequantize": [("i4", "bf16"), ("f8e4m3fn", "f32"), ("f8e5m2", "f16")],
    "pad_ragged": [("i32", "u16"), ("i64", "u64")],
    "quantize": [()],
    "resize_crop_flip_normalize": [()],
    "srgb_oklab": [()],
    "unpack_bits": [()],
    "xxh3": [()],
}

# -O0, after the -O3 of `build.FLAGS`: nothing that is wrong is optimised away, and it compiles in a fifth of the time.
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O0")


def compiler() -> list[str]:
    """The compiler; skips the test if it has no sanitizers."""
    command = build.compiler()
    if command is None:
        pytest.skip("there is no C++ compiler on this machine: nothing can be built with sanitizers")
    if runtime(command) is None:
        pytest.skip(f"{command[0]} has no shared runtime of AddressSanitizer on this machine")
    return command


def runtime(command: list[str]) -> str | None:
    """AddressSanitizer's shared library, which has to be there before Python's own memory is."""
    for name in ("libasan.so", "libclang_rt.asan.so"):
        found = subprocess.run([*command, f"-print-file-name={name}"], capture_output=True, text=True, timeout=60)
        if os.path.isabs(found.stdout.strip()):
            return os.path.realpath(found.stdout.strip())
    return None


def sanitized(kernel: str, combination: tuple[str, ...], folder: Path, target: Path) -> str:
    """Builds one combination of a kernel; what to give to `tests.sanitized`."""
    chosen = [f"-DHX_IN={combination[0]}", f"-DHX_OUT={combination[1]}"] if combination else []
    chosen += ["-march=x86-64-v3"] if host().level == 3 else []  # what is run otherwise, hand-written parts included
    library = target / f"{'_'.join((kernel, *combination))}.so"
    subprocess.run(
        [*compiler(), *build.FLAGS, *FLAGS, *chosen, '-DHX_DIGEST=""', "-shared",
         str(folder / f"{kernel}.cu"), str(folder / "host.cpp"), "-o", str(library)],
        check=True, timeout=110,
    )  # fmt: skip
    return ":".join((str(library), kernel, *combination))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs kernels in a fresh process under the sanitizers."""
    preload = runtime(compiler())
    assert preload is not None
    environment = os.environ | {
        "LD_PRELOAD": preload,
        # Python's own allocations and those that live until its end are none of our business
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }
    command = [sys.executable, "-m", "tests.sanitized", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)


def test_there_is_a_case_for_every_kernel() -> None:
    assert {path.stem for path in sources.kernels()} == set(COMBINATIONS) == set(RUNS)


@pytest.mark.parametrize("kernel", COMBINATIONS)
def test_sanitizers_find_nothing_and_the_twins_agree(kernel: str, tmp_path: Path) -> None:
    libraries = [sanitized(kernel, each, sources.folder(), tmp_path) for each in COMBINATIONS[kernel]]
    done = run(*libraries)
    assert not done.returncode, done.stderr[-4000:]
    assert done.stdout.splitlines() == [" ".join((kernel, *each)) for each in COMBINATIONS[kernel]]


@pytest.mark.parametrize(
    ("file", "old", "new", "found"),
    [
        # writes, and reads, one element too many
        ("common.cuh", "for (int i = 0; i < n; ++i) out[i] = f(i, in[i]);",
         "for (int i = 0; i <= n; ++i) out[i] = f(i, in[i]);", "heap-buffer-overflow"),
        ("common.cuh", "const u32 rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;",
         "const u32 rounded = bits >> (16 + (bits & 16));", "shift exponent 32 is too large"),
    ],
    ids=["overflow", "shift"],
)  # fmt: skip
def test_sanitizers_find_what_is_wrong(file: str, old: str, new: str, found: str, tmp_path: Path) -> None:
    copy = tmp_path / "kernels"
    shutil.copytree(sources.folder(), copy)
    text = (copy / file).read_text()
    assert text.count(old) == 1
    (copy / file).write_text(text.replace(old, new))
    done = run(sanitized("convert", ("f16", "bf16"), copy, tmp_path))
    assert done.returncode
    assert found in done.stderr
