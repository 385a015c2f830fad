"""The benchmarks of the GPU, as far as they can be tried without one: that they run, not what they measure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import gpu, gpu_images, table
from hydrax_gpu._kernels import sources
from hydrax_gpu.testing import FakeDevice
from tests import cupy_stub
from tests import image_files as pictures

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"window_s": 0.05, "warm_s": 0.0}


def test_without_a_gpu_it_says_so_and_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command.main(["gpu"]) == 2
    assert "nothing was measured: CuPy is not installed" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert command.main(["gpu", "--only", "h2d"]) == 2
    assert "jax sees no GPU (its backend is cpu): `hydrax-gpu doctor` says why" in capsys.readouterr().err


def test_a_name_that_there_is_not() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu", "--only", "items"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "items: not one of h2d, step, kernels, images" in done.stderr


def test_every_case_names_a_function_and_stands_beside_a_limit() -> None:
    found = list(gpu.experiments(list(gpu.NAMES), 1.0, 1.0))
    assert [experiment.name for experiment in found] == list(gpu.NAMES)
    for experiment in found:
        names = [*(case.name for case in experiment.cases), *experiment.left_out]
        assert experiment.metrics[0].limit_case in names
        assert experiment.left_out or any(case.judged for case in experiment.cases)
        for case in experiment.cases:
            module, function = case.arguments[0].split(":")
            modules = {"benchmarks.gpu": gpu, "benchmarks.gpu_images": gpu_images}
            assert callable(getattr(modules[module], function))
            json.loads(case.arguments[1])
            assert case.environment["JAX_PLATFORMS"] == "cuda,cpu"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_BATCH", (64, 1 << 10))
    monkeypatch.setattr(gpu, "_IMAGES", (4, 14, 14, 3))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("delivery", ["alias", "copy"])
def test_loaders_are_measured(delivery: str) -> None:
    with FakeDevice().in_use():
        result = gpu.measure_loader(delivery, **SHORT)
        assert result["delivery"] == delivery and result["pinned"] and not result["notes"]
        steps = gpu.measure_steps(delivery, **SHORT)
    assert result["gb_s"] > 0 and result["batches"] > 0 and steps["steps"] > 0 and steps["step_ms"] > 0


@pytest.mark.usefixtures("small")
def test_the_limits_and_peers_are_measured() -> None:
    assert gpu.measure_device_put(**SHORT)["gb_s"] > 0
    assert gpu.measure_resident(**SHORT)["step_ms"] > 0
    assert gpu.measure_put_steps(**SHORT)["step_ms"] > 0


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("pinned", [True, False])
def test_plain_copies_are_measured(monkeypatch: pytest.MonkeyPatch, pinned: bool) -> None:
    runtime = cupy_stub.install(monkeypatch)
    assert gpu.measure_memcpy(pinned, **SHORT)["gb_s"] > 0
    assert bool(runtime.registered) == pinned
    sizes = {call[3] for call in runtime.calls if call[0] == "memcpyAsync"}
    assert sizes == {64 << 10}


@pytest.mark.skipif(not sources.LIBRARY.exists(), reason="the host library, the kernels' stand-in, was not built")
@pytest.mark.parametrize("name", gpu.KERNELS)
def test_kernels_are_measured(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    cupy_stub.install(monkeypatch)

    def once(stream: Any, work: Any) -> float:
        work()
        return 1.0

    monkeypatch.setattr(gpu, "_device_seconds", once)
    result = gpu.measure_kernel(name)
    assert 0.004 < result["gb_s"] < 1


def test_a_device_copy_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy_stub.install(monkeypatch)
    # the stub's clock says that any ten copies take a millisecond
    assert gpu.measure_device_copy(1 << 20)["gb_s"] == pytest.approx(2 * (1 << 20) / 1e-3 * 10 / 1e9)


def test_the_table_names_the_device() -> None:
    (experiment,) = gpu.experiments(["kernels"], 1.0, 1.0)
    about = {"date": "", "machine": {"gpu": "GPU A"}, "versions": {}}
    assert all(row["machine"]["gpu"] == "GPU A" for row in table.summary_rows(experiment, [], about))


@pytest.fixture
def photographs(tmp_path: Path) -> list[str]:
    files = []
    for number in range(6):
        files.append(str(tmp_path / f"{number}.jpg"))
        pictures.photograph(120, 90, number).save(files[-1])
    return files


@pytest.mark.parametrize("encoded_bytes", [None, 0])
def test_pictures_are_measured(photographs: list[str], encoded_bytes: int | None) -> None:
    device = FakeDevice()
    with device.in_use():
        result = gpu_images.measure_loader(encoded_bytes, **SHORT, batch=4, files=photographs)
    assert result["images_s"] > 0 and result["batches"] > 0 and not result["fallbacks"]
    assert bool(device.pictures) == (encoded_bytes is None)


def test_a_number_of_another_decoder_is_not_reported(photographs: list[str]) -> None:
    device = FakeDevice()
    device.decoder_error = "nvImageCodec is not there"
    with device.in_use(), pytest.raises(RuntimeError, match="decoded by the workers: workers decode the files"):
        gpu_images.measure_loader(None, **SHORT, batch=4, files=photographs)


def test_a_graph_of_dalis_is_measured(photographs: list[str]) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    device = FakeDevice()
    with device.in_use():
        result = gpu_images.measure_graph(**SHORT, batch=4, files=photographs)
    assert result["images_s"] > 0 and not result["fallbacks"] and device.graph_rows >= 4 * result["batches"]


def test_dalis_own_pipeline_is_measured(photographs: list[str]) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    result = gpu_images.measure_dali(**SHORT, batch=4, files=photographs, device_id=None)
    assert result["images_s"] > 0


def test_what_is_not_installed_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_images, "_missing", lambda module: True)
    (found,) = gpu.experiments(["images"], 1.0, 1.0)
    graph = "hydrax_gpu, a graph of DALI's"
    assert set(found.left_out) == {"raw DALI pipeline", "hydrax_gpu, decoded by nvImageCodec", graph}
    assert all("pip install 'hydrax-gpu[cuda12]'" in reason for reason in found.left_out.values())
    assert [case.name for case in found.cases] == ["hydrax_gpu, decoded by the workers"]
