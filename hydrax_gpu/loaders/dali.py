"""`DaliLoader`: NVIDIA DALI's operators on one sample at a time, in batches, with nothing left to chance."""

from __future__ import annotations

import pickle
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, cast, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu._arguments import at_least, choice
from hydrax_gpu._exec.role import threads_per_worker
from hydrax_gpu._mem.graphs import GraphFiles, write_fields
from hydrax_gpu._spec import Layout
from hydrax_gpu.loaders import _dali_graph, _dali_pipeline
from hydrax_gpu.loaders._dali_device import DaliRows, room_for
from hydrax_gpu.loaders._dali_fields import Fields, Readers, check_image, describe_item
from hydrax_gpu.loaders._dali_graph import Blueprint, Graph, PipelineRunner, Settings

__all__ = ["DaliLoader", "DeviceName"]

DeviceName: TypeAlias = Literal["auto", "cpu", "gpu"]
_DEVICES: tuple[DeviceName, ...] = ("auto", "cpu", "gpu")

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]
Outcome: TypeAlias = "dict[str, Any] | Exception | None"

_MAX_PIXELS = 1 << 28
_RECORDS = 1 << 10
"""Bytes beside the fields of an item, which tell what they are."""

_NOT_PICKLED = ("_local", "_lock", "_counts")


class _Ready(NamedTuple):
    fields: Fields
    blueprint: Blueprint
    runner: PipelineRunner


class _Read(NamedTuple):
    """What is read of an item: its fields, input → field, and which inputs are images."""

    fields: Fields
    inputs: Mapping[str, str]
    images: frozenset[str]


class _Local(threading.local):
    """What belongs to one thread: DALI's pipelines, by what they are for, and what is read for a device."""

    def __init__(self) -> None:
        self.ready: dict[tuple[bool, type, tuple[str, ...]], _Ready] = {}
        self.read: dict[tuple[bool, type, tuple[str, ...]], _Read] = {}


