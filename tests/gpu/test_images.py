"""Pictures that a GPU decodes, against the CPU."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from hydrax_gpu.loaders import ImageLoader
from tests import image_files as pictures
from tests.gpu.pictures import (
    LABELS,
    LOADERS,
    ROWS,
    check_damaged,
    check_like_the_cpu,
    check_resizer,
    photographs,
    run,
)  # fmt: skip

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240), pytest.mark.usefixtures("cupy")]


@pytest.fixture(autouse=True, scope="module")
def _codec() -> None:
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed")


@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: f"{rows.dtype.name}-{rows.layout}-{rows.channels}")
def test_the_kernel_makes_the_bits_of_its_twin(cupy: Any, rows: Any) -> None:
    import jax

    from hydrax_gpu._place.cuda import CudaDevice

    def download(address: int, nbytes: int) -> bytes:
        host = np.empty(nbytes, np.uint8)
        cupy.cuda.runtime.memcpy(host.ctypes.data, address, nbytes, 2)
        return host.tobytes()

    check_resizer(CudaDevice(jax.local_devices()[0]), rows, download, count=64)


@pytest.mark.parametrize("kind", LOADERS)
def test_rows_are_those_of_the_cpu(kind: str) -> None:
    decibels = check_like_the_cpu(kind, None)
    logging.getLogger("hydrax_gpu").info(
        "%s: %.1f dB at least, %.1f on average", kind, min(decibels), np.mean(decibels)
    )


@pytest.mark.parametrize("mode", ["drop", "replace"])
def test_damaged_files_are_bad_items(mode: str) -> None:
    check_damaged(mode, None)


@pytest.mark.parametrize("executor", ["process", "inline"])
def test_the_executors(executor: str) -> None:
    wanted = run(LOADERS["random crop"](), photographs())
    got = run(LOADERS["random crop"](), photographs(), executor=executor)
    assert got.rows == wanted.rows
    assert all(np.array_equal(a, b) for a, b in zip(got.images, wanted.images, strict=True)), "the same to the bit"
    assert got.platforms == {"gpu"}


def test_what_is_not_for_the_gpu_is_decoded_by_a_worker_and_counted() -> None:
    image = pictures.photograph()
    files = [
        (pictures.encoded(image), 0),
        (pictures.encoded(image, "PNG"), 1),
        (pictures.encoded(image.convert("CMYK")), 2),
    ]
    found = run(ImageLoader(32, labels=LABELS), files, size=3)
    assert sum(found.report.fallbacks.values()) == 2 * 2, found.report.fallbacks


def test_a_batch_of_large_pictures_in_groups(monkeypatch: Any) -> None:
    from hydrax_gpu._place import pictures as decoding

    big = [(pictures.encoded(pictures.photograph(1600, 1200, seed)), seed) for seed in range(6)]
    load = ImageLoader(96, crop=None, labels=LABELS)
    wanted = run(load, big, size=3)
    monkeypatch.setattr(decoding, "GROUP_BYTES", 1)
    got = run(load, big, size=3)
    assert all(np.array_equal(a, b) for a, b in zip(got.images, wanted.images, strict=True))
