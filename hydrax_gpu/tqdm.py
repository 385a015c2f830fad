"""Progress bars: `tbatches` and `ProgressMonitor`. Needs the `tqdm` extra."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from hydrax_gpu.batch import Batch, TrainingBatch, ValidationBatch
from hydrax_gpu.loader import Dataloader

__all__ = ["ProgressMonitor", "tbatches"]

_log = logging.getLogger("hydrax_gpu")

D = TypeVar("D")


class ProgressMonitor(Generic[D]):
    """A bar for the training batches and, nested under it while one runs, a bar for the validation pass.

    A resumed loader's bar begins at its first batch. Bars count batches as they end, in whatever order they come.
    `tbatches` does all of this for a plain loop.

    Args:
        dataloader: the loader whose batches are shown.
        report_interval: every so many batches, log how long the loop waited for data, if it did; 0 for never.
        description: label of the training bar.
        **kwargs: passed on to both bars, see `tqdm.tqdm`.
    """

    def __init__(
        self, dataloader: Dataloader[D], report_interval: int = 0, description: str = "train", **kwargs: Any
    ) -> None:
        self._dataloader = dataloader
        self._interval = report_interval
        self._kwargs = kwargs
        self._ended = 0
        self._bar: tqdm[Any] | None = tqdm(
            initial=dataloader.first_batch,
            total=dataloader.last_batch,
            desc=description,
            unit="batch",
            **kwargs,
        )
        self._validation: tqdm[Any] | None = None

    def __enter__(self) -> ProgressMonitor[D]:
        """Returns itself; the bars are closed at the end of the `with` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the bars."""
        self.close()

    def begin_batch(self, batch: Batch[D]) -> None:
        """Call before working on a batch.

        Raises:
            RuntimeError: the monitor was closed.
        """
        bar = self._open()
        if isinstance(batch, ValidationBatch):
            if self._validation is None:
                self._validation = tqdm(
                    initial=batch.validation_epoch_batch if self._dataloader.deterministic else 0,
                    total=self._dataloader.batches_per_validation,
                    desc="validation",
                    unit="batch",
                    leave=False,
                    **self._kwargs,
                )
        elif self._validation is not None and self._dataloader.deterministic:
            self._end_validation()
            bar.unpause()  # the validation's time is not the training's

    def end_batch(self, batch: Batch[D]) -> None:
        """Call after working on a batch.

        Raises:
            RuntimeError: the monitor was closed, or `begin_batch` was not called.
        """
        bar = self._open()
        if isinstance(batch, TrainingBatch):
            bar.update()
        else:
            if self._validation is None:
                raise RuntimeError("end_batch was called for a validation batch without begin_batch")
            self._validation.update()
            if self._validation.n >= self._dataloader.batches_per_validation:
                self._end_validation()
        self._ended += 1
        if self._interval > 0 and self._ended % self._interval == 0:
            waited = self._dataloader.idle_usec() / self._interval / 1000
            if waited >= 1:
                _log.warning("the loop waits %.1f ms a batch for data (last %d batches)", waited, self._interval)

    def close(self) -> None:
        """Closes the bars. Idempotent."""
        self._end_validation()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _open(self) -> tqdm[Any]:
        if self._bar is None:
            raise RuntimeError("this ProgressMonitor is closed")
        return self._bar

    def _end_validation(self) -> None:
        if self._validation is not None:
            self._validation.close()
            self._validation = None


def tbatches(
    dataloader: Dataloader[D], report_interval: int = 0, description: str = "train", **kwargs: Any
) -> Iterator[Batch[D]]:
    """Runs a loader in its `with` block and yields its batches under progress bars.

    Args:
        dataloader: a loader that was not entered yet.
        report_interval: every so many batches, log how long the loop waited for data, if it did; 0 for never.
        description: label of the training bar.
        **kwargs: passed on to the bars, see `tqdm.tqdm`.
    """
    with ProgressMonitor(dataloader, report_interval, description, **kwargs) as monitor, dataloader:
        for batch in dataloader:
            monitor.begin_batch(batch)
            yield batch
            monitor.end_batch(batch)
            del batch  # or it would hold its slot while the next one is waited for
