"""Small groups and loaders, and what to ask of them; for the tests of the loader as its user sees it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hydrax_gpu import DataGroup, Dataloader
from hydrax_gpu._plan import GroupPlan, Plan, ValidationPlan
from tests import loaders

ARRAYS = {"x": ((3,), np.uint8, np.float32), "y": ((), np.int32, np.int32)}


def group(data: Any = range(10), size: int = 4, **options: Any) -> DataGroup[Any]:
    return DataGroup(size, data, loader_arrays=options.pop("loader_arrays", ARRAYS), **options)


def loader(load: Any = loaders.fill, training: Any = None, **options: Any) -> Dataloader[Any]:
    options = {"executor": "inline", "end_at": ("epoch", 1)} | options
    return Dataloader(load, group() if training is None else training, **options)


def rows(it: Dataloader[Any]) -> list[list[int]]:
    """The `y` of every batch of a run."""
    found: list[list[int]] = []
    with it:
        for batch in it:
            found.append(batch.arrays["y"].tolist())
            del batch
    return found


def refused(kind: type[Exception], **options: Any) -> str:
    with pytest.raises(kind) as caught:
        loader(**options)
    assert type(caught.value) is kind
    return str(caught.value)


def engine_plan(end: int) -> Plan:
    """Two training groups and a validation pass, of `end` training batches."""
    training = [
        GroupPlan(
            length=23, batch_size=5, seed=1, shuffle_first=True, shuffle_later="itemwise", remainder="pad", weight=None
        ),
        GroupPlan(
            length=9, batch_size=4, seed=2, shuffle_first=False, shuffle_later="repeat", remainder="short", weight=None
        ),
    ]
    validation = ValidationPlan("batch", 3, (training[1],))
    return Plan(training, validation=validation, end=("batch", end))
