"""The command: one batch, looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hydrax_gpu._preview import sheet
from hydrax_gpu._preview.statistics import describe_arrays, table
from hydrax_gpu._preview.target import PreviewError, find, read_state
from hydrax_gpu.batch import Batch, TrainingBatch, ValidationBatch

__all__ = ["preview"]

_WIDTH = 100


def preview(
    target: str,
    *,
    batch: int | None = None,
    state: str | None = None,
    output: str | None = None,
    rows: int = 64,
    as_json: bool = False,
) -> tuple[int, str]:
    """Loads one batch and says what is in it.

    Args:
        target: `module:name` of a `Dataloader`, or of a function that makes one.
        batch: number of a training batch, from 0; None for the one that the loader begins with.
        state: in place of that, a file with what `Dataloader.state()` returned: the batch that would come next.
        output: image file for a contact sheet.
        rows: how many of the batch's rows that shows at most.
        as_json: the text is for programs.

    Returns:
        The process's exit status, 0 or 1, and what to print.
    """
    try:
        start = read_state(state) if state is not None else None if batch is None else (0, batch)
        loader = find(target, start)
    except PreviewError as error:  # and whatever the user's own module raises goes on with its traceback
        return 1, str(error)
    try:
        with loader:
            found = next(loader, None)
            if found is None:
                raise PreviewError("there is no such batch: the loader's end_at comes first")
            number = getattr(found, "batch_num", None)
            if batch is not None and number != batch:
                raise PreviewError(f"batch {batch} was dropped: {loader.report().bad}")
            arrays = {name: np.array(array) for name, array in found.arrays.items()}
        text = _as_json(found, arrays) if as_json else _page(found, arrays)
        if output is not None:
            shown = {name: array[:rows] for name, array in arrays.items()}
            labels = sheet.captions(found.indices[:rows], shown, found.additional)
            drawn = sheet.draw(Path(output), shown, labels, _title(found))
            if not as_json:
                left = f", of {len(found.indices)} rows" if len(labels) < len(found.indices) else ""
                text += f"\n{output}: {len(labels)} rows{left} of {', '.join(drawn) or 'no array: all are scalars'}"
    except ImportError as error:
        if error.name != "matplotlib":
            raise
        return 1, "a contact sheet needs matplotlib: pip install 'hydrax-gpu[plot]', or leave -o out"
    except PreviewError as error:
        return 1, str(error)
    except (OSError, RuntimeError, MemoryError, ValueError) as error:  # ours, and those of writing the picture
        return 1, f"{type(error).__name__}: {error}"
    return 0, text


def _title(batch: Batch[Any]) -> str:
    if isinstance(batch, TrainingBatch):
        return f"training batch {batch.batch_num}: epoch {batch.epoch}, batch {batch.epoch_batch} of it"
    assert isinstance(batch, ValidationBatch)
    return f"validation batch {batch.validation_epoch_batch}"


def _page(batch: Batch[Any], arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    lines = [_title(batch), f"{batch.group!r}, its batch {batch.group_index}"]
    lines.append(_listed("items", batch.indices))
    if isinstance(batch, TrainingBatch):
        lines.append(_listed("seeds", batch.seeds))
    lines.append(_listed("data", [repr(each) for each in batch.data]))
    for key, values in batch.additional.items():
        lines.append(_listed(f"additional {key!r}", [repr(value) for value in values]))
    if not batch.valid.all():
        lines.append(f"padding: rows {int(batch.valid.sum())} to {len(batch.valid) - 1} repeat others")
    if batch.replaced.any():
        lines.append(_listed("substitutes in rows", np.flatnonzero(batch.replaced).tolist()))
    return "\n".join([*lines, "", table(describe_arrays(arrays))])


def _listed(what: str, values: Any) -> str:
    """The values in one line, cut where it gets too long."""
    line, count = f"{what}: ", len(values)
    for position, value in enumerate(values):
        word = str(value)
        if position and len(line) + len(word) > _WIDTH:
            return line + f"… ({count} in all)"
        line += (", " if position else "") + (word if len(word) <= _WIDTH else word[:_WIDTH] + "…")
    return line


def _as_json(batch: Batch[Any], arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    return json.dumps(
        {
            "kind": "training" if batch.is_training else "validation",
            "title": _title(batch),
            "items": [int(index) for index in batch.indices],
            "valid": batch.valid.tolist(),
            "replaced": batch.replaced.tolist(),
            "arrays": [asdict(each) for each in describe_arrays(arrays)],
        },
        indent=2,
    )
