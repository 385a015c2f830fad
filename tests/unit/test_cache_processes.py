"""Processes that fill a cache together, or are killed while they do; see `tests.cache_crash`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "case", [["boundaries"], ["random", "40"], ["two", "200"], ["limit"]], ids=lambda case: case[0]
)
def test_processes(case: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.cache_crash", *case], cwd=ROOT, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{case[0]}: ")
