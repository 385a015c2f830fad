"""Every kernel on the device against its twin, bit for bit, and under compute-sanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.kernels import run
from tests.unit.test_kernels_sanitized import COMBINATIONS

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(200), pytest.mark.usefixtures("cupy")]

CASES = [(kernel, *combination) for kernel, combinations in COMBINATIONS.items() for combination in combinations]


@pytest.mark.parametrize("case", CASES, ids=":".join)
def test_a_kernel_equals_its_twin(case: tuple[str, ...]) -> None:
    assert run(*case) > 0


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
@pytest.mark.parametrize("kernel", COMBINATIONS)
def test_compute_sanitizer_finds_nothing(kernel: str, tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.path.exists(sanitizer):
        pytest.skip("compute-sanitizer is not installed; it comes with the CUDA toolkit")
    done = subprocess.run(
        [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "tests.gpu.kernels",
         ":".join((kernel, *COMBINATIONS[kernel][0]))],
        cwd=ROOT, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "0 errors" in done.stdout + done.stderr or "0 hazards" in done.stdout + done.stderr
