"""Ready loader functions. Each needs an extra of its own."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydrax_gpu.loaders._declaration import CenterCrop as CenterCrop
    from hydrax_gpu.loaders._declaration import ImageDeclaration as ImageDeclaration
    from hydrax_gpu.loaders._declaration import RandomResizedCrop as RandomResizedCrop
    from hydrax_gpu.loaders.images import ImageLoader as ImageLoader

__all__ = ["CenterCrop", "ImageDeclaration", "ImageLoader", "RandomResizedCrop"]

# As in the package's own __init__: a worker imports what its loader needs, and nothing of the others.
_HOME = {
    "CenterCrop": "loaders._declaration",
    "ImageDeclaration": "loaders._declaration",
    "ImageLoader": "loaders.images",
    "RandomResizedCrop": "loaders._declaration",
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
