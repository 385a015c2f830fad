"""Building the host library: with a compiler, without one, with one that fails; and what a wheel gets."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydrax_gpu._kernels import build, sources
from hydrax_gpu._kernels.host import Library
from hydrax_gpu._kernels.unpack_bits import UnpackBits

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with one kernel, which is quickly built; skips the test where nothing can be."""
    if build.compiler() is None:
        pytest.skip("there is no C++ compiler on this machine: nothing can be built")
    folder = tmp_path / "kernels"
    folder.mkdir()
    for name in ("common.cuh", "host.cpp", "unpack_bits.cu"):
        shutil.copy(sources.folder() / name, folder)
    return folder


def test_a_library_is_built_whole_and_knows_its_sources(small: Path, tmp_path: Path) -> None:
    library = build.build(tmp_path / "lib" / "some.so", folder=small)
    assert sorted(path.name for path in library.parent.iterdir()) == ["some.so"], "no partial file is left"
    assert Library(str(library)).digest == sources.digest()
    assert build.is_current(library)
    kernel = UnpackBits(Library(str(library)), (8,), 1, "big", np.arange(2, dtype=np.uint8))
    out = np.empty((1, 8), np.uint8)
    kernel(np.array([[0b10010110]], np.uint8), out)
    assert out.tolist() == [[1, 0, 0, 1, 0, 1, 1, 0]]


def test_a_library_of_other_sources_is_not_current(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = build.build(tmp_path / "some.so", folder=small)
    monkeypatch.setattr(sources, "digest", lambda: "0" * 64)
    assert not build.is_current(library)
    assert not build.is_current(tmp_path / "none.so")


def test_the_digest_is_of_every_source_and_of_how_they_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {path.name for path in sources.files()}
    assert names == {path.name for path in sources.folder().iterdir() if path.suffix != ".md"} | {
        "build.py",
        "sources.py",
    }
    before = sources.digest()
    read = Path.read_bytes
    for name in names:
        with monkeypatch.context() as context:
            context.setattr(Path, "read_bytes", lambda p, n=name: read(p) + (b" " if p.name == n else b""))
            assert sources.digest() != before, name
    assert sources.digest() == before


def test_what_the_compiler_says_is_in_the_error_and_the_old_library_stays(small: Path, tmp_path: Path) -> None:
    library = tmp_path / "some.so"
    library.write_bytes(b"the old one")
    (small / "unpack_bits.cu").write_text("nonsense")
    with pytest.raises(build.BuildError, match="nonsense"):
        build.build(library, folder=small)
    assert library.read_bytes() == b"the old one"


def test_without_a_compiler_it_is_said_what_was_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    assert build.compiler() is None
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler was found \(tried \$CXX, g\+\+, clang\+\+, c\+\+\)"):
        build.build(tmp_path / "some.so")
    monkeypatch.setattr(build, "is_current", lambda: False)
    monkeypatch.setattr(sources, "LIBRARY", tmp_path / "stale.so")
    (tmp_path / "stale.so").write_bytes(b"of other sources")
    assert build.main() == 1
    assert not (tmp_path / "stale.so").exists()
    assert capsys.readouterr().err.startswith("the kernels' host library was not built, NumPy does their work: no C++")


class Interface:
    """What hatchling's hooks derive from; it is not installed where the tests run."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.app = types.SimpleNamespace(display_warning=self.warnings.append)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The build hook of the project, and the modules that it will import by their short names."""
    interface: Any = types.ModuleType("interface")
    interface.BuildHookInterface = Interface
    for name in ("hatchling", "hatchling.builders", "hatchling.builders.hooks", "hatchling.builders.hooks.plugin"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "hatchling.builders.hooks.plugin.interface", interface)
    monkeypatch.setitem(sys.modules, "build", build)
    monkeypatch.setitem(sys.modules, "sources", sources)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.KernelBuildHook()


def test_a_wheel_with_the_library_is_for_the_platform(
    hook: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "is_current", lambda: True)
    data: dict[str, Any] = {"pure_python": True, "force_include": {}}
    hook.initialize("standard", data)
    assert data["pure_python"] is False
    assert data["tag"].startswith("py3-none-linux_")
    included = set(data["force_include"].values())
    assert "hydrax_gpu/_kernels/lib/hydrax_kernels.so" in included
    assert {f"hydrax_gpu/kernels/{path.name}" for path in sources.folder().iterdir()} < included


def test_a_wheel_without_it_is_for_any_and_the_reason_is_shown(
    hook: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    monkeypatch.setattr(sources, "LIBRARY", tmp_path / "stale.so")
    monkeypatch.setattr(build, "is_current", lambda: False)
    (tmp_path / "stale.so").write_bytes(b"of other sources")
    data: dict[str, Any] = {"pure_python": True, "force_include": {}}
    hook.initialize("standard", data)
    assert data["pure_python"] is True
    assert "tag" not in data
    assert not (tmp_path / "stale.so").exists(), "a stale library is not left to be shipped"
    assert not any("stale" in path for path in data["force_include"])
    assert "no C++ compiler was found" in hook.warnings[0]


def test_an_editable_install_reads_the_sources_where_they_are(hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "is_current", lambda: True)
    data: dict[str, Any] = {"pure_python": True, "force_include": {}}
    hook.initialize("editable", data)
    assert data == {"pure_python": True, "force_include": {}}
