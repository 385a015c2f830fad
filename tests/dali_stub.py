"""DALI on a GPU as far as the package sees it: pipelines of the CPU, which say that their outputs are in its memory.

`Pipeline`, `run` and `__cuda_array_interface__` are those of DALI 2.4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


class TensorGPU:
    """One sample of an output."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self._values = values

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self._values.shape,
            "typestr": self._values.dtype.str,
            "data": (self._values.ctypes.data, False),
            "strides": None,
            "version": 2,
        }


class TensorListGPU:
    """An output, whose memory is used again when it is let go of."""

    def __init__(self, tensors: Any) -> None:
        self._values = [np.array(tensors[index]) for index in range(len(tensors))]

    def __getitem__(self, index: int) -> TensorGPU:
        return TensorGPU(self._values[index])

    def __del__(self) -> None:
        for values in self._values:
            values.fill(0)


def install(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Lets pipelines be made for a GPU, until the end of the test; returns what they are made with."""
    import nvidia.dali as dali

    from hydrax_gpu.loaders._dali_sample import Sample

    made: list[dict[str, Any]] = []
    monkeypatch.setattr(Sample, "mixed", property(lambda self: self.device and "cpu"))

    class Pipeline(dali.Pipeline):  # type: ignore[misc]
        def __init__(self, *, device_id: int | None, **options: Any) -> None:
            made.append({"device_id": device_id} | options)
            self.there = device_id is not None
            super().__init__(device_id=None, **options)

        def run(self, cuda_stream: Any = None) -> Any:
            outputs = super().run()
            if not self.there:
                assert cuda_stream is None
                return outputs
            assert isinstance(cuda_stream, int) and cuda_stream >= 1000
            return [TensorListGPU(each) if np.ndim(np.asarray(each[0])) else each for each in outputs]

    monkeypatch.setattr(dali, "Pipeline", Pipeline)
    return made
