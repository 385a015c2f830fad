"""A DALI graph that a device runs in the main process, on fields that workers have read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, final

import numpy as np

from hydrax_gpu._mem.graphs import FieldArrays, Output
from hydrax_gpu._spec import Layout
from hydrax_gpu.loaders._dali_fields import Fields
from hydrax_gpu.loaders._dali_graph import Blueprint, PipelineRunner, Settings

__all__ = ["DaliGraph", "DaliRows", "room_for"]

_THREADS = 8

MakeBlueprint: TypeAlias = Callable[[Fields, Any, "tuple[str, ...]", bool, Settings], Blueprint]
"""`(fields, first item, names of the arrays, whether for training, settings) → blueprint`."""


def room_for(layout: Layout) -> int:
    """Bytes that are kept for the fields of an item, if nothing else is said: twice the elements of its rows."""
    return max(1 << 16, 2 * sum(array.count // array.shape[0] for array in layout.wire))


@final
class DaliRows:
    """What a device makes the rows of a group by; a `_mem.graphs.GraphRows`.

    It goes to the workers with the layout that it is in, of which it is none of their business: only the names do.

    Args:
        layout: of the batches; all arrays of `wire` come out of the graph.
        data: the items.
        fields: the fields of items like one.
        blueprint: what makes the graph's blueprint.
        pads: for some arrays what fills them up.
        threads: of DALI's; None for one a processor, and at most 8.
    """

    def __init__(
        self, layout: Layout, data: Sequence[Any], fields: Callable[[Any], Fields], blueprint: MakeBlueprint,
        pads: Mapping[str, float], threads: int | None,
    ) -> None:  # fmt: skip
        self.names: tuple[str, ...] = tuple(array.name for array in layout.wire)
        self._data, self._fields, self._blueprint = data, fields, blueprint
        shapes = {array.name: array.item_shape for array in layout.wire}
        self._pads = {name: (value, shapes[name]) for name, value in pads.items() if shapes.get(name)}
        self._threads = threads or min(_THREADS, len(os.sched_getaffinity(0)))

    def __getstate__(self) -> dict[str, Any]:
        return {"names": self.names}

    def open(self, training: bool, device_id: int | None) -> DaliGraph:
        """See `_mem.graphs.GraphRows`.

        Raises:
            ValueError: nothing in the graph would be computed on a GPU, or other fields are read there than on the CPU.
            Exception: the graph cannot be built; of the user's function or DALI's.
        """
        item = self._data[0]
        fields = self._fields(item)
        settings = Settings(self._threads, device_id=device_id, pads=self._pads)
        there = self._blueprint(fields, item, self.names, training, settings)
        if not there.on_device:
            raise ValueError(
                "nothing in the DALI graph is computed on a GPU. Give device=sample.mixed to its decoders of images, "
                "or device=sample.device to an operator; what follows them is computed there, too"
            )
        if device_id is not None and not there.alone:
            here = self._blueprint(fields, item, self.names, training, Settings(self._threads))
            if not (there.fields.items() <= here.fields.items() and there.images <= here.images):
                raise ValueError(
                    "the DALI graph reads or decodes other fields on a GPU than on the CPU, and workers read what it "
                    "reads on the CPU"
                )
        return DaliGraph(there, fields.names)


@final
class DaliGraph:
    """A graph that is built; a `_mem.graphs.OpenGraph`."""

    def __init__(self, blueprint: Blueprint, names: tuple[str, ...]) -> None:
        self.names: tuple[str, ...] = names
        self._blueprint = blueprint
        self._runner = PipelineRunner(blueprint)
        self._kinds: dict[str, tuple[np.dtype[Any], int]] = {}

    def run(
        self,
        rows: Sequence[int],
        fields: Mapping[int, FieldArrays],
        seeds: Mapping[int, int] | None,
        stream: int | None,
    ) -> Iterator[tuple[list[int], Mapping[str, Sequence[Output]] | str, Any]]:
        """See `_mem.graphs.OpenGraph`."""
        blueprint, runner = self._blueprint, self._runner
        feeds: dict[str, dict[int, Any]] = {source: {} for source in blueprint.fields}
        good: list[int] = []
        for row in rows:
            reason = self._unfit(fields[row])
            if reason is not None:
                yield [row], reason, None
                continue
            good.append(row)
            for source, name in blueprint.fields.items():
                feeds[source][row] = fields[row][name]
        if not good:
            return
        for source, draw in blueprint.draws.items():
            if seeds is None:
                raise AssertionError("a graph of training is run for validation")
            feeds[source] = dict(zip(good, draw([seeds[row] for row in good]), strict=True))
        for some, outputs in runner.run(good, feeds, stream):
            if isinstance(outputs, Exception):
                yield some, _first_line(outputs), runner.held
                continue
            made = {
                name: [_output(tensors[index]) for index in range(len(some))]
                for name, tensors in zip(blueprint.outputs, outputs, strict=True)
            }
            yield some, made, (outputs, runner.held)

    def _unfit(self, fields: FieldArrays) -> str | None:
        """Why the fields of an item cannot be fed with those of others."""
        for name in self._blueprint.fields.values():
            array = fields.get(name)
            if array is None:
                return f"its field {name!r} was not read"
            kind = array.dtype, array.ndim
            if self._kinds.setdefault(name, kind) != kind:
                return f"its field {name!r} has another dtype or number of dimensions than in an item before"
        return None


def _output(tensor: Any) -> Output:
    interface: Mapping[str, Any] | None = getattr(tensor, "__cuda_array_interface__", None)
    if interface is not None:
        address = int(interface["data"][0])
        return Output(address, tuple(interface["shape"]), np.dtype(interface["typestr"]), True)
    array = np.asarray(tensor)
    return Output(array.ctypes.data, array.shape, array.dtype, False)


def _first_line(error: Exception) -> str:
    """What kind of an error it is; whatever is of one sample only is left out, since such lines are counted."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(" ,:.")
