"""Pictures that a device decodes: how long they stay as they are, and the calls to CUDA, of which stubs stand in."""

from __future__ import annotations

import ctypes

import jax
import numpy as np
import pytest

from hydrax_gpu import DataGroup
from hydrax_gpu._kernels import sources
from hydrax_gpu._mem.encoded import PictureRows
from hydrax_gpu._place import backends
from hydrax_gpu.loaders import ImageLoader
from tests import cupy_stub, decoded_lifetime, nvimgcodec_stub
from tests import image_files as pictures
from tests.gpu.machines import FakeMachine
from tests.gpu.pictures import LABELS, LOADERS, ROWS, check_resizer, compare, on_the_cpu, photographs, run
from tests.unit.test_cuda_device import on_host


def flat(number: int) -> bytes:
    return pictures.encoded(pictures.Image.new("RGB", (40, 40), (number, number, number)), quality=100)


def lifetime(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many batches, with pictures of one grey each, have changed under a reader."""
    load = ImageLoader(16, labels=LABELS)
    group = DataGroup(4, [(flat(4 * number), number) for number in range(60)], loader_arrays=load.arrays())
    wrong = 0
    for read, indices in decoded_lifetime.reads(FakeMachine(), monkeypatch, load, group):
        numbers = np.array(indices)
        wrong += not (np.abs(read - np.stack([4 * numbers, 4 * numbers, numbers], 1)) <= [1, 1, 0]).all()
    return wrong


def test_pictures_do_not_change_under_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lifetime(monkeypatch) == 0


def test_they_do_if_the_decoder_does_not_wait_for_the_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded_lifetime.without_the_decoders_fence(monkeypatch)
    assert lifetime(monkeypatch) > 0


# CUDA, of which stubs stand in.


@pytest.mark.skipif(
    not sources.LIBRARY.exists(), reason="the host library, which stands in for the device's kernels, was not built"
)
@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: f"{rows.dtype.name}-{rows.layout}-{rows.channels}")
def test_cudas_launch_makes_the_bits_of_the_twin(rows: PictureRows, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy_stub.install(monkeypatch)
    check_resizer(on_host(jax.devices()[0]), rows, ctypes.string_at)


@pytest.mark.skipif(
    not sources.LIBRARY.exists(), reason="the host library, which stands in for the device's kernels, was not built"
)
@pytest.mark.parametrize("kind", LOADERS)
def test_the_calls_to_cupy_and_nvimagecodec(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = cupy_stub.install(monkeypatch)
    nvimgcodec_stub.install(monkeypatch)
    wanted = on_the_cpu(LOADERS[kind](), photographs())
    got = run(LOADERS[kind](), photographs(), backends.replaced(on_host))
    assert got.rows == wanted.rows and got.report.pictures == "a stub of a GPU"
    assert min(compare(LOADERS[kind](), got, wanted)) > 45
    (made,) = nvimgcodec_stub.Decoder.made
    assert made["options"] == ":fancy_upsampling=1" and made["device_id"] == 0 and made["threads"] >= 1
    assert [call[0] for call in runtime.calls].count("memcpy") == 2, "scale and bias are uploaded once"


def test_what_nvimagecodec_cannot_decode_a_worker_does(monkeypatch: pytest.MonkeyPatch) -> None:
    if not sources.LIBRARY.exists():
        pytest.skip("the host library, which stands in for the device's kernels, was not built")
    cupy_stub.install(monkeypatch)
    nvimgcodec_stub.install(monkeypatch)
    whole = nvimgcodec_stub.Decoder._one
    first = photographs()[0][0]
    monkeypatch.setattr(
        nvimgcodec_stub.Decoder, "_one",
        lambda self, source, *rest: None if source.array.tobytes() == first else whole(self, source, *rest),
    )  # fmt: skip
    got = run(LOADERS["random crop"](), photographs(), backends.replaced(on_host))
    assert got.report.fallbacks == {
        "a stub of a GPU could not decode a file (nvImageCodec does not decode it), a worker does": 2
    }


def test_without_nvimagecodec_the_note_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    if not sources.LIBRARY.exists():
        pytest.skip("the host library, which stands in for the device's kernels, was not built")
    cupy_stub.install(monkeypatch)
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    got = run(LOADERS["random crop"](), photographs(), backends.replaced(on_host))
    assert any("pip install 'hydrax-gpu[cuda12]' or [cuda13]" in note for note in got.report.notes)
