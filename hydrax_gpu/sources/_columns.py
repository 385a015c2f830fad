"""Columns of Arrow tables, row by row, as NumPy has them: without a copy where Arrow's memory allows it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hydrax_gpu._spec import ArraySpec

__all__ = ["Columns", "arrays_of", "columns_of", "pyarrow"]

Columns: TypeAlias = Mapping[str, Callable[[int], Any]]
"""For each column, what gives the value in a row."""


def pyarrow(module: str = "", extra: str = "parquet") -> Any:
    """pyarrow, or a module of it.

    Raises:
        ImportError: it is not installed.
    """
    name = f"pyarrow.{module}" if module else "pyarrow"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} cannot be imported ({error}): pip install 'hydrax-gpu[{extra}]'") from error


def arrays_of(schema: Any) -> dict[str, ArraySpec]:
    """The arrays that hold the columns of a schema.

    Raises:
        TypeError: a column is of varying size, or holds no numbers.
    """
    found: dict[str, ArraySpec] = {}
    for field in schema:
        described = _described(field.type)
        if described is None:
            raise TypeError(
                f"column {field.name!r} is {field.type}, which has no fixed shape of numbers: leave it out by columns="
                ", or declare the arrays yourself and fill them with loader(fill)"
            )
        shape, dtype = described
        found[field.name] = ArraySpec(shape, dtype, dtype)
    return found


def _described(kind: Any) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
    """Shape and dtype of a value, or None where these vary."""
    pa = pyarrow()
    if isinstance(kind, pa.FixedShapeTensorType):
        permutation = kind.permutation
        if permutation is not None and list(permutation) != sorted(permutation):
            return None
        inner = _described(kind.value_type)
        return None if inner is None else ((*kind.shape, *inner[0]), inner[1])
    if isinstance(kind, pa.BaseExtensionType):
        return _described(kind.storage_type)
    if pa.types.is_fixed_size_list(kind):
        inner = _described(kind.value_type)
        return None if inner is None else ((kind.list_size, *inner[0]), inner[1])
    if pa.types.is_fixed_size_binary(kind):
        return (kind.byte_width,), np.dtype(np.uint8)
    if pa.types.is_dictionary(kind):
        return _described(kind.value_type)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return (), np.dtype(kind.to_pandas_dtype())
    return None


def columns_of(table: Any) -> dict[str, Callable[[int], Any]]:
    """What gives the values of a record batch, or of a table of one chunk a column.

    Numbers, and lists of a fixed number of numbers, are views of Arrow's memory; so are the lists of varying length.
    Booleans, which Arrow packs into bits, are unpacked once. Text is str, binary is bytes, a null of these and of what
    else there is (structures, maps, times) None. A null where a number should be is a ValueError when it is asked for;
    lists in which there are nulls are lists of Python's.
    """
    found: dict[str, Callable[[int], Any]] = {}
    for name, column in zip(table.schema.names, table.columns, strict=True):
        found[name] = _getter(name, _one_chunk(column))
    return found


def _one_chunk(column: Any) -> Any:
    pa = pyarrow()
    if isinstance(column, pa.ChunkedArray):
        # combine_chunks copies only where there is more than one
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return column


def _getter(name: str, array: Any) -> Callable[[int], Any]:
    pa = pyarrow()
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType) and _described(kind) is None:
        return _objects(array)
    if pa.types.is_dictionary(kind):
        return _getter(name, array.dictionary_decode())
    if _described(kind) is not None:
        if _null_within(array):
            return _objects(array)
        return _rows(name, array, _read_only(_numbers(array)))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if _described(kind.value_type) is not None and not array.values.null_count and not _null_within(array.values):
            # `flatten` would leave out what is behind nulls, and `values` has all that the offsets speak of
            return _rows(name, array, _Ragged(_read_only(_numbers(array.values)), array.offsets.to_numpy()))
        return _objects(array)
    if pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}:
        return _file(array)
    return _objects(array)


class _Ragged:
    def __init__(self, values: npt.NDArray[Any], ends: npt.NDArray[Any]) -> None:
        self._values, self._ends = values, ends

    def __getitem__(self, row: int) -> npt.NDArray[Any]:
        begin, end = self._ends[row : row + 2].tolist()
        return self._values[begin:end]


def _rows(name: str, array: Any, values: Any) -> Callable[[int], Any]:
    if not array.null_count:
        return values.__getitem__
    valid = array.is_valid().to_numpy(zero_copy_only=False)

    def get(row: int) -> Any:
        if not valid[row]:
            raise ValueError(f"column {name!r} is null, and a number or an array was wanted: leave such rows out")
        return values[row]

    return get


def _read_only(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values.flags.writeable = False  # Arrow's memory may be shared by whoever has the table
    return values


def _null_within(array: Any) -> bool:
    """Whether there are nulls in lists that are none themselves."""
    pa = pyarrow()
    if isinstance(array.type, pa.BaseExtensionType):
        return _null_within(array.storage)
    if not pa.types.is_fixed_size_list(array.type):
        return False
    inner = array.flatten()  # without those of lists that are null
    return bool(inner.null_count) or _null_within(inner)


def _numbers(array: Any) -> npt.NDArray[Any]:
    """All values as `(rows, ...)`; what is at nulls is not said."""
    pa = pyarrow()
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        described = _described(kind)
        assert described is not None
        return _numbers(array.storage).reshape(len(array), *described[0])
    if pa.types.is_fixed_size_list(kind):
        # `values` is of the whole array, a slice's begin included, and has room for nulls, too
        width = kind.list_size
        values = array.values[array.offset * width : (array.offset + len(array)) * width]
        inner = _numbers(values)
        return inner.reshape(len(array), width, *inner.shape[1:])
    if pa.types.is_fixed_size_binary(kind):
        width = kind.byte_width
        data = np.frombuffer(array.buffers()[1], np.uint8)
        return data[array.offset * width : (array.offset + len(array)) * width].reshape(len(array), width)
    if pa.types.is_boolean(kind):
        filled = array.fill_null(False) if array.null_count else array
        return filled.to_numpy(zero_copy_only=False)
    dtype = np.dtype(kind.to_pandas_dtype())
    buffer = array.buffers()[1]
    if buffer is None:  # of no values
        return np.empty(len(array), dtype)
    return np.frombuffer(buffer, dtype, len(array), array.offset * dtype.itemsize)


def _objects(array: Any) -> Callable[[int], Any]:
    def get(row: int) -> Any:
        return array[row].as_py()

    return get


def _file(array: Any) -> Callable[[int], Any]:
    """Files as Hugging Face's features for images and sound have them: the bytes, or the path where there are none."""
    contents, paths = array.field("bytes"), array.field("path")

    def get(row: int) -> Any:
        data = contents[row].as_py()
        return paths[row].as_py() if data is None else data

    return get
