"""Sources of data: what can be given to `DataGroup` as its data, and what loads their items in a worker."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydrax_gpu.sources._arrow import ArrowSource as ArrowSource
    from hydrax_gpu.sources._arrow import ParquetSource as ParquetSource
    from hydrax_gpu.sources._arrow import TableRow as TableRow
    from hydrax_gpu.sources._examples import ExampleSource as ExampleSource
    from hydrax_gpu.sources._examples import Field as Field
    from hydrax_gpu.sources._examples import parse_example as parse_example
    from hydrax_gpu.sources._folder import ImageFolder as ImageFolder
    from hydrax_gpu.sources._maps import HuggingFaceSource as HuggingFaceSource
    from hydrax_gpu.sources._maps import ItemOf as ItemOf
    from hydrax_gpu.sources._maps import MapSource as MapSource
    from hydrax_gpu.sources._maps import RandomAccess as RandomAccess
    from hydrax_gpu.sources._npy import NpySource as NpySource
    from hydrax_gpu.sources._packed import PackedRow as PackedRow
    from hydrax_gpu.sources._packed import PackedSource as PackedSource
    from hydrax_gpu.sources._packing import PackingReport as PackingReport
    from hydrax_gpu.sources._records import ArrayRecordSource as ArrayRecordSource
    from hydrax_gpu.sources._records import Record as Record
    from hydrax_gpu.sources._records import TFRecordSource as TFRecordSource
    from hydrax_gpu.sources._source import Reader as Reader
    from hydrax_gpu.sources._source import Row as Row
    from hydrax_gpu.sources._source import Source as Source
    from hydrax_gpu.sources._source import SourceLoader as SourceLoader
    from hydrax_gpu.sources._tar import Member as Member
    from hydrax_gpu.sources._tar import Sample as Sample
    from hydrax_gpu.sources._tar import TarSource as TarSource
    from hydrax_gpu.sources._tokens import Span as Span
    from hydrax_gpu.sources._tokens import TokenSource as TokenSource
    from hydrax_gpu.sources._tokens import write_tokens as write_tokens

# As in the package's own __init__: a worker imports what reads its source, and nothing of the others.
_HOME = {
    "ArrowSource": "_arrow",
    "ParquetSource": "_arrow",
    "ExampleSource": "_examples",
    "Field": "_examples",
    "parse_example": "_examples",
    "ImageFolder": "_folder",
    "HuggingFaceSource": "_maps",
    "ItemOf": "_maps",
    "MapSource": "_maps",
    "RandomAccess": "_maps",
    "NpySource": "_npy",
    "PackingReport": "_packing",
    "ArrayRecordSource": "_records",
    "Record": "_records",
    "TFRecordSource": "_records",
    "TableRow": "_arrow",
    "Reader": "_source",
    "Row": "_source",
    "Source": "_source",
    "SourceLoader": "_source",
    "Member": "_tar",
    "Sample": "_tar",
    "TarSource": "_tar",
    "PackedRow": "_packed",
    "PackedSource": "_packed",
    "Span": "_tokens",
    "TokenSource": "_tokens",
    "write_tokens": "_tokens",
}

__all__ = [
    "ArrayRecordSource",
    "ArrowSource",
    "ExampleSource",
    "Field",
    "HuggingFaceSource",
    "ImageFolder",
    "ItemOf",
    "MapSource",
    "Member",
    "NpySource",
    "PackedRow",
    "PackedSource",
    "PackingReport",
    "ParquetSource",
    "RandomAccess",
    "Reader",
    "Record",
    "Row",
    "Sample",
    "Source",
    "SourceLoader",
    "Span",
    "TFRecordSource",
    "TableRow",
    "TarSource",
    "TokenSource",
    "parse_example",
    "write_tokens",
]


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'hydrax_gpu.sources' has no attribute {name!r}") from None
    value = globals()[name] = getattr(importlib.import_module(f"hydrax_gpu.sources.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
