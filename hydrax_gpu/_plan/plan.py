"""The plan of a run: position in the stream of batches → what that batch consists of, as a pure function.

A position counts training and validation batches together, from the very beginning. With I training steps between two
validation passes of V batches, the stream is I training batches, V validation batches, and so on for ever:

    position  0 1 2 3 4 5 6 7 8 9 ...
              T T T T V V T T T T ...     I = 4, V = 2
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Literal, NamedTuple, TypeAlias, final

from hydrax_gpu._plan.blocks import GroupBatches
from hydrax_gpu._plan.groups import GroupPlan, ValidationPlan
from hydrax_gpu._plan.rows import Share, loaded_rows
from hydrax_gpu._plan.schedule import InterleavedSchedule, Schedule, SequentialSchedule, WeightedSchedule
from hydrax_gpu._plan.substitutes import substitutes

__all__ = ["JSON", "ORDER_VERSION", "BatchPlan", "Plan"]

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

ORDER_VERSION = 1
"""Goes up with every change that gives another order or other seeds for the same arguments."""


class BatchPlan(NamedTuple):
    """One batch of the stream.

    Attributes:
        position: in the stream.
        validation: whether it is a validation batch.
        group: index of its group among the training or the validation groups.
        group_batch: index of the batch in its group: the place in its pass, except that a "batchwise" shuffle moves the
            batches of pass 0 and keeps their indices.
        epoch: of the training; for validation, the number of the validation pass.
        epoch_batch: place in that epoch or validation pass.
        number: training step, or the number of the validation batch, from the beginning of the run.
        rows: leading dimension of the arrays; in a process's share of a batch, that of what the process has of them.
        valid: rows that are not padding. In a process's share: rows that it loads, the others repeating them in turn.
        indices: of the items in the group, one a row; padding repeats the valid ones in turn.
        seeds: one a row; `None` for validation.
        seed: of the batch as a whole; 0 for validation.
        group_pass: how often the group was gone through before; for training the epoch that keys its order and seeds.
            Other than `epoch` only where groups have weights.
        replaced: the rows below `valid` whose items are substitutes for ones that could not be loaded, ascending.
        share: which part of a global batch this is; None for all of it.
    """

    position: int
    validation: bool
    group: int
    group_batch: int
    epoch: int
    epoch_batch: int
    number: int
    rows: int
    valid: int
    indices: list[int]
    seeds: list[int] | None
    seed: int
    group_pass: int = 0
    replaced: tuple[int, ...] = ()
    share: Share | None = None

    @property
    def global_indices(self) -> list[int]:
        """Of the items of all rows of the global batch. Of a share they are as planned, on every process the same."""
        return self.indices if self.share is None else self.share.indices

    @property
    def real_rows(self) -> int:
        """How many rows are not padding; they are the first."""
        if self.share is None:
            return self.valid
        return bisect_left(self.share.rows, self.share.batch_valid)

    def of_rows(self, rows: Sequence[int]) -> BatchPlan:
        """What a process has of this batch that loads these of its rows.

        Whatever there is one of each row is cut down to these rows, with `share` to tell which they are; all else is as
        before, so that it is the same on every process.

        Args:
            rows: ascending.

        Raises:
            ValueError: these are not rows of the batch, or this is a share already.
        """
        if self.share is not None:
            raise ValueError("this is a process's share of a batch already; take rows of the whole batch.")
        loaded = loaded_rows(rows, self.rows, self.valid)
        indices, seeds = [self.indices[row] for row in rows], None
        if self.seeds is not None:
            seeds = [self.seeds[row] for row in rows]
        replaced = tuple(at for at in range(loaded) if rows[at] % self.valid in self.replaced)
        return self._replace(
            rows=len(rows),
            valid=loaded,
            indices=indices,
            seeds=seeds,
            replaced=replaced,
            share=Share(rows, self.rows, self.valid, self.indices),
        )

    def with_substitute(self, row: int, item: int, seed: int | None) -> BatchPlan:
        """The same batch with another item in row `row < valid`, and in the padding that repeats that row."""
        indices, seeds = self.indices.copy(), None if self.seeds is None else self.seeds.copy()
        for each in range(row, self.rows, self.valid):
            indices[each] = item
            if seeds is not None:
                assert seed is not None
                seeds[each] = seed
        replaced = tuple(sorted({*self.replaced, row}))
        return self._replace(indices=indices, seeds=seeds, replaced=replaced)


@final
class Plan:
    """The order of a run.

    For one thread at a time: answers are pure, but the last few blocks of items are kept to give the next ones cheaply.

    Attributes:
        training: the training groups.
        validation: the validation, if any.
        interleave: whether groups without weights take turns within an epoch.
        batches_per_epoch: training steps of an epoch: the sum of the groups' batch counts.
        batches_per_validation: batches of a validation pass; 0 without validation.
        end_position: the stream has the positions below this; `None` if it never ends.
        end_step: the run has the training steps below this; `None` if it never ends.
        ratios: exact share of the steps of each training group; `None` without weights.
    """

    def __init__(
        self,
        training: Sequence[GroupPlan],
        *,
        validation: ValidationPlan | None = None,
        interleave: bool = True,
        end: tuple[Literal["batch", "epoch"], int] | None = None,
    ) -> None:
        """Plans a run.

        Args:
            training: at least one group.
            validation: when and on what to validate.
            interleave: groups without weights take turns within an epoch, the least used first; otherwise they follow
                each other. Also for the groups of a validation pass. Groups with weights are always mixed.
            end: the training batch or epoch, counted from 0, before which to stop. A validation pass that is due after
                the last step is part of the run.

        Raises:
            ValueError: no groups, weights for some groups only, or an `end` that is none.
        """
        self.training = tuple(training)
        self.validation = validation
        self.interleave = interleave
        if not self.training:
            raise ValueError("a plan needs at least one training group, got none.")
        counts = [group.batch_count for group in self.training]
        self.batches_per_epoch = sum(counts)
        self.ratios: tuple[Fraction, ...] | None = None
        weights = [group.weight for group in self.training if group.weight is not None]
        self._schedule: Schedule
        if weights:
            if len(weights) < len(counts):
                without = next(i for i, group in enumerate(self.training) if group.weight is None)
                raise ValueError(f"either every training group has a weight or none, but group {without} has none.")
            self._schedule = weighted = WeightedSchedule(counts, weights)
            self.ratios = weighted.ratios
        else:
            self._schedule = _unweighted(counts, interleave)
        self._training = [GroupBatches(group, seeded=True) for group in self.training]

        self.batches_per_validation = 0
        self._interval = 1  # training steps between validation passes; any number will do without validation
        self._validation: list[GroupBatches] = []
        if validation is not None:
            validation_counts = [group.batch_count for group in validation.groups]
            self.batches_per_validation = sum(validation_counts)
            self._interval = validation.interval * (self.batches_per_epoch if validation.mode == "epoch" else 1)
            self._validation_schedule = _unweighted(validation_counts, interleave)
            self._validation = [GroupBatches(group, seeded=False) for group in validation.groups]
        self._cycle = self._interval + self.batches_per_validation

        self.end_step: int | None = None
        self.end_position: int | None = None
        if end is not None:
            unit, limit = end
            if unit not in ("batch", "epoch") or limit < 0:
                raise ValueError(f"end must be ('batch', n) or ('epoch', n) with n >= 0, got {end!r}.")
            self.end_step = limit * (self.batches_per_epoch if unit == "epoch" else 1)
            self.end_position = self.position_of_step(self.end_step)

    @property
    def last_step(self) -> int | None:
        """The last training step of the run; `None` if it never ends, -1 if it has no step."""
        return None if self.end_step is None else self.end_step - 1

    def at(self, position: int) -> BatchPlan:
        """The batch at a position.

        Raises:
            IndexError: the stream does not have that position.
        """
        if position < 0 or (self.end_position is not None and position >= self.end_position):
            last = "on" if self.end_position is None else f"to {self.end_position - 1}"
            raise IndexError(f"the plan has positions from 0 {last}, got {position}.")
        full, place = divmod(position, self._cycle)
        if place < self._interval:
            step = full * self._interval + place
            epoch, epoch_batch = divmod(step, self.batches_per_epoch)
            group, pass_, batch = self._schedule.locate(step)
            content, rows, valid, items, seeds, seed = self._training[group].get(pass_, batch)
            return BatchPlan(
                position, False, group, content, epoch, epoch_batch, step, rows, valid, items, seeds, seed, pass_
            )
        place -= self._interval
        group, _, batch = self._validation_schedule.locate(place)
        content, rows, valid, items, seeds, seed = self._validation[group].get(0, batch)
        number = full * self.batches_per_validation + place
        return BatchPlan(position, True, group, content, full, place, number, rows, valid, items, seeds, seed, full)

    def substitutes(self, batch: BatchPlan, row: int) -> Iterator[tuple[int, int | None]]:
        """`(item, seed)` of the items to try in place of the one in a row of a batch, best first; see `substitutes`."""
        groups = self.validation.groups if batch.validation and self.validation is not None else self.training
        return substitutes(groups[batch.group], batch.group_pass, batch.indices[row], seeded=not batch.validation)

    def position_of_step(self, step: int) -> int:
        """Position of a training step; a validation pass due before it has been."""
        return step + step // self._interval * self.batches_per_validation

    def step_of_position(self, position: int) -> tuple[int, int | None]:
        """What lies below a position.

        Returns:
            The number of training steps, and the number of batches of the validation pass that comes next or is in
            progress; `None` where a training step comes next.
        """
        full, place = divmod(position, self._cycle)
        if place < self._interval:
            return full * self._interval + place, None
        return (full + 1) * self._interval, place - self._interval

    def position_in_validation(self, step: int, done: int) -> int:
        """Position of batch `done` of the validation pass due before training step `step`.

        Raises:
            ValueError: there is no such pass or no such batch.
        """
        if not self._validation or step < 1 or step % self._interval or not 0 <= done < self.batches_per_validation:
            raise ValueError(f"no validation pass has batch {done} before training step {step}.")
        return self.position_of_step(step) - self.batches_per_validation + done

    def fingerprint(self) -> dict[str, JSON]:
        """Everything that determines the order, as JSON; `end` does not, and is not in it."""
        validation: JSON = None
        if self.validation is not None:
            validation = {
                "mode": self.validation.mode,
                "interval": self.validation.interval,
                "groups": [_fingerprint(group, None) for group in self.validation.groups],
            }
        ratios = self.ratios or [None] * len(self.training)
        return {
            "order": ORDER_VERSION,
            "interleave": self.interleave,
            "training": [_fingerprint(group, ratio) for group, ratio in zip(self.training, ratios, strict=True)],
            "validation": validation,
        }


def _unweighted(counts: Sequence[int], interleave: bool) -> Schedule:
    return InterleavedSchedule(counts) if interleave and len(counts) > 1 else SequentialSchedule(counts)


def _fingerprint(group: GroupPlan, ratio: Fraction | None) -> JSON:
    return {
        "length": group.length,
        "batch_size": group.batch_size,
        "seed": group.seed,
        "shuffle_first": group.shuffle_first,
        "shuffle_later": group.shuffle_later,
        "remainder": group.remainder,
        # The ratio and not the weight: 0.7 : 0.3 and 7 : 3 are one order.
        "weight": None if ratio is None else str(ratio),
    }
