"""NVTX ranges, for Nsight Systems: there only when such a tool watches the process."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator
from functools import cache
from typing import Any, TypeVar

__all__ = ["named", "ranged", "ranges"]

R = TypeVar("R")


@cache
def ranges() -> Any:
    """The NVTX domain `hydrax_gpu`, or None when no tool watches this process or the package nvtx is not there.

    A tool makes itself known by `NVTX_INJECTION64_PATH`, as NVTX's documentation says (nvToolsExt.h); without that the
    package is not even imported. If a script has imported it, it is asked.
    """
    if "nvtx" not in sys.modules and not os.environ.get("NVTX_INJECTION64_PATH"):
        return None
    try:
        import nvtx  # pyright: ignore
    except ImportError:
        return None
    domain: Any = nvtx.get_domain("hydrax_gpu")  # pyright: ignore
    return None if type(domain).__name__ == "DummyDomain" else domain  # pyright: ignore


@contextlib.contextmanager
def named(name: str) -> Generator[None, None, None]:
    """A range of that name around a block, if anybody watches."""
    domain = ranges()
    if domain is None:
        yield
        return
    domain.push_range(message=name, category="loader")
    try:
        yield
    finally:
        domain.pop_range()


def ranged(name: str, function: Callable[..., R]) -> Callable[..., R]:
    """The function with a range around each call; the function itself when nobody watches."""
    if ranges() is None:
        return function

    def inside(*args: Any) -> R:
        with named(name):
            return function(*args)

    return inside
