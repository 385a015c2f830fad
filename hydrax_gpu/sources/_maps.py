"""`MapSource`: data sets of other libraries that are indexed by a number. `HuggingFaceSource`: theirs, by Arrow."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar, cast, final

from hydrax_gpu._spec import ArraySpec
from hydrax_gpu.sources._columns import arrays_of, columns_of, pyarrow
from hydrax_gpu.sources._source import Reader, Source

__all__ = ["HuggingFaceSource", "ItemOf", "MapSource", "RandomAccess"]

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
V = TypeVar("V")

Sets: TypeAlias = "dict[int, Any]"

_number = itertools.count()


class RandomAccess(Protocol[T_co]):
    """A data set that is indexed by a number: PyTorch's map-style `Dataset`, Grain's `RandomAccessDataSource`, a list.

    If it has a method `__getitems__`, which both of these libraries know, it is called with many numbers at once.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> T_co: ...


class ItemOf(NamedTuple):
    """Descriptor of an item of a data set.

    Attributes:
        dataset: number of the data set, which the reader has.
        number: of the item, from 0.
    """

    dataset: int
    number: int


class _Sets(Reader[ItemOf, T], Generic[T]):
    """Has the data sets themselves, by their numbers: they are sent to each worker, once."""

    def __init__(self, sets: Sets, names: tuple[str, ...] | None) -> None:
        self._sets = sets
        self._names = names

    def joined(self, other: Reader[Any, Any]) -> Reader[ItemOf, T]:
        if type(other) is type(self):
            mine, its = self.__getstate__(), other.__getstate__()
            if mine.pop("_sets") is not (more := its.pop("_sets")) and mine == its:
                both = type(self).__new__(type(self))
                both.__setstate__({**mine, "_sets": {**self._sets, **more}})
                return both
        return super().joined(other)

    def read_rows(self, items: Sequence[ItemOf]) -> list[T | BaseException]:
        values: list[Any] = [None] * len(items)
        places: dict[int, list[int]] = {}
        for place, item in enumerate(items):
            places.setdefault(item.dataset, []).append(place)
        for number, own in places.items():
            found = self._of(self._sets[number], [items[place].number for place in own])
            for place, value in zip(own, found, strict=True):
                values[place] = value
        return values

    def _of(self, dataset: Any, numbers: list[int]) -> list[T | BaseException]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(type(each).__name__ for each in self._sets.values())})"


@final
class MapSource(Source[ItemOf, T], Generic[T]):
    """A data set of another library as it is: one that has a length and is indexed by a number.

    It is pickled to each worker once, with the loader, and items are sent as numbers; so a data set that holds all of
    its data in memory is held by every worker. Its random draws are its own: those that are to be the same in each run
    belong into `fill`, which has the item's seed.

    The value of an item is what the data set has at its number; with `names`, a dict.

    Args:
        dataset: a map-style data set of PyTorch, a `RandomAccessDataSource` of Grain, or a sequence.
        names: what the parts of an item are called where it is a tuple, such as `("image", "label")`.

    Raises:
        TypeError: it has no length or cannot be indexed.
    """

    def __init__(self, dataset: RandomAccess[T], *, names: Sequence[str] | None = None) -> None:
        if isinstance(names, str):
            raise TypeError(f"names: got {names!r}, wanted several, such as ({names!r},)")
        indexed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if not indexed or isinstance(cast("object", dataset), Mapping):
            kind = type(cast("object", dataset)).__name__
            raise TypeError(
                f"dataset: got {kind}, wanted one with a length that is indexed by a number from 0 "
                "(a data set that can only be iterated has no random access)"
            )
        self._dataset, self._number = dataset, next(_number)
        self._reader: _MapReader[T] = _MapReader({self._number: dataset}, None if names is None else tuple(names))

    @property
    def reader(self) -> Reader[ItemOf, T]:
        return self._reader

    def __len__(self) -> int:
        return len(self._dataset)

    def descriptor(self, index: int) -> ItemOf:
        return ItemOf(self._number, index)

    def __repr__(self) -> str:
        return f"MapSource({type(self._dataset).__name__}, {len(self)} items)"


