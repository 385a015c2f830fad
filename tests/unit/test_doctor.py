"""`hydrax-gpu doctor`: on this machine as it is, and on machines that are made up."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from hydrax_gpu.__main__ import main
from hydrax_gpu._doctor import Finding, examine, host, packages
from hydrax_gpu._doctor.examine import Examination, read_findings
from tests import cupy_stub

ROOT = Path(__file__).resolve().parents[2]

LINES = {
    *("machine", "host memory", "CPU kernels", "open files", "memlock limit", "/dev/shm", "NVIDIA driver", "jax"),
    *("CuPy", "pinning", "bandwidth", "nvImageCodec", "DALI", "GPUDirect Storage", "kvikio"),
}


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hydrax_gpu", "doctor", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)


def test_this_machine_as_a_page_and_as_json() -> None:
    page, data = doctor(), doctor("--json")
    assert page.returncode == data.returncode == 0, page.stderr + data.stderr
    found = json.loads(data.stdout)
    states = {each["name"]: each["state"] for each in found["findings"]}
    assert set(states) >= LINES
    assert states["machine"] == "ok" and states["jax"] in ("ok", "limited")
    for each in found["findings"]:
        assert set(each) == {"name", "state", "text", "fix", "data"}
        assert bool(each["fix"]) == (each["state"] != "ok")
        assert each["name"] in page.stdout
    assert found["verdict"] in page.stdout.replace("\n", " ")
    assert all(len(line) <= 120 for line in page.stdout.splitlines())
    assert 15 <= len(page.stdout.splitlines()) <= 60, "one page"


def test_a_process_that_only_asks_for_help_imports_none_of_it() -> None:
    script = "import sys; from hydrax_gpu.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    script += "assert not {'jax', 'numpy', 'hydrax_gpu._doctor'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, timeout=60)


def test_a_command_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["nurse"])
    assert caught.value.code == 2 and "invalid choice: 'nurse'" in capsys.readouterr().err


def raising() -> list[Finding]:
    raise OSError("the disk is gone")


def test_a_probe_that_raises_is_a_line_and_the_others_go_on() -> None:
    fine = Finding("jax", "ok", "there")
    found = examine({"broken": raising, "fine": lambda: [fine]})
    assert found.findings[0] == fine
    assert found.findings[1].state == "failed" and "OSError: the disk is gone" in found.findings[1].text


@pytest.mark.parametrize(
    ("status", "out", "err", "text"),
    [
        (
            -11,
            "",
            "Fatal Python error: Segmentation fault",
            "ended by signal 11: Fatal Python error: Segmentation fault",
        ),
        (
            1,
            "",
            "Traceback\n  ...\nImportError: libfoo.so: cannot open",
            "status 1: ImportError: libfoo.so: cannot open",
        ),
        (0, "", "", "status 0: no message"),
    ],
)
def test_a_package_that_crashes_is_a_line(status: int, out: str, err: str, text: str) -> None:
    (finding,) = read_findings("cupy", status, out, err)
    assert finding.state == "failed" and finding.text.endswith(text)
    assert "-m hydrax_gpu._doctor.packages cupy" in finding.fix


def test_what_a_library_prints_before_does_not_matter() -> None:
    line = json.dumps({"findings": [Finding("jax", "ok", "there").as_json()], "seconds": 1.0})
    assert read_findings("jax", 0, f"WARNING: something\n{line}\n", "") == [Finding("jax", "ok", "there")]


def test_a_package_that_hangs_is_a_line() -> None:
    # no process starts within so little time
    found = examine(timeout=1e-6)
    hung = [finding for finding in found.findings if "did not end within 1e-06 seconds" in finding.text]
    assert {finding.name for finding in hung} == set(packages.PROBES)
    assert found.verdict.startswith("jax does not work here")


def test_a_finding_has_a_fix_exactly_if_it_is_not_ok() -> None:
    with pytest.raises(ValueError, match="a finding has a fix if and only if"):
        Finding("x", "absent", "not there")
    with pytest.raises(ValueError, match="a finding has a fix if and only if"):
        Finding("x", "ok", "there", "do something")


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        ({}, "jax does not work"),
        ({"jax": "failed"}, "jax does not work"),
        ({"jax": "limited"}, "on the CPU"),
        ({"jax": "ok", "CuPy": "absent"}, "JAX copies batches from ordinary memory"),
        ({"jax": "ok", "CuPy": "ok", "pinning": "failed"}, "not pinned"),
        ({"jax": "ok", "CuPy": "ok", "pinning": "ok"}, "from pinned memory, on a stream of its own"),
    ],
)
def test_the_verdict(states: dict[str, Any], verdict: str) -> None:
    found = [Finding(name, state, "", "" if state == "ok" else "fix") for name, state in states.items()]
    assert verdict in Examination(found).verdict


# The driver, made up.


class Driver:
    """libcuda.so.1."""

    def __init__(self, code: int = 0, names: tuple[bytes, ...] = (b"GPU A", b"GPU B")) -> None:
        self.code, self.names = code, names

    def cuInit(self, flags: int) -> int:
        return self.code

    def cuDriverGetVersion(self, out: Any) -> None:
        out._obj.value = 13000

    def cuDeviceGetCount(self, out: Any) -> None:
        out._obj.value = len(self.names)

    def cuDeviceGet(self, out: Any, index: int) -> None:
        out._obj.value = index

    def cuDeviceGetName(self, out: Any, size: int, device: Any) -> None:
        out.value = self.names[device.value]


def test_the_driver_and_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    found = host.driver()
    assert found.state == "ok" and found.text.endswith("for CUDA up to 13.0: GPU A, GPU B")
    assert found.data["devices"] == ["GPU A", "GPU B"]


@pytest.mark.parametrize(
    ("driver", "state", "fix"),
    [
        (Driver(100), "failed", "CUDA_VISIBLE_DEVICES"),
        (Driver(803), "failed", "reboot"),
        (Driver(999), "failed", "dmesg"),
        (Driver(0, ()), "absent", "--gpus all"),
    ],
)
def test_a_driver_that_does_not_work(monkeypatch: pytest.MonkeyPatch, driver: Driver, state: str, fix: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    found = host.driver()
    assert found.state == state and fix in found.fix


def test_a_module_of_the_kernel_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert host.driver().state == "absent"
    monkeypatch.setattr(host, "_read", lambda path: "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu\n")
    found = host.driver()
    assert found.state == "limited" and found.data == {"kernel_module": "570.86.15"}


@pytest.mark.parametrize(("limit", "state"), [(-1, "ok"), (8 << 20, "limited"), (1 << 30, "ok")])
def test_the_limit_of_locked_memory(monkeypatch: pytest.MonkeyPatch, limit: int, state: str) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda number: (limit, limit))
    found = host.locked_memory()
    assert found.state == state and found.data["soft_bytes"] == (None if limit == -1 else limit)


def test_a_small_dev_shm_is_no_matter_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    small = types.SimpleNamespace(f_blocks=16384, f_frsize=4096, f_bavail=16384)
    monkeypatch.setattr(os, "statvfs", lambda path: small)
    found = host.shared_memory()
    assert found.state == "limited" and "does not use it" in found.text and "--shm-size" in found.fix


def test_kernels_that_were_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydrax_gpu._kernels.choice import Choice

    monkeypatch.setattr(host, "choose", lambda: Choice(None, "the kernels' host library was not built"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = host.host_kernels()
    assert found.state == "limited" and found.fix.startswith("install a C++ compiler")


# Packages, made up.


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_import", lambda name: None)
    monkeypatch.setattr(packages, "_version", lambda name: None)


@pytest.mark.usefixtures("no_packages")
@pytest.mark.parametrize("name", packages.PROBES)
def test_without_any_package_each_line_has_its_fix(name: str) -> None:
    found = packages.PROBES[name]()
    assert found and all(each.state == "absent" and "pip install" in each.fix for each in found)


def test_a_module_that_is_missing_inside_of_another_is_no_missing_package(tmp_path: Path) -> None:
    (tmp_path / "broken_package.py").write_text("import something_that_there_is_not")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(ModuleNotFoundError, match="something_that_there_is_not"):
            packages._import("broken_package")
    finally:
        sys.path.remove(str(tmp_path))
    assert packages._import("nothing.of.that.name") is None


def test_pinning_and_bandwidth_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = cupy_stub.install(monkeypatch)
    found = {finding.name: finding for finding in packages.probe_cupy()}
    assert [finding.state for finding in found.values()] == ["ok"] * 3
    assert found["bandwidth"].data["h2d_gb_per_s"] == pytest.approx((256 << 20) / 1e-3 / 1e9)
    assert not runtime.registered and not runtime.blocks, "and nothing is left"


def test_pinning_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = cupy_stub.install(monkeypatch)
    runtime.refuse = {"hostRegister"}
    found = {finding.name: finding for finding in packages.probe_cupy()}
    assert found["pinning"].state == "failed" and "memlock" in found["pinning"].fix
    assert found["bandwidth"].state == "absent"


def test_a_driver_that_is_too_old_for_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = cupy_stub.install(monkeypatch)
    runtime.refuse = {"getDeviceCount"}
    found = packages.probe_cupy()
    assert [finding.state for finding in found] == ["limited", "absent", "absent"]
    assert "cudaErrorRefused: getDeviceCount" in found[0].text


class Jax:
    __version__ = "0.99"
    numpy = types.SimpleNamespace(zeros=lambda shape: types.SimpleNamespace(block_until_ready=lambda: None))

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def default_backend(self) -> str:
        return self.backend

    def local_devices(self) -> list[str]:
        return [f"{self.backend}:0"]


@pytest.mark.parametrize(("free", "state"), [(20 << 30, "ok"), (200 << 20, "limited")])
def test_what_xla_leaves_of_the_devices_memory(monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    runtime = cupy_stub.install(monkeypatch)
    runtime.memory = (free, 80 << 30)
    monkeypatch.setitem(sys.modules, "jax", Jax("gpu"))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    jax, memory = packages.probe_jax()
    assert jax.state == "ok" and memory.state == state and memory.data["free_bytes"] == free
    assert state == "ok" or "XLA_PYTHON_CLIENT_MEM_FRACTION (now 0.9)" in memory.fix


@pytest.mark.parametrize(
    ("platforms", "plugin", "fix"),
    [
        ("cpu", None, "JAX_PLATFORMS=cpu decides that"),
        ("", "0.10.2", "jax-cuda12-plugin is installed but finds no GPU"),
        ("", None, "pip install 'hydrax-gpu[cuda12]'"),
    ],
)
def test_why_jax_has_no_gpu(monkeypatch: pytest.MonkeyPatch, platforms: str, plugin: str | None, fix: str) -> None:
    monkeypatch.setitem(sys.modules, "jax", Jax("cpu"))
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(packages, "_version", lambda name: plugin)
    (found,) = packages.probe_jax()
    assert found.state == "limited" and fix in found.fix


class Codec:
    __version__ = "0.9.0"
    NVIMGCODEC_DEVICE_CPU_ONLY = -99999
    BackendKind = types.SimpleNamespace(CPU_ONLY="cpu", GPU_ONLY="gpu", HYBRID_CPU_GPU="hybrid", HW_GPU_ONLY="hw")

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds

    def Backend(self, kind: str) -> str:
        return kind

    def Decoder(self, *, device_id: int, backends: list[str]) -> Any:
        if backends[0] != "cpu" and not self.kinds:
            raise RuntimeError("no device")
        decode = lambda data: "an image" if backends[0] in self.kinds and data[:2] == b"\xff\xd8" else None  # noqa: E731
        return types.SimpleNamespace(decode=decode)


@pytest.mark.parametrize(
    ("kinds", "state"), [((), "absent"), (("gpu", "hybrid"), "limited"), (("gpu", "hybrid", "hw"), "ok")]
)
def test_the_jpeg_engine(monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...], state: str) -> None:
    monkeypatch.setattr(packages, "_import", lambda name: Codec(*kinds))
    codec, engine = packages.probe_nvimgcodec()
    assert codec.state == "ok" and engine.state == state


def test_a_codec_without_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Codec()
    broken.Decoder = None  # type: ignore[method-assign, assignment]
    monkeypatch.setattr(packages, "_import", lambda name: broken)
    (found,) = packages.probe_nvimgcodec()
    assert found.state == "failed" and "reinstall" in found.fix


def test_the_picture_that_is_tried_can_be_decoded() -> None:
    simplejpeg = pytest.importorskip("simplejpeg", reason="no JPEG decoder is installed")
    assert simplejpeg.decode_jpeg(packages._JPEG).shape == (16, 16, 3)
