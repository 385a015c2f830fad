"""What the engine remembers about bad items and lost workers, and where its patience ends. Pure, as the core is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias, final

from hydrax_gpu._engine.cached import Agreed
from hydrax_gpu._engine.messages import Load, RowFailure
from hydrax_gpu._exec.protocol import Failure, WorkerLost
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu.errors import LoaderError, TooManyBadItems, WorkerDied, WorkerStartError
from hydrax_gpu.policy import BadItems, BadLedger, ItemKey, Mode

__all__ = ["FaultBook", "FaultRules", "Substitutes"]

_STRIKES = 3
"""Workers that an item must be seen to take with it before it is held to be the reason: a worker that is killed by
somebody else, or by the kernel for want of memory, dies at some item, too, but hardly three times at the same one."""

_FORGIVING = 1000
"""Batches that make up for one death: what matters is that the loader gets on, not how often in a month it was hit."""

_HOPELESS_START = 64

_UNREAD_TRIES = 8

_FILL = "Fill it first, by a run of a group with loader_arrays; `hydrax-gpu cache info` shows how much is in it."

Substitutes: TypeAlias = Callable[[BatchPlan, int], Iterator[tuple[int, "int | None"]]]
"""`(plan, row) → (item, seed)` to try in place of that row's item, best first."""


@dataclass(frozen=True, slots=True)
class FaultRules:
    """An `ErrorPolicy` as the engine needs it.

    Attributes:
        mode: see `ErrorPolicy`.
        limit: how many different items may be bad, those of `skip` not counted; None for all.
        skip: items that are known to be bad.
        found: items that an earlier part of this run has found.
        restarts: how many deaths of workers are mended.
        epoch_batches: batches of an epoch, with the validation that belongs to it.
        delivered_before: whether earlier parts of this run had batches that were not dropped.
        in_a_row: how many batches were dropped at the end of the earlier parts.
        substitutes: what to try in place of a bad item.
    """

    mode: Mode = "raise"
    limit: int | None = None
    skip: BadItems = field(default_factory=BadItems)
    found: BadItems = field(default_factory=BadItems)
    restarts: int = 0
    epoch_batches: int = 1
    delivered_before: bool = False
    in_a_row: int = 0
    substitutes: Substitutes = lambda plan, row: iter(())


