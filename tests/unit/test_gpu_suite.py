"""The GPU's tests, as far as they can be tried without one: their bodies on the fake device."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hydrax_gpu.testing import FakeDevice
from tests.gpu import exits
from tests.gpu.bodies import CONVERSIONS, DTYPES, check_dtypes, kept_by_copy, lifetime
from tests.gpu.kernels import mappings, split_name, windows
from tests.gpu.machines import FakeMachine

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("depth", [1, 3])
def test_the_lifetime_test_passes_with_the_fence(depth: int) -> None:
    found = lifetime(FakeMachine(), 150, depth=depth)
    assert found.batches == 150 and not found.wrong, found.first


def test_the_lifetime_test_sees_what_happens_without_the_fence() -> None:
    machine = FakeMachine()
    with machine.without_fence():
        assert lifetime(machine, 60, held=6).wrong > 0


def test_copies_are_kept() -> None:
    assert kept_by_copy(FakeMachine(), 40, lambda batch: None) == 40


@pytest.mark.parametrize("delivery", ["alias", "copy"])
@pytest.mark.parametrize(("source", "wanted"), [*((dtype, dtype) for dtype in DTYPES), *CONVERSIONS])
def test_dtypes(source: str, wanted: str, delivery: str) -> None:
    with FakeDevice().in_use():
        check_dtypes(source, wanted, delivery, platform="cpu")


@pytest.mark.parametrize(
    ("way", "delivery"),
    [("end of main", "alias"), ("inside the with block", "copy"), ("never left", "alias"), ("Ctrl-C twice", "alias"),
     ("a worker is killed", "alias")],
)  # fmt: skip
def test_the_ends(way: str, delivery: str) -> None:
    exits.ends(way, delivery, "fake")


def test_there_is_no_way_that_is_not_there() -> None:
    assert len(set(exits.WAYS)) == len(exits.WAYS) == 7


def test_the_tests_of_the_gpu_are_collected_and_left_out_with_a_reason() -> None:
    """With a stub in CuPy's place they can be imported; where there is no GPU each is skipped."""
    script = (
        "import sys, types, pytest\n"
        "stub = types.ModuleType('cupy'); stub.cuda = types.SimpleNamespace(runtime=None)\n"
        "sys.modules['cupy'] = stub\n"
        "sys.exit(pytest.main(['-m', 'gpu', '-q', '-rs', 'tests/gpu', '-p', 'no:cacheprovider']))\n"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout + done.stderr
    skipped = int(re.search(r"(\d+) skipped", done.stdout)[1])  # type: ignore[index]
    assert skipped >= 90 and "passed" not in done.stdout and "jax sees no GPU here" in done.stdout


def test_an_entrys_name_tells_its_source_and_types() -> None:
    assert split_name("convert_first_u8_bf16") == ("convert", "u8", "bf16")
    assert split_name("pad_ragged_i32_u16") == ("pad_ragged", "i32", "u16")
    assert split_name("dequantize_i4_bf16_f32") == ("dequantize", "i4", "f32")
    assert split_name("quantize_bf16") == ("quantize", "", "") and split_name("xxh3_64") == ("xxh3", "", "")
    assert split_name("unpack_bits_8") == ("unpack_bits", "", "")
    assert (
        split_name("oklab_to_srgb_last_f32_u8") == split_name("srgb_to_oklab_planes_u8_f16") == ("srgb_oklab", "", "")
    )
    with pytest.raises(KeyError, match="no kernel for a device is called 'resize_u8'"):
        split_name("resize_u8")


def test_what_is_registered_with_cuda() -> None:
    maps = [(0x10000, 0x20000), (0x40000, 0x80000)]
    assert windows([0, 5], maps) == []
    assert windows([0x10010], maps) == [(0x10000, 0x20000)], "not beyond the mapping"
    assert windows([0x41001, 0x10010, 0x42000], maps) == [(0x10000, 0x20000), (0x41000, 0x80000)]
    array = np.zeros(1 << 20, np.uint8)
    ((begin, end),) = windows([array.ctypes.data], list(mappings()))
    assert begin <= array.ctypes.data and array.ctypes.data + array.nbytes <= end and begin % 4096 == end % 4096 == 0
