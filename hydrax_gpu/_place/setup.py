"""What a device needs before the first batch: pinned host memory, and memory of its own beside XLA's."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial

from hydrax_gpu._mem.mapping import Mapping
from hydrax_gpu._place.device import Device, DeviceMemory
from hydrax_gpu._place.regions import DeviceLayout
from hydrax_gpu._place.ring import Ring
from hydrax_gpu.errors import NotEnoughMemory

__all__ = ["pin", "ring_memory"]

_log = logging.getLogger("hydrax_gpu")

_SPARE = 256 << 20
"""Bytes of device memory that are left to libraries (cuBLAS, NCCL, the kernels themselves), which come later."""


def pin(device: Device, mapping: Mapping) -> str:
    """Registers a mapping with the device, until it is unmapped. Workers need not know.

    Returns:
        Why that was refused; "" if it was not.
    """
    try:
        device.pin(mapping.address, mapping.size)
    except OSError as error:
        return f"{error} (see `ulimit -l`, the limit of locked memory)"
    mapping.before_unmap.append(partial(_unpin, device, mapping.address))
    return ""


def _unpin(device: Device, address: int) -> None:
    try:
        device.unpin(address)
    except Exception:  # the driver may be gone already, or this be a fork
        _log.debug("host memory could not be unpinned", exc_info=True)


def ring_memory(device: Device, depth: int, layouts: Sequence[DeviceLayout]) -> tuple[DeviceMemory, str]:
    """Memory for the slots of a device: beside what XLA has reserved, or of XLA's where that leaves too little.

    Returns:
        The memory, and what there is to say about where it lies.

    Raises:
        NotEnoughMemory: neither has room.
    """
    nbytes = Ring.size(depth, layouts)
    free, total = device.free_memory()
    if nbytes + _SPARE <= free:
        try:
            return device.allocate(nbytes, "device"), ""
        except MemoryError as error:
            _log.debug("the device refuses %d bytes: %s", nbytes, error)
    try:
        memory = device.allocate(nbytes, "xla")
    except MemoryError as error:
        fraction = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "not set, so 0.75")
        raise NotEnoughMemory(
            f"{depth} slots in the memory of {device.name}",
            nbytes,
            max(0, free - _SPARE),
            f"reservation that XLA makes of its {total:,} bytes",
            f"set XLA_PYTHON_CLIENT_MEM_FRACTION ({fraction}) lower, so that XLA reserves less; "
            "delivery='copy' needs no slots there",
        ) from error
    return memory, (
        f"the slots on the device lie in memory of XLA's ({nbytes:,} bytes), since only {free:,} bytes are free beside "
        "it; a lower XLA_PYTHON_CLIENT_MEM_FRACTION leaves more"
    )
