"""`ExampleSource`: records that are `tf.train.Example` messages. `parse_example`: one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar, cast, final

from hydrax_gpu.errors import SourceError
from hydrax_gpu.sources._protobuf import Feature, Malformed, features_of
from hydrax_gpu.sources._records import Record
from hydrax_gpu.sources._source import Reader, Row, Source

__all__ = ["ExampleSource", "Field", "parse_example"]

D = TypeVar("D")

Value = dict[str, Any]


class Field(NamedTuple):
    """A feature of a `tf.train.Example` that is wanted.

    Attributes:
        key: its name in the message.
        shape: of its values, which must be as many: `()` for a single one. None for as many as there are.
    """

    key: str
    shape: tuple[int, ...] | None = ()


def parse_example(data: bytes) -> dict[str, Feature]:
    """The features of a serialized `tf.train.Example`, without TensorFlow or protobuf.

    What is not known is passed over, as protocol buffers do; a feature that is of no kind is left out.

    Args:
        data: the message's bytes, such as a record of a TFRecord file.

    Returns:
        By name, what the feature is: int64 `(n,)`, float32 `(n,)`, or a list of n `bytes`.

    Raises:
        SourceError: it is no such message.
    """
    try:
        return features_of(bytes(data))
    except Malformed as error:
        raise SourceError("tf.train.Example", str(error)) from None


@final
class ExampleSource(Source[D, Value], Generic[D]):
    """Records that are `tf.train.Example` messages. The value of an item is a dict of its features.

    A feature is an int64 or float32 array `(n,)`, or a list of n `bytes`. With `fields` it is one value (`shape=()`: a
    NumPy number, or `bytes`), an array of a shape, or nested lists of `bytes`. The source's loader function gives an
    array of the batch the value of its name, and refuses integers that do not fit.

    Args:
        records: where the messages are: a `TFRecordSource`, an `ArrayRecordSource`, or a slice of one.
        fields: `{name: field}`, the features that are wanted, by the names that they are to have. A field is a
            `Field`, or a key alone for a single value. An item that does not have a field is a bad item. Without it,
            all features are parsed, by their own names.

    Raises:
        TypeError, ValueError: `records` is no source, or a field is none.
    """

    def __init__(self, records: Source[D, bytes], fields: Mapping[str, Field | str] | None = None) -> None:
        if not isinstance(records, Source):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"records: got {type(records).__name__}, wanted a source, such as TFRecordSource(paths)")
        self._records = records
        chosen = None if fields is None else {name: _field(name, each) for name, each in fields.items()}
        self._reader: _ExampleReader[D] = _ExampleReader(records.reader, chosen)

    @property
    def reader(self) -> Reader[D, Value]:
        return self._reader

    def __len__(self) -> int:
        return len(self._records)

    def descriptor(self, index: int) -> D:
        return self._records.descriptor(index)

    def arrays(self) -> NoReturn:
        """There is nothing in the files that says it.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "no file says what shape and dtype the features of its examples have: declare the arrays yourself, by the "
            "names in `fields`"
        )

    def __repr__(self) -> str:
        return f"ExampleSource({self._records!r})"


def _field(name: str, field: object) -> Field:
    if isinstance(field, str):
        return Field(field)
    if isinstance(field, Field):
        if field.shape is None:
            return field
        shape = cast("object", field.shape)
        if isinstance(shape, tuple) and all(
            type(size) is int and size >= 0 for size in cast("tuple[object, ...]", shape)
        ):
            return field
    raise ValueError(f"fields: got {field!r} for {name!r}, wanted a key, or Field(key, shape) with a tuple or None")


@final
class _ExampleReader(Reader[D, Value], Generic[D]):
    def __init__(self, records: Reader[D, bytes], fields: dict[str, Field] | None) -> None:
        self._records = records
        self._fields = fields
        self._begin()

    def _begin(self) -> None:
        self._open_keys = None if self._fields is None else {field.key for field in self._fields.values()}

    def joined(self, other: Reader[Any, Any]) -> Reader[D, Value]:
        if isinstance(other, _ExampleReader) and self._fields == other._fields:
            return _ExampleReader(self._records.joined(other._records), self._fields)
        return super().joined(other)

    def take_counts(self) -> dict[str, int] | None:
        return self._records.take_counts()

    def read_rows(self, items: Sequence[D]) -> list[Value | BaseException]:
        values: list[Value | BaseException] = []
        for item, data in zip(items, self._records.read_rows(items), strict=True):
            if isinstance(data, BaseException):
                values.append(data)
                continue
            try:
                values.append(self._value(data))
            except Malformed as error:
                values.append(SourceError(_place(item), str(error)))
        return values

    def _value(self, data: bytes) -> Value:
        features = features_of(data, self._open_keys)
        if self._fields is None:
            return dict(features)
        return {name: _shaped(name, field, features, data) for name, field in self._fields.items()}


def _shaped(name: str, field: Field, features: dict[str, Feature], data: bytes) -> Any:
    feature = features.get(field.key)
    if feature is None:
        raise Malformed(
            f"it has no {field.key!r} for {name!r}, only {', '.join(map(repr, features_of(data))) or 'nothing'}"
        )
    if field.shape is None:
        return feature
    if len(feature) != math.prod(field.shape):
        raise Malformed(
            f"{field.key!r} has {len(feature)} values, wanted {math.prod(field.shape)} for the shape {field.shape} of "
            f"{name!r}; Field({field.key!r}, None) takes any number"
        )
    if isinstance(feature, list):
        return _nested(feature, field.shape)
    return feature.reshape(field.shape)[()]


def _nested(values: list[bytes], shape: tuple[int, ...]) -> Any:
    if not shape:
        return values[0]
    step = math.prod(shape[1:])
    return [_nested(values[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def _place(item: object) -> str:
    if isinstance(item, Record):
        return f"{item.file.path}: record at {item.offset:,}"
    if isinstance(item, Row):
        return f"{item.table}: record {item.number}"
    return str(item)