@final
class _MapReader(_Sets[V]):
    def _of(self, dataset: Any, numbers: list[int]) -> list[V | BaseException]:
        many = getattr(dataset, "__getitems__", None)
        if many is not None and len(numbers) > 1:
            try:
                found = [*many(numbers)]
            except Exception:  # which one it is because of, their own tries tell
                found = []
            if len(found) == len(numbers):
                return list(map(self._named, found))
        return [self._one(dataset, number) for number in numbers]

    def _one(self, dataset: Any, number: int) -> Any:
        try:
            return self._named(dataset[number])
        except Exception as error:
            return error

    def _named(self, value: Any) -> Any:
        if self._names is None:
            return value
        if not isinstance(value, tuple | list) or len(cast("Sequence[Any]", value)) != len(self._names):
            kind = type(cast("object", value)).__name__
            return ValueError(f"got an item {kind}, wanted {len(self._names)} parts: {self._names}")
        return dict(zip(self._names, cast("Sequence[Any]", value), strict=True))


@final
class HuggingFaceSource(Source[ItemOf, "dict[str, Any]"]):
    """A `datasets.Dataset` of Hugging Face, whose rows are read as Arrow has them, without the library's own decoding.

    The data set is sent to each worker once, as the paths of the Arrow files that it maps; filters, selections and
    shuffles of it hold. The rows of a batch are taken in one call. Values are those of `ParquetSource`; images and
    sound are the bytes of their files (or the path, where it does not have these), as `ImageLoader` takes them.

    Args:
        dataset: a data set that is indexed by a number: no `IterableDataset`, and one split of a `DatasetDict`.
        columns: names of the columns to read; by default all.

    Raises:
        TypeError: it is something else.
        ValueError: there is no such column.
    """

    def __init__(self, dataset: Any, columns: Sequence[str] | None = None) -> None:
        if isinstance(columns, str):
            raise TypeError(f"columns: got {columns!r}, wanted several names, such as [{columns!r}]")
        for wanted in ("with_format", "column_names", "features", "__len__"):
            if not hasattr(dataset, wanted) or isinstance(dataset, Mapping):
                kind = type(cast("object", dataset)).__name__
                raise TypeError(
                    f"dataset: got {kind}, wanted a datasets.Dataset with random access (of a DatasetDict, one split)"
                )
        names = [*dataset.column_names] if columns is None else [*columns]
        if missing := [name for name in names if name not in dataset.column_names]:
            raise ValueError(f"there is no column {', '.join(map(repr, missing))}, only {dataset.column_names}")
        self._dataset = dataset.with_format("arrow", columns=names)
        self._number = next(_number)
        self._names = tuple(names)
        self._reader = _HuggingFaceReader({self._number: self._dataset}, self._names)

    @property
    def reader(self) -> Reader[ItemOf, dict[str, Any]]:
        return self._reader

    def __len__(self) -> int:
        return len(self._dataset)

    def descriptor(self, index: int) -> ItemOf:
        return ItemOf(self._number, index)

    def arrays(self) -> dict[str, ArraySpec]:
        schema = self._dataset.features.arrow_schema
        return arrays_of(pyarrow("", "hf").schema([schema.field(name) for name in self._names]))

    def __repr__(self) -> str:
        return f"HuggingFaceSource({len(self)} rows of {', '.join(self._names)})"


@final
class _HuggingFaceReader(_Sets["dict[str, Any]"]):
    def _of(self, dataset: Any, numbers: list[int]) -> list[dict[str, Any] | BaseException]:
        columns = columns_of(dataset[numbers])
        values: list[dict[str, Any] | BaseException] = []
        for row in range(len(numbers)):
            try:
                values.append({name: get(row) for name, get in columns.items()})
            except ValueError as error:
                values.append(error)
        return values
