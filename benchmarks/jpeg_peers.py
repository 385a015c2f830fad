"""The loaders of the benchmark `jpeg`. A new peer is a class here and a line in `SUBJECTS`.

Each uses the fastest decoder that it can: what takes a Python function gets `photo_work.fast`, the others their own.
Batches of the peers end as NumPy arrays, or what is one without a copy; only hydrax and hydrax_gpu hand over JAX's.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .photo_work import CHECKED, PASSES, RATIO, SCALE, SIZE, PhotoTask, draw, fast, load_fast, load_pillow, number_of
from .subjects import Hydrax, HydraxGpu

Arrays = dict[str, Any]


class PhotoSubject(Protocol):
    """What the measurement needs of a loader. jax and other large libraries are imported in `open` at the earliest."""

    module: str
    """The module to import; a peer without it is left out."""
    by_function: bool
    """Whether it calls `photo_work.fast`, which needs OpenCV and a decoder."""

    def open(self, task: PhotoTask) -> AbstractContextManager[Iterator[Any]]:
        """A running loader's batches, without end."""
        ...

    def arrays(self, batch: Any) -> Arrays:
        """Arrays `image`, `index`, and if the loader can say it, `box`."""
        ...

    def judged(self, batch: Any) -> Arrays:
        """The same for a batch that is compared with the reference, where `box` takes more to be found out."""
        ...

    def notes(self) -> dict[str, Any]:
        """What else its row of the results should say, at the end."""
        ...

    def after(self, batch: Any) -> None:
        """What a consumer must do with each batch beside reading its arrays, if anything."""
        ...


class Plain:
    """Nothing to be done after a batch, which is a dict of arrays."""

    module = ""
    by_function = False

    def arrays(self, batch: Any) -> Arrays:
        return batch

    def judged(self, batch: Any) -> Arrays:
        return self.arrays(batch)

    def notes(self) -> dict[str, Any]:
        return {}

    def after(self, batch: Any) -> None:
        """Nothing."""


class HydraxGpuFunction(HydraxGpu):
    """hydrax_gpu's `Dataloader` with the peers' function: what the loader itself adds, or saves."""

    load = staticmethod(load_fast)
    by_function = True

    def judged(self, batch: Any) -> Arrays:
        return self.arrays(batch)

    def notes(self) -> dict[str, Any]:
        return {}

    @contextmanager
    def open(self, task: Any) -> Generator[Iterator[Any]]:
        library = import_module(self.module)
        declared = {name: (shape or self.scalar, dtype, dtype) for name, (shape, dtype) in task.arrays.items()}
        group = library.DataGroup(task.batch, list(task.paths), loader_arrays=declared)
        with library.Dataloader(self.load, group, loader_count=task.workers, depth=task.depth) as loader:
            yield iter(loader)


class HydraxGpuPillow(HydraxGpuFunction):
    """The same with Pillow, whose resize is the reference itself."""

    load = staticmethod(load_pillow)
    by_function = False


class ImageLoaderSubject(HydraxGpu):
    """hydrax_gpu with its own `ImageLoader`."""

    module = "hydrax_gpu.loaders"
    by_function = False

    def __init__(self, module: str | None = None) -> None:
        super().__init__(module)
        self._load: Any = None
        self._loader: Any = None

    @contextmanager
    def open(self, task: Any) -> Generator[Iterator[Any]]:
        import hydrax_gpu

        self._load = import_module(self.module).ImageLoader(SIZE, labels={"index": ((), np.int32, np.int32)})
        items = [(path, number_of(path)) for path in task.paths]
        group = hydrax_gpu.DataGroup(task.batch, items, loader_arrays=self._load.arrays())
        with hydrax_gpu.Dataloader(self._load, group, loader_count=task.workers, depth=task.depth) as loader:
            self._loader = loader
            yield iter(loader)

    def notes(self) -> dict[str, Any]:
        """What the loader did in another way than the fast one."""
        return {"fallbacks": getattr(self._loader.report(), "fallbacks", None)}

    def judged(self, batch: Any) -> Arrays:
        """The parts that were drawn follow from the items' seeds."""
        from PIL import Image

        from hydrax_gpu.loaders.images import draw as drawn

        boxes = np.empty((len(batch.seeds), 5), np.int32)
        for (path, _), seed, box in zip(batch.data, batch.seeds, boxes, strict=True):
            with Image.open(path) as image:
                part, flip = drawn(self._load.declaration, int(seed), *image.size)
            # they are given in eighths of a pixel, and random ones are whole pixels
            box[...] = (*(value // 8 for value in part), flip)
        return {**self.arrays(batch), "box": boxes}


class HydraxFunction(HydraxGpuFunction, Hydrax):
    """hydrax 0.2.2 with the peers' function."""


class Torch(Plain):
    """PyTorch's `DataLoader`, workers forked, batches put together in shared memory."""

    module = "torch"
    by_function = True

    @contextmanager
    def open(self, task: PhotoTask) -> Generator[Iterator[Any]]:
        import torch

        torch.set_num_threads(1)

        class Photos(torch.utils.data.Dataset):  # type: ignore[misc]
            def __len__(self) -> int:
                return len(task.paths)

            def __getitem__(self, index: int) -> Any:
                image = torch.empty((SIZE, SIZE, 3), dtype=torch.uint8)
                # each worker's `random` is seeded by torch
                box = fast(task.paths[index], random.random, image.numpy())
                return image, index, torch.tensor(box, dtype=torch.int32)

        endless = itertools.chain.from_iterable(itertools.repeat(range(len(task.paths))))
        loader = torch.utils.data.DataLoader(
            Photos(), task.batch, sampler=endless, num_workers=task.workers, multiprocessing_context="fork"
        )
        yield iter(loader)

    def arrays(self, batch: Any) -> Arrays:
        image, index, box = batch
        return {"image": image.numpy(), "index": index.numpy(), "box": box.numpy()}


class Grain(Plain):
    """Grain's `MapDataset` with random draws of its own, in worker processes."""

    module = "grain"
    by_function = True
    processes = True

    @contextmanager
    def open(self, task: PhotoTask) -> Generator[Iterator[Any]]:
        import grain
        from absl import flags

        # its worker processes ask for flags of a command line that Grain's own launcher would have parsed
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        dataset = grain.MapDataset.source(list(task.paths)).seed(0).repeat().random_map(_grain_item)
        if self.processes:
            dataset = dataset.batch(task.batch).to_iter_dataset(
                grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            )
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=task.workers))
        else:
            options = grain.ReadOptions(num_threads=task.workers, prefetch_buffer_size=task.depth * task.batch)
            dataset = dataset.to_iter_dataset(options).batch(task.batch)
        batches = iter(dataset)
        yield batches
        with suppress(AttributeError):
            batches.close()


