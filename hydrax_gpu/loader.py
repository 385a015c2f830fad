"""`Dataloader`: the public face of the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, TypeAlias, TypeVar, final

import numpy.typing as npt

from hydrax_gpu import _place, _preemption
from hydrax_gpu._arguments import at_least, choice
from hydrax_gpu._assembly import (
    ExecutorName,
    Sharding,
    UserPlacement,
    begin_trace,
    check_functions,
    decoded_by,
    engine_report,
    fault_rules,
    log_remainders,
    memory_report,
    new_executor,
    new_placer,
    notes_of,
    shards_of,
    with_files,
)
from hydrax_gpu._cachesetup import all_layouts, cache_infos, cache_sink, open_caches
from hydrax_gpu._engine import (
    Core,
    CoreConfig,
    Dropped,
    EpollInbox,
    InterruptGuard,
    NoCaching,
    Runner,
    StageClock,
    Stream,
    close_at_exit,
    positions_after,
)
from hydrax_gpu._exec.protocol import RowsLoader, WorkSpec
from hydrax_gpu._exec.role import is_worker
from hydrax_gpu._kernels.choice import Choice, choose
from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._options import Unit, begin_of, check_bad_items, end_of, faults_of, first_validation, validation_of
from hydrax_gpu._plan import BatchPlan, Plan, ValidationPlan, to_state
from hydrax_gpu._progress import Progress
from hydrax_gpu._sizing import Sizing
from hydrax_gpu.batch import Batch, make_batch, plan_of_batch
from hydrax_gpu.group import DataGroup, cache_of, data_of, groups_of, plan_of
from hydrax_gpu.policy import BadItems, ErrorPolicy, Mode
from hydrax_gpu.report import Report
from hydrax_gpu.trace import Trace, TraceFile

if TYPE_CHECKING:
    from hydrax_gpu._engine.caches import Caches

__all__ = ["Dataloader", "Delivery", "ExecutorName", "State"]

D = TypeVar("D")

ItemArrays: TypeAlias = MappingProxyType[str, npt.NDArray[Any]]
LoaderFunc: TypeAlias = Callable[[D, ItemArrays, "int | None"], "dict[str, Any] | None"]
Groups: TypeAlias = DataGroup[D] | Iterable[DataGroup[D]]
Delivery: TypeAlias = Literal["auto", "alias", "copy"]
State: TypeAlias = dict[str, Any]

_EXECUTORS: tuple[ExecutorName, ...] = ("process", "thread", "inline")
_DELIVERIES: tuple[Delivery, ...] = ("auto", "alias", "copy")


@final
class Dataloader(Generic[D]):
    """Loads batches of the groups' data by worker processes, straight into the memory that JAX reads.

    Use it in a `with` block and iterate over it, once:

        with Dataloader(load, DataGroup(64, paths, loader_arrays=arrays), loader_count=4) as loader:
            for batch in loader:
                step(batch.arrays)
                del batch

    Which items a batch holds, and the seed of each, is a pure function of the groups' seeds and the batch's number: the
    same for every `loader_count`, `depth`, executor and machine.

    Args:
        loader_func: `loader_func(data, arrays, seed)` loads one item: `data` is its descriptor, `arrays` a mapping of
            writable NumPy views by name to be filled completely (they hold an earlier item's values), `seed` an integer
            of 63 bits, or None for validation. Returns a dict of additional data, or None. With the process executor it
            must be picklable: a function of a module, or an instance of a class with `__call__`. It must not keep
            references to the arrays. Or an object with a method `load_rows`, which loads whole batches in one call: see
            `hydrax_gpu.loaders.RowsLoader`.
        training: one group or several. One pass over all of them is an epoch.
        validation: `("batch" | "epoch", interval, groups)`: after every so many training batches or epochs, a pass over
            these groups follows, without shuffling or seeds.
        depth: how many batches can exist at a time: being filled, waiting, or held by the consumer. With
            `delivery="alias"` a batch counts until nothing refers to its arrays any more. "auto": see docs/tuning.md.
        loader_count: number of workers. 0 when no group has `loader_arrays`: then one thread reads the caches. "auto":
            chosen, and changed, while the loader runs, by what it measures. What batches hold does not depend on it.
        loader_nice: increment of the worker processes' niceness.
        cacher_count: number of threads that write what `Batch.cache` is given; with 0 it is written in that call. They
            are waited for when the `with` block is left, however it is, and at the interpreter's end. (What the loader
            function fills is written by the workers.)
        start_at: `(epoch, batch)` to begin at, where the batches may be more than an epoch has; or what `state()`
            returned, to go on exactly there.
        end_at: `("batch" | "epoch", n)`: stop before training batch or epoch `n`, counted from the very beginning.
            A validation pass that is due after the last batch is still run. None: never.
        interleave_groups: whether batches of several groups without weights alternate within an epoch (the one that is
            behind the most goes first) or the groups follow each other.
        deterministic: whether batches come in order; otherwise as they get ready.
        timeout_sec: raise `BatchTimeoutError` when `next()` has waited that long; 0 or less waits for ever.
        startup_func: called once in each worker before it loads.
        placement_func: `placement_func(arrays, layouts, additional, group)` makes the `jax.Array`s of a batch out of
            its NumPy arrays, in place of the default placement on the default device. It returns a dict with the same
            names. It is called ahead of time on a thread of the loader's, or in `next()` when that has to wait. The
            memory is not reused before all references to it are gone.
        executor: `"process"`, `"thread"` (for loader functions that release the GIL), or `"inline"` (in `next()`, with
            no worker and no prefetch: for debugging, and for loader functions below some 2 µs an item).
        on_error: what to do about items that cannot be loaded, and about workers that die: an `ErrorPolicy`, or the
            mode of one. By default a batch with a bad item is left out, which is logged and reported.
        trace: file for a timeline of the run, or a `hydrax_gpu.trace.Trace`; the file is overwritten.
        sigterm: whether SIGTERM ends the iteration, as the first Ctrl-C does; schedulers send it before they take a
            machine away. A function is called then with the `state()` to go on at, in the thread that iterates and
            before the iteration ends. With a `sharding` over several processes, SIGTERM to any of them ends all before
            the same training batch, by jax's pre-emption service, a second or two later.
        delivery: `"alias"` shares the loader's own memory with JAX, and a batch that is kept holds one of `depth`
            slots: on the CPU the slot itself, on a GPU (with CuPy) device memory beside it, to which it is copied ahead
            of time. `"copy"` gives arrays that may be kept for ever. `"auto"` copies batches of up to 512 KiB, which is
            cheaper there, and shares larger ones; on a GPU it copies. Treat its batches as shared. The GPU is the one
            that `jax.default_device` names where the loader is entered: one loader each for several.
        sharding: a `jax.sharding.Sharding` for all arrays, or a dict with one for each name of an array in any of the
            groups: the batch's arrays are global ones over these devices, and `batch_size` is that of the global
            batch. Each process loads the rows that its devices need. Several processes are given the same arguments;
            a bad item is replaced there where it would drop a batch. See docs/sharding.md.

    Raises:
        ValueError, TypeError: an argument is not valid; the message says what was wanted.
        StateMismatch: `start_at` is a state of another order.
        RuntimeError: constructed in a worker process.
    """

    def __init__(
        self,
        loader_func: LoaderFunc[D] | RowsLoader,
        training: Groups[D],
        *,
        validation: tuple[Unit, int, Groups[D]] | None = None,
        depth: int | Literal["auto"] = 3,
        loader_count: int | Literal["auto"] = 1,
        loader_nice: int = 0,
        cacher_count: int = 1,
        start_at: tuple[int, int] | Mapping[str, Any] = (0, 0),
        end_at: tuple[Unit, int] | None = None,
        interleave_groups: bool = True,
        deterministic: bool = True,
        timeout_sec: float = 60,
        startup_func: Callable[[], object] | None = None,
        placement_func: UserPlacement[D] | None = None,
        executor: ExecutorName = "process",
        delivery: Delivery = "auto",
        on_error: ErrorPolicy | Mode = "drop",
        sigterm: bool | Callable[[State], object] = False,
        sharding: Sharding | Mapping[str, Sharding] | None = None,
        trace: TraceFile | None = None,
    ) -> None:
        if is_worker():
            raise RuntimeError(
                "a Dataloader was constructed in a worker process: the worker imports the script that was run, because "
                "the loader function is defined there. Put the script's own code under "
                "`if __name__ == '__main__':`, or the loader function into a module of its own."
            )
        choice("executor", executor, _EXECUTORS)
        choice("delivery", delivery, _DELIVERIES)
        check_functions(loader_func, startup_func, placement_func)
        self._loader_func = loader_func
        self._startup_func = startup_func
        self._placement_func = placement_func
        self._delivery: Delivery = delivery
        self._nice = at_least("loader_nice", loader_nice, 0)
        self._cachers = at_least("cacher_count", cacher_count, 0)
        self._timeout = float(timeout_sec) if timeout_sec > 0 else None
        self._deterministic = bool(deterministic)
        self._policy = ErrorPolicy.of(on_error)
        if not isinstance(sigterm, bool) and not callable(sigterm):
            raise TypeError(f"sigterm: got {sigterm!r}, wanted True, False, or a function that saves a state")
        self._sigterm = sigterm
        self._trace = Trace.of(trace)

        self._training = groups_of("training", training)
        self._validation: tuple[DataGroup[D], ...] = ()
        plan_validation: ValidationPlan | None = None
        if validation is not None:
            mode, interval, groups = validation_of(validation)
            self._validation = groups_of("validation", groups)
            plan_validation = ValidationPlan(mode, interval, tuple(plan_of(g) for g in self._validation))
        self._plan = Plan(
            [plan_of(group) for group in self._training],
            validation=plan_validation,
            interleave=bool(interleave_groups),
            end=end_of(end_at),
        )
        self._shards = shards_of(sharding, self._training, self._validation, placement_func, self._deterministic)
        self._several = self._shards is not None and self._shards.several
        groups = (*self._training, *self._validation)
        self._sizing = Sizing.of(depth, loader_count, executor, groups, several=self._several)
        self._executor_name: ExecutorName = self._sizing.executor
        self._begin(start_at)
        self._saved = False
        self._stream: Stream | None = None
        self._runner: Runner | None = None
        self._guard: InterruptGuard | None = None
        self._arena: Arena | None = None
        self._placer: _place.Placer | _place.ShardedPlacer | None = None
        self._kernels: Choice | None = None
        self._caches: Caches | None = None
        self._entered_ns = 0
        self._left_ns = 0
        self._idle_seen_ns = 0

    def _begin(self, start_at: tuple[int, int] | Mapping[str, Any]) -> None:
        self._position, ahead = begin_of(self._plan, start_at)
        self._ahead = set(ahead)
        self._first_step = self._plan.step_of_position(self._position)[0]
        known = faults_of(start_at)
        self._found = known.all
        lengths = [len(group) for group in self._training], [len(group) for group in self._validation]
        check_bad_items("the state", self._found, *lengths)
        check_bad_items("the skip list", self._policy.skipped, *lengths)
        self._progress = Progress(
            [plan_of(g) for g in self._training],
            [plan_of(g) for g in self._validation],
            BadItems([*known.bad, *self._policy.skipped]),
            known.dropped,
            known.own,
        )

    # Running.

    def __enter__(self) -> Dataloader[D]:
        """Starts the workers. A loader runs once.

        Raises:
            RuntimeError: it was entered before.
            OSError: the trace's file cannot be written.
            TypeError: the loader function cannot be sent to worker processes.
            NotEnoughMemory: `depth` batches need more memory than there is, on the host or on the device.
            CacheMismatch: a group's cache is of something else: other data, arrays, seeds or `cache_version`.
            CacheError: a group's cache cannot be opened.
        """
        if self._entered_ns:
            raise RuntimeError(
                "a Dataloader can be entered once. To go on after its `with` block, make another one with "
                "start_at=loader.state()."
            )
        self._entered_ns = time.perf_counter_ns()
        log_remainders("training", self._training)
        log_remainders("validation", self._validation)
        stream = self._stream = self._build()
        try:
            begin_trace(self._trace, stream.runner, self._executor_name, self._sizing.start.slots)
            stream.start()
            self._guard = InterruptGuard(stream, sigterm=bool(self._sigterm) and not self._several)
            self._guard.install()
            stream.prepare()  # while the workers start
            assert self._placer is not None
            self._placer.prepare()
            close_at_exit()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the workers and gives back all that the loader holds. Batches that the user kept stay valid."""
        self._close()

    def __iter__(self) -> Iterator[Batch[D]]:
        """The loader itself: it is an iterator."""
        return self

    def __next__(self) -> Batch[D]:
        """The next batch.

        Raises:
            StopIteration: the end was reached, or the loader was interrupted.
            LoaderError: an item of this batch is bad, and `on_error` says to raise.
            TooManyBadItems: more items were bad than `on_error` allows, or nothing is left of the data.
            WorkerDied: more worker processes have ended than `on_error` allows.
            WorkerStartError: a worker could not start.
            PlacementError: `placement_func` raised or returned something unfit.
            BatchTimeoutError: no batch came within `timeout_sec`.
            KeyboardInterrupt: Ctrl-C was pressed a second time.
            RuntimeError: outside the loader's `with` block.
        """
        stream = self._stream
        if stream is None or self._left_ns:
            self._not_running()
        if self._several and self._sigterm and _preemption.reached(self._plan.step_of_position(self._position)[0]):
            stream.terminated = True
            stream.interrupt()
        while isinstance(delivery := stream.next() if not stream.profiled() else stream.named_next(), Dropped):
            plan = delivery.plan
            self._position = positions_after(self._position, self._ahead, plan.position)
            self._progress.dropped(plan)
            self._progress.found(delivery.bad)
        if delivery is None:
            if stream.terminated and callable(self._sigterm) and not self._saved:
                self._saved = True
                self._sigterm(self.state())
            raise StopIteration
        batch: Batch[D] = delivery.batch
        self._position = positions_after(self._position, self._ahead, delivery.position)
        self._progress.handed(plan_of_batch(batch), stream.wait_ns)
        if delivery.bad:
            self._progress.found(delivery.bad)
        return batch

    def interrupt(self) -> None:
        """Makes the iteration end before the next batch. From any thread."""
        if self._stream is None or self._left_ns:
            self._not_running()
        self._stream.interrupt()

    def _not_running(self) -> NoReturn:
        state = "its `with` block was left" if self._left_ns else "it was not entered with a `with` block"
        raise RuntimeError(f"the Dataloader is not running: {state}. Use `with loader:` around the loop.")

    def _build(self) -> Stream:
        sizing = self._sizing
        stages = StageClock(sizing.start.workers, ordered=self._deterministic)
        groups = (*self._training, *self._validation)
        layouts, cached = all_layouts(groups)
        shards = self._shards
        if shards is not None:
            layouts = shards.layouts
        takes = self._placement_func is None and _place.may_take_files(self._delivery)
        layouts = with_files(layouts, self._training, self._validation, self._loader_func, shards, takes=takes)
        inbox = EpollInbox()
        try:
            caches = self._caches = open_caches(
                self._training, self._validation, cached, writers=self._cachers, depth=sizing.start.slots,
                shards=shards, settled=inbox.post,
            )  # fmt: skip
        except BaseException:
            inbox.close()
            raise
        policy = self._policy
        if any(layout.decodes for layout in layouts):
            self._kernels = choose()
        spec = WorkSpec(
            self._loader_func,
            self._startup_func,
            layouts,
            self._nice,
            retries=policy.retries,
            backoff=policy.backoff,
            keep_exceptions=policy.mode == "raise",
            kernels=self._kernels.path if self._kernels is not None else None,
            caches={} if caches is None else caches.worker_specs(),
        )
        slot_size = max(layout.nbytes for layout in layouts)
        limits = sizing.limits(slot_size)
        arena = self._arena = sizing.arena(slot_size, limits)
        executor = new_executor(self._executor_name, spec, arena, inbox, sizing.start.workers)
        placer = self._placer = new_placer(arena, layouts, self._delivery, self._placement_func, groups, cached, shards)
        # Not `self`: the engine must not keep the loader alive.
        self_training, self_validation = self._training, self._validation
        core = Core(
            CoreConfig(
                plan=stages.timed(self._plan.at if shards is None else shards.plan(self._plan.at, len(self._training))),
                begin=self._position,
                end=self._plan.end_position,
                skip=frozenset(self._ahead),
                depth=limits.slots,
                workers=limits.workers,
                first_depth=sizing.start.slots,
                first_workers=sizing.start.workers,
                ordered=self._deterministic,
                whole_batches=self._executor_name == "inline",
                together=hasattr(self._loader_func, "load_rows"),
                faults=fault_rules(
                    policy, self._plan, groups, self._found, self._position, self._progress, several=self._several
                ),
                caching=NoCaching() if caches is None else caches,
                agreed=None if caches is None else caches.agreed,
                on_device=lambda plan: placer.takes_files(plan.group + len(self_training) * plan.validation),
            )
        )
        first = first_validation(self._plan, self._position, self._first_step)
        sink = cache_sink(caches, shards, cached, len(self._training))

        def build_batch(plan: BatchPlan, arrays: Mapping[str, Any], additional: Any, read: bool) -> Batch[D]:
            group = (self_validation if plan.validation else self_training)[plan.group]
            cache = cache_of(group)
            kept = read or (cache is not None and cache.kind == "direct")
            return make_batch(group, plan, arrays, additional, first, cached=kept, sink=None if kept else sink)

        self._runner = Runner(
            core,
            executor,
            placer,
            inbox,
            data=[data_of(group) for group in groups],
            training_groups=len(self._training),
            make_batch=build_batch,
            stages=stages,
            caches=caches,
        )
        self._runner.tuning = sizing.autotune(self._runner, arena, limits)
        threaded = self._executor_name != "inline"
        return Stream(self._runner, threaded=threaded, timeout=self._timeout, depth=sizing.start.slots)

    def _close(self) -> None:
        if self._left_ns or not self._entered_ns:
            return
        self._left_ns = time.perf_counter_ns()
        try:
            if self._stream is not None:
                self._stream.close()
        finally:
            if self._guard is not None:
                self._guard.remove()

    # Where it is.

    def state(self) -> State:
        """What is needed to go on after the last batch that was handed out: a small dict for `json.dump`.

        Give it as `start_at` to another loader over the same data. It names what determines the order, and resuming
        with something else raises `StateMismatch`. Batches that were loaded ahead and not handed out do not count. It
        also has the bad items so far. With a `sharding` over several processes it is the same on all of them but for
        the bad items that each has found itself, under "process".
        """
        return {
            **to_state(self._plan, self._position, frozenset(self._ahead)),
            **self._progress.to_state(several=self._several),
        }

    @property
    def batches_per_epoch(self) -> int:
        """Training batches in an epoch."""
        return self._plan.batches_per_epoch

    @property
    def batches_per_validation(self) -> int:
        """Batches in a validation pass; 0 without validation."""
        return self._plan.batches_per_validation

    @property
    def first_batch(self) -> int:
        """Number of the first training batch, set by `start_at`."""
        return self._first_step

    @property
    def last_batch(self) -> int | None:
        """Number of the training batch to stop before, set by `end_at`; None when there is no end."""
        return self._plan.end_step

    @property
    def deterministic(self) -> bool:
        """Whether batches come in order."""
        return self._deterministic

    @property
    def interrupted(self) -> bool:
        """Whether the iteration was ended by `interrupt()`, Ctrl-C, or (with `sigterm`) SIGTERM."""
        return self._stream is not None and self._stream.interrupted

    def idle_usec(self) -> int:
        """Microseconds that `next()` has spent waiting for batches since this was last called."""
        if self._stream is None:
            return 0
        now = self._stream.wait_ns
        idle, self._idle_seen_ns = now - self._idle_seen_ns, now
        return idle // 1000

    def report(self) -> Report:
        """What the loader has done so far; also after its `with` block."""
        end = self._left_ns or time.perf_counter_ns()
        replaces = self._several and self._policy.mode == "drop"
        return Report(
            seconds=(end - self._entered_ns) / 1e9 if self._entered_ns else 0.0,
            executor=self._executor_name,
            depth=self._sizing.start.slots if self._runner is None else self._runner.core.slots.in_use,
            tuning=self._sizing.tuning(self._runner),
            notes=notes_of(self._plan, self._runner, self._placer, self._loader_func, replaces=replaces),
            kernels=decoded_by(self._kernels, self._placer),
            caches=cache_infos(self._caches),
            **self._progress.to_report(self._entered_ns),
            **engine_report(self._stream, self._runner, self._left_ns or None),
            **memory_report(self._arena, self._placer),
        )
