"""hydrax_gpu: a data loader for JAX whose batches already sit where the training step reads them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hydrax_gpu._exec.role import is_worker as is_worker
    from hydrax_gpu._spec import ArraySpec as ArraySpec
    from hydrax_gpu.batch import Batch as Batch
    from hydrax_gpu.batch import TrainingBatch as TrainingBatch
    from hydrax_gpu.batch import ValidationBatch as ValidationBatch
    from hydrax_gpu.debug import debug_batch_references as debug_batch_references
    from hydrax_gpu.decode.base import Decode as Decode
    from hydrax_gpu.decode.packed import Dequantize as Dequantize
    from hydrax_gpu.decode.packed import UnpackBits as UnpackBits
    from hydrax_gpu.decode.pictures import Normalize as Normalize
    from hydrax_gpu.decode.pictures import Oklab as Oklab
    from hydrax_gpu.decode.ragged import PadRagged as PadRagged
    from hydrax_gpu.errors import BatchTimeoutError as BatchTimeoutError
    from hydrax_gpu.errors import CacheDamaged as CacheDamaged
    from hydrax_gpu.errors import CacheError as CacheError
    from hydrax_gpu.errors import CacheMismatch as CacheMismatch
    from hydrax_gpu.errors import CacheWriteError as CacheWriteError
    from hydrax_gpu.errors import DecodeError as DecodeError
    from hydrax_gpu.errors import ImageError as ImageError
    from hydrax_gpu.errors import LoaderError as LoaderError
    from hydrax_gpu.errors import NotEnoughMemory as NotEnoughMemory
    from hydrax_gpu.errors import PlacementError as PlacementError
    from hydrax_gpu.errors import SourceChanged as SourceChanged
    from hydrax_gpu.errors import SourceError as SourceError
    from hydrax_gpu.errors import StateMismatch as StateMismatch
    from hydrax_gpu.errors import StatesDiffer as StatesDiffer
    from hydrax_gpu.errors import TooManyBadItems as TooManyBadItems
    from hydrax_gpu.errors import UnsafeCache as UnsafeCache
    from hydrax_gpu.errors import WorkerDied as WorkerDied
    from hydrax_gpu.errors import WorkerStartError as WorkerStartError
    from hydrax_gpu.group import DataGroup as DataGroup
    from hydrax_gpu.loader import Dataloader as Dataloader
    from hydrax_gpu.policy import BadItem as BadItem
    from hydrax_gpu.policy import BadItems as BadItems
    from hydrax_gpu.policy import ErrorPolicy as ErrorPolicy
    from hydrax_gpu.report import Report as Report

__all__ = [
    "ArraySpec",
    "BadItem",
    "BadItems",
    "Batch",
    "BatchTimeoutError",
    "CacheDamaged",
    "CacheError",
    "CacheMismatch",
    "CacheWriteError",
    "DataGroup",
    "Dataloader",
    "Decode",
    "DecodeError",
    "Dequantize",
    "ErrorPolicy",
    "ImageError",
    "LoaderError",
    "Normalize",
    "NotEnoughMemory",
    "Oklab",
    "PadRagged",
    "PlacementError",
    "Report",
    "SourceChanged",
    "SourceError",
    "StateMismatch",
    "TooManyBadItems",
    "TrainingBatch",
    "UnpackBits",
    "UnsafeCache",
    "ValidationBatch",
    "WorkerDied",
    "WorkerStartError",
    "debug_batch_references",
    "is_worker",
]

__version__ = "0.1.0"

# Names are imported when they are first asked for. A worker process imports this package too, and needs next to nothing
# of it: this halves what its start costs beyond Python's and NumPy's own.
_HOME = {
    "NotEnoughMemory": "errors",
    "TooManyBadItems": "errors",
    "ErrorPolicy": "policy",
    "BadItems": "policy",
    "BadItem": "policy",
    "ArraySpec": "_spec",
    "Batch": "batch",
    "BatchTimeoutError": "errors",
    "CacheDamaged": "errors",
    "CacheError": "errors",
    "CacheMismatch": "errors",
    "CacheWriteError": "errors",
    "UnsafeCache": "errors",
    "DataGroup": "group",
    "Dataloader": "loader",
    "ImageError": "errors",
    "Decode": "decode.base",
    "DecodeError": "errors",
    "Dequantize": "decode.packed",
    "Normalize": "decode.pictures",
    "Oklab": "decode.pictures",
    "PadRagged": "decode.ragged",
    "UnpackBits": "decode.packed",
    "LoaderError": "errors",
    "PlacementError": "errors",
    "Report": "report",
    "SourceChanged": "errors",
    "SourceError": "errors",
    "StateMismatch": "errors",
    "StatesDiffer": "errors",
    "TrainingBatch": "batch",
    "ValidationBatch": "batch",
    "WorkerDied": "errors",
    "WorkerStartError": "errors",
    "debug_batch_references": "debug",
    "is_worker": "_exec.role",
}


def __getattr__(name: str) -> Any:
    try:
        home = _HOME[name]
    except KeyError:
        raise AttributeError(f"module 'hydrax_gpu' has no attribute {name!r}") from None
    value = globals()[name] = getattr(importlib.import_module(f"hydrax_gpu.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
