"""A user's own DALI pipeline, taken as it is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from hydrax_gpu.loaders._dali_fields import Fields, check_image
from hydrax_gpu.loaders._dali_graph import Blueprint, Settings, import_dali, stateful

__all__ = ["Pipelined"]

_log = logging.getLogger("hydrax_gpu")


@final
@dataclass(frozen=True, slots=True)
class Pipelined:
    """A pipeline that can be sent to workers.

    Attributes:
        serialized: the pipeline, if it was an object.
        make: what returns it, if it was a function.
        device_id: of the GPU that it was made for, if it was an object.
        capacity: the samples that it can take in a run, if it was an object.
        inputs: external source → field.
        outputs: names of the outputs.
    """

    serialized: bytes | None
    make: Callable[..., Any] | None
    capacity: int | None
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    device_id: int | None = None

    @staticmethod
    def of(pipeline: Any, inputs: Mapping[str, str] | Sequence[str], outputs: Sequence[str], device: str) -> Pipelined:
        """Checks what a user gave; see `DaliLoader.from_pipeline`."""
        for name, value in (("inputs", inputs), ("outputs", outputs)):
            if isinstance(value, str) or not value:
                raise TypeError(f"{name}: got {value!r}, wanted a sequence of names")
        fed = dict(inputs) if isinstance(inputs, Mapping) else {name: name for name in inputs}
        if not hasattr(pipeline, "feed_input"):
            if not callable(pipeline):
                raise TypeError(
                    f"pipeline: got {type(pipeline).__name__}, wanted a Pipeline or a function that makes it"
                )
            return Pipelined(None, pipeline, None, fed, tuple(outputs))
        device_id = pipeline.device_id
        if device_id is not None and device != "gpu":
            raise ValueError(
                f"the pipeline is for GPU {device_id}: run it there, with device='gpu', or make it with device_id=None"
            )
        _check(pipeline, device_id)
        serialized = _serialize(pipeline)
        return Pipelined(serialized, None, pipeline.max_batch_size, fed, tuple(outputs), device_id)

    def blueprint(self, fields: Fields, item: Any, arrays: tuple[str, ...], settings: Settings) -> Blueprint:
        """How to make the pipeline in this process.

        Args:
            fields: of the items.
            item: the first of them: its fields tell which inputs are images.
            arrays: names of the declared arrays.
            settings: for the pipelines.

        Raises:
            TypeError, ValueError: the pipeline does not fit.
        """
        if set(self.outputs) != set(arrays) or len(self.outputs) != len(arrays):
            raise TypeError(f"outputs={self.outputs!r}, but the declared arrays are {', '.join(arrays)}")
        images = self.images(fields, item)
        device_id = settings.device_id
        if self.device_id is not None and device_id is None:
            raise ValueError(
                f"the pipeline was made for GPU {self.device_id}, and cannot run in a worker, on the CPU. Give a "
                "function that makes it, such as pipeline_def returns: it is called with the device_id that there is"
            )
        dali = import_dali()
        options = {
            "num_threads": settings.threads, "device_id": device_id, "prefetch_queue_depth": 1, **settings.options,
        }  # fmt: skip

        def make(capacity: int) -> Any:
            if self.serialized is not None:
                pipe = dali.Pipeline.deserialize(self.serialized, batch_size=capacity, **options)
            else:
                pipe = self.make(batch_size=capacity, **options)  # pyright: ignore[reportOptionalCall]
                _check(pipe, device_id)
            pipe.build()
            return pipe

        first = make(self.capacity or 1)
        _warn_of_state(_serialize(first) if self.serialized is None else self.serialized)
        if first.num_outputs != len(self.outputs):
            raise TypeError(f"outputs={self.outputs!r}, but the pipeline has {first.num_outputs} outputs")
        return Blueprint(make, self.capacity, self.inputs, {}, images, self.outputs, on_device=True, alone=True)

    def images(self, fields: Fields, item: Any) -> frozenset[str]:
        """Which inputs are images, by a look at the first item.

        Raises:
            TypeError: the items lack a field of the inputs.
        """
        unknown = sorted(set(self.inputs.values()) - set(fields.names))
        if unknown:
            raise TypeError(
                f"inputs: the items have no field {', '.join(map(repr, unknown))}; they have {', '.join(fields.names)}"
            )
        return frozenset(source for source, name in self.inputs.items() if _is_image(fields, item, name))


def _check(pipeline: Any, device_id: int | None) -> None:
    if pipeline.device_id != device_id:
        wanted = "for the CPU (device_id=None)" if device_id is None else f"for GPU {device_id}"
        raise ValueError(
            f"the pipeline is for device_id={pipeline.device_id}, wanted one {wanted}: a function that makes it has to "
            "pass on the device_id that it is called with"
        )
    if pipeline.prefetch_queue_depth != 1 and not pipeline.max_batch_size:
        raise ValueError("the pipeline has no batch size")


def _serialize(pipeline: Any) -> bytes:
    try:
        return pipeline.serialize()
    except Exception as error:
        raise TypeError(
            f"the pipeline cannot be serialized ({error}): give a function that makes it, such as pipeline_def returns"
        ) from error


def _warn_of_state(serialized: bytes) -> None:
    names = stateful(serialized)
    readers = [name.replace("__", ".") for name in names if "eader" in name or "inputs" in name]
    if readers:
        raise ValueError(
            f"the pipeline reads data by itself ({', '.join(readers)}), in an order of its own. Take the data from the "
            "items of a DataGroup: put fn.external_source(name=...) in the reader's place"
        )
    if names:
        _log.warning(
            "the DALI pipeline has operators with a state of their own (%s): what comes out depends on order, batches, "
            "workers and where a run was resumed. A graph with sample.random does not",
            ", ".join(name.replace("__", ".") for name in names),
        )


def _is_image(fields: Fields, item: Any, name: str) -> bool:
    array = fields.array(item, name)
    if array.ndim != 1 or array.dtype.name != "uint8":
        return False
    try:
        check_image(array, 1 << 62)
    except ValueError:
        return False
    return True
