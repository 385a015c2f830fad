"""Sources of data: what can be given to `DataGroup` as its data, and what loads their items in a worker."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydrax_gpu.sources._folder import ImageFolder as ImageFolder
    from hydrax_gpu.sources._npy import NpySource as NpySource
    from hydrax_gpu.sources._source import Reader as Reader
    from hydrax_gpu.sources._source import Row as Row
    from hydrax_gpu.sources._source import Source as Source
    from hydrax_gpu.sources._source import SourceLoader as SourceLoader
    from hydrax_gpu.sources._tar import Member as Member
    from hydrax_gpu.sources._tar import Sample as Sample
    from hydrax_gpu.sources._tar import TarSource as TarSource

# As in the package's own __init__: a worker imports what reads its source, and nothing of the others.
_HOME = {
    "ImageFolder": "_folder",
    "NpySource": "_npy",
    "Reader": "_source",
    "Row": "_source",
    "Source": "_source",
    "SourceLoader": "_source",
    "Member": "_tar",
    "Sample": "_tar",
    "TarSource": "_tar",
}

__all__ = ["ImageFolder", "Member", "NpySource", "Reader", "Row", "Sample", "Source", "SourceLoader", "TarSource"]


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'hydrax_gpu.sources' has no attribute {name!r}") from None
    value = globals()[name] = getattr(importlib.import_module(f"hydrax_gpu.sources.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
