"""Filling up a batch whose items do not fill it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from hydrax_gpu._plan import BatchPlan

__all__ = ["pad"]


def pad(views: Mapping[str, npt.NDArray[Any]], plan: BatchPlan) -> None:
    """Repeats the valid rows, in order, until all rows are filled."""
    for begin in range(plan.valid, plan.rows, plan.valid):
        count = min(plan.valid, plan.rows - begin)
        for view in views.values():
            view[begin : begin + count] = view[:count]
