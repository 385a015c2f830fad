"""The loaders that are measured. A new peer is a class here and a line in `SUBJECTS`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from .workloads import Task


class Subject(Protocol):
    """What the measurements need of a loader. jax is imported in `open` at the earliest."""

    module: str
    """The module to import; a peer without it is left out."""

    def open(self, task: Task) -> AbstractContextManager[Iterator[Any]]:
        """A running loader's batches, without end."""
        ...

    def arrays(self, batch: Any) -> dict[str, Any]:
        """The batch's arrays by name, as a training step would take them."""
        ...

    def after(self, batch: Any) -> None:
        """What a consumer must do with each batch beside reading its arrays, if anything."""
        ...


class HydraxGpu:
    """hydrax_gpu; `options` go to `Dataloader`."""

    module = "hydrax_gpu"
    scalar: tuple[int, ...] = ()
    """The item shape that stands for a scalar."""

    def __init__(self, module: str | None = None) -> None:
        self.module = module or self.module

    @contextmanager
    def open(self, task: Task) -> Generator[Iterator[Any]]:
        library = import_module(self.module)
        declared = {name: (shape or self.scalar, dtype, dtype) for name, (shape, dtype) in task.arrays.items()}
        group = library.DataGroup(task.batch, task.data, loader_arrays=declared)
        loader = library.Dataloader(task.load, group, loader_count=task.workers, depth=task.depth, **task.options)
        with loader:
            yield iter(loader)

    def arrays(self, batch: Any) -> dict[str, Any]:
        return dict(batch.arrays)

    def after(self, batch: Any) -> None:
        """Nothing."""


class Hydrax(HydraxGpu):
    """hydrax 0.2.2, which has no scalars, and whose consumer must call jax now and then."""

    module = "hydrax"
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


SUBJECTS: dict[str, type[HydraxGpu]] = {"hydrax_gpu": HydraxGpu, "hydrax": Hydrax}


def make_subject(name: str, module: str | None = None) -> Subject:
    """The subject of that name, perhaps with another module that has its interface."""
    return SUBJECTS[name](module)


def installed_peers() -> list[str]:
    """The peers that could be measured here."""
    return [name for name, kind in SUBJECTS.items() if name != "hydrax_gpu" and find_spec(kind.module) is not None]
