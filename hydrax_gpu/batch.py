"""`Batch` and its two kinds. Batches are made by a `Dataloader` only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, Protocol, TypeVar, cast, final, overload

import numpy as np
import numpy.typing as npt

from hydrax_gpu._cacheargs import checked_arrays, checked_columns
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu._spec import LayoutTuple
from hydrax_gpu.group import DataGroup, cache_of

if TYPE_CHECKING:
    import jax

__all__ = ["Batch", "TrainingBatch", "ValidationBatch"]

D = TypeVar("D")

_Additional = Sequence[Mapping[str, Any] | None]


class CacheSink(Protocol):
    """Where `Batch.cache` leaves what is to be kept."""

    @property
    def shardings(self) -> Mapping[str, Any]:
        """For each array by name what sharding it has to have; empty where any will do."""
        ...

    def persist(self, plan: BatchPlan, arrays: Mapping[str, Any], additional: _Additional | None) -> None:
        """Sees to it that a batch is written; `additional` is of its valid rows."""
        ...


class Batch(Generic[D]):
    """A batch of data. It is a `TrainingBatch` or a `ValidationBatch`, and only a `Dataloader` makes one.

    While a batch of a loader with `delivery="alias"` (or one of its arrays, views of them, or a running computation
    that reads them) exists, it holds one of the loader's `depth` slots. Drop it, with `del batch` at the end of the
    loop's body, before asking for the next: when all slots are held, the loader has to wait.
    """

    __slots__ = ("__weakref__", "_additional", "_arrays", "_cached", "_columns", "_group", "_plan", "_sink")

    _group: DataGroup[D]
    _plan: BatchPlan
    _arrays: MappingProxyType[str, jax.Array]
    _additional: _Additional | None
    _columns: MappingProxyType[str, Sequence[Any]] | None
    _cached: bool
    _sink: CacheSink | None

    def __init__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be constructed: batches come from iterating over a Dataloader")

    def __repr__(self) -> str:
        arrays = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in self._arrays.items())
        return f"<{type(self).__name__} {self._plan.number} of epoch {self._plan.epoch}: {arrays}>"

    @property
    def group(self) -> DataGroup[D]:
        """The group that this batch was loaded from."""
        return self._group

    @property
    def group_index(self) -> int:
        """The index of this batch within its group."""
        return self._plan.group_batch

    @property
    def arrays(self) -> MappingProxyType[str, jax.Array]:
        """The arrays by name, with the batch dimension first. Shapes and dtypes are those of `layouts`.

        With `remainder="short"` the last batch of an epoch has fewer rows than the layout says.
        """
        return self._arrays

    @property
    def layouts(self) -> MappingProxyType[str, LayoutTuple]:
        """For each array `(shape, NumPy dtype, JAX dtype, offset in bytes, number of elements)`.

        The group's `loader_layouts` if the batch is `uncached`, else its `cache_layouts`.
        """
        layouts = self._group.cache_layouts if self._cached else None
        return self._group.loader_layouts if layouts is None else layouts

    @property
    def uncached(self) -> bool:
        """Whether the batch is as the loader function fills it, and not as it is cached.

        False for a group whose loader function's arrays are cached themselves: nothing is to be done about its batches.
        """
        return not self._cached

    @property
    def indices(self) -> Sequence[int]:
        """For each row the index of its item in `group`.

        With a `sharding` over devices of several processes: for each row of the global batch that this process loads,
        in their order there. So it is with all that this batch has for each row, except for `global_indices`.
        """
        return self._plan.indices

    @property
    def global_indices(self) -> Sequence[int]:
        """For each row of the arrays the index of its item in `group`.

        Without a `sharding`, and with one over devices of this process alone, that is `indices`. Otherwise it is what
        was planned, on every process the same; the process that loads a row may have put a substitute in it since.
        """
        return self._plan.global_indices

    @property
    def global_rows(self) -> Sequence[int]:
        """For each of `indices` the row of the arrays that it is about, ascending."""
        share = self._plan.share
        return range(self._plan.rows) if share is None else share.rows

    @property
    def data(self) -> Sequence[D]:
        """For each row the descriptor of its item."""
        return _Descriptors(self._group, self._plan.indices)

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """For each row whether it is an item of its own, shape `(rows,)`.

        All true, but in a last batch that `remainder="pad"` filled up by repeating rows.
        """
        return np.arange(self._plan.rows) < self._plan.real_rows

    @property
    def replaced(self) -> npt.NDArray[np.bool_]:
        """For each row whether it holds a substitute for a bad item, shape `(rows,)`; see `ErrorPolicy`.

        `indices`, `seeds` and `data` are those of the substitute.
        """
        mask = np.zeros(self._plan.rows, np.bool_)
        for row in self._plan.replaced:
            mask[row :: self._plan.valid] = True
        return mask

    @property
    def additional(self) -> MappingProxyType[str, Sequence[Any]]:
        """What the loader function returned: for each key one value a row, None where an item had no such key.

        In a cached batch, what `cache` was given in its place.
        """
        if self._columns is None:
            self._columns = MappingProxyType(columns(self._additional, self._plan.rows))
        return self._columns

    @property
    def is_training(self) -> bool:
        """Whether this is a `TrainingBatch`."""
        return not self._plan.validation

    @property
    def is_validation(self) -> bool:
        """Whether this is a `ValidationBatch`."""
        return self._plan.validation

    def get_array(self, name: str) -> jax.Array:
        """The array called `name`.

        Raises:
            KeyError: no such array was declared; the message lists those that were.
        """
        try:
            return self._arrays[name]
        except KeyError:
            raise KeyError(f"no array {name!r}; the batch has {', '.join(self._arrays)}") from None

    def get_data(self, index: int) -> D:
        """The descriptor of the item in row `index`; negative counts from the end.

        Raises:
            IndexError: there is no such row.
        """
        return self.data[index]

    def get_additional(self, key: str, index: int | None = None, *, default: Any = None) -> Any:
        """What the loader function returned under `key`.

        Args:
            key: a key of the dict that the loader function returned.
            index: a row, or None for a list with one value a row.
            default: in place of what an item did not return.

        Raises:
            IndexError: there is no such row.
        """
        rows = self._plan.rows
        values = self.additional.get(key)
        if index is None:
            if values is None:
                return [default] * rows
            return [default if value is None else value for value in values]
        if not -rows <= index < rows:
            raise IndexError(f"index {index} is out of range for a batch of {rows} rows")
        value = None if values is None else values[index]
        return default if value is None else value

    def cache(
        self,
        arrays: Mapping[str, jax.Array],
        additional: Mapping[str, Sequence[object]] | None = None,
        *,
        persist: bool = True,
    ) -> None:
        """Makes this a cached batch, which holds other arrays, and keeps those on disk for the next time.

        From then on `arrays`, `layouts`, `uncached` and `additional` are those of a cached batch, and the loader's own
        arrays are given up. The batch is written by another thread (with `cacher_count=0`, in this call), which also
        waits for the arrays to be computed: do not donate or delete them. Rows that only pad the batch are not written.
        With a `sharding` over several processes, each writes rows that its devices have, and no row is written by two.
        Where more waits to be written than there is room for, this waits; the report says how often and how long. When
        the batch cannot be written, because the disk is full, say, training goes on all the same; that is logged and in
        the report.

        Args:
            arrays: for each name in `group.cache_layouts` a `jax.Array` of its shape and JAX dtype. A short last batch
                has fewer rows. With a `sharding`, it has that of its name.
            additional: for each key one value a row, in place of `additional`, which is kept by default. Numbers,
                strings, bytes, lists, tuples, dicts and NumPy arrays are best; anything else is pickled, and read back
                only where nobody else could have written it.
            persist: whether to write the batch. Nothing is written either where the group has `cache_readonly` or no
                `cache_location`.

        Raises:
            RuntimeError: the batch is cached already, or the group declares no `cache_arrays`.
            ValueError, TypeError: the arrays or the additional data are not as declared; nothing has changed then.
        """
        declared = cache_of(self._group)
        if declared is None:
            raise RuntimeError(
                "the DataGroup of this batch declares no cache, so there is no layout that it could be cached in. Give "
                "the group cache_arrays (and a cache_location)"
            )
        if self._cached:
            how = (
                "its group caches what the loader function fills, without being told"
                if declared.kind == "direct"
                else "it was read from the cache, or cache() was called before; look at `uncached` first"
            )
            raise RuntimeError(f"this batch is cached already: {how}")
        rows = len(self._plan.global_indices)
        checked = checked_arrays(arrays, declared.layout, rows, self._sink.shardings if self._sink is not None else {})
        items, given = self._additional, self._columns
        if additional is not None:
            given = MappingProxyType(checked_columns(additional, self._plan.rows))
            items = [{key: values[row] for key, values in given.items()} for row in range(self._plan.valid)]
        if persist and self._sink is not None:
            self._sink.persist(self._plan, checked, items)
        self._arrays, self._additional, self._columns = MappingProxyType(checked), items, given
        self._cached = True


@final
class TrainingBatch(Batch[D]):
    """A batch of one of the training groups."""

    __slots__ = ()

    @property
    def is_training(self) -> Literal[True]:
        """True."""
        return True

    @property
    def is_validation(self) -> Literal[False]:
        """False."""
        return False

    @property
    def epoch(self) -> int:
        """The training epoch, from 0."""
        return self._plan.epoch

    @property
    def epoch_batch(self) -> int:
        """The index of this batch in its epoch."""
        return self._plan.epoch_batch

    @property
    def batch_num(self) -> int:
        """The index of this batch among all training batches of all epochs."""
        return self._plan.number

    @property
    def seed(self) -> int:
        """A seed for what is random about the batch as a whole; 63 bits, a pure function of group seed and position."""
        return self._plan.seed

    @property
    def seeds(self) -> Sequence[int]:
        """For each row the seed that the loader function was called with; a pure function of (seed, epoch, item)."""
        assert self._plan.seeds is not None
        return self._plan.seeds


@final
class ValidationBatch(Batch[D]):
    """A batch of one of the validation groups.

    Its numbers count what this loader has handed out: they begin at zero also when the loader was started in the middle
    of the data by `start_at`.
    """

    __slots__ = ("_first",)

    _first: tuple[int, int]

    @property
    def is_training(self) -> Literal[False]:
        """False."""
        return False

    @property
    def is_validation(self) -> Literal[True]:
        """True."""
        return True

    @property
    def validation_epoch(self) -> int:
        """The validation pass, from 0."""
        return self._plan.epoch - self._first[0]

    @property
    def validation_epoch_batch(self) -> int:
        """The index of this batch in its validation pass."""
        return self._plan.epoch_batch

    @property
    def validation_batch_num(self) -> int:
        """The index of this batch among all validation batches."""
        return self._plan.number - self._first[1]


class _Descriptors(Sequence[D]):
    """The descriptors of a batch's rows, looked up when asked for."""

    __slots__ = ("_group", "_indices")

    def __init__(self, group: DataGroup[D], indices: Sequence[int]) -> None:
        self._group = group
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> D: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[D]: ...
    def __getitem__(self, index: int | slice) -> D | Sequence[D]:
        if isinstance(index, slice):
            return [self._group[i] for i in self._indices[index]]
        try:
            item = self._indices[index]
        except IndexError:
            raise IndexError(f"index {index} is out of range for a batch of {len(self)} rows") from None
        return self._group[item]

    def __iter__(self) -> Iterator[D]:
        return (self._group[i] for i in self._indices)

    def __repr__(self) -> str:
        return repr(list(self))


