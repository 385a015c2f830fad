"""What every source is: a sequence of light descriptors, and what reads an item given one."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar, cast, final, overload

import numpy as np
import numpy.typing as npt

from hydrax_gpu._arguments import integer
from hydrax_gpu._spec import ArraySpec

__all__ = ["Arrays", "Fill", "Outcome", "Parts", "Reader", "Row", "Source", "SourceLoader", "copy_item"]

D = TypeVar("D")
T = TypeVar("T")

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]
Fill: TypeAlias = Callable[[T, Any, "int | None"], "dict[str, Any] | None"]
"""`fill(value, arrays, seed)`: a loader function that is given what was read, and not its descriptor."""
Outcome: TypeAlias = "dict[str, Any] | BaseException | None"


class Row(NamedTuple):
    """Descriptor of a row of a table.

    Attributes:
        table: what the row is in: files, with their sizes and times; the same object for all rows of it.
        number: of the row, from 0.
    """

    table: Any
    number: int


class Reader(ABC, Generic[D, T]):
    """Reads items of a source, in whatever process it has come to.

    It is picklable, knows nothing of the single items, and opens files when it first needs them. One object may be
    called from several threads.
    """

    @abstractmethod
    def read_rows(self, items: Sequence[D]) -> list[T | BaseException]:
        """The values of items, or the exception that says why one cannot be had.

        Args:
            items: descriptors; many in one call are read with fewer and larger requests.
        """

    def __call__(self, item: D) -> T:
        """The value of one item.

        Raises:
            SourceError: it cannot be had.
        """
        [value] = self.read_rows([item])
        if isinstance(value, BaseException):
            raise value
        return value

    def fill_rows(self, items: Sequence[D], arrays: Sequence[Arrays]) -> list[BaseException | None]:
        """Fills the rows of a batch with the items' values, by the names of the arrays.

        Args:
            items: descriptors.
            arrays: for each item, its arrays by name.

        Returns:
            For each item None, or what is wrong with it.
        """
        outcomes: list[BaseException | None] = []
        for value, row in zip(self.read_rows(items), arrays, strict=True):
            if not isinstance(value, BaseException):
                try:
                    copy_item(value, row)
                except Exception as error:
                    outcomes.append(error)
                else:
                    outcomes.append(None)
            else:
                outcomes.append(value)
        return outcomes

    def take_counts(self) -> dict[str, int] | None:
        """What did not go as it should since this was last asked for, see `Report.fallbacks`."""
        return None

    def joined(self, other: Reader[Any, Any]) -> Reader[D, T]:
        """A reader of the items of both.

        Raises:
            ValueError: they read different things, or in different ways.
        """
        if type(self) is type(other) and self.__getstate__() == other.__getstate__():
            return self
        raise ValueError(
            f"got sources that are read in different ways ({self!r} and {other!r}), wanted ones that one loader reads: "
            "the same kind with the same options, or one Dataloader for each"
        )

    def __getstate__(self) -> dict[str, Any]:
        """What goes to workers: everything but what was opened, whose names begin with `_open`."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_open")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def _begin(self) -> None:
        """Sets the `_open…` attributes to what they are before anything was opened."""

    def __repr__(self) -> str:
        options = ", ".join(f"{name.lstrip('_')}={value!r}" for name, value in self.__getstate__().items())
        return f"{type(self).__name__}({options})"


@final
class SourceLoader(Generic[D, T]):
    """A loader for `Dataloader` that reads items by a reader: what `Source.loader()` returns.

    Whole batches are read in one call. Without `fill`, each array is given the value of its name, of the same shape;
    integers that do not fit into it are an error, and so are values that are missing.

    Args:
        reader: reads the items.
        fill: `fill(value, arrays, seed)` fills an item's arrays with what was read, and returns additional data or
            None.
    """

    def __init__(self, reader: Reader[D, T], fill: Fill[T] | None = None) -> None:
        if fill is not None and not callable(fill):
            raise TypeError(f"fill: got {fill!r}, wanted a function fill(value, arrays, seed)")
        self._reader = reader
        self._fill = fill

    def load_rows(self, items: Sequence[D], arrays: Sequence[Arrays], seeds: Sequence[int | None]) -> list[Outcome]:
        """See `hydrax_gpu.loaders.RowsLoader`."""
        if self._fill is None:
            return [*self._reader.fill_rows(items, arrays)]
        outcomes: list[Outcome] = []
        for value, row, seed in zip(self._reader.read_rows(items), arrays, seeds, strict=True):
            if not isinstance(value, BaseException):
                try:
                    outcomes.append(self._fill(value, row, seed))
                except Exception as error:
                    outcomes.append(error)
            else:
                outcomes.append(value)
        return outcomes

    def __call__(self, item: D, arrays: Arrays, seed: int | None) -> dict[str, Any] | None:
        """Loads one item, as a loader function does."""
        [outcome] = self.load_rows([item], [arrays], [seed])
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def take_counts(self) -> dict[str, int] | None:
        """What the reader counted, see `Report.fallbacks`."""
        return self._reader.take_counts()