class GrainThreads(Grain):
    """The same in threads of this process."""

    processes = False


def _grain_item(path: str, generator: np.random.Generator) -> Arrays:
    image = np.empty((SIZE, SIZE, 3), np.uint8)
    box = fast(path, generator.random, image)
    return {"image": image, "index": np.int32(number_of(path)), "box": np.array(box, np.int32)}


class Spdl(Plain):
    """SPDL's pipeline of threads: each decodes a whole batch into one array, so that nothing is copied together."""

    module = "spdl.pipeline"
    by_function = True

    @contextmanager
    def open(self, task: PhotoTask) -> Generator[Iterator[Any]]:
        from spdl.pipeline import PipelineBuilder

        paths = itertools.cycle(task.paths)
        source = iter(lambda: list(itertools.islice(paths, task.batch)), None)
        builder = PipelineBuilder().add_source(source).pipe(_spdl_batch, concurrency=task.workers)
        pipeline = builder.add_sink(task.depth).build(num_threads=task.workers)
        with pipeline.auto_stop():
            yield iter(pipeline)


def _spdl_batch(paths: list[str]) -> Arrays:
    images, boxes = np.empty((len(paths), SIZE, SIZE, 3), np.uint8), np.empty((len(paths), 5), np.int32)
    for path, image, box in zip(paths, images, boxes, strict=True):
        box[...] = fast(path, random.random, image)
    return {"image": images, "index": np.array([number_of(path) for path in paths], np.int32), "box": boxes}


class TensorFlow(Plain):
    """tf.data: its operator that decodes a part of a JPEG, its bilinear resize, a private pool of threads.

    The parts are drawn before: its own operator for that (`sample_distorted_bounding_box`) draws smaller ones, and
    would make it do less.
    """

    module = "tensorflow"

    @contextmanager
    def open(self, task: PhotoTask) -> Generator[Iterator[Any]]:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf

        def item(path: Any, index: Any, box: Any) -> Arrays:
            x, y, w, h, flip = tf.unstack(box)
            part = tf.image.decode_and_crop_jpeg(
                tf.io.read_file(path), tf.stack([y, x, h, w]), channels=3, dct_method="INTEGER_ACCURATE"
            )
            pixels = tf.image.resize(part, [SIZE, SIZE])  # bilinear, without antialiasing, float32
            pixels = tf.cond(flip > 0, lambda: tf.reverse(pixels, [1]), lambda: pixels)
            return {"image": tf.cast(pixels + 0.5, tf.uint8), "index": index, "box": box}

        numbers = np.tile(np.arange(len(task.paths), dtype=np.int32), PASSES)
        fields = (list(task.paths) * PASSES, numbers, _boxes(task.paths * PASSES))
        dataset = tf.data.Dataset.from_tensor_slices(fields).repeat()
        dataset = dataset.map(item, num_parallel_calls=task.workers).batch(task.batch, drop_remainder=True)
        options = tf.data.Options()
        options.threading.private_threadpool_size = task.workers
        options.threading.max_intra_op_parallelism = 1
        options.deterministic = True
        yield dataset.prefetch(task.depth).with_options(options).as_numpy_iterator()