def columns(additional: _Additional | None, rows: int) -> dict[str, list[Any]]:
    """Per-item dicts → one list a key, None where an item had none; repeated like the rows of a padded batch."""
    if additional is None:
        return {}
    keys = dict.fromkeys(key for item in additional if item for key in item)
    items = [additional[row % len(additional)] or {} for row in range(rows)]
    return {key: [item.get(key) for item in items] for key in keys}


def make_batch(
    group: DataGroup[D],
    plan: BatchPlan,
    arrays: Mapping[str, jax.Array],
    additional: _Additional | None,
    first_validation: tuple[int, int],
    *,
    cached: bool = False,
    sink: CacheSink | None = None,
) -> TrainingBatch[D] | ValidationBatch[D]:
    """Builds a batch; for the `Dataloader`.

    Args:
        first_validation: validation passes and batches that lie before the start of the run.
        cached: whether it is as it is cached.
        sink: where `Batch.cache` leaves what is to be kept.
    """
    batch: TrainingBatch[D] | ValidationBatch[D]
    if plan.validation:
        batch = cast("ValidationBatch[D]", object.__new__(ValidationBatch))
        batch._first = first_validation  # pyright: ignore[reportPrivateUsage]
    else:
        batch = cast("TrainingBatch[D]", object.__new__(TrainingBatch))
    batch._group = group  # pyright: ignore[reportPrivateUsage]
    batch._plan = plan  # pyright: ignore[reportPrivateUsage]
    batch._arrays = arrays if isinstance(arrays, MappingProxyType) else MappingProxyType(dict(arrays))  # pyright: ignore[reportPrivateUsage]
    batch._additional = additional  # pyright: ignore[reportPrivateUsage]
    batch._columns = None  # pyright: ignore[reportPrivateUsage]
    batch._cached = cached  # pyright: ignore[reportPrivateUsage]
    batch._sink = sink  # pyright: ignore[reportPrivateUsage]
    return batch


def plan_of_batch(batch: Batch[Any]) -> BatchPlan:
    """What a batch was planned to hold."""
    return batch._plan  # pyright: ignore[reportPrivateUsage]
