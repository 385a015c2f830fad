"""The engine's hands: feeds the core with messages and carries its effects out.

A runner is driven by whoever holds its lock: the consumer while it waits in `next()` (`_engine.stream`), the engine's
own thread (`_engine.thread`) while the consumer is busy with a batch.
"""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from hydrax_gpu._engine.core import Core
from hydrax_gpu._engine.entries import END, Delivery, Dropped, Entry, Failed, Lent, WorkerDeath
from hydrax_gpu._engine.inbox import EpollInbox
from hydrax_gpu._engine.messages import (
    Copied,
    Decode,
    Decoded,
    Dismiss,
    Dispatch,
    Drop,
    Effect,
    Enlist,
    Fail,
    Finish,
    Load,
    Message,
    Place,
    Placed,
    PlacementFailed,
    Released,
    Respawn,
    Retire,
    Start,
    Stop,
    Taken,
    Unread,
    Unsent,
    name_items,
)
from hydrax_gpu._engine.stages import StageClock
from hydrax_gpu._engine.unsendable import unsendable
from hydrax_gpu._exec.chunk import describe
from hydrax_gpu._exec.protocol import Executor, Result, Task, Unreadable, WorkerLeft, WorkerLost, WorkerReady
from hydrax_gpu._place import Placement
from hydrax_gpu._plan import BatchPlan
from hydrax_gpu._ranges import named, ranges
from hydrax_gpu.errors import NotEnoughMemory, PlacementError, WorkerDied, WorkerStartError

if TYPE_CHECKING:
    from hydrax_gpu._engine.autotune import Autotune
    from hydrax_gpu._engine.caches import Caches

__all__ = ["Placer", "Runner"]

_log = logging.getLogger("hydrax_gpu")

_RETIRE_SECONDS = 1.0

_NOTED = frozenset({Decoded, WorkerReady, WorkerLeft, WorkerLost, Unreadable, Copied})

_COPY_LOOK = 0.001
"""Seconds between two looks at whether the device has copied a slot, when there is no other slot to fill."""


class Placer(Protocol):
    """Makes arrays of a slot; see `_place.placer`."""

    @property
    def deferred(self) -> bool:
        """Whether JAX may hold a slot's memory back until its next call, so that a starved loader must make one."""
        ...

    def decodes(self, layout: int) -> bool:
        """Whether a device decodes the arrays of a layout, so that workers must not."""
        ...

    def takes_files(self, layout: int) -> bool:
        """Whether a device decodes the compressed files of a layout, so that workers leave them to it."""
        ...

    def decode_files(
        self,
        slot: int,
        generation: int,
        layout: int,
        plan: BatchPlan,
        done: Callable[[Mapping[int, str], Exception | None], None],
    ) -> None:
        """Lets a device decode the files in a slot; calls `done` from a thread of its own."""
        ...

    def place(
        self,
        slot: int,
        generation: int,
        layout: int,
        plan: BatchPlan,
        additional: Sequence[Mapping[str, Any] | None] | None,
        on_release: Callable[[], None],
    ) -> Placement:
        """Makes the arrays of a slot."""
        ...

    def copied(self) -> list[tuple[int, int]]:
        """Slots, and generations, of which the device has now copied the host memory."""
        ...

    def retire(self, slot: int) -> None:
        """Sees to it that a slot's device memory is not written before those that read it are done."""
        ...

    def close(self) -> None:
        """Waits until no device reads the slots."""
        ...

    def collect(self) -> None:
        """Makes JAX let go of what it holds back."""
        ...


