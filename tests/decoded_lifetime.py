"""Whether batches that a device has decoded change while computations are held that are to read them."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from hydrax_gpu import DataGroup, Dataloader
from hydrax_gpu._place import files
from hydrax_gpu._place.ring import Ring
from tests.gpu.machines import FakeMachine


def reads(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, load: Any, group: DataGroup[Any]
) -> list[tuple[np.ndarray[Any, Any], list[int]]]:
    """Holds computations that read batches, drops these, and lets the next ones be decoded.

    Args:
        machine: what computes.
        monkeypatch: to see when a batch was decoded.
        load: the loader.
        group: its batches have two arrays, the second of them a number.

    Returns:
        For each of the batches what was read, shape (rows, 3): least and largest element of a row, and its label; and
        the numbers of its items.
    """
    decoded = threading.Semaphore(0)
    decode = files.FileDecoder.decode

    def counted(self: files.FileDecoder, *given: Any) -> Any:
        result = decode(self, *given)
        decoded.release()
        return result

    monkeypatch.setattr(files.FileDecoder, "decode", counted)
    found: list[tuple[Any, list[int]]] = []
    for first in range(5):
        with machine.in_use(), Dataloader(
            load, group, depth=2, executor="thread", delivery="alias", start_at=(0, first), timeout_sec=30
        ) as loader:  # fmt: skip
            open_latch = machine.hold()
            try:
                for _ in range(2):
                    batch = next(loader)
                    x, y = batch.arrays.values()
                    found.append((machine.read({"x": x, "y": y}), list(batch.indices)))
                    del batch, x, y
                loader._runner.retire_now()  # type: ignore[union-attr]
                for _ in range(4):  # the two, and those that come into their slots
                    assert decoded.acquire(timeout=30)
                machine.device.run()
            finally:
                open_latch()
        while decoded.acquire(blocking=False):
            pass
    return [(np.asarray(machine.results(read)), indices) for read, indices in found]


def without_the_decoders_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the copies of a ring wait for the fence, and what decodes not."""
    wait = Ring.wait_for_readers

    def only_the_rings(self: Ring, slot: int, stream: Any) -> None:
        if stream is self._stream:
            wait(self, slot, stream)

    monkeypatch.setattr(Ring, "wait_for_readers", only_the_rings)
