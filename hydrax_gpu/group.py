"""`DataGroup`: data of one kind, the arrays of its batches, and the order it is gone through."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from numbers import Real
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast, final, overload

from hydrax_gpu._arguments import at_least, choice, integer
from hydrax_gpu._cacheforms import CacheCompression
from hydrax_gpu._groupcache import CacheDeclaration, declare
from hydrax_gpu._plan import GroupPlan
from hydrax_gpu._spec import ArraySpec, Layout, LayoutTuple

__all__ = ["ArrayDeclaration", "DataGroup", "Remainder", "ShuffleLater"]

D = TypeVar("D")

Remainder: TypeAlias = Literal["drop", "pad", "short"]
ShuffleLater: TypeAlias = Literal["default", "repeat", "reseed", "itemwise", "batchwise"]
ArrayDeclaration: TypeAlias = ArraySpec | tuple[Sequence[int], Any, Any]
"""An `ArraySpec`, or `(item_shape, numpy_dtype, jax_dtype)`."""

_SHUFFLE_LATER: tuple[ShuffleLater, ...] = ("default", "repeat", "reseed", "itemwise", "batchwise")
_REMAINDER: tuple[Remainder, ...] = ("drop", "pad", "short")


@final
class DataGroup(Sequence[D], Generic[D]):
    """Data items of one kind: their descriptors, the arrays of a batch of them, and how they are shuffled.

    A group is a sequence of its descriptors. It is not changed by a `Dataloader`; several can share one.

    Args:
        batch_size: items in a batch, at least 1.
        data: the descriptor of each item: whatever the loader function needs to find it. Any sized sequence is kept as
            it is and indexed when an item is loaded; any other iterable is made a list. Descriptors are sent to worker
            processes and must be picklable then; small is fast.
        loader_arrays: for each array of a batch its item shape (without the batch dimension), the NumPy dtype that
            the loader function fills and the JAX dtype that the batch has. Without it, batches come from the cache
            alone: those that are not complete there are left out, which the report counts. `cache_arrays` and
            `cache_location` must be given then, and `cache_readonly` is implied.
        cache_arrays: the same for the arrays of a cached batch: what `Batch.cache` is given, and what batches hold that
            are read from the cache. The NumPy dtype is what is kept on disk. Without it, and with a `cache_location`,
            what the loader function writes is cached by the loader itself.
        cache_location: the cache's directory, made if it does not exist. Without one, `Batch.cache` changes a batch
            and keeps nothing.
        cache_readonly: whether the cache is only read: nothing is added to it, and it must exist.
        cache_version: names what made the cached values, such as the code of the loader function or the weights of an
            encoder, which nobody can see from outside. A cache of another version is refused.
        cache_compression: how items are kept on disk, one for all arrays or a dict by their names. `"zstd"` and
            `"lz4"` lose nothing; they need the extra `cache-compression`. `"int8"`, for float16, bfloat16 and float32,
            keeps a byte an element and a scale for each 64 neighbours of an item (as it lies in memory): a value comes
            back within 1/254 of the largest magnitude among them. What an encoder gave is read, and copied to a device,
            as bytes and becomes floats there, or in the workers. Items with values that are not finite are not kept in
            int8, and counted. A cache in another form is refused; `hydrax-gpu cache copy --compression` changes it.
        seed: determines every shuffle and every item's seed, `0 <= seed < 2**64`.
        shuffle_first: whether the first epoch is shuffled; otherwise it goes through the data as given.
        shuffle_later: the later epochs. `"repeat"`: the same order and the same seeds again. `"reseed"`: the same
            order, new seeds. `"itemwise"`: a new order and new seeds. `"batchwise"`: the batches of the first epoch,
            with their contents and seeds, in a new order. `"default"` is `"itemwise"`, and `"batchwise"` with a
            `cache_location`: then each item is cached once, and not once for each epoch's seed.
        remainder: what becomes of the last `len(data) % batch_size` items of an epoch. `"drop"`: they are left out
            (others each epoch, if it is shuffled), and the report counts them. `"pad"`: a last batch is filled up by
            repeating its rows, and `Batch.valid` tells which are real. `"short"`: a last batch has fewer rows.
        weight: share of the training batches that come from this group, relative to the other groups' weights.
            Either all training groups of a `Dataloader` have one or none.

    Raises:
        ValueError, TypeError: an argument is not valid; the message says what was wanted. An empty `data`, or fewer
            items than `batch_size` with `remainder="drop"`, would give no batch and are such errors.
    """

    __slots__ = ("_cache", "_data", "_layout", "_layouts", "_plan", "_shuffle_later")

    def __init__(
        self,
        batch_size: int,
        data: Iterable[D],
        *,
        loader_arrays: Mapping[str, ArrayDeclaration] | None = None,
        cache_arrays: Mapping[str, ArrayDeclaration] | None = None,
        cache_location: str | os.PathLike[str] | None = None,
        cache_readonly: bool = False,
        cache_version: str = "",
        cache_compression: CacheCompression = None,
        seed: int = 0,
        shuffle_first: bool = False,
        shuffle_later: ShuffleLater = "default",
        remainder: Remainder = "drop",
        weight: float | Fraction | None = None,
    ) -> None:
        choice("shuffle_later", shuffle_later, _SHUFFLE_LATER)
        choice("remainder", remainder, _REMAINDER)
        for name, value in (("loader_arrays", loader_arrays), ("cache_arrays", cache_arrays)):
            if value is not None and not isinstance(value, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(
                    f"{name}: got {type(value).__name__}, wanted a dict {{name: (item_shape, numpy_dtype, jax_dtype)}}"
                )
        if isinstance(weight, bool) or not isinstance(weight, Real | None):
            raise TypeError(f"weight: got {weight!r}, wanted a number or None")
        size = at_least("batch_size", batch_size, 1)
        self._data: Sequence[D] = _sequence(data)
        self._shuffle_later: ShuffleLater = shuffle_later
        self._layout = None if loader_arrays is None else Layout.build(size, loader_arrays)
        self._cache = declare(
            size, self._layout, cache_arrays, cache_location, cache_readonly, cache_version, cache_compression
        )
        self._layouts: MappingProxyType[str, LayoutTuple] = (
            MappingProxyType({}) if self._layout is None else self._layout.tuples()
        )
        self._plan = GroupPlan(
            length=len(self._data),
            batch_size=size,
            seed=integer("seed", seed),
            shuffle_first=bool(shuffle_first),
            shuffle_later=(
                ("itemwise" if self._cache is None or self._cache.location is None else "batchwise")
                if shuffle_later == "default"
                else shuffle_later
            ),
            remainder=remainder,
            weight=weight,
        )

    def __len__(self) -> int:
        return len(self._data)

    @overload
    def __getitem__(self, index: int) -> D: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[D]: ...
    def __getitem__(self, index: int | slice) -> D | Sequence[D]:
        return self._data[index]

    def __repr__(self) -> str:
        arrays = f", arrays: {', '.join(self._layouts)}" if self._layouts else ""
        cached = f", cached: {', '.join(self._cache.layouts)}" if self._cache is not None else ""
        return f"DataGroup({len(self)} items, batch_size={self.batch_size}{arrays}{cached})"

    @property
    def batch_size(self) -> int:
        """Items in a batch."""
        return self._plan.batch_size

    @property
    def batch_count(self) -> int:
        """Batches in one pass over the group."""
        return self._plan.batch_count

    @property
    def loader_layouts(self) -> MappingProxyType[str, LayoutTuple]:
        """For each array `(shape with the batch dimension, NumPy dtype, JAX dtype, offset in bytes, elements)`.

        Empty without `loader_arrays`.
        """
        return self._layouts

    @property
    def loader_size(self) -> int | None:
        """Bytes of one batch; None without `loader_arrays`."""
        return None if self._layout is None else self._layout.nbytes

    @property
    def cache_layouts(self) -> MappingProxyType[str, LayoutTuple] | None:
        """As `loader_layouts`, of a cached batch.

        The same as those when what the loader function writes is cached; None without a cache.
        """
        return None if self._cache is None else self._cache.layouts

    @property
    def cache_size(self) -> int | None:
        """Bytes of one cached batch; None without a cache."""
        return None if self._cache is None else self._cache.layout.nbytes

    @property
    def cache_location(self) -> str | None:
        """The cache's directory, if there is one."""
        return None if self._cache is None else self._cache.location

    @property
    def cache_readonly(self) -> bool:
        """Whether nothing is added to the cache: as given, and without `loader_arrays` or `cache_location`."""
        return self._cache is not None and self._cache.readonly

    @property
    def cache_version(self) -> str:
        """What made the cached values, as given."""
        return "" if self._cache is None else self._cache.version

    @property
    def cache_compression(self) -> Mapping[str, Literal["zstd", "lz4", "int8"]]:
        """The form of each cached array that is not kept as it is."""
        return MappingProxyType({} if self._cache is None else self._cache.forms)

    @property
    def seed(self) -> int:
        """The seed of the group's shuffles and of its items' seeds."""
        return self._plan.seed

    @property
    def shuffle_first(self) -> bool:
        """Whether the first epoch is shuffled."""
        return self._plan.shuffle_first

    @property
    def shuffle_later(self) -> ShuffleLater:
        """How later epochs are shuffled, as given."""
        return self._shuffle_later

    @property
    def remainder(self) -> Remainder:
        """What becomes of a last, partial batch."""
        return self._plan.remainder

    @property
    def weight(self) -> float | Fraction | None:
        """The group's share of the training batches, as given."""
        return self._plan.weight