class Runner:
    """Drives a core.

    Args:
        core: the engine's state.
        executor: where tasks go.
        placer: makes the arrays.
        inbox: where messages come from.
        data: for each layout index (training groups first, then validation groups) the sequence of descriptors.
        training_groups: how many of those are training groups.
        make_batch: builds the public `Batch` of a plan, its arrays, its items' additional data, and whether it was read
            from a cache.
        caches: the groups' caches, if any has one.
        stages: is told what takes how long.

    `tuning` may be set before `start`, to what chooses the numbers of workers and slots.
    """

    def __init__(
        self,
        core: Core,
        executor: Executor,
        placer: Placer,
        inbox: EpollInbox,
        *,
        data: Sequence[Sequence[Any]],
        training_groups: int,
        make_batch: Callable[[BatchPlan, Mapping[str, Any], Sequence[Mapping[str, Any] | None] | None, bool], Any],
        caches: Caches | None = None,
        stages: StageClock | None = None,
    ) -> None:
        self.core = core
        self.executor = executor
        self.inbox = inbox
        self.outbox: queue.SimpleQueue[Entry] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.stages = stages if stages is not None else StageClock(executor.count)
        self.tuning: Autotune | None = None
        self.counters = self.stages.counters
        self.workers: dict[int, WorkerReady] = {}  # by number; who took another's place has its number
        self.deaths: list[WorkerDeath] = []
        self.taken = 0  # batches the consumer took out; written by the consumer alone
        self.consumer_drives = False  # whether the consumer waits in next(), and takes the turns there
        self.consumer_left_ns = 0  # when it last came out of there with a batch
        self.retires = False  # whether batches that are gone are retired, and had better be at once
        self.wants_taken = False  # whether the consumer should wake us when it takes one
        self.lent: dict[int, Lent] = {}  # slot → the last of its batches that the consumer was given, alive or not
        self.stages.lent = self.lent
        self._placer = placer
        self._data = data
        self._plain = [isinstance(each, range) and each == range(len(each)) for each in data]
        self._worker_decodes: dict[int, bool] = {}  # by layout
        self._training_groups = training_groups
        self._make_batch = make_batch
        self.caches = caches
        self._seen_taken = 0
        self._watched = ranges() is not None
        self._messages: deque[Message] = deque()

    def handle(self, message: Message) -> None:
        """Steps the core with a message, and with whatever its effects lead to at once."""
        messages = self._messages
        messages.append(message)
        while messages:
            current = messages.popleft()
            if type(current) is Result:
                self._count(current)
            elif type(current) in _NOTED:
                self._note(current)
            for effect in self.core.step(current):
                if self._watched:
                    with named(type(effect).__name__):
                        self._carry_out(effect)
                else:
                    self._carry_out(effect)

    def _note(self, message: Message) -> None:
        if type(message) is Decoded:
            self._count_lines(Counter(message.refused.values()))
        elif type(message) is WorkerReady:
            self.workers[message.worker] = message
            self.stages.ready(message.worker, message.pid, message.thread)
        elif type(message) is WorkerLeft:
            self.workers.pop(message.worker, None)
        elif type(message) is WorkerLost:
            self._foresee(message)
        elif type(message) is Unreadable:
            self.stages.gone(message.chunk)
        elif type(message) is WorkerLeft:
            self.workers.pop(message.worker, None)
        elif type(message) is WorkerLost:
            self._foresee(message)
        elif type(message) is Copied:
            self.stages.copied(message.slot)

    def start(self) -> None:
        """Starts the workers and the core."""
        try:
            self.executor.start()
        except OSError as error:
            self._cannot_start(error)
            return
        self.handle(Start())

    def start_more(self) -> None:
        """Starts workers that had to wait. On the thread that has called `start`."""
        try:
            self.executor.start_more()
        except OSError as error:
            if not self._refused(error):
                self._cannot_start(error)

    def _refused(self, error: OSError) -> bool:
        """Whether a worker that cannot be started can be done without: others work, and it was to help them."""
        count = self._in_a_row()
        if self.tuning is None or not count:
            return False
        self.executor.withdraw()
        self.handle(self.tuning.refused(count, describe(error)))
        return True

    def _in_a_row(self) -> int:
        """How many workers are ready, of those before the first that is not."""
        return next(number for number in range(len(self.workers) + 1) if number not in self.workers)

    def _foresee(self, lost: WorkerLost) -> None:
        self.workers.pop(lost.worker, None)
        if lost.error is not None and self.tuning is not None and 0 < self._in_a_row() <= lost.worker:
            # A further worker cannot start where others could, for want of memory for example.
            _log.warning("a further worker could not start: %s\n%s", lost.error, lost.traceback)
            for effect in self.core.step(self.tuning.refused(min(lost.worker, self._in_a_row()), lost.error)):
                self._carry_out(effect)

    def _cannot_start(self, error: OSError) -> None:
        # What the system refuses is a process or a file descriptor; asking again at once would not help.
        failure = WorkerStartError(
            f"the system refused to start a worker process: {error}. See `ulimit -u` (processes), `ulimit -n` (open "
            "files) and the limits of the container, or lower loader_count."
        )
        failure.__cause__ = error
        self.handle(Stop())
        self.outbox.put(Failed(failure))
        self.inbox.wake()

    def turn(self, events: Sequence[tuple[int, int]] = ()) -> float | None:
        """Handles all that has happened. The caller holds `lock`.

        Args:
            events: what `inbox.wait` returned.

        Returns:
            Seconds after which to come again although nothing happens; None for never.
        """
        if self.stages.active:
            self.stages.look(self.core.slots, self.core.unread)
        if self.tuning is not None and (tune := self.tuning.look(self.workers)) is not None:
            self.handle(tune)
        for message in self.inbox.take(events):
            self.handle(message)
        taken = self.taken
        if taken != self._seen_taken:
            count, self._seen_taken = taken - self._seen_taken, taken
            self.handle(Taken(count))
        if self.core.copying:
            for slot, generation in self._placer.copied():
                self.handle(Copied(slot, generation))
        self.wants_taken = self.core.waits_for_consumer
        self.executor.flush()  # at the end of every turn, or an answer to what is still queued would be waited for
        if self._placer.deferred and self.core.starved:
            # JAX drops its references to NumPy memory only when something calls into it, and a consumer that waits
            # in next() never will. So we do.
            self._placer.collect()
            return 0.01
        return _COPY_LOOK if self.core.waits_for_copies else None

    def retire_now(self) -> None:
        """Retires the batches that are gone, before the consumer is given another.

        Whoever has the lock is about to do the same, and soon done: no function of the user's is called in a turn when
        there are fences. Should it hang all the same, the next wait says so.
        """
        if self.lock.acquire(timeout=_RETIRE_SECONDS):
            try:
                self.turn()
            finally:
                self.lock.release()

    def held(self) -> list[tuple[int, str, Any]]:
        """What the consumer was given and holds one of the slots; see `Lent.alive`."""
        return [entry for lent in list(self.lent.values()) for entry in lent.alive()]

    def has_work(self) -> bool:
        """Whether the consumer has taken what a turn would answer by placing more."""
        return self.wants_taken and self.taken != self._seen_taken

    def abandon(self) -> None:
        """Lets go of what belongs to the process that this one is a fork of."""
        self.inbox.abandon()
        self.executor.abandon()

    def close(self) -> None:
        """Ends the workers. The caller holds `lock`."""
        self.handle(Stop())
        self.stages.settle()
        self.executor.close()
        self.stages.close()
        self._placer.close()
        self.inbox.close()

    def _count(self, result: Result) -> None:
        busy = result.busy_ns
        if busy >= 0:  # otherwise it comes again
            self.counters.chunks += 1
            self.counters.busy_ns += busy
        if result.decode_ns or self.stages.chunks:
            self.stages.result(result.worker, result.chunk, busy, result.decode_ns, result.end_ns)
        if result.caches is not None and self.caches is not None:
            self.caches.count(result.caches)
        if result.counts:
            self._count_lines(result.counts)

    def _count_lines(self, counts: Mapping[str, int]) -> None:
        before = self.counters.fallbacks
        for line in counts.keys() - before.keys():
            _log.warning("%s (further cases are counted in the report)", line)
        # a new dict, because other threads read it
        self.counters.fallbacks = before | {line: before.get(line, 0) + n for line, n in counts.items()}

    # Effects.

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Dispatch():
                self._dispatch(effect)
            case Decode(load):
                self._decode(load)
            case Place(load):
                self._place(load)
            case Drop(load):
                self.stages.dropped(load.plan)
                self.outbox.put(Dropped(load.plan, load.bad_items()))
            case Unread(_, rows, plan):
                assert self.caches is not None
                self.caches.unread(plan, rows)
            case Retire(slot):
                begin = self.stages.clock()
                self._placer.retire(slot)
                self.stages.retired(slot, begin)
            case Respawn():
                self._respawn(effect)
            case Enlist(worker):
                self._enlist(worker)
            case Dismiss(worker):
                self.workers.pop(worker, None)
                self.executor.dismiss(worker)
            case Fail(error):
                self.outbox.put(Failed(error))
            case Finish():
                self.outbox.put(END)

    def _group(self, plan: BatchPlan) -> int:
        return plan.group + self._training_groups if plan.validation else plan.group

    def _dispatch(self, effect: Dispatch) -> None:
        load, begin, end = effect.load, effect.begin, effect.end
        plan, group = load.plan, self._group(load.plan)
        start = self.stages.active and self.stages.clock()
        data = self._data[group]
        seeds = None if plan.seeds is None else plan.seeds[begin:end]
        indices = plan.indices[begin:end]
        cache = None if self.caches is None else self.caches.groups[group]
        if cache is not None and load.cached:
            decode = self._decodes(cache.layout)
            task = Task(effect.chunk, load.slot, cache.layout, begin, indices, None, decode, (indices, plan.group_pass))
            self.executor.submit(effect.worker, task)
            self.stages.dispatched(effect.worker, effect.chunk, plan, end - begin, start, cached=True)
            return
        keys = (indices, plan.group_pass) if cache is not None and cache.kind == "direct" else None
        decode = self._decodes(group)
        encode = not effect.refused and self._placer.takes_files(group)
        try:
            # Of a plain range, which stands for "no descriptors, just numbers", the item is the index.
            items = indices if self._plain[group] else list(map(data.__getitem__, indices))
            task = Task(effect.chunk, load.slot, group, begin, items, seeds, decode, keys, encode)
            self.executor.submit(effect.worker, task)
            if start:
                self.stages.dispatched(effect.worker, effect.chunk, plan, end - begin, start)
        except Exception as error:
            # A descriptor that cannot be had or sent. Which item it is, an item's own try tells.
            self._messages.append(Unsent(effect.worker, effect.chunk, unsendable(data, indices, error)))

    def _decodes(self, layout: int) -> bool:
        """Whether workers decode the arrays of a layout."""
        decode = self._worker_decodes.get(layout)
        if decode is None:
            decode = self._worker_decodes[layout] = not self._placer.decodes(layout)
        return decode

    def _respawn(self, effect: Respawn) -> None:
        lost, items, suspects = effect.lost, effect.items, effect.suspects
        suspect = suspects[0] if len(suspects) == 1 else None
        self.stages.lost(lost.worker)
        self.deaths.append(WorkerDeath(lost.pid, lost.exitcode, tuple(items), suspect))
        how = WorkerDied(lost.pid, lost.exitcode, items).how if lost.error is None else f"did not start: {lost.error}"
        _log.warning(
            "loader process %d %s at %s; its %d items are given to others, and %s is started in its place%s",
            lost.pid, how, name_items(suspects) if suspects else "no item", len(items),
            "another" if effect.again else "none", f"\n{lost.traceback}" if lost.traceback else "",
        )  # fmt: skip
        if effect.again:
            self.executor.respawn(lost.worker)

    def _enlist(self, worker: int) -> None:
        try:
            self.executor.respawn(worker)
        except OSError as error:
            self._messages.append(WorkerLeft(worker))
            if self.tuning is not None:
                self._messages.appendleft(self.tuning.refused(self._in_a_row(), describe(error)))

    def _decode(self, load: Load) -> None:
        plan, slot, generation = load.plan, load.slot, load.generation
        post = self.inbox.post

        def done(refused: Mapping[int, str], error: Exception | None) -> None:
            wrapped = None
            if error is not None:
                wrapped = PlacementError(f"a device could not decode the files of a batch: {describe(error)}")
                wrapped.__cause__ = error
            post(Decoded(slot, generation, refused, wrapped))

        self._placer.decode_files(slot, generation, self._group(plan), plan, done)

    def _layout(self, load: Load) -> int:
        group = self._group(load.plan)
        cache = self.caches.groups[group] if self.caches is not None and load.cached else None
        return group if cache is None else cache.layout

    def _place(self, load: Load) -> None:
        plan, slot, generation = load.plan, load.slot, load.generation
        begin = self.stages.active and self.stages.clock()
        try:
            placement = self._placer.place(
                slot,
                generation,
                self._layout(load),
                plan,
                load.additional,
                partial(self.inbox.post, Released(slot, generation)),
            )
            arrays, shared, copying = placement
            if copying:
                self.retires = True
            batch = self._make_batch(plan, arrays, load.additional, load.cached)
        except (PlacementError, NotEnoughMemory) as error:
            self._messages.append(PlacementFailed(slot, generation, error))
            return
        except Exception as error:
            wrapped = PlacementError(f"a batch could not be handed to JAX: {describe(error)}")
            wrapped.__cause__ = error
            self._messages.append(PlacementFailed(slot, generation, wrapped))
            return
        lent: Lent | None = None
        if shared is not None:
            lent = Lent(slot, weakref.ref(batch), {name: weakref.ref(arrays[name]) for name in shared})
        bad = load.bad_items() if load.failures else ()
        if begin:
            self.stages.placed(plan, slot, begin, copying=copying)
        self.outbox.put(Delivery(plan.position, batch, bad, lent, plan.valid))
        self._messages.append(Placed(slot, generation, lent is not None, copying))