def _boxes(paths: Sequence[str]) -> np.ndarray:
    """Parts and flips, for what cannot draw them in the same way, or not say which it drew."""
    from PIL import Image

    sizes: dict[str, tuple[int, int]] = {}
    for path in set(paths):
        with Image.open(path) as image:
            sizes[path] = image.size
    uniform = random.Random(0).random
    return np.array([(*draw(uniform, *sizes[path]), uniform() < 0.5) for path in paths], np.int32)


class Dali(Plain):
    """DALI's pipeline on the CPU: the part alone is decoded, then resized with a linear filter.

    DALI does not say which part it drew. What is compared with the reference is therefore another pipeline, in which
    the same decoder and the same resize get parts that we draw.
    """

    module = "nvidia.dali"
    antialias = False

    @contextmanager
    def open(self, task: PhotoTask) -> Generator[Iterator[Any]]:
        from nvidia.dali import Pipeline, fn, types

        given = list(itertools.islice(self._given(task), CHECKED // task.batch))
        checked = self._pipeline(Pipeline, fn, types, task, iter(given))
        measured = self._pipeline(Pipeline, fn, types, task, None)
        yield itertools.chain(
            ((checked.run(), batch) for batch in given), ((outputs, None) for outputs in iter(measured.run, None))
        )

    def _given(self, task: PhotoTask) -> Iterator[Mapping[str, Any]]:
        for start in range(0, len(task.paths), task.batch):
            paths = task.paths[start : start + task.batch]
            yield {"files": [np.fromfile(path, np.uint8) for path in paths], "box": _boxes(paths), "start": start}

    def _pipeline(self, pipeline: Any, fn: Any, types: Any, task: PhotoTask, given: Any) -> Any:
        graph = pipeline(
            task.batch, num_threads=task.workers, device_id=None, prefetch_queue_depth=2 if given is None else 1, seed=0
        )
        with graph:
            if given is None:
                data, index = fn.readers.file(files=list(task.paths), labels=list(range(len(task.paths))))
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

    def arrays(self, batch: Any) -> Arrays:
        (images, index), given = batch
        arrays = {"image": np.asarray(images.as_tensor()), "index": np.asarray(index.as_tensor()).ravel()}
        return arrays if given is None else {**arrays, "box": given["box"]}


class DaliAntialias(Dali):
    """The same with antialiasing, as the reference has."""

    antialias = True


class Ffcv(Plain):
    """FFCV: its file of JPEGs, its decoder with a random part, its resize; it does not say which part it took.

    The file is written into the folder of the photographs before anything is measured, once.
    """

    module = "ffcv"

    @contextmanager
    def open(self, task: PhotoTask) -> Generator[Iterator[Any]]:
        from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import RandomHorizontalFlip, ToTensor

        file = Path(task.paths[0]).parent / "photographs.beton"
        if not file.exists():
            self._write(file, task)
        decoder = RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=SCALE, ratio=RATIO)
        loader = Loader(
            str(file),
            batch_size=task.batch,
            num_workers=task.workers,
            order=OrderOption.SEQUENTIAL,
            os_cache=True,
            batches_ahead=task.depth,
            pipelines={"image": [decoder, RandomHorizontalFlip(), ToTensor()], "index": [IntDecoder(), ToTensor()]},
        )
        yield itertools.chain.from_iterable(map(iter, itertools.repeat(loader)))

    def _write(self, file: Path, task: PhotoTask) -> None:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter

        def keep(destination: Any, field: Any, malloc: Any) -> None:
            data, width, height = field
            destination["mode"] = 0  # JPEG
            destination["width"], destination["height"] = width, height
            destination["data_ptr"], storage = malloc(data.nbytes)
            storage[:] = data

        image = RGBImageField()
        # the file's own bytes: FFCV would decode and encode the picture anew
        image.encode = keep

        class Files:
            def __len__(self) -> int:
                return len(task.paths)

            def __getitem__(self, index: int) -> Any:
                from PIL import Image

                with Image.open(task.paths[index]) as opened:
                    width, height = opened.size
                return (np.fromfile(task.paths[index], np.uint8), width, height), index

        unfinished = file.with_suffix(".unfinished")
        writer = DatasetWriter(str(unfinished), {"image": image, "index": IntField()}, num_workers=1)
        writer.from_indexed_dataset(Files())
        unfinished.rename(file)

    def arrays(self, batch: Any) -> Arrays:
        image, index = batch
        return {"image": image.numpy(), "index": index.numpy()}


OURS: dict[str, Any] = {
    "hydrax_gpu + peers' decoder": HydraxGpuFunction,
    "hydrax_gpu + Pillow": HydraxGpuPillow,
}
"""Beside `ImageLoader` itself."""
PEERS: dict[str, Any] = {
    "hydrax": HydraxFunction,
    "DALI": Dali,
    "DALI antialias": DaliAntialias,
    "SPDL": Spdl,
    "Grain": Grain,
    "Grain threads": GrainThreads,
    "torch": Torch,
    "FFCV": Ffcv,
    "tf.data": TensorFlow,
}
SUBJECTS: dict[str, Any] = {"hydrax_gpu": ImageLoaderSubject, **OURS, **PEERS}
