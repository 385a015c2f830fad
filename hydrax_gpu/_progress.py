"""What a loader has handed out, counted by the consumer."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from hydrax_gpu._plan import OWN, BatchPlan, GroupPlan
from hydrax_gpu.policy import BadItem, BadLedger

__all__ = ["Progress"]

_log = logging.getLogger("hydrax_gpu")

_LOGGED = 20
"""Bad items that are logged, one by one."""


class Progress:
    """Counters for the report.

    Args:
        training: the training groups.
        validation: the validation groups.
        known: bad items that are known from before.
        dropped: batches that an earlier part of this run has left out, and how many of them were its last.
        own: those of the known bad items that, of several processes, this one alone knows.
    """

    def __init__(
        self,
        training: Sequence[GroupPlan],
        validation: Sequence[GroupPlan],
        known: Iterable[BadItem] = (),
        dropped: tuple[int, int] = (0, 0),
        own: Iterable[BadItem] = (),
    ) -> None:
        self.bad = BadLedger(known)
        self._common = self.bad.to_state()
        self.own = BadLedger()
        for bad in own:
            self.own.add(bad)
            self.bad.add(bad)
        self.dropped_batches, self.dropped_in_a_row = dropped
        self.replaced_items = 0
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
        self.replaced_items += len(plan.replaced)
        self.dropped_in_a_row = 0
        self._done(plan)
        if not self.first_batch_ns:
            self.first_batch_ns, self.first_wait_ns = time.perf_counter_ns(), wait_ns
        self.items += plan.real_rows
        self.padded_rows += plan.rows - plan.real_rows
        if plan.validation:
            self.validation_batches += 1
        else:
            self.training_batches += 1

    def dropped(self, plan: BatchPlan) -> None:
        """A batch was left out."""
        self.dropped_batches += 1
        self.dropped_in_a_row += 1
        self._done(plan)

    def found(self, bad: Iterable[BadItem]) -> None:
        """Items turned out to be bad."""
        for item in bad:
            self.own.add(item)
            if self.bad.add(item):
                self._say(item)

    def to_state(self, *, several: bool) -> dict[str, Any]:
        """What a saved state has of all this.

        Args:
            several: whether this is one of several processes: then what it knows from before, as the others do, and
                what it has found itself are kept apart.
        """
        bad = {"bad": self._common, OWN: {"bad": self.own.to_state()}} if several else {"bad": self.bad.to_state()}
        return {**bad, "dropped": self.dropped_batches, "dropped_in_a_row": self.dropped_in_a_row}

    def _say(self, bad: BadItem) -> None:
        count = len(self.bad)
        if count <= _LOGGED:
            last = "" if count < _LOGGED else "; further ones are in report().bad only"
            kind = "validation" if bad.validation else "training"
            _log.warning("item %d of %s group %d is bad: %s%s", bad.item, kind, bad.group, bad.error, last)

    def _done(self, plan: BatchPlan) -> None:
        self._per_group[plan.group + (self._training_groups if plan.validation else 0)] += 1

    def dropped_items(self) -> int:
        """Items left out by the passes that are complete."""
        return sum(
            count // group.batch_count * group.remainder_items
            for count, group in zip(self._per_group, self._groups, strict=True)
        )
