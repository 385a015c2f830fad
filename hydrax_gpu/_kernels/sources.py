"""Where the kernels' sources are, and their digest. Needs no other module: the build runs this file by its path."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["LIBRARY", "digest", "files", "folder", "kernels"]

_HERE = Path(__file__).resolve().parent

LIBRARY = _HERE / "lib" / "hydrax_kernels.so"
"""The host library, if it was built."""


def folder() -> Path:
    """The sources: in the package when it was installed from a wheel, otherwise beside it."""
    shipped = _HERE.parent / "kernels"
    return shipped if shipped.is_dir() else _HERE.parent.parent / "kernels"


def kernels() -> list[Path]:
    """The kernels themselves, one a file."""
    return sorted(folder().glob("*.cu"))


def files() -> list[Path]:
    """Everything that the host library depends on."""
    build = [_HERE / "build.py", _HERE / "sources.py"]
    return [*kernels(), *sorted(folder().glob("*.cuh")), *sorted(folder().glob("*.cpp")), *build]


def digest() -> str:
    """SHA-256 of the sources, in hexadecimal."""
    state = hashlib.sha256()
    for path in files():
        content = path.read_bytes()
        state.update(f"{path.name} {len(content)}\n".encode())
        state.update(content)
    return state.hexdigest()
