"""hydrax_gpu: a data loader for JAX whose batches already sit where the training step reads them."""

from hydrax_gpu._exec.role import is_worker as is_worker
from hydrax_gpu._spec import ArraySpec as ArraySpec
from hydrax_gpu.batch import Batch as Batch
from hydrax_gpu.batch import TrainingBatch as TrainingBatch
from hydrax_gpu.batch import ValidationBatch as ValidationBatch
from hydrax_gpu.debug import debug_batch_references as debug_batch_references
from hydrax_gpu.errors import BatchTimeoutError as BatchTimeoutError
from hydrax_gpu.errors import LoaderError as LoaderError
from hydrax_gpu.errors import PlacementError as PlacementError
from hydrax_gpu.errors import StateMismatch as StateMismatch
from hydrax_gpu.errors import WorkerDied as WorkerDied
from hydrax_gpu.errors import WorkerStartError as WorkerStartError
from hydrax_gpu.group import DataGroup as DataGroup
from hydrax_gpu.loader import Dataloader as Dataloader
from hydrax_gpu.report import Report as Report

__version__ = "0.1.0"
