"""hydrax_gpu, and hydrax, whose interface it has. Both at their defaults."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

from ..photo_work import SIZE, load_pillow, number_of
from ..workloads import MEAN, STD, load_bytes
from .base import Arrays, Peer


class HydraxGpu(Peer):
    """hydrax_gpu's `Dataloader`, and whatever has its interface."""

    module = "hydrax_gpu"
    packages = ("hydrax-gpu",)
    settings = "defaults: worker processes, the delivery that suits the batch's size"
    jax_arrays = True
    scalar: tuple[int, ...] = ()
    """The item shape that stands for a scalar."""

    def __init__(self, module: str | None = None) -> None:
        self.library = module or self.module

    @contextmanager
    def open(self, task: Any) -> Generator[Iterator[Any]]:
        library = import_module(self.library)
        declared = {name: (shape or self.scalar, dtype, dtype) for name, (shape, dtype) in task.arrays.items()}
        group = library.DataGroup(task.batch, task.data, loader_arrays=declared)
        load = self.load(task)
        loader = library.Dataloader(load, group, loader_count=task.workers, depth=task.depth, **task.options)
        with loader:
            yield iter(loader)

    def load(self, task: Any) -> Any:
        """The loader function."""
        return task.load

    def arrays(self, batch: Any) -> Arrays:
        return dict(batch.arrays)


class HydraxGpuDecode(HydraxGpu):
    """hydrax_gpu with records loaded as they stand in the file, and normalised by a declared decode.

    As other loaders have it done by an operator of theirs.
    """

    workloads = ("records",)
    by_function = False
    settings = "defaults; decode=Normalize(...)"

    @contextmanager
    def open(self, task: Any) -> Generator[Iterator[Any]]:
        import hydrax_gpu

        normalize = hydrax_gpu.Normalize(mean=MEAN.tolist(), std=STD.tolist())
        image = hydrax_gpu.ArraySpec(task.arrays["image"][0], np.uint8, np.float32, decode=normalize)
        declared = {name: (shape, dtype, dtype) for name, (shape, dtype) in task.arrays.items()} | {"image": image}
        group = hydrax_gpu.DataGroup(task.batch, task.data, loader_arrays=declared)
        with hydrax_gpu.Dataloader(load_bytes, group, loader_count=task.workers, depth=task.depth) as loader:
            yield iter(loader)


class HydraxGpuPillow(HydraxGpu):
    """hydrax_gpu with a function that uses Pillow, whose resize is the reference itself."""

    workloads = ("photos",)
    by_function = False

    def load(self, task: Any) -> Any:
        return load_pillow


class HydraxGpuImages(HydraxGpu):
    """hydrax_gpu with its own `ImageLoader`."""

    module = "hydrax_gpu.loaders"
    workloads = ("photos",)
    by_function = False

    def __init__(self, module: str | None = None) -> None:
        super().__init__(module)
        self._load: Any = None
        self._loader: Any = None

    @contextmanager
    def open(self, task: Any) -> Generator[Iterator[Any]]:
        import hydrax_gpu

        self._load = import_module(self.library).ImageLoader(SIZE, labels={"index": ((), np.int32, np.int32)})
        items = [(path, number_of(path)) for path in task.data]
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


class Hydrax(HydraxGpu):
    """hydrax 0.2.2, which has no scalars, and whose consumer must call jax now and then."""

    module = "hydrax"
    packages = ("hydrax",)
    settings = "defaults: worker processes; one tiny jitted call a batch, without which it waits for ever"
    scalar = (1,)

    def __init__(self, module: str | None = None) -> None:
        super().__init__(module)
        self._tiny: Any = None

    def after(self, batch: Any) -> None:
        # jax lets go of a batch's memory only when it is called again: without a call the loader waits for ever
        if self._tiny is None:
            import jax

            self._tiny = jax.jit(lambda x: x + 1)
        self._tiny(1)