@final
class DaliLoader:
    """Loads items with a graph of DALI operators; give it to a `Dataloader` in place of a loader function.

        def graph(sample):
            image = fn.decoders.image(sample.image)
            if sample.training:
                image = fn.rotate(image, angle=sample.random.uniform((-10, 10)), keep_size=True)
            return {"image": fn.resize(image, size=(224, 224)), "label": sample.label}

        load = DaliLoader(graph, fields=("image", "label"))

    The graph is the body of a DALI pipeline over one item. It gets a `Sample` and returns a node for each declared
    array (or a node alone, if there is one array). A field of an item is `sample.NAME`:

    - a `str` or `os.PathLike` is the path of a file, whose contents are a uint8 array; so are `bytes`;
    - an `int` is int64, a `float` float32, a `bool` bool; NumPy arrays keep their dtype;
    - only fields that the graph asks for are read.

    The fields of a mapping are its keys, those of a dataclass or a named tuple its fields; the parts of another tuple
    or list are named by `fields`. Any other item is a field itself, with the name `data` unless `fields` has another.

    Items come out the same bit for bit in any order, batch size, number of workers and threads, and resumed run: random
    numbers are functions of the items' seeds (`Sample.random`), and operators that have a state of their own, such as
    `fn.random.uniform`, `fn.readers.*` or `fn.decoders.image_random_crop`, are refused.

    A bad sample is found among those of its batch, and is an item that could not be loaded, with DALI's message; the
    others are kept.

    Args:
        graph: the function; by default of a module, so that worker processes can import it.
        fields: names for the parts of items that do not name them.
        read: for some fields a function that makes an array of the field's value, in place of what is said above.
        pad: for some arrays a value: a smaller output is put at the beginning of each axis, and the rest is filled with
            it. Return `node.shape()` as another array to know how much is real. Other outputs must have the declared
            shape.
        device: where the graph runs. `"cpu"`: in the workers. `"auto"`: on the GPU that the batches are for, if there
            is one, `delivery="alias"` shares its memory, and the graph has something to compute there
            (`Sample.device`, `Sample.mixed`); otherwise in the workers. `"gpu"`: the same, and where the workers have
            to run it, the report and a line in the log say so.
        num_threads: DALI's threads in each worker; by default the worker's share of the processors. On a GPU those of
            the main process; by default one a processor, and at most 8.
        max_pixels: images of more pixels than this are bad, and not decoded.
        encoded_bytes: on a GPU, items whose fields have up to so many bytes are left to it, and each row of a slot has
            so much host memory for them; workers run the graph of those that have more. By default twice the number of
            elements of an item's arrays, and at least 64 KiB; 0 leaves nothing to a GPU.

    Raises:
        TypeError, ValueError: an argument is not valid.
        ImportError: DALI is not installed.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        fields: Sequence[str] | None = None,
        read: Readers | None = None,
        pad: Mapping[str, float] | None = None,
        device: DeviceName = "auto",
        num_threads: int | None = None,
        max_pixels: int = _MAX_PIXELS,
        encoded_bytes: int | None = None,
    ) -> None:
        if not callable(graph):
            raise TypeError(f"graph: got {type(graph).__name__}, wanted a function of a sample that returns nodes")
        self._setup(graph, None, fields, read, pad, device, num_threads, max_pixels, encoded_bytes)

    @classmethod
    def from_pipeline(
        cls,
        pipeline: Any,
        *,
        inputs: Mapping[str, str] | Sequence[str],
        outputs: Sequence[str],
        fields: Sequence[str] | None = None,
        read: Readers | None = None,
        pad: Mapping[str, float] | None = None,
        device: DeviceName = "auto",
        num_threads: int | None = None,
        max_pixels: int = _MAX_PIXELS,
        encoded_bytes: int | None = None,
    ) -> DaliLoader:
        """Takes a DALI pipeline as it is, whose external sources are fed with fields of the items.

        What holds for graphs holds here too, but for this: nothing is drawn for the pipeline, so that what is random in
        it is DALI's (a warning says so, and results then depend on order, batches and workers); training and validation
        are the same; headers of images are checked for `inputs` that hold images by a look at the first of them, not by
        a look at the graph.

        Args:
            pipeline: a `Pipeline`, which is serialized here, without Python functions in it; or a picklable function
                that returns one, such as what `pipeline_def` makes, which is called in each worker with `batch_size`,
                `num_threads`, `device_id=None` and `prefetch_queue_depth=1`, and, with `device="gpu"`, in the main
                process with the GPU's `device_id`.
            inputs: names of its external sources, each with the name of the field that it is fed with, if that is
                another. Each has to be fed once a run: without `source`, and with `batch=True`.
            outputs: names of its outputs, in order, as the arrays are called.
            fields: as for a graph; this and all others.
            device: as for a graph, but that `"auto"` is the CPU: what a pipeline computes where is its own business. A
                `Pipeline` that was made for a GPU needs `"gpu"`, and what that refuses no worker can run.

        Raises:
            TypeError, ValueError: an argument is not valid, or the pipeline reads data by itself.
            ImportError: DALI is not installed.
        """
        _dali_graph.require_dali()
        made = _dali_pipeline.Pipelined.of(pipeline, inputs, outputs, device)
        loader = cls.__new__(cls)
        loader._setup(None, made, fields, read, pad, device, num_threads, max_pixels, encoded_bytes)
        return loader

    def _setup(
        self,
        graph: Graph | None,
        pipeline: _dali_pipeline.Pipelined | None,
        fields: Sequence[str] | None,
        read: Readers | None,
        pad: Mapping[str, float] | None,
        device: DeviceName,
        num_threads: int | None,
        max_pixels: int,
        encoded_bytes: int | None,
    ) -> None:
        choice("device", device, _DEVICES)
        if isinstance(fields, str):
            raise TypeError(f"fields: got {fields!r}, wanted a sequence of names, such as ({fields!r},)")
        for name, function in (read or {}).items():
            if not callable(function):
                raise TypeError(f"read: got {function!r} for field {name!r}, wanted a function of its value")
        _dali_graph.require_dali()
        self._graph = graph
        self._pipeline = pipeline
        self._names = None if fields is None else tuple(fields)
        self._read: Readers = dict(read or {})
        self._pad = dict(pad or {})
        self._device: DeviceName = device
        self._threads = None if num_threads is None else at_least("num_threads", num_threads, 1)
        self._max_pixels = at_least("max_pixels", max_pixels, 1)
        self._encoded_bytes = None if encoded_bytes is None else at_least("encoded_bytes", encoded_bytes, 0)
        self._begin()

    def _begin(self) -> None:
        self._local = _Local()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    @property
    def wants_device(self) -> bool:
        """Whether a GPU was asked for, so that it is to be said when there is none."""
        return self._device == "gpu"

    # Being sent to workers.

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name not in _NOT_PICKLED}
        for what in ("_graph", "_read", "_pipeline"):
            try:
                pickle.dumps(state[what])
            except Exception as error:
                raise TypeError(
                    f"the DaliLoader's {what[1:]} cannot be sent to worker processes ({error}). Define the function at "
                    "the top level of a module: lambdas and functions inside functions cannot be pickled. With "
                    "executor='thread' any function will do."
                ) from error
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()
        _dali_graph.import_dali()  # now, while the worker starts, and not when the first batch is waited for

    # Loading.

    def __call__(self, item: Any, arrays: Arrays, seed: int | None) -> dict[str, Any] | None:
        """Loads one item, as a loader function does; to try a graph out.

        Raises:
            Exception: what is wrong with the item or the graph.
        """
        (outcome,) = self.load_rows([item], [arrays], [seed])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def load_rows(self, items: Sequence[Any], arrays: Sequence[Arrays], seeds: Sequence[int | None]) -> list[Outcome]:
        """Loads items into rows; see `RowsLoader`."""
        outcomes: list[Outcome] = [None] * len(items)
        kinds: dict[type, list[int]] = {}
        for row, item in enumerate(items):
            kinds.setdefault(cast("object", item).__class__, []).append(row)
        for rows in kinds.values():  # all are of one, unless some descriptors are not what they should be
            try:
                ready = self._ready(items[rows[0]], tuple(arrays[0]), seeds[0] is not None)
            except Exception as error:
                for row in rows:
                    outcomes[row] = error
            else:
                self._load(ready, rows, items, arrays, seeds, outcomes)
        return outcomes

    def take_counts(self) -> dict[str, int] | None:
        """What did not go as it should since this was last asked for, as lines of text with counts; None for nothing.

        The report of a `Dataloader` has them as `fallbacks`.
        """
        if not self._counts:
            return None
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return dict(counts)

    # For a device.

    def graph_files(self, layout: Layout, data: Sequence[Any], training: bool) -> GraphFiles | None:
        """What a device can be given in place of rows; None for nothing. See `_mem.graphs.GraphLoader`.

        Args:
            layout: of the batches.
            data: the items.
            training: whether they are for training.
        """
        wanted = ("gpu",) if self._pipeline is not None else ("gpu", "auto")
        if self._device not in wanted or self._encoded_bytes == 0:
            return None
        rows = DaliRows(layout, data, self._fields_of, self._blueprint_of, self._pad, self._threads)
        return GraphFiles((self._encoded_bytes or room_for(layout)) + _RECORDS, rows, training)

    def encode(self, item: Any, arrays: Arrays, encoded: Arrays, seed: int | None) -> dict[str, Any] | None:
        """Reads an item for a device, or, if that cannot be given it, loads it as a call does.

        Args:
            item: its descriptor.
            arrays: its rows by name.
            encoded: memory for its fields, uint8, under one name.
            seed: as for a call.

        Raises:
            Exception: what is wrong with the item or the graph.
        """
        (row,) = encoded.values()
        write_fields(row, (), None)  # what an earlier item left there is not to be taken for this one's
        read = self._reads(item, tuple(arrays), seed is not None)
        try:
            found = self._fed(read.fields, read.inputs, read.images, item)
        except Exception as error:
            raise _told(error, describe_item(read.fields, item, [*read.inputs.values()])) from None
        if write_fields(row, read.fields.names, {read.inputs[source]: array for source, array in found.items()}):
            return None
        with self._lock:
            self._counts[
                "a worker ran the DALI graph of an item for a device: its fields have more bytes than encoded_bytes "
                f"allows ({row.size - _RECORDS:,})"
            ] += 1
        return self(item, arrays, seed)

    def _reads(self, item: Any, arrays: tuple[str, ...], training: bool) -> _Read:
        key = training, cast("object", item).__class__, arrays
        read = self._local.read.get(key)
        if read is None:
            if self._pipeline is not None:  # which may be one that no worker can make
                fields = self._fields_of(item)
                read = _Read(fields, self._pipeline.inputs, self._pipeline.images(fields, item))
            else:
                ready = self._ready(item, arrays, training)
                read = _Read(ready.fields, ready.blueprint.fields, ready.blueprint.images)
            self._local.read[key] = read
        return read

    # On the CPU.

    def _load(
        self,
        ready: _Ready,
        rows: Sequence[int],
        items: Sequence[Any],
        arrays: Sequence[Arrays],
        seeds: Sequence[int | None],
        outcomes: list[Outcome],
    ) -> None:
        fields, blueprint, runner = ready
        used = [*blueprint.fields.values()]
        feeds: dict[str, dict[int, npt.NDArray[Any]]] = {name: {} for name in blueprint.fields}
        good: list[int] = []
        for row in rows:
            try:
                found = self._fed(fields, blueprint.fields, blueprint.images, items[row])
            except Exception as error:
                outcomes[row] = _told(error, describe_item(fields, items[row], used))
                continue
            good.append(row)
            for name, array in found.items():
                feeds[name][row] = array
        if not good:
            return
        for name, draw in blueprint.draws.items():
            values = draw([cast("int", seeds[row]) for row in good])
            feeds[name] = dict(zip(good, values, strict=True))
        for some, outputs in runner.run(good, feeds):
            if isinstance(outputs, Exception):
                outcomes[some[0]] = _told(outputs, describe_item(fields, items[some[0]], used))
                continue
            for name, output in zip(blueprint.outputs, outputs, strict=True):
                self._write(name, output, some, arrays, outcomes)

    def _fed(
        self, fields: Fields, inputs: Mapping[str, str], images: frozenset[str], item: Any
    ) -> dict[str, npt.NDArray[Any]]:
        found: dict[str, npt.NDArray[Any]] = {}
        for source, name in inputs.items():
            array = fields.array(item, name)
            if source in images:
                check_image(array, self._max_pixels)
            found[source] = array
        return found

    def _fields_of(self, item: Any) -> Fields:
        return Fields(item, self._names, self._read)

    def _ready(self, item: Any, arrays: tuple[str, ...], training: bool) -> _Ready:
        key = training, cast("object", item).__class__, arrays
        ready = self._local.ready.get(key)
        if ready is None:
            fields = self._fields_of(item)
            settings = Settings(self._threads or threads_per_worker())
            blueprint = self._blueprint_of(fields, item, arrays, training, settings)
            ready = self._local.ready[key] = _Ready(fields, blueprint, PipelineRunner(blueprint))
        return ready

    def _blueprint_of(
        self, fields: Fields, item: Any, arrays: tuple[str, ...], training: bool, settings: Settings
    ) -> Blueprint:
        unknown = sorted(set(self._pad) - set(arrays))
        if unknown:
            raise TypeError(f"pad: there is no array {', '.join(unknown)}; declared are {', '.join(arrays)}")
        if self._pipeline is not None:
            return self._pipeline.blueprint(fields, item, arrays, settings)
        return _dali_graph.blueprint_of(cast("Graph", self._graph), fields.names, arrays, training, settings)

    def _write(
        self, name: str, output: Any, rows: Sequence[int], arrays: Sequence[Arrays], outcomes: list[Outcome]
    ) -> None:
        for index, row in enumerate(rows):
            if outcomes[row] is not None:
                continue
            value, target = np.asarray(output[index]), arrays[row][name]
            if value.dtype == target.dtype and value.shape == target.shape:
                np.copyto(target, value)
            elif value.dtype == target.dtype and name in self._pad and _fits(value, target):
                target[...] = self._pad[name]
                target[tuple(map(slice, value.shape))] = value
            else:
                outcomes[row] = _misfit(name, value, target, self._pad.get(name))


def _fits(value: npt.NDArray[Any], target: npt.NDArray[Any]) -> bool:
    return value.ndim == target.ndim and all(a <= b for a, b in zip(value.shape, target.shape, strict=True))


def _misfit(name: str, value: npt.NDArray[Any], target: npt.NDArray[Any], pad: float | None) -> ValueError:
    text = (
        f"the graph's output {name!r} has shape {value.shape} and dtype {value.dtype.name}, but the array {name!r} is "
        f"declared with the item shape {target.shape} and dtype {target.dtype.name}. "
    )
    if value.dtype != target.dtype:
        return ValueError(f"{text}Convert it in the graph with fn.cast, or declare the array with {value.dtype.name}.")
    if value.ndim != target.ndim:
        return ValueError(f"{text}fn.squeeze, fn.expand_dims and fn.reshape change the number of dimensions.")
    if pad is not None:
        return ValueError(f"{text}Padding makes outputs larger, never smaller: fn.slice or fn.crop cut them.")
    return ValueError(
        f"{text}Resize, crop or pad it in the graph; or have smaller ones padded, with pad={{{name!r}: 0}}."
    )


def _told(error: Exception, where: str) -> Exception:
    """The error with the item's path in front, if it does not have it yet."""
    if not where or where.rstrip(": ") in str(error):
        return error
    if type(error) not in (RuntimeError, ValueError, TypeError):
        return error
    return type(error)(f"{where}{error}").with_traceback(error.__traceback__)
