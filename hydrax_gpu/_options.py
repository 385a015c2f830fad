"""What the arguments of a `Dataloader` mean: where to begin, when to end, what is known already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast

from hydrax_gpu._arguments import at_least, choice
from hydrax_gpu._plan import Plan, from_state
from hydrax_gpu.policy import BadItems, bad_from_state

__all__ = ["Unit", "begin_of", "check_bad_items", "end_of", "faults_of", "first_validation", "validation_of"]

Unit: TypeAlias = Literal["batch", "epoch"]


def begin_of(plan: Plan, start_at: tuple[int, int] | Mapping[str, Any]) -> tuple[int, frozenset[int]]:
    """The position that `start_at` names, and those after it that were handed out before.

    Raises:
        TypeError, ValueError: it is neither a pair nor a state.
        StateMismatch: it is a state of another order.
    """
    if isinstance(start_at, Mapping):
        return from_state(plan, dict(start_at))
    try:
        epoch, batch = start_at
        epoch, batch = at_least("start_at epoch", epoch, 0), at_least("start_at batch", batch, 0)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"start_at: got {start_at!r}, wanted (epoch, batch), both at least 0, or what state() returned"
        ) from None
    return plan.position_of_step(epoch * plan.batches_per_epoch + batch), frozenset()


def faults_of(start_at: object) -> tuple[BadItems, tuple[int, int]]:
    """The bad items that a state has, the number of batches that were dropped, and how many of those were the last.

    Raises:
        TypeError, ValueError: the state is damaged.
    """
    if not isinstance(start_at, Mapping):
        return BadItems(), (0, 0)
    state = cast("Mapping[str, Any]", start_at)
    dropped, last = (at_least(f"the state's {key!r}", state.get(key, 0), 0) for key in ("dropped", "dropped_in_a_row"))
    return BadItems(bad_from_state(state.get("bad", []))), (dropped, last)


def check_bad_items(what: str, bad: BadItems, training: Sequence[int], validation: Sequence[int]) -> None:
    """Raises ValueError if items are bad that groups of these lengths do not have."""
    for item in bad:
        lengths, kind = (validation, "validation") if item.validation else (training, "training")
        if item.group >= len(lengths):
            raise ValueError(
                f"{what} names item {item.item} of {kind} group {item.group}, but there are {len(lengths)} {kind} "
                "groups. Is it of another loader?"
            )
        if item.item >= lengths[item.group]:
            raise ValueError(
                f"{what} names item {item.item} of {kind} group {item.group}, which has {lengths[item.group]} items. "
                "Is it of other data?"
            )


def validation_of(validation: Any) -> tuple[Unit, int, Any]:
    """The parts of `validation`: after what, how often, and the groups.

    Raises:
        TypeError, ValueError: it has other parts.
    """
    try:
        mode, interval, groups = validation
    except (TypeError, ValueError):
        raise TypeError(f"validation: got {validation!r}, wanted ('batch' or 'epoch', interval, groups)") from None
    choice("validation mode", mode, ("batch", "epoch"))
    return mode, at_least("validation interval", interval, 1), groups


def end_of(end_at: Any) -> tuple[Unit, int] | None:
    """`end_at` checked.

    Raises:
        TypeError, ValueError: it is not a unit and a count.
    """
    if end_at is None:
        return None
    try:
        unit, count = end_at
    except (TypeError, ValueError):
        raise TypeError(f"end_at: got {end_at!r}, wanted ('batch' or 'epoch', n), or None") from None
    choice("end_at unit", unit, ("batch", "epoch"))
    return unit, at_least("end_at", count, 0)


def first_validation(plan: Plan, position: int, first_step: int) -> tuple[int, int]:
    """Validation passes and batches before the start; a pass that is resumed in its middle counts as the first."""
    _, done = plan.step_of_position(position)
    per_pass = plan.batches_per_validation
    if not per_pass:
        return 0, 0
    passes = (position - first_step - (done or 0)) // per_pass
    return passes, passes * per_pass