class Source(Sequence[D], ABC, Generic[D, T]):
    """Items that lie somewhere else: a sequence of their descriptors, for `DataGroup(batch_size, source, ...)`.

    Descriptors are small, picklable and complete: with one, a reader in another process finds its item. Nothing of the
    items' content is read before they are due.

    A slice is a source too, and copies nothing: `source[:-1000]` and `source[-1000:]` part training from validation.
    """

    @property
    @abstractmethod
    def reader(self) -> Reader[D, T]:
        """What reads items, given their descriptors: a function for loaders that are not this source's own."""

    @abstractmethod
    def __len__(self) -> int:
        """How many items there are."""

    @abstractmethod
    def descriptor(self, index: int) -> D:
        """The descriptor of an item, `0 <= index < len(self)`."""

    def arrays(self) -> dict[str, ArraySpec]:
        """What `DataGroup(loader_arrays=...)` wants for items as they are; entries can be taken out or replaced.

        Raises:
            TypeError: the items' shapes are not all the same, or not known: declare arrays yourself and use
                `loader(fill)`.
        """
        raise TypeError(
            f"{type(self).__name__} does not know the shapes of its items: declare the arrays yourself, and fill them "
            "with source.loader(fill)"
        )

    def loader(self, fill: Fill[T] | None = None, *, others: Sequence[Source[Any, Any]] = ()) -> SourceLoader[D, T]:
        """A loader for `Dataloader`.

        Args:
            fill: `fill(value, arrays, seed)` fills an item's arrays with what was read; None to have each array given
                the value of its name.
            others: the other sources that the same `Dataloader` loads from, such as the one for validation.

        Raises:
            ValueError: one loader cannot read the others, too.
        """
        reader = self.reader
        for other in others:
            reader = reader.joined(other.reader)
        return SourceLoader(reader, fill)

    def load(self, index: int) -> T:
        """Reads an item here and now, to look at it.

        Raises:
            IndexError: there is none of that number.
            SourceError: it cannot be had.
        """
        return self.reader(self[index])

    @overload
    def __getitem__(self, index: int) -> D: ...
    @overload
    def __getitem__(self, index: slice) -> Source[D, T]: ...
    def __getitem__(self, index: int | slice) -> D | Source[D, T]:
        if isinstance(index, slice):
            return _Part(self, range(*index.indices(len(self))))
        number = integer("index", index)
        length = len(self)
        if not -length <= number < length:
            raise IndexError(f"got item {number}, but the source has {length}")
        return self.descriptor(number % length)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} items)"


@final
class _Part(Source[D, T]):
    """Some items of a source: a slice."""

    def __init__(self, source: Source[D, T], numbers: range) -> None:
        self._source: Source[D, T] = source
        self._numbers = numbers
        if isinstance(source, _Part):  # a slice of a slice is one of the whole
            within = source._numbers
            first, step = within[numbers[0]] if numbers else 0, within.step * numbers.step
            self._source, self._numbers = source._source, range(first, first + step * len(numbers), step)

    @property
    def reader(self) -> Reader[D, T]:
        return self._source.reader

    def __len__(self) -> int:
        return len(self._numbers)

    def descriptor(self, index: int) -> D:
        return self._source.descriptor(self._numbers[index])

    def arrays(self) -> dict[str, ArraySpec]:
        return self._source.arrays()

    def __repr__(self) -> str:
        return f"{self._source!r}[{len(self)} of them]"


@final
class Parts:
    """Items of several parts, one behind the other.

    Args:
        counts: of the items in each part; some may have none.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        # lists, because a number out of an array costs ten times as much
        self._ends = list(itertools.accumulate(counts))
        self._begins = [0, *self._ends]
        self.total: int = self._begins[-1]

    def find(self, index: int) -> tuple[int, int]:
        """The part that an item is in, and its number there."""
        part = bisect_right(self._ends, index)
        return part, index - self._begins[part]


def copy_item(value: Any, arrays: Arrays) -> None:
    """Gives each array the value of its name; an item that is no mapping is the value of the only array.

    Raises:
        KeyError: a value is missing.
        ValueError: its shape is another, or its numbers do not fit.
        TypeError: its kind does not go into the array's dtype.
    """
    if not isinstance(value, Mapping):
        if len(arrays) != 1:
            raise ValueError(
                f"got a {type(value).__name__} for the arrays {', '.join(map(repr, arrays))}, wanted a mapping with a "
                "value for each: name them, or use loader(fill)"
            )
        value = {next(iter(arrays)): value}
    named = cast("Mapping[str, Any]", value)
    for name, array in arrays.items():
        try:
            given = named[name]
        except KeyError:
            raise KeyError(f"the item has no {name!r}, only {', '.join(map(repr, named))}") from None
        copy_array(name, given, array)


def copy_array(name: str, given: Any, array: npt.NDArray[Any]) -> None:
    """Copies a value into an array, refusing what would broadcast or overflow; raises as `copy_item`."""
    if isinstance(given, str | bytes | None):
        raise TypeError(f"{name!r}: got {type(given).__name__}, wanted numbers; use loader(fill) to make them of it")
    source: npt.NDArray[Any] = np.asarray(given)
    if source.shape != array.shape:
        raise ValueError(f"{name!r}: got shape {source.shape}, wanted {array.shape} as declared")
    if source.dtype == array.dtype:
        array[...] = source
        return
    integers = source.dtype.kind in "iu" and array.dtype.kind in "iu"
    if not integers and not np.can_cast(source.dtype, array.dtype, "same_kind"):
        raise TypeError(f"{name!r}: got {source.dtype}, wanted {array.dtype} as declared, or what goes into it")
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(array, source, casting="unsafe")
    if integers and not np.can_cast(source.dtype, array.dtype) and not np.array_equal(array, source):
        raise ValueError(f"{name!r}: got numbers that {array.dtype} cannot hold")
