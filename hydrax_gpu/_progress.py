"""What a loader has handed out, counted by the consumer."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hydrax_gpu._plan import BatchPlan, GroupPlan

__all__ = ["Progress"]


class Progress:
    """Counters for the report."""

    """What was handed out; counted by the consumer."""

    def __init__(self, training: Sequence[GroupPlan], validation: Sequence[GroupPlan]) -> None:
        self.training_batches = 0
        self.validation_batches = 0
        self.items = 0
        self.padded_rows = 0
        self.first_batch_ns = 0
        self.first_wait_ns = 0
        self._groups = (*training, *validation)
        self._per_group = [0] * len(self._groups)
        self._training_groups = len(training)

    def handed(self, plan: BatchPlan, wait_ns: int) -> None:
        """A batch was handed out, after the consumer has waited for `wait_ns` in all."""
        if not self.first_batch_ns:
            self.first_batch_ns, self.first_wait_ns = time.perf_counter_ns(), wait_ns
        self.items += plan.valid
        self.padded_rows += plan.rows - plan.valid
        if plan.validation:
            self.validation_batches += 1
            self._per_group[self._training_groups + plan.group] += 1
        else:
            self.training_batches += 1
            self._per_group[plan.group] += 1

    def dropped_items(self) -> int:
        """Items left out by the passes that are complete."""
        return sum(
            count // group.batch_count * group.remainder_items
            for count, group in zip(self._per_group, self._groups, strict=True)
        )
