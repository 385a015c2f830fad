"""Ready loaders, and what it takes to write one that loads whole batches. Each needs an extra of its own."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydrax_gpu._exec.protocol import RowsLoader as RowsLoader
    from hydrax_gpu._exec.role import threads_per_worker as threads_per_worker
    from hydrax_gpu.loaders._dali_sample import Random as Random
    from hydrax_gpu.loaders._dali_sample import Sample as Sample
    from hydrax_gpu.loaders._declaration import CenterCrop as CenterCrop
    from hydrax_gpu.loaders._declaration import ImageDeclaration as ImageDeclaration
    from hydrax_gpu.loaders._declaration import RandomResizedCrop as RandomResizedCrop
    from hydrax_gpu.loaders.dali import DaliLoader as DaliLoader
    from hydrax_gpu.loaders.images import ImageLoader as ImageLoader

__all__ = [
    "CenterCrop",
    "DaliLoader",
    "ImageDeclaration",
    "ImageLoader",
    "Random",
    "RandomResizedCrop",
    "RowsLoader",
    "Sample",
    "threads_per_worker",
]

# As in the package's own __init__: a worker imports what its loader needs, and nothing of the others.
_HOME = {
    "CenterCrop": "loaders._declaration",
    "DaliLoader": "loaders.dali",
    "ImageDeclaration": "loaders._declaration",
    "ImageLoader": "loaders.images",
    "Random": "loaders._dali_sample",
    "RandomResizedCrop": "loaders._declaration",
    "RowsLoader": "_exec.protocol",
    "Sample": "loaders._dali_sample",
    "threads_per_worker": "_exec.role",
}


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'hydrax_gpu.loaders' has no attribute {name!r}") from None
    value = globals()[name] = getattr(importlib.import_module(f"hydrax_gpu.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
