"""What `import hydrax_gpu` costs, and what it gives."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import hydrax_gpu
from hydrax_gpu import errors

ROOT = Path(__file__).resolve().parents[2]

PUBLIC = {
    *("ArraySpec", "Batch", "DataGroup", "Dataloader", "Report", "TrainingBatch", "ValidationBatch"),
    *("BadItem", "BadItems", "ErrorPolicy", "debug_batch_references", "is_worker"),
    *("BatchTimeoutError", "LoaderError", "NotEnoughMemory", "PlacementError", "StateMismatch", "TooManyBadItems"),
    *("ImageError", "SourceChanged", "SourceError"),
    *("CacheDamaged", "CacheError", "CacheMismatch", "CacheWriteError", "UnsafeCache"),
    *("WorkerDied", "WorkerStartError", "DecodeError", "StatesDiffer"),
    *("Decode", "Dequantize", "Normalize", "Oklab", "PadRagged", "UnpackBits"),
}


def modules_after(statement: str) -> set[str]:
    """Names of the top-level modules that a fresh interpreter has after a statement."""
    script = f"{statement}; import sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import hydrax_gpu",
        f"from hydrax_gpu import {', '.join(sorted(PUBLIC))}",
        "import hydrax_gpu._exec.worker_main",
        "from hydrax_gpu.loaders import DaliLoader, Random, RowsLoader, Sample, threads_per_worker",
        "from hydrax_gpu.loaders import ImageLoader; import pickle; pickle.loads(pickle.dumps(ImageLoader(8)))",
    ],
)
def test_importing_loads_neither_jax_nor_any_library_for_gpus(statement: str) -> None:
    modules = modules_after(statement)
    assert "hydrax_gpu" in modules
    assert not modules & {
        "jax",
        "jaxlib",
        "ml_dtypes",
        "cupy",
        "cupy_backends",
        "nvidia",
        "kvikio",
        "tqdm",
        "pandas",
        "PIL",
    }


def test_a_group_can_be_declared_without_jax() -> None:
    statement = "from hydrax_gpu import DataGroup; DataGroup(2, range(4), loader_arrays={'x': ((), 'u1', 'float32')})"
    assert not modules_after(statement) & {"jax", "jaxlib"}


def test_the_public_names_are_these() -> None:
    names = {name for name in dir(hydrax_gpu) if name[0] != "_"}
    ours = {name for name in names if getattr(getattr(hydrax_gpu, name), "__module__", "").startswith("hydrax_gpu")}
    assert ours == PUBLIC


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'hydrax_gpu' has no attribute 'Dataloder'"):
        hydrax_gpu.Dataloder  # noqa: B018


def test_a_type_checker_sees_the_same_names_as_the_interpreter() -> None:
    source = (ROOT / "hydrax_gpu" / "__init__.py").read_text()
    assert set(re.findall(r" import (\w+) as \1\b", source)) == PUBLIC


def test_every_public_name_is_documented() -> None:
    reference = re.findall(r"^::: hydrax_gpu\.([\w.]+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    # Reports and errors are documented as whole modules.
    documented = {*reference, *({"Report"} if "report" in reference else ())}
    documented |= set(errors.__all__) if "errors" in reference else set()
    assert documented >= PUBLIC
    assert {name for name in documented if name[0].isupper()} <= PUBLIC


def test_every_error_of_its_own_is_public() -> None:
    assert set(errors.__all__) <= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert (getattr(hydrax_gpu, name).__doc__ or "").strip()


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert (Path(hydrax_gpu.__file__).parent / "py.typed").exists()


def test_the_version_is_that_of_the_project() -> None:
    assert f'version = "{hydrax_gpu.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_this_process_is_no_worker() -> None:
    assert hydrax_gpu.is_worker() is False
