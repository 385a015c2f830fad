"""Which `Device` belongs to a device of JAX's, if any; and if none, why."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator
from typing import Any

from hydrax_gpu._place.device import Device

__all__ = ["find", "possible", "replaced"]

_replacement: Callable[[Any], Device] | None = None


def possible() -> bool:
    """Whether there may be a device of ours: quickly, and without JAX."""
    return _replacement is not None or os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")


def find(jax_device: Any) -> tuple[Device | None, str]:
    """What can fill the memory of `jax_device` beside XLA, or None and the reason; "" when that reads host memory.

    Args:
        jax_device: a local `jax.Device`.
    """
    if _replacement is not None:
        return _replacement(jax_device), ""
    if jax_device.platform == "cpu":
        return None, ""
    version = str(getattr(jax_device.client, "platform_version", ""))
    if jax_device.platform != "gpu" or "cuda" not in version.lower():
        return None, f"{jax_device.device_kind} is not a CUDA device ({jax_device.platform} {version})"
    try:
        from hydrax_gpu._place.cuda import CudaDevice

        return CudaDevice(jax_device), ""
    except ImportError as error:
        return None, f"CuPy cannot be imported ({error}): pip install 'hydrax-gpu[cuda12]' or [cuda13]"
    except Exception as error:  # of CuPy's many
        return None, f"CuPy cannot use this device ({type(error).__name__}: {error})"


@contextlib.contextmanager
def replaced(find: Callable[[Any], Device]) -> Generator[None, None, None]:
    """Lets `find` answer in the place of what there is; for tests."""
    global _replacement
    before, _replacement = _replacement, find
    try:
        yield
    finally:
        _replacement = before
