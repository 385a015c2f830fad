"""What a plan is made from: the groups of items, and the validation that runs between training steps."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias, get_args

from hydrax_gpu._plan.philox import KEY_LIMIT
from hydrax_gpu._plan.seeds import INDEX_LIMIT

__all__ = ["GroupPlan", "Remainder", "ShuffleLater", "ValidationPlan"]

Remainder: TypeAlias = Literal["drop", "pad", "short"]
ShuffleLater: TypeAlias = Literal["repeat", "reseed", "itemwise", "batchwise"]


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What determines the order of one group.

    Attributes:
        length: number of items, in `[1, 2**62]`.
        batch_size: rows of a batch.
        seed: in `[0, 2**64)`. Groups of the same seed have the same seeds for the same item indices.
        shuffle_first: whether pass 0 is shuffled.
        shuffle_later: what the passes after it do. "repeat": the order and the seeds of pass 0. "reseed": its order
            with new seeds. "itemwise": a new order of the items and new seeds. "batchwise": the batches of pass 0,
            their seeds included, in a new order.
        remainder: what becomes of the items that do not fill a last batch. "drop": left out. "pad": the batch repeats
            them up to its full size. "short": the batch has fewer rows.
        weight: share of the training steps, relative to the other groups' weights; `None` for one pass an epoch.
    """

    length: int
    batch_size: int
    seed: int
    shuffle_first: bool
    shuffle_later: ShuffleLater
    remainder: Remainder
    weight: float | Fraction | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.length <= INDEX_LIMIT:
            raise ValueError(f"a group needs between 1 and 2**62 items, got {self.length}. Leave an empty group out.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}.")
        if not 0 <= self.seed < KEY_LIMIT:
            raise ValueError(f"seed must be in [0, 2**64), got {self.seed}. Reduce it modulo 2**64.")
        for name, value, values in (
            ("shuffle_later", self.shuffle_later, get_args(ShuffleLater)),
            ("remainder", self.remainder, get_args(Remainder)),
        ):
            if value not in values:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, values))}, got {value!r}.")
        if self.batch_count == 0:
            raise ValueError(
                f"batch_size {self.batch_size} is more than the {self.length} items of the group, and remainder='drop' "
                f"leaves out the batch that they do not fill: no batch is left. Use remainder='pad' or 'short', or a "
                f"batch_size of at most {self.length}."
            )

    @property
    def batch_count(self) -> int:
        """Batches of a pass over the group."""
        full = self.length // self.batch_size
        return full if self.remainder == "drop" else full + (self.length % self.batch_size > 0)

    @property
    def remainder_items(self) -> int:
        """Items that a pass leaves out: other than 0 only with `remainder="drop"`."""
        return self.length % self.batch_size if self.remainder == "drop" else 0


@dataclass(frozen=True, slots=True)
class ValidationPlan:
    """When validation runs, and on what.

    Attributes:
        mode: unit of the interval: training batches or epochs.
        interval: number of them between two validation passes.
        groups: each pass goes through all of them, in the order of their pass 0.
    """

    mode: Literal["batch", "epoch"]
    interval: int
    groups: tuple[GroupPlan, ...]

    def __post_init__(self) -> None:
        if self.mode not in ("batch", "epoch"):
            raise ValueError(f"the mode of validation must be 'batch' or 'epoch', got {self.mode!r}.")
        if self.interval < 1:
            raise ValueError(f"the interval of validation must be at least 1, got {self.interval}.")
        if not self.groups:
            raise ValueError("validation needs at least one group, got none. Pass validation=None to do without it.")
        for index, group in enumerate(self.groups):
            if group.weight is not None:
                raise ValueError(
                    f"validation group {index} has weight {group.weight}, but a validation pass goes once through "
                    "every group. Remove the weight."
                )
