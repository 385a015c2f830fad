"""Where a run is, as a small JSON object, and back.

The state counts in epochs, batches and validation batches and not in positions, so that it can be read, and so that it
says the same whatever the validation interval makes of positions:

    {"version": 1, "epoch": 3, "batch": 17, "validation": null, "ahead": [2], "fingerprint": {...}}

`epoch` and `batch` are the training steps done, `validation` the batches done of the validation pass that comes next or
is in progress (null where a training step comes next), `ahead` the offsets of batches that were handed out before their
turn. Other keys are left to others (the loader keeps `bad` and `dropped` there: bad items, batches left out).

Where several processes have a share of each batch, their states at the same step are equal but for one key: `process`,
under which each has what it alone knows, the bad items that it has found itself. `merge_states` makes one state of
theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from hydrax_gpu._plan.agreement import require_equal
from hydrax_gpu._plan.plan import JSON, Plan
from hydrax_gpu.errors import StateMismatch
from hydrax_gpu.policy import BadLedger, bad_from_state

__all__ = ["OWN", "STATE_VERSION", "common_part", "from_state", "merge_states", "to_state"]

STATE_VERSION = 1

OWN = "process"
"""The key of what a process alone knows."""


def to_state(plan: Plan, position: int, ahead: Collection[int] = ()) -> dict[str, JSON]:
    """The state of a run.

    Args:
        plan: of the run.
        position: every batch below it was handed out.
        ahead: positions from there on that were handed out too.
    """
    offsets = sorted({other - position for other in ahead})
    if position < 0 or (offsets and offsets[0] < 0):
        raise ValueError(f"position must be at least 0 and none ahead below it, got {position} and {sorted(ahead)}.")
    step, done = plan.step_of_position(position)
    epoch, batch = divmod(step, plan.batches_per_epoch)
    return {
        "version": STATE_VERSION,
        "epoch": epoch,
        "batch": batch,
        "validation": done,
        "ahead": list(offsets),
        "fingerprint": plan.fingerprint(),
    }


def from_state(plan: Plan, state: Mapping[str, object]) -> tuple[int, frozenset[int]]:
    """The `position` and `ahead` that a state was made from.

    Raises:
        StateMismatch: the state belongs to another order than the plan's.
        ValueError: it is not a state.
    """
    state = _mapping("the state", state)
    version = _field(state, "version")
    if version != STATE_VERSION or isinstance(version, bool):
        raise ValueError(
            f"the state has version {version!r}, but this release reads version {STATE_VERSION}. "
            "Resume with the release that wrote it."
        )
    epoch, batch = _count(state, "epoch"), _count(state, "batch")
    done = None if _field(state, "validation") is None else _count(state, "validation")
    offsets = _field(state, "ahead")
    if not isinstance(offsets, list | tuple):
        raise ValueError(f"the state's 'ahead' must be a list of integers, got {offsets!r}. {_ADVICE}")
    ahead = [_as_count("ahead", offset) for offset in cast("list[object]", offsets)]
    _compare("", _mapping("the state's 'fingerprint'", _field(state, "fingerprint")), plan.fingerprint())

    # Only now: against another plan these would be misread as damage.
    if batch >= plan.batches_per_epoch:
        raise ValueError(
            f"the state's 'batch' must be below {plan.batches_per_epoch}, the batches of an epoch, got {batch}. "
            f"{_ADVICE}"
        )
    step = epoch * plan.batches_per_epoch + batch
    if done is None:
        position = plan.position_of_step(step)
    else:
        try:
            position = plan.position_in_validation(step, done)
        except ValueError as error:
            raise ValueError(f"the state's 'validation' is {done}, but {error} {_ADVICE}") from error
    return position, frozenset(position + offset for offset in ahead)


def common_part(state: Mapping[str, Any]) -> dict[str, Any]:
    """What of a state is the same on all processes at the same step: all but what one of them alone knows."""
    return {key: value for key, value in state.items() if key != OWN}


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One state of those that the processes of a run have at the same step, in the order of the processes.

    It has the bad items of all of them. A run of any number of processes, one included, can go on with it, if all of
    its processes are given it.

    Raises:
        StatesDiffer: they are not of the same step of the same run; names the first field that differs.
        ValueError: there is none, or one of them is damaged.
    """
    if not states:
        raise ValueError("wanted the states of all processes, got none.")
    merged = common_part(states[0])
    for number, state in enumerate(states):
        require_equal(merged, common_part(state), number)
    if not any(OWN in state for state in states):
        return merged
    ledger = BadLedger(bad_from_state(merged.get("bad", [])))
    for state in states:
        own = state.get(OWN, {})
        if not isinstance(own, Mapping):
            raise ValueError(f"the state's {OWN!r} must be a dict, got {own!r}. {_ADVICE}")
        for bad in bad_from_state(cast("Mapping[str, object]", own).get("bad", [])):
            ledger.add(bad)
    return {**merged, "bad": ledger.to_state()}


_ADVICE = "The state is damaged, or not one of this loader: pass on unchanged what was saved."


def _compare(path: str, saved: object, current: JSON) -> None:
    """Raises `StateMismatch` for the first leaf that differs, in the order of `current`."""
    if isinstance(current, dict) and isinstance(saved, Mapping):
        fields = cast("Mapping[str, object]", saved)
        for name, value in current.items():
            where = f"{path}.{name}" if path else name
            if name not in fields:
                raise ValueError(f"the state's fingerprint lacks {where!r}. {_ADVICE}")
            _compare(where, fields[name], value)
        for name in fields:
            if name not in current:
                raise StateMismatch(f"{path}.{name}" if path else name, fields[name], "absent")
    elif isinstance(current, list) and isinstance(saved, list | tuple):
        entries = cast("list[object]", saved)
        if len(entries) != len(current):
            raise StateMismatch(f"number of {path} groups", len(entries), len(current))
        for index, (entry, value) in enumerate(zip(entries, current, strict=True)):
            _compare(f"{path}[{index}]", entry, value)
    # 1 == True == 1.0 in Python, and none of them stands for another here.
    elif type(saved) is not type(current) or saved != current:
        raise StateMismatch(path, _short(saved), _short(current))


def _short(value: object) -> object:
    # A whole validation plan against none: the message needs no list of its groups.
    return "present" if isinstance(value, Mapping | list | tuple) else value


def _mapping(what: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} must be a dict as it was saved, got {type(value).__name__}: {value!r}.")
    return cast("Mapping[str, object]", value)


def _field(state: Mapping[str, object], name: str) -> object:
    if name not in state:
        raise ValueError(f"the state lacks {name!r}; it has {sorted(map(str, state))}. {_ADVICE}")
    return state[name]


def _count(state: Mapping[str, object], name: str) -> int:
    return _as_count(name, _field(state, name))


def _as_count(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"the state's {name!r} must hold integers of at least 0, got {value!r}. {_ADVICE}")
    return value
