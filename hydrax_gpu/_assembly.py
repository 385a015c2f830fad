"""What a `Dataloader` is put together of, and what its report says of these parts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

import numpy.typing as npt

from hydrax_gpu import _place
from hydrax_gpu._engine import EpollInbox, Runner
from hydrax_gpu._exec.inline import InlineExecutor
from hydrax_gpu._exec.procs import ProcessExecutor
from hydrax_gpu._exec.protocol import Executor, WorkSpec
from hydrax_gpu._exec.threads import ThreadExecutor
from hydrax_gpu._kernels.choice import Choice
from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._plan import Plan
from hydrax_gpu._spec import Layout, LayoutTuple
from hydrax_gpu.batch import columns
from hydrax_gpu.group import DataGroup, layout_of, plan_of

if TYPE_CHECKING:
    import jax

__all__ = [
    "ExecutorName",
    "Sharding",
    "UserPlacement",
    "decoded_by",
    "log_remainders",
    "new_executor",
    "new_placer",
    "notes_of",
    "shards_of",
]

REPLACES = "bad items are replaced, and no batch is dropped, since that would have to be known to all processes"
"""What a loader for one of several processes says of `on_error="drop"`."""

_log = logging.getLogger("hydrax_gpu")

D = TypeVar("D")

ExecutorName: TypeAlias = Literal["process", "thread", "inline"]

UserPlacement: TypeAlias = Callable[
    [
        "MappingProxyType[str, npt.NDArray[Any]]",
        "MappingProxyType[str, LayoutTuple]",
        "MappingProxyType[str, Sequence[Any]]",
        DataGroup[D],
    ],
    "Mapping[str, jax.Array]",
]
"""`placement_func`, see `Dataloader`: arrays, layouts, additional data and group → `jax.Array`s."""

Sharding: TypeAlias = "jax.sharding.Sharding"

_PlacerOf: TypeAlias = "_place.Placer | _place.ShardedPlacer | None"


def new_executor(name: ExecutorName, spec: WorkSpec, arena: Arena, inbox: EpollInbox, workers: int) -> Executor:
    """The executor of that name.

    Raises:
        TypeError: the loader function cannot be sent to worker processes; inbox and arena's file are closed then.
    """
    match name:
        case "process":
            try:
                return ProcessExecutor(spec, arena, inbox, workers)
            except TypeError:  # nobody else would give their file descriptors back
                inbox.close()
                arena.mapping.close_fd()
                raise
        case "thread":
            return ThreadExecutor(spec, arena, inbox, workers)
        case "inline":
            return InlineExecutor(spec, arena, inbox)


def shards_of(
    sharding: Sharding | Mapping[str, Sharding] | None,
    training: Sequence[DataGroup[Any]],
    validation: Sequence[DataGroup[Any]],
    placement_func: object,
    deterministic: bool,
) -> _place.Shards | None:
    """What `sharding` makes of the groups' batches, None without one.

    Raises:
        TypeError, ValueError: it does not fit the groups, or the other arguments.
    """
    if sharding is None:
        return None
    if placement_func is not None:
        raise ValueError(
            "got both sharding and placement_func, which both say where the arrays are placed; wanted one of them"
        )
    plans = [plan_of(group) for group in (*training, *validation)]
    shards = _place.Shards(
        sharding,
        [layout_of(group) for group in (*training, *validation)],
        [plan.length % plan.batch_size if plan.remainder == "short" else 0 for plan in plans],
    )
    if shards.several and not deterministic:
        raise ValueError(
            "got deterministic=False with a sharding over devices of several processes: each would have its batches "
            "in an order of its own, and global arrays of rows of different batches. Wanted deterministic=True"
        )
    return shards


def new_placer(
    arena: Arena,
    layouts: Sequence[Layout],
    delivery: Literal["auto", "alias", "copy"],
    function: UserPlacement[D] | None,
    groups: tuple[DataGroup[D], ...],
    shards: _place.Shards | None,
) -> _place.Placer | _place.ShardedPlacer:
    """What makes the arrays."""
    if shards is not None:
        return _place.ShardedPlacer(arena, shards, delivery)
    return _place.Placer(arena, layouts, delivery, _user_placement(function, groups))


def _user_placement(function: UserPlacement[D] | None, groups: tuple[DataGroup[D], ...]) -> _place.PlacementFunc | None:
    """A user's `placement_func` as the placer calls it."""
    if function is None:
        return None

    def place(arrays: Mapping[str, npt.NDArray[Any]], layout: int, additional: Any) -> Mapping[str, Any]:
        group = groups[layout]
        rows = len(next(iter(arrays.values())))
        extra = MappingProxyType(columns(additional, rows))
        return function(cast("MappingProxyType[str, npt.NDArray[Any]]", arrays), group.loader_layouts, extra, group)

    return place


def decoded_by(kernels: Choice | None, placer: _PlacerOf) -> str:
    """Who decodes what declared arrays hold; "" when there is nothing to decode."""
    if kernels is None:
        return ""
    on_device = placer.decoded_there if placer is not None else []
    if placer is None or not any(on_device):
        return str(kernels)
    return f"{placer.device_name}" if all(on_device) else f"{placer.device_name}, {kernels}"


def notes_of(plan: Plan, runner: Runner | None, placer: _PlacerOf, *, replaces: bool) -> tuple[str, ...]:
    """Whatever is not as was asked for, or costs more than it need.

    Args:
        plan: of the run.
        runner: None before the loader was entered.
        placer: as `runner`.
        replaces: whether bad items are replaced although they were to drop their batches.
    """
    notes = [REPLACES] if replaces else []
    if runner is not None and any(worker.imported_jax for worker in runner.workers.values()):
        notes.append(
            "the workers import jax, because the module of the loader function does: in a module without it they "
            "start faster and need less memory"
        )
    if placer is not None:
        notes.extend(placer.notes)
    notes += [f"a training group supplies exactly {ratio} of the batches" for ratio in plan.ratios or ()]
    return tuple(notes)


def log_remainders(kind: str, groups: tuple[DataGroup[Any], ...]) -> None:
    """Says which items are left out because they do not fill a batch."""
    for index, group in enumerate(groups):
        left_out = plan_of(group).remainder_items
        if left_out:
            _log.info(
                "%s group %d: %d of %d items do not fill a batch of %d and are left out of each pass "
                "(remainder='drop'; 'pad' and 'short' keep them)",
                kind, index, left_out, len(group), group.batch_size,
            )  # fmt: skip
