"""What a `Dataloader` is put together of, and what its report says of these parts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

import numpy.typing as npt

from hydrax_gpu import _place
from hydrax_gpu._engine import EpollInbox, Runner, StageClock
from hydrax_gpu._exec.inline import InlineExecutor
from hydrax_gpu._exec.procs import ProcessExecutor
from hydrax_gpu._exec.protocol import Executor, WorkSpec
from hydrax_gpu._exec.threads import ThreadExecutor
from hydrax_gpu._kernels.choice import Choice
from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._plan import Plan
from hydrax_gpu._spec import LayoutTuple
from hydrax_gpu.batch import columns
from hydrax_gpu.group import DataGroup, plan_of
from hydrax_gpu.trace import Trace

if TYPE_CHECKING:
    import jax

__all__ = [
    "ExecutorName",
    "UserPlacement",
    "decoded_by",
    "first_validation",
    "log_remainders",
    "new_executor",
    "new_stages",
    "notes_of",
    "user_placement",
]

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


def new_stages(trace: Trace | None, executor: str, workers: int, depth: int) -> StageClock:
    """What measures the stages of a loader, and writes them down if there is a trace.

    Raises:
        OSError: that cannot be written.
        RuntimeError: it is another loader's.
    """
    if trace is not None:
        trace.open({"executor": executor, "workers": workers, "depth": depth, "cores": len(os.sched_getaffinity(0))})
    return StageClock(workers, trace=trace)


def first_validation(plan: Plan, position: int, first_step: int) -> tuple[int, int]:
    """Validation passes and batches before a position; a pass that is resumed in its middle counts as the first."""
    _, done = plan.step_of_position(position)
    per_pass = plan.batches_per_validation
    if not per_pass:
        return 0, 0
    passes = (position - first_step - (done or 0)) // per_pass
    return passes, passes * per_pass


def user_placement(function: UserPlacement[D] | None, groups: tuple[DataGroup[D], ...]) -> _place.PlacementFunc | None:
    """A user's `placement_func` as the placer calls it."""
    if function is None:
        return None

    def place(arrays: Mapping[str, npt.NDArray[Any]], layout: int, additional: Any) -> Mapping[str, Any]:
        group = groups[layout]
        rows = len(next(iter(arrays.values())))
        extra = MappingProxyType(columns(additional, rows))
        return function(cast("MappingProxyType[str, npt.NDArray[Any]]", arrays), group.loader_layouts, extra, group)

    return place


def decoded_by(kernels: Choice | None, placer: _place.Placer | None) -> str:
    """Who decodes what declared arrays hold; "" when there is nothing to decode."""
    if kernels is None:
        return ""
    on_device = placer.decoded_there if placer is not None else []
    if placer is None or not any(on_device):
        return str(kernels)
    return f"{placer.device_name}" if all(on_device) else f"{placer.device_name}, {kernels}"


def notes_of(plan: Plan, runner: Runner | None, placer: _place.Placer | None) -> tuple[str, ...]:
    """Whatever is not as was asked for, or costs more than it need."""
    notes: list[str] = []
    if runner is not None and any(worker.imported_jax for worker in runner.workers.values()):
        notes.append(
            "the workers import jax, because the module of the loader function does: in a module without it they "
            "start faster and need less memory"
        )
    if placer is not None:
        notes.extend(placer.notes)
    if runner is not None and runner.stages.note is not None:
        notes.append(runner.stages.note)
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
