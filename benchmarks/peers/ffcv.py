"""FFCV: its own file of the items, its own decoders.

Settings: the file is in the page cache (`os_cache`), in order, as many threads as items are to be loaded at once, as
many batches ahead as the others have. The file is written once for all rounds, before anything is measured, into the
folder of the data. FFCV lends its batches: the memory of one is used again a few batches later. On a CPU JAX would see
that memory and not a copy, so it is copied; photographs, which end as NumPy arrays, are not.

It does not say which part of a photograph it took.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..photo_work import RATIO, SCALE, SIZE
from ..workloads import MEAN, STD
from .base import Arrays, Peer, make_item


class Ffcv(Peer):
    """A file and its pipelines for each kind of task."""

    module = "ffcv"
    packages = ("ffcv", "torch")
    settings = "its own file, os_cache, sequential, batches_ahead=depth; batches are copied, since it lends them"
    by_function = False

    def __init__(self) -> None:
        self._copy = True

    @contextmanager
    def open(self, task: Any) -> Generator[Iterator[Any]]:
        from ffcv.loader import Loader, OrderOption

        self._copy = task.name != "photos"
        file = task.folder / f"{task.name}.beton"
        if not file.exists():
            self._write(file, task)
        loader = Loader(
            str(file),
            batch_size=task.batch,
            num_workers=task.workers,
            order=OrderOption.SEQUENTIAL,
            os_cache=True,
            batches_ahead=task.depth,
            pipelines=self._pipelines(task),
        )
        self._names = list(task.arrays)
        yield itertools.chain.from_iterable(map(iter, itertools.repeat(loader)))

    def arrays(self, batch: Any) -> Arrays:
        # a picture's box, the last of the names, is not known
        arrays = {name: tensor.numpy() for name, tensor in zip(self._names, batch, strict=False)}
        return {name: np.array(array) for name, array in arrays.items()} if self._copy else arrays

    def _pipelines(self, task: Any) -> dict[str, Any]:
        from ffcv.fields.decoders import IntDecoder, NDArrayDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor

        number = [IntDecoder(), ToTensor()]
        if task.name == "photos":
            decoder = RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=SCALE, ratio=RATIO)
            return {"image": [decoder, RandomHorizontalFlip(), ToTensor()], "index": number}
        normalize = [NormalizeImage(MEAN, STD, np.float32)] if task.name == "records" else []
        image = {"image": [NDArrayDecoder(), *normalize, ToTensor()]}
        return image if "label" not in task.arrays else {**image, "label": number}

    def _write(self, file: Path, task: Any) -> None:
        from ffcv.fields import IntField, NDArrayField
        from ffcv.writer import DatasetWriter

        def item(index: int) -> tuple[Any, ...]:
            if task.name == "records":
                return task.raw(task.data[index : index + 1])[0], index
            arrays = make_item(task, task.data[index], None)
            return tuple(int(array) if array.ndim == 0 else array for array in arrays.values())

        if task.name == "photos":
            fields, item = _photo_fields(task)
        else:
            shape, dtype = (task.record, "uint8") if task.name == "records" else task.arrays["image"]
            fields = {"image": NDArrayField(np.dtype(dtype), shape)}
            if "label" in task.arrays:
                fields["label"] = IntField()

        class Items:
            def __len__(self) -> int:
                return len(task.data)

            def __getitem__(self, index: int) -> Any:
                return item(index)

        unfinished = file.with_suffix(".unfinished")
        DatasetWriter(str(unfinished), fields, num_workers=1).from_indexed_dataset(Items())
        unfinished.rename(file)


def _photo_fields(task: Any) -> tuple[dict[str, Any], Callable[[int], tuple[Any, ...]]]:
    """The files' own bytes: FFCV would decode and encode the pictures anew."""
    from ffcv.fields import IntField, RGBImageField

    def keep(destination: Any, field: Any, malloc: Any) -> None:
        data, width, height = field
        destination["mode"] = 0  # JPEG
        destination["width"], destination["height"] = width, height
        destination["data_ptr"], storage = malloc(data.nbytes)
        storage[:] = data

    def item(index: int) -> tuple[Any, ...]:
        from PIL import Image

        with Image.open(task.data[index]) as opened:
            width, height = opened.size
        return (np.fromfile(task.data[index], np.uint8), width, height), index

    image = RGBImageField()
    image.encode = keep
    return {"image": image, "index": IntField()}, item
