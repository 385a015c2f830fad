"""What a `Dataloader` is put together of, and what its report says of these parts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

import numpy.typing as npt

from hydrax_gpu import _place
from hydrax_gpu._engine import EpollInbox, FaultRules, Runner
from hydrax_gpu._exec.inline import InlineExecutor
from hydrax_gpu._exec.procs import ProcessExecutor
from hydrax_gpu._exec.protocol import Executor, WorkSpec
from hydrax_gpu._exec.threads import ThreadExecutor
from hydrax_gpu._kernels.choice import Choice
from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._plan import Plan
from hydrax_gpu._progress import Progress
from hydrax_gpu._spec import LayoutTuple
from hydrax_gpu.batch import columns
from hydrax_gpu.group import DataGroup, plan_of
from hydrax_gpu.policy import BadItems, ErrorPolicy
from hydrax_gpu.trace import Trace

if TYPE_CHECKING:
    import jax

__all__ = [
    "ExecutorName",
    "UserPlacement",
    "begin_trace",
    "check_functions",
    "decoded_by",
    "fault_rules",
    "log_remainders",
    "new_executor",
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


def check_functions(loader_func: object, startup_func: object, placement_func: object) -> None:
    """Raises TypeError if one of them cannot be called."""
    functions = {"loader_func": loader_func, "startup_func": startup_func, "placement_func": placement_func}
    for name, function in functions.items():
        if name == "loader_func" and callable(getattr(function, "load_rows", None)):
            continue
        if not callable(function) and not (function is None and name != "loader_func"):
            raise TypeError(f"{name}: got {function!r}, wanted a callable")


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


def begin_trace(trace: Trace | None, runner: Runner, executor: str, depth: int) -> None:
    """Has the runner write down what it does, if there is a trace.

    Raises:
        OSError: that cannot be written.
        RuntimeError: it is another loader's.
    """
    if trace is not None:
        workers, cores = runner.executor.count, len(os.sched_getaffinity(0))
        trace.open({"executor": executor, "workers": workers, "depth": depth, "cores": cores})
        runner.stages.trace = trace


def fault_rules(
    policy: ErrorPolicy,
    plan: Plan,
    groups: Sequence[DataGroup[Any]],
    found: BadItems,
    position: int,
    progress: Progress,
) -> FaultRules:
    """An `ErrorPolicy` as the engine needs it, for a run that begins at a position."""
    return FaultRules(
        mode=policy.mode,
        limit=policy.limit(sum(map(len, groups))),
        skip=policy.skipped,
        found=found,
        restarts=policy.restarts,
        epoch_batches=plan.batches_per_epoch + plan.batches_per_validation,
        delivered_before=position > progress.dropped_batches,
        in_a_row=progress.dropped_in_a_row,
        substitutes=plan.substitutes,
    )


def user_placement(
    function: UserPlacement[D] | None, groups: tuple[DataGroup[D], ...], cached: Sequence[int]
) -> _place.PlacementFunc | None:
    """A user's `placement_func` as the placer calls it.

    Args:
        function: the user's.
        groups: the groups, whose layouts are the first.
        cached: for each group the index of the layout of its cached batches.
    """
    if function is None:
        return None
    known = {index: (group, group.loader_layouts) for index, group in enumerate(groups)}
    for group, index in zip(groups, cached, strict=True):
        if group.cache_layouts is not None:
            known[index] = group, group.cache_layouts

    def place(arrays: Mapping[str, npt.NDArray[Any]], layout: int, additional: Any) -> Mapping[str, Any]:
        group, layouts = known[layout]
        rows = len(next(iter(arrays.values())))
        extra = MappingProxyType(columns(additional, rows))
        return function(cast("MappingProxyType[str, npt.NDArray[Any]]", arrays), layouts, extra, group)

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
