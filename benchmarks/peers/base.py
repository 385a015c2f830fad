"""What the measurements need of a loader, and what most loaders are built of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import numpy as np

Arrays = dict[str, Any]
WORKLOADS = ("items", "bytes", "records", "photos")


class Peer:
    """A loader that is measured. Its library, and other large ones, are imported in `open` at the earliest.

    What it is asked for is a `Task` (or a `PhotoTask`): `task.data` are the items, in the order in which they are
    loaded, again and again; `task.load(item, arrays, seed)` fills the arrays of one; `task.arrays` says their shapes
    and dtypes; `task.batch`, `task.workers` (items that are loaded at once) and `task.depth` (batches at once).
    """

    module: ClassVar[str] = ""
    """The module to import; where it is missing, the row says so."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Distributions whose versions belong to the result."""
    settings: ClassVar[str] = ""
    """The settings that were chosen, and why: for the table's readers."""
    workloads: ClassVar[tuple[str, ...]] = WORKLOADS
    """What it is measured with; a variant that makes sense for one alone names that one."""
    unfit: ClassVar[Mapping[str, str]] = {}
    """Workloads that it cannot load, and why: a row says so."""
    by_function: ClassVar[bool] = True
    """Whether it calls `task.load`: `photos` then need OpenCV and a decoder."""
    jax_arrays: ClassVar[bool] = False
    """Whether `arrays` are JAX's already; of others, `jax.device_put` is measured too."""

    def open(self, task: Any) -> AbstractContextManager[Iterator[Any]]:
        """A running loader's batches, without end."""
        raise NotImplementedError

    def arrays(self, batch: Any) -> Arrays:
        """The batch's arrays by name. For `photos`: `image`, `index`, and if the loader can say it, `box`."""
        return batch

    def judged(self, batch: Any) -> Arrays:
        """The same for a photograph that is compared with the reference, where `box` takes more to be found out."""
        return self.arrays(batch)

    def notes(self) -> dict[str, Any]:
        """What else its row of the results should say, at the end."""
        return {}

    def after(self, batch: Any) -> None:
        """What a consumer must do with each batch beside reading its arrays, if anything."""

    def versions(self) -> dict[str, str]:
        """The versions of its packages that are installed here, and of JAX and NumPy."""
        return versions((*self.packages, "jax", "numpy"))


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed."""
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def make_item(task: Any, item: Any, seed: int | None) -> Arrays:
    """One item, in arrays of its own: for a loader that puts batches together itself."""
    arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in task.arrays.items()}
    task.load(item, arrays, seed)
    return arrays


def make_batch(task: Any, items: Sequence[Any], seeds: Sequence[int | None]) -> Arrays:
    """One batch, each item loaded to its row: for a loader that takes a function of a batch."""
    arrays = {name: np.empty((len(items), *shape), dtype) for name, (shape, dtype) in task.arrays.items()}
    for row, (item, seed) in enumerate(zip(items, seeds, strict=True)):
        task.load(item, {name: array[row, ...] for name, array in arrays.items()}, seed)
    return arrays