def _sequence(data: Iterable[D]) -> Sequence[D]:
    if isinstance(data, Mapping | set | frozenset | str | bytes):
        kind = type(cast("object", data)).__name__
        raise TypeError(f"data: got a {kind}, wanted a sequence of item descriptors (for a dict: list(d.items()))")
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return cast("Sequence[D]", data)
    try:
        items = iter(data)
    except TypeError:
        raise TypeError(
            f"data: got {type(data).__name__}, wanted a sequence or an iterable of item descriptors"
        ) from None
    return list(items)  # whatever this raises is the iterable's own


def data_of(group: DataGroup[Any]) -> Sequence[Any]:
    """The descriptors themselves, without the group around them."""
    return group._data  # pyright: ignore[reportPrivateUsage]


def layout_of(group: DataGroup[Any]) -> Layout:
    """How the group's batches lie in memory: as they are loaded, or as they are cached if they are never loaded."""
    layout = group._layout  # pyright: ignore[reportPrivateUsage]
    if layout is None:
        cache = group._cache  # pyright: ignore[reportPrivateUsage]
        assert cache is not None  # one of the two was declared
        return cache.layout
    return layout


def cache_of(group: DataGroup[Any]) -> CacheDeclaration | None:
    """What the group says of its cache."""
    return group._cache  # pyright: ignore[reportPrivateUsage]


def plan_of(group: DataGroup[Any]) -> GroupPlan:
    """What determines the group's order."""
    return group._plan  # pyright: ignore[reportPrivateUsage]


def groups_of(name: str, groups: Any) -> tuple[DataGroup[Any], ...]:
    """One group or several as a tuple.

    Raises:
        TypeError, ValueError: something else is among them, or nothing at all; the message begins with `name`.
    """
    if isinstance(groups, DataGroup):
        return (cast("DataGroup[Any]", groups),)
    try:
        result = tuple(groups)
    except TypeError:
        raise TypeError(f"{name}: got {type(groups).__name__}, wanted a DataGroup or several") from None
    for group in result:
        if not isinstance(group, DataGroup):
            raise TypeError(f"{name}: got {type(group).__name__} among the groups, wanted DataGroups")
    if not result:
        raise ValueError(f"{name}: got no DataGroup, wanted at least one")
    return cast("tuple[DataGroup[Any], ...]", result)