@final
class FaultBook:
    """Counts and remembers; every decision about a fault is asked for here."""

    def __init__(self, rules: FaultRules) -> None:
        self._rules = rules
        self._skip = {bad.key for bad in rules.skip}
        self._known: dict[tuple[bool, int], set[int]] = {}  # items that need not be tried, by group
        for bad in rules.skip:
            self._know(bad.key)
        for bad in rules.found:
            if bad.lethal:
                self._know(bad.key)
        self._strikes: dict[ItemKey, int] = {}
        self._circles: list[set[ItemKey]] = []  # for each death over several items those that may still be the reason
        self._ledger = BadLedger(bad for bad in rules.found if bad.key not in self._skip)
        self._ever_placed = rules.delivered_before
        self._in_a_row = rules.in_a_row
        self._deaths = 0
        self._placed = 0
        self._uncached = False  # whether a batch was left out because it is not in a cache

    # Items.

    def known_rows(self, plan: BatchPlan) -> list[int]:
        """The rows of a batch that hold items which are known to be bad and need not be tried."""
        known = self._known.get((plan.validation, plan.group))
        if known is None or known.isdisjoint(plan.indices):
            return []
        return [row for row in range(plan.valid) if plan.indices[row] in known]

    def _know(self, key: ItemKey) -> None:
        self._known.setdefault((key.validation, key.group), set()).add(key.item)

    def replaces(self, *, known: bool) -> bool:
        """Whether a bad item, known or just found, is replaced."""
        return self._rules.mode == "replace" or (known and self._rules.mode == "raise")

    def substitute(self, load: Load, row: int, agreed: Agreed | None = None) -> tuple[int, int | None] | None:
        """The next item to try in a row, and its seed; None when there is none left.

        Args:
            load: of the batch.
            row: of it.
            agreed: knows which items can be read, when they are from a cache. After some of them could not, what is
                wrong is not the items, and the others are not tried.
        """
        if agreed is not None and sum(failure.row == row for failure in load.failures) > _UNREAD_TRIES:
            return None
        tries = load.substitutes.get(row)
        if tries is None:
            tries = load.substitutes[row] = self._rules.substitutes(load.plan, row)
        known = self._known.get((load.plan.validation, load.plan.group), ())
        for item, seed in tries:
            if item not in known and (agreed is None or agreed.stands_in(load.plan, item)):
                return item, seed
        return None

    def strike(self, plan: BatchPlan, item: int, lost: WorkerLost) -> Failure | None:
        """A worker died at this item. Returns what is wrong with it if it has done that too often to be an accident."""
        key = ItemKey(plan.validation, plan.group, item)
        strikes = self._strikes.get(key, 0) + 1
        if strikes < _STRIKES:
            self._strikes[key] = strikes
            return None
        self._strikes.pop(key, None)
        self._circles = [circle for circle in self._circles if key not in circle]
        self._know(key)
        error = WorkerDied(lost.pid, lost.exitcode, [item], lost.traceback)
        return Failure(0, f"{_STRIKES} workers died over it; the last {error.how}", lost.traceback, error)

    def suspect(self, plan: BatchPlan, items: list[int]) -> None:
        """A worker died while it loaded these items in one call: one of them may be the reason, or none."""
        self._circles.append({ItemKey(plan.validation, plan.group, item) for item in items})

    def acquit(self, plan: BatchPlan, item: int) -> None:
        """This item, at which workers died, or at it and others, was loaded alone: something else has killed them."""
        key = ItemKey(plan.validation, plan.group, item)
        self._deaths += self._strikes.pop(key, 0)
        for circle in self._circles:
            circle.discard(key)
        self._deaths += sum(not circle for circle in self._circles)
        self._circles = [circle for circle in self._circles if circle]

    # Batches.

    def settle(self, load: Load) -> Exception | None:
        """To be asked in the order of the batches, when one is complete: enters its bad items.

        Returns:
            The error to end the run with, if it cannot go on.
        """
        if load.error is not None:
            return load.error
        if load.failures:
            if self._rules.mode == "raise":
                return _loader_error(load)
            for bad in load.bad_items():
                if bad.key not in self._skip:
                    self._ledger.add(bad)
            limit = self._rules.limit
            if limit is not None and len(self._ledger) > limit:
                return self._too_many(f"more items are bad than the budget of the ErrorPolicy allows ({limit}).")
        if load.hopeless:
            return self._too_many(
                "no other item of its group can stand in for a bad item: all that were tried in its place are bad too."
            )
        if not self.is_dropped(load):
            self._ever_placed = True
            self._in_a_row = 0
            self._placed += 1
            return None
        self._in_a_row += 1
        self._uncached = self._uncached or load.uncached
        if load.uncached:
            # Which batches are in a cache is no matter of luck, as faults are: others may well be.
            if self._in_a_row < self._rules.epoch_batches:
                return None
            return self._too_many(
                f"none of the batches of a whole epoch ({self._in_a_row} in a row) could be had: those of a group "
                f"without loader_arrays come from its cache alone, and this one is not in it. {_FILL}"
            )
        advice = "on_error=ErrorPolicy(mode='replace') replaces items and not batches, mode='raise' shows the first."
        if self._in_a_row >= self._rules.epoch_batches:
            return self._too_many(f"all batches of a whole epoch ({self._in_a_row} in a row) had bad items. {advice}")
        if not self._ever_placed and self._in_a_row >= _HOPELESS_START:
            return self._too_many(f"each of the first {self._in_a_row} batches had bad items. {advice}")
        return None

    def is_dropped(self, load: Load) -> bool:
        """Whether a complete batch is to be left out."""
        return load.dropped or (bool(load.failures) and self._rules.mode == "drop")

    def finish(self) -> Exception | None:
        """The error to end the run with, if all its batches were dropped."""
        if self._in_a_row and not self._ever_placed:
            if self._uncached:
                return self._too_many(
                    f"all batches ({self._in_a_row}) were left out, because they are not in the cache from which "
                    f"alone they come, or had bad items. {_FILL}"
                )
            return self._too_many(f"all batches ({self._in_a_row}) had bad items, and nothing is left of the data.")
        return None

    # Workers.

    def lost(self, lost: WorkerLost, items: list[int], *, suspect: bool, began: bool) -> Exception | None:
        """A worker was lost.

        Args:
            lost: how.
            items: the indices of what it had been given and not finished.
            suspect: whether it was at an item: that is counted when the item is acquitted.
            began: whether that worker, or one in whose place it came, has ever been ready.

        Returns:
            The error to end the run with, if it is not to be replaced.
        """
        if not suspect:
            self._deaths += 1
        allowed = self._rules.restarts + self._placed // _FORGIVING
        if self._rules.restarts and self._deaths <= allowed and (began or lost.error is None):
            return None
        if lost.error is not None:
            error = WorkerStartError(f"a worker could not start: {lost.error}\n\n{lost.traceback}".rstrip())
            error.__cause__ = lost.exception
            return error
        deaths = self._deaths if self._rules.restarts else None
        return WorkerDied(lost.pid, lost.exitcode, items, lost.traceback, deaths)

    def _too_many(self, reason: str) -> TooManyBadItems:
        return TooManyBadItems(reason, BadItems([*self._ledger.snapshot(), *self._rules.skip]))


def _loader_error(load: Load) -> LoaderError:
    first: RowFailure = min(load.failures, key=lambda entry: entry.row)
    plan = load.plan
    error = LoaderError(
        item_index=first.item,
        group_index=plan.group,
        validation=plan.validation,
        seed=first.seed,
        epoch=plan.group_pass,
        error=first.failure.error,
        worker_traceback=first.failure.traceback,
    )
    error.__cause__ = first.failure.exception
    return error
