"""A DALI pipeline that is built from a user's graph, checked, fed, and built anew after every error."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu.loaders._dali_random import Draw
from hydrax_gpu.loaders._dali_sample import Node, Sample, asks_for_device, input_names

__all__ = [
    "Blueprint",
    "Graph",
    "PipelineRunner",
    "Settings",
    "blueprint_of",
    "import_dali",
    "require_dali",
    "stateful",
]

_log = logging.getLogger("hydrax_gpu")

Graph: TypeAlias = Callable[[Sample], "Mapping[str, Node] | Node"]
Feeds: TypeAlias = Mapping[str, "npt.NDArray[Any] | list[npt.NDArray[Any]]"]

_CAPACITY = 256
"""Samples that a pipeline is built for. More than a run has cost nothing, fewer cost a new pipeline."""

_ADVICE = {
    "PermuteBatch": "it mixes the samples of a batch, and which those are depends on the batch",
    "MultiPaste": "it pastes other samples of the same batch, and which those are depends on the batch",
}

_NOISE = ("Critical error in pipeline:", "Current pipeline object is no longer valid.")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a pipeline is made with, besides its graph.

    Attributes:
        threads: of DALI's.
        options: arguments of `Pipeline` beside ours.
        device_id: number of the GPU that it is for; None for the CPU.
        pads: for some outputs the value that fills them up, and the shape to which it does. (On the CPU the copy into
            the batch's row does that.)
    """

    threads: int
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    device_id: int | None = None
    pads: Mapping[str, tuple[float, tuple[int, ...]]] = field(
        default_factory=dict[str, "tuple[float, tuple[int, ...]]"]
    )


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What building a pipeline takes, and what its inputs and outputs are.

    Attributes:
        make: makes a pipeline for at most so many samples.
        capacity: the most samples that such a pipeline can take at all; None for any number.
        fields: input → field that it is fed with.
        draws: input → random numbers that it is fed with.
        images: inputs that a decoder of images reads as they are.
        outputs: names of the outputs, in order.
        on_device: whether anything of it is made for a GPU, if there is one.
        alone: whether it is a pipeline of the user's, of which the CPU's is another that need not be had.
    """

    make: Callable[[int], Any]
    capacity: int | None
    fields: Mapping[str, str]
    draws: Mapping[str, Draw]
    images: frozenset[str]
    outputs: tuple[str, ...]
    on_device: bool = False
    alone: bool = False


def require_dali() -> None:
    """Raises ImportError, saying what to do, if DALI is not installed; does not import it, which takes a second."""
    try:
        found = importlib.util.find_spec("nvidia.dali") is not None
    except ImportError:
        found = False
    if not found:
        raise ImportError(
            "DaliLoader needs NVIDIA DALI, which is not installed: pip install 'hydrax-gpu[dali]', or a CUDA extra, "
            "'hydrax-gpu[cuda12]' or [cuda13], which brings the build for it. DALI runs without a GPU, too."
        )


def import_dali() -> Any:
    """The module `nvidia.dali`.

    Raises:
        ImportError: it is not installed, or cannot be loaded on this machine.
    """
    require_dali()
    importlib.import_module("nvidia.dali.fn")
    importlib.import_module("nvidia.dali.types")
    return importlib.import_module("nvidia.dali")


def blueprint_of(
    graph: Graph, names: Sequence[str], arrays: Sequence[str], training: bool, settings: Settings
) -> Blueprint:
    """Builds the graph once, to find out what it reads and to check that it is fit.

    Args:
        graph: the user's function.
        names: names of the fields.
        arrays: names of the declared arrays.
        training: what `sample.training` is.
        settings: for the pipelines.

    Raises:
        TypeError: the graph returns something other than a node for each declared array.
        ValueError: the graph has an operator in it whose results would not be a function of the sample alone.
        Exception: whatever the user's function or DALI raises.
    """
    dali = import_dali()

    def build(capacity: int) -> tuple[Any, Sample, dict[str, Node]]:
        pipe = dali.Pipeline(
            batch_size=capacity,
            num_threads=settings.threads,
            device_id=settings.device_id,
            prefetch_queue_depth=1,
            **settings.options,
        )
        device = "cpu" if settings.device_id is None else "gpu"
        with pipe:
            sample = Sample(names, lambda name: dali.fn.external_source(name=name, no_copy=True), training, device)
            outputs = _outputs(graph(sample), arrays, dali)
            for name, (value, shape) in settings.pads.items():
                axes = list(range(len(shape)))
                outputs[name] = dali.fn.pad(outputs[name], fill_value=value, axes=axes, shape=list(shape))
            pipe.set_outputs(*outputs.values())
        return pipe, sample, outputs

    def make(capacity: int) -> Any:
        pipe = build(capacity)[0]
        pipe.build()
        return pipe

    _, sample, outputs = build(1)
    fields, draws = input_names(sample)
    images: set[str] = set()
    on_device = asks_for_device(sample) or any(node.device != "cpu" for node in outputs.values())
    for operator in _operators(outputs.values()):
        schema = operator.schema.Name()
        on_device |= any(node.device != "cpu" for node in operator.inputs)
        inputs = [node.source.name for node in _flat(operator.inputs[:1])]
        if _reads_images(schema):
            unseen = [name for name in inputs if name not in fields]
            images.update(name for name in inputs if name in fields)
            if unseen:
                _log.warning(
                    "the DALI graph decodes images that are not a field of its sample but come from %s: their headers "
                    "cannot be checked before DALI sees them, and a damaged one can end the worker process",
                    ", ".join(unseen),
                )
        if schema == "ExternalSource":
            if operator.name not in fields and operator.name not in draws:
                raise ValueError(
                    _refusal("fn.external_source", "what it reads depends on how often it was asked before")
                )
            continue
        if schema == "Normalize" and "\n    batch: True" in operator.spec:
            raise ValueError(
                _refusal("Normalize(batch=True)", "mean and deviation depend on what else is in the batch")
            )
        if operator.schema.IsStateful() or schema in _ADVICE:
            raise ValueError(_refusal(schema, _ADVICE.get(schema, "")))
    return Blueprint(make, None, fields, draws, frozenset(images), tuple(outputs), on_device)


def _refusal(operator: str, why: str) -> str:
    why = why or "its results depend on which samples the pipeline has seen before, in which order"
    return (
        f"the graph has the operator {operator.replace('__', '.')} in it, and {why}. So the same item would not come "
        "to the same values in another order, batch size, worker or resumed run. Random numbers come from "
        "sample.random (uniform, coin_flip, normal, choice), as arguments of operators that are not random themselves; "
        "data comes from the items. DaliLoader.from_pipeline takes a pipeline as it is, without that promise."
    )


def _outputs(result: Any, arrays: Sequence[str], dali: Any) -> dict[str, Node]:
    data_node = importlib.import_module("nvidia.dali.data_node").DataNode
    if not isinstance(result, Mapping):
        if len(arrays) != 1:
            raise TypeError(
                f"the graph returned {_kind_of(result)}, wanted a dict with a node for each of the arrays "
                f"{', '.join(arrays)}"
            )
        result = {arrays[0]: result}
    outputs: dict[str, Any] = dict(result)  # pyright: ignore[reportUnknownArgumentType]
    missing, unknown = sorted(set(arrays) - set(outputs)), sorted(set(outputs) - set(arrays))
    if missing or unknown:
        text = [f"returned nothing for the arrays {', '.join(missing)}"] if missing else []
        text += [f"returned {', '.join(unknown)}, which no array is declared for"] if unknown else []
        raise TypeError(f"the graph {' and '.join(text)}. It has to return a node for each of {', '.join(arrays)}")
    for name, node in outputs.items():
        if isinstance(node, data_node):
            continue
        if isinstance(node, bool | int | float | np.generic):
            outputs[name] = dali.types.Constant(node, device="cpu")
        else:
            raise TypeError(f"the graph returned {_kind_of(node)} for {name!r}, wanted a node")
    return outputs


def _kind_of(thing: object) -> str:
    return f"a {type(thing).__name__}"


def _flat(nodes: Sequence[Any]) -> Iterator[Any]:
    for node in nodes:
        yield from node if isinstance(node, list) else (node,)


@dataclass(frozen=True, slots=True)
class _Operator:
    name: str
    schema: Any
    spec: str
    inputs: list[Any]


def _operators(outputs: Iterable[Node]) -> Iterator[_Operator]:
    """The operators that some nodes come from, each once."""
    seen: set[int] = set()
    waiting = [node.source for node in outputs]
    while waiting:
        source = waiting.pop()
        if id(source) in seen:
            continue
        seen.add(id(source))
        inputs = list(_flat(source.inputs))
        waiting += [node.source for node in inputs]
        yield _Operator(source.name, source._op.schema, str(source.spec), inputs)


def _reads_images(schema: str) -> bool:
    return "decoders__Image" in schema or schema.startswith("ImageDecoder") or schema.endswith("PeekImageShape")


def stateful(serialized: bytes) -> list[str]:
    """The stateful operators of a serialized pipeline: random ones, and readers. `ExternalSource` is not counted."""
    backend = importlib.import_module("nvidia.dali.backend")
    names = {*backend.RegisteredCPUOps(), *backend.RegisteredGPUOps(), *backend.RegisteredMixedOps()}
    # An operator's name is a string field in it: its length, then its characters.
    found = [name for name in names if bytes([len(name)]) + name.encode() in serialized]
    return sorted(n for n in found if n != "ExternalSource" and (backend.GetSchema(n).IsStateful() or n in _ADVICE))


@final
class PipelineRunner:
    """Runs a pipeline on samples, whatever is wrong with some of them. For one thread."""

    def __init__(self, blueprint: Blueprint) -> None:
        self._blueprint = blueprint
        self._pipe: Any = None
        self._capacity = 0
        self._held: Feeds = {}

    def run(
        self, rows: list[int], feeds: Mapping[str, Mapping[int, npt.NDArray[Any]]], stream: int | None = None
    ) -> Iterator[tuple[list[int], Sequence[Any] | Exception]]:
        """Yields `(rows, outputs)` for the rows of which something has come, and `(row, error)` for the others.

        Args:
            rows: numbers of the rows to run.
            feeds: for each input the array of each of these rows. They are read until the outputs are let go of.
            stream: in whose order the outputs of a GPU can be read; None to wait until they are there.
        """
        waiting = [rows]
        limit = self._blueprint.capacity
        while waiting:
            some = waiting.pop()
            if limit is not None and len(some) > limit:
                waiting += [some[limit:], some[:limit]]
                continue
            try:
                outputs = self._run(
                    {name: [arrays[row] for row in some] for name, arrays in feeds.items()}, len(some), stream
                )
            except Exception as error:
                # Whatever DALI says about it, the pipeline is not to be used again. Another costs a few milliseconds.
                self._pipe = None
                if len(some) == 1:
                    yield some, _plain(error)
                else:
                    # Not which sample it was: the number in DALI's message, if there is one, is only the first's.
                    middle = len(some) // 2
                    waiting += [some[middle:], some[:middle]]
            else:
                yield some, outputs

    @property
    def held(self) -> object:
        """What the last run has read, which a GPU may have yet to do when that has returned."""
        return self._held

    def _run(self, feeds: Mapping[str, list[npt.NDArray[Any]]], count: int, stream: int | None) -> Sequence[Any]:
        if self._pipe is None or count > self._capacity:
            limit = self._blueprint.capacity
            self._capacity = limit if limit is not None else max(_CAPACITY, count)
            self._pipe = self._blueprint.make(self._capacity)
        # DALI reads these arrays where they are. They must live until it is done, also when that was an error.
        held = self._held
        self._held = {name: _batch(arrays) for name, arrays in feeds.items()}
        for name, arrays in self._held.items():
            self._pipe.feed_input(name, arrays)
        outputs = self._pipe.run() if stream is None else self._pipe.run(stream)
        del held
        return outputs


def _batch(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any] | list[npt.NDArray[Any]]:
    """Small arrays of one shape as one array, which DALI takes in a single step."""
    first = arrays[0].shape
    if arrays[0].nbytes <= 256 and all(array.shape == first for array in arrays):
        return np.stack(arrays)
    return arrays


def _plain(error: Exception) -> Exception:
    """DALI's error without what has no meaning for one sample that was run alone."""
    lines = [line for line in str(error).splitlines() if line.strip() and line.strip() not in _NOISE]
    text = "\n".join(lines).replace(" sample #0 : ", " it").replace(" sample #0", " it").rstrip(" :\n")
    plain = RuntimeError(text)
    plain.__cause__ = None
    return plain
