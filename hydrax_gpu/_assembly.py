"""What a `Dataloader` is put together of, and what its report says of these parts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

import numpy.typing as npt

from hydrax_gpu import _place
from hydrax_gpu._cachesetup import all_layouts
from hydrax_gpu._engine import EpollInbox, FaultRules, Runner, Stream
from hydrax_gpu._exec.inline import InlineExecutor
from hydrax_gpu._exec.procs import ProcessExecutor
from hydrax_gpu._exec.protocol import Executor, WorkSpec
from hydrax_gpu._exec.threads import ThreadExecutor
from hydrax_gpu._kernels.choice import Choice
from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._mem.encoded import Encoded, with_encoded
from hydrax_gpu._mem.graphs import GraphLoader, with_graph
from hydrax_gpu._plan import Plan
from hydrax_gpu._progress import Progress
from hydrax_gpu._spec import Layout, LayoutTuple
from hydrax_gpu._stages import Stages
from hydrax_gpu.batch import columns
from hydrax_gpu.group import DataGroup, cache_of, data_of, plan_of
from hydrax_gpu.policy import BadItems, ErrorPolicy
from hydrax_gpu.report import WorkerInfo
from hydrax_gpu.trace import Trace

if TYPE_CHECKING:
    import jax

__all__ = [
    "ExecutorName",
    "Sharding",
    "UserPlacement",
    "begin_trace",
    "check_functions",
    "decoded_by",
    "engine_report",
    "fault_rules",
    "log_remainders",
    "memory_report",
    "new_executor",
    "new_placer",
    "notes_of",
    "shards_of",
    "with_files",
]

REPLACES = "bad items are replaced, and no batch is dropped, since that would have to be known to all processes"
"""What a loader for one of several processes says of `on_error="drop"`."""

NOT_THERE = "workers do on the CPU what the loader was to do on a GPU (device='gpu'); on one it needs delivery='alias'"
"""What is said when a loader that asks for a device does not get it."""

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


def check_functions(loader_func: object, startup_func: object, placement_func: object) -> None:
    """Raises TypeError if one of them cannot be called."""
    functions = {"loader_func": loader_func, "startup_func": startup_func, "placement_func": placement_func}
    for name, function in functions.items():
        if name == "loader_func" and callable(getattr(function, "load_rows", None)):
            continue
        if not callable(function) and not (function is None and name != "loader_func"):
            raise TypeError(f"{name}: got {function!r}, wanted a callable")


def new_executor(name: ExecutorName, spec: WorkSpec, arena: Arena, inbox: EpollInbox, first: int) -> Executor:
    """The executor of that name, with `first` workers in the beginning and as many at most as the arena has room for.

    Raises:
        TypeError: the loader function cannot be sent to worker processes; inbox and arena's file are closed then.
    """
    match name:
        case "process":
            try:
                return ProcessExecutor(spec, arena, inbox, arena.shape.workers, first)
            except TypeError:  # nobody else would give their file descriptors back
                inbox.close()
                arena.mapping.close_fd()
                raise
        case "thread":
            return ThreadExecutor(spec, arena, inbox, arena.shape.workers, first)
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
    groups = (*training, *validation)
    layouts, cached = all_layouts(groups)
    plans = [plan_of(group) for group in groups]
    shards = _place.Shards(
        sharding,
        layouts,
        [plan.length % plan.batch_size if plan.remainder == "short" else 0 for plan in plans],
        cached,
    )
    for group, layout in zip(groups, cached, strict=True):
        cache = cache_of(group)
        if cache is not None and cache.kind == "encoded" and not cache.readonly:
            for rows in shards.sizes(layout):
                shards.owned(layout, rows)  # raises where nobody could write them: now, and on all processes
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
    cached: Sequence[int],
    shards: _place.Shards | None,
) -> _place.Placer | _place.ShardedPlacer:
    """What makes the arrays."""
    if shards is not None:
        return _place.ShardedPlacer(arena, shards, delivery)
    return _place.Placer(arena, layouts, delivery, _user_placement(function, groups, cached))


def begin_trace(trace: Trace | None, runner: Runner, executor: str, depth: int) -> None:
    """Has the runner write down what it does, if there is a trace.

    Raises:
        OSError: that cannot be written.
        RuntimeError: it is another loader's.
    """
    if trace is not None:
        workers, cores = runner.stages.employed.now, len(os.sched_getaffinity(0))
        trace.open({"executor": executor, "workers": workers, "depth": depth, "cores": cores})
        runner.stages.trace = trace


def fault_rules(
    policy: ErrorPolicy,
    plan: Plan,
    groups: Sequence[DataGroup[Any]],
    found: BadItems,
    position: int,
    progress: Progress,
    *,
    several: bool,
) -> FaultRules:
    """An `ErrorPolicy` as the engine needs it, for a run that begins at a position, perhaps of several processes."""
    return FaultRules(
        mode="replace" if several and policy.mode == "drop" else policy.mode,
        limit=policy.limit(sum(map(len, groups))),
        skip=policy.skipped,
        found=found,
        restarts=policy.restarts,
        epoch_batches=plan.batches_per_epoch + plan.batches_per_validation,
        delivered_before=position > progress.dropped_batches,
        in_a_row=progress.dropped_in_a_row,
        substitutes=plan.substitutes,
    )


def _user_placement(
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


def with_files(
    layouts: Sequence[Layout],
    training: Sequence[DataGroup[Any]],
    validation: Sequence[DataGroup[Any]],
    loader: object,
    shards: _place.Shards | None,
    *,
    takes: bool,
) -> list[Layout]:
    """The layouts with room for the compressed files, or fields, that a loader can leave to a device, if it can.

    Not those of groups with a direct cache, to which workers write rows. Those of `shards`, if there are any, are
    changed with them. Unless something `takes` files, they are as they were.
    """
    if not takes:
        if getattr(loader, "wants_device", False):
            _log.warning("%s", NOT_THERE)
        return list(layouts)
    groups = (*training, *validation)
    devices = 1 if shards is None else shards.devices
    encoded: object = getattr(loader, "encoded", None)
    changed = list(layouts)
    for index, group in enumerate(groups):
        cache = cache_of(group)
        if cache is not None and cache.kind == "direct":
            continue
        if callable(getattr(loader, "graph_files", None)):
            files = cast("GraphLoader", loader).graph_files(layouts[index], data_of(group), index < len(training))
            changed[index] = with_graph(layouts[index], files)
        elif isinstance(encoded, Mapping) and callable(getattr(loader, "encode", None)):
            changed[index] = with_encoded(layouts[index], cast("Mapping[str, Encoded]", encoded), devices)
    if shards is not None:
        shards.layouts = changed
    return changed


def decoded_by(kernels: Choice | None, placer: _PlacerOf) -> str:
    """Who decodes what declared arrays hold; "" when there is nothing to decode."""
    if kernels is None:
        return ""
    on_device = placer.decoded_there if placer is not None else []
    if placer is None or not any(on_device):
        return str(kernels)
    return f"{placer.device_name}" if all(on_device) else f"{placer.device_name}, {kernels}"


def engine_report(stream: Stream | None, runner: Runner | None, left_ns: int | None) -> dict[str, Any]:
    """What a `Report` says of the engine and its workers, until the loader was left if it was."""
    workers = tuple(runner.workers.values()) if runner is not None else ()
    return {
        "wait_seconds": stream.wait_ns / 1e9 if stream is not None else 0.0,
        "waits": stream.waits if stream is not None else 0,
        "busy_seconds": runner.counters.busy_ns / 1e9 if runner is not None else 0.0,
        "workers": tuple(WorkerInfo(w.pid, w.start_ns / 1e9, w.imported_jax) for w in workers),
        "fallbacks": dict(runner.counters.fallbacks) if runner is not None else {},
        "worker_deaths": tuple(runner.deaths) if runner is not None else (),
        "stages": runner.stages.stages(left_ns) if runner is not None else Stages(),
    }


def memory_report(arena: Arena | None, placer: _PlacerOf) -> dict[str, Any]:
    """What a `Report` says of the slots, and of how batches get out of them."""
    return {
        "delivery": tuple(placer.ways) if placer is not None else (),
        "memory_bytes": arena.nbytes if arena is not None else 0,
        "huge_pages": arena.mapping.huge if arena is not None else False,
        "device": placer.device_name if placer is not None else None,
        "device_memory_bytes": placer.device_bytes if placer is not None else 0,
        "pinned": placer.pinned if placer is not None else None,
        "pictures": placer.pictures_by if placer is not None else "",
    }


def notes_of(
    plan: Plan, runner: Runner | None, placer: _PlacerOf, loader: object, *, replaces: bool
) -> tuple[str, ...]:
    """Whatever is not as was asked for, or costs more than it need.

    Args:
        plan: of the run.
        runner: None before the loader was entered.
        placer: as `runner`.
        loader: the loader function.
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
        if placer.ways and not placer.pictures_by and getattr(loader, "wants_device", False):
            notes.append(NOT_THERE)
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
