"""NVIDIA DALI on the CPU, with its JAX iterator, and for photographs with its own operators.

Settings: what comes from a Python function is an `external_source` with `parallel=True` and a callback for a whole
batch, in as many worker processes as items are to be loaded at once, which DALI's documentation advises for functions
that compute; records are normalised by `crop_mirror_normalize`, as its examples do. `DALIGenericIterator` makes the JAX
arrays. Workers are spawned: a fork of a process in which JAX runs can hang.

DALI does not say which part of a photograph it drew. What is compared with the reference is therefore another pipeline,
in which the same decoder and the same resize get parts that we draw.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from ..photo_work import CHECKED, RATIO, SCALE, SIZE, boxes
from ..workloads import MEAN, STD
from .base import Arrays, Peer, make_batch


class Batches:
    """The callback of `external_source`: the batch of an iteration, without end. Workers unpickle it."""

    def __init__(self, task: Any, raw: bool) -> None:
        self._task, self._raw = task, raw

    def __call__(self, number: int) -> tuple[Any, ...]:
        task = self._task
        start = number * task.batch % len(task.data)
        items = task.data[start : start + task.batch]
        if self._raw:
            return task.raw(items), np.asarray(items, np.int32)[:, None]
        arrays = make_batch(task, items, [None] * len(items))
        return tuple(array if array.ndim > 1 else array[:, None] for array in arrays.values())


class Dali(Peer):
    """A pipeline for each kind of task."""

    module = "nvidia.dali"
    packages = ("nvidia-dali-cuda120", "nvidia-dali-cuda130")
    settings = "device_id=None; external_source(parallel=True, batch=True) and DALIGenericIterator; photos: its readers"
    by_function = False
    antialias = False

    def __init__(self) -> None:
        self.jax_arrays = True

    def open(self, task: Any) -> AbstractContextManager[Iterator[Any]]:
        self.jax_arrays = task.name != "photos"
        return self._photos(task) if task.name == "photos" else self._arrays(task)

    @contextmanager
    def _arrays(self, task: Any) -> Generator[Iterator[Any]]:
        from nvidia.dali import Pipeline, fn, types
        from nvidia.dali.plugin.jax import DALIGenericIterator

        raw = task.name == "records"
        graph = Pipeline(
            task.batch,
            num_threads=task.workers,
            device_id=None,
            prefetch_queue_depth=task.depth,
            py_num_workers=task.workers,
            py_start_method="spawn",
        )
        with graph:
            outputs = fn.external_source(
                source=Batches(task, raw),
                num_outputs=len(task.arrays),
                batch=True,
                parallel=True,
                prefetch_queue_depth=task.depth,
                layout=["HWC", "C"][: len(task.arrays)],
            )
            if raw:
                image, label = outputs
                mean, std = list(map(float, MEAN)), list(map(float, STD))
                outputs = (
                    fn.crop_mirror_normalize(image, dtype=types.FLOAT, output_layout="HWC", mean=mean, std=std),
                    label,
                )
            graph.set_outputs(*outputs)
        # its workers must be started before there are threads that a fork would lose
        graph.start_py_workers()
        yield iter(DALIGenericIterator([graph], list(task.arrays), size=-1))

    def arrays(self, batch: Any) -> Arrays:
        if isinstance(batch, dict):
            return batch
        (images, index), given = batch
        arrays = {"image": np.asarray(images.as_tensor()), "index": np.asarray(index.as_tensor()).ravel()}
        return arrays if given is None else {**arrays, "box": given["box"]}

    @contextmanager
    def _photos(self, task: Any) -> Generator[Iterator[Any]]:
        from nvidia.dali import Pipeline, fn, types

        given = list(itertools.islice(self._given(task), CHECKED // task.batch))
        checked = self._pictures(Pipeline, fn, types, task, iter(given))
        measured = self._pictures(Pipeline, fn, types, task, None)
        yield itertools.chain(
            ((checked.run(), batch) for batch in given), ((outputs, None) for outputs in iter(measured.run, None))
        )

    def _given(self, task: Any) -> Iterator[Mapping[str, Any]]:
        for start in range(0, len(task.data), task.batch):
            paths = task.data[start : start + task.batch]
            yield {"files": [np.fromfile(path, np.uint8) for path in paths], "box": boxes(paths), "start": start}

    def _pictures(self, pipeline: Any, fn: Any, types: Any, task: Any, given: Any) -> Any:
        graph = pipeline(
            task.batch, num_threads=task.workers, device_id=None, prefetch_queue_depth=2 if given is None else 1, seed=0
        )
        with graph:
            if given is None:
                data, index = fn.readers.file(files=list(task.data), labels=list(range(len(task.data))))
                part = fn.decoders.image_random_crop(
                    data,
                    output_type=types.RGB,
                    random_area=list(SCALE),
                    random_aspect_ratio=list(RATIO),
                    num_attempts=10,
                )
                flip = fn.random.coin_flip(probability=0.5)
            else:
                fields = [
                    (
                        batch["files"],
                        batch["box"][:, :2].copy(),
                        batch["box"][:, 2:4].copy(),
                        batch["box"][:, 4].copy(),
                        (batch["start"] + np.arange(task.batch, dtype=np.int32))[:, None],
                    )
                    for batch in given
                ]
                data, begin, size, flip, index = fn.external_source(source=fields, num_outputs=5, cycle=False)
                part = fn.decoders.image_slice(data, begin, size, axes=[1, 0], output_type=types.RGB)
            pixels = fn.resize(
                part, size=[SIZE, SIZE], interp_type=types.INTERP_LINEAR, antialias=self.antialias, dtype=types.UINT8
            )
            graph.set_outputs(fn.flip(pixels, horizontal=flip), index)
        graph.build()
        return graph


class DaliAntialias(Dali):
    """The same with antialiasing, as the reference has."""

    workloads = ("photos",)
    antialias = True
