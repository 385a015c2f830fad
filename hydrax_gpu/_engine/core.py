"""The engine's mind: `step(message) → effects`.

All of a loader's mutable state is here, and only here. The core does no I/O, knows no clock and starts no thread;
whoever drives it carries the effects out and tells it what happened. So any order of messages can be tried in a test,
and what holds there holds in the running loader.

What it keeps true:
- at most `depth` batches exist: every one between its planning and its release owns a slot; of fewer slots and workers
  than there can be it uses those that it was last told to (`Tune`), and what the others are at is done first;
- a slot is filled by workers only while it is FILLING, and read only after the last of its chunks is done;
- a slot whose batch was placed in device memory is filled again only when its copy is done and the batch is gone, and
  `Retire` comes between that and the next `Place`;
- batches are placed or dropped in the plan's order (any order with `deterministic=False`), each exactly once;
- what a lost worker had to do is given to others, and a batch has what it would have had without that;
- after `Fail`, `Finish` or `Stop`, nothing more is dispatched or placed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from hydrax_gpu._engine.cached import UNREAD, Form
from hydrax_gpu._engine.config import CoreConfig
from hydrax_gpu._engine.crew import Crew
from hydrax_gpu._engine.cutting import Cutter
from hydrax_gpu._engine.faults import FaultBook
from hydrax_gpu._engine.messages import (
    Copied,
    Decode,
    Decoded,
    Drop,
    Effect,
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
    RowFailure,
    Settled,
    Start,
    Stop,
    Taken,
    Tune,
    Unread,
    Unsent,
)
from hydrax_gpu._exec.protocol import Failure, Result, Unreadable, WorkerLeft, WorkerLost, WorkerReady
from hydrax_gpu._exec.rows import runs
from hydrax_gpu._mem.slots import SlotState, SlotTable

__all__ = ["Core", "CoreConfig"]


class Core:
    """The state of a running loader; see the module's docstring."""

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        self._faults = FaultBook(config.faults)
        self.slots = SlotTable(config.depth, config.first_depth)
        first_workers = config.workers if config.first_workers is None else config.first_workers
        self.crew = Crew(config.workers, first_workers, together=config.together)
        self._next = config.begin
        self._loads: dict[int, Load] = {}  # slot → the load that owns it, until it is released
        self._order: deque[Load] = deque()  # planned and not placed, in the plan's order
        self._unsettled: list[Load] = []  # of which some item is being written to their cache
        self._cutter = Cutter(
            first_workers, self.slots.in_use, whole_batches=config.whole_batches, together=config.together
        )
        self.unread = 0  # batches in the outbox
        self._complete: list[Load] = []  # those whose last chunk is done, and nothing was done about that yet
        self.copying = 0
        """Number of slots of which it is not known that their copy to the device is done."""
        self.running = False
        self.finished = False

    # What a driver may look at.

    @property
    def waits_for_consumer(self) -> bool:
        """Whether a finished batch is held back because the outbox is full."""
        return self.unread >= self.slots.in_use and any(load.pending == 0 for load in self._order)

    @property
    def lends(self) -> bool:
        """Whether some slot is lent."""
        return self.slots.count(SlotState.LENT) + self.slots.count(SlotState.COPYING) > 0

    @property
    def starved(self) -> bool:
        """Whether only released slots can make progress: all are lent, nothing is in work."""
        return self.running and self.slots.all_lent

    @property
    def waits_for_copies(self) -> bool:
        """Whether there is a batch to be loaded, and no slot for it before a copy is done."""
        return self.running and self.copying > 0 and not self.slots.free_count and not self._exhausted()

    # The one entry.

    def step(self, message: Message) -> list[Effect]:
        """Takes one message in and returns what is to be done now, in order."""
        effects: list[Effect] = []
        match message:
            case Result():
                self._on_result(message, effects)
            case Released(slot, generation):
                self._on_released(slot, generation, effects)
            case Taken(batches):
                self.unread -= batches
            case Placed():
                self._on_placed(message)
            case Copied(slot, generation):
                self._on_copied(slot, generation)
            case WorkerReady(worker=number):
                self._come_and_go(self.crew.ready(number), effects)
            case WorkerLeft(number):
                self._come_and_go(self.crew.left(number), effects)
            case WorkerLost():
                self._on_lost(message, effects)
            case Unsent():
                self._on_unsent(message, effects)
            case Unreadable():
                self._on_unreadable(message, effects)
            case Settled(error):
                self._on_settled(error, effects)
            case Decoded():
                self._on_decoded(message, effects)
            case PlacementFailed(_, _, exception):
                self._fail(exception, effects)
            case Start():
                self.running = not self.finished
            case Tune(workers, slots):
                self.slots.use(slots)
                self._cutter.fit(workers, slots)
                self._come_and_go(self.crew.want(workers), effects)
            case Stop():
                self.running = False
                self.finished = True
        while self.running:
            self._decode(effects)
            self._place(effects)
            if not self._plan():
                break
        if self.running:
            effects += self.crew.dispatch(self._cutter.capacity)
        return effects

    def _on_result(self, result: Result, effects: list[Effect]) -> None:
        chunk = self.crew.done(result.worker, result.chunk)
        if chunk is None:
            return  # of a worker that was given up
        load = chunk.load
        load.pending -= 1
        if result.busy_ns >= 0 and not load.cached:
            self._cutter.learn(chunk.rows, result.busy_ns)
        if result.additional is not None:
            rows_before: list[dict[str, Any] | None] = load.additional or [None] * load.plan.valid
            rows_before[chunk.begin : chunk.end] = result.additional
            load.additional = rows_before
        if chunk.suspect:
            self._faults.acquit(load.plan, load.plan.indices[chunk.begin])
        for failure in result.failures:
            self._row_failed(load, chunk.begin + failure.offset, failure)
        if result.unread:
            self._cannot_read(load, [chunk.begin + offset for offset in result.unread], effects)
        if result.worker >= self.crew.wanted:
            self._come_and_go(self.crew.suit(result.worker), effects)
        self._chunk_done(load)

    def _come_and_go(self, changes: list[Effect], effects: list[Effect]) -> None:
        if not self.finished:
            effects.extend(changes)

    def _cannot_read(self, load: Load, rows: Sequence[int], effects: list[Effect]) -> None:
        effects.append(Unread(load, list(rows), load.plan))
        agreed = self._config.agreed
        if agreed is None:
            load.unread = True
            return
        load.error = load.error or agreed.refusal(load.plan, rows)
        for row in rows if load.error is None else ():
            self._row_failed(load, row, UNREAD)

    def _chunk_done(self, load: Load) -> None:
        if load.pending:
            return
        if load.unread:
            # All of it anew, the rows that were read too: the two layouts have nothing in common.
            load.unread = load.cached = False
            load.additional = None
            if self._config.caching.loads(load.plan):
                self.crew.add_first(load, self._cutter.pieces(load.plan.valid))
                return
            load.dropped = load.uncached = True
        # Also of a batch that others of its items doom: what is bad is to be known, whoever reads it.
        wanted = not (load.decoded or load.cached or load.dropped or load.hopeless)
        if wanted and not self.finished and self._config.on_device(load.plan):
            load.pending = 1  # the device's work is one more piece
            self._complete.append(load)
        else:
            self.slots.filled(load.slot)

    def _on_settled(self, error: Exception | None, effects: list[Effect]) -> None:
        if error is not None:
            self._fail(error, effects)
            return
        unsettled, self._unsettled = self._unsettled, []
        for load in unsettled:
            load.pending -= 1
            if not self._begin(load):
                self.slots.filled(load.slot)

    def _decode(self, effects: list[Effect]) -> None:
        effects.extend(Decode(load) for load in self._complete)
        self._complete.clear()

    def _on_decoded(self, decoded: Decoded, effects: list[Effect]) -> None:
        load = self._loads.get(decoded.slot)
        if load is None or load.generation != decoded.generation:
            return
        load.pending -= 1
        if decoded.error is not None:
            self._fail(decoded.error, effects)
            return
        failed = {failure.row for failure in load.failures} if not self._faults.replaces(known=False) else set[int]()
        refused = decoded.refused.keys() - failed
        load.decoded = not refused
        self.crew.add_first(load, [(row, row + 1) for row in sorted(refused)], refused=True)
        self._chunk_done(load)

    def _on_placed(self, placed: Placed) -> None:
        slot, generation, lent, copying = placed
        if copying:
            self.slots.copying(slot, generation)
            self._loads[slot].on_device = True
            self.copying += 1
        elif not lent and self.slots.release(slot, generation):
            del self._loads[slot]

    def _on_copied(self, slot: int, generation: int) -> None:
        if self.slots.copied(slot, generation):
            self.copying -= 1
            if self.slots.state(slot) is SlotState.FREE:
                del self._loads[slot]

    def _on_released(self, slot: int, generation: int, effects: list[Effect]) -> None:
        if not self.slots.release(slot, generation):
            return
        if self.running and self._loads[slot].on_device:
            effects.append(Retire(slot))  # at once: the fence is to come before what the consumer starts next
        if self.slots.state(slot) is SlotState.FREE:
            del self._loads[slot]

    # What goes wrong.

    def _row_failed(self, load: Load, row: int, failure: Failure, *, lethal: bool = False) -> None:
        plan = load.plan
        seed = None if plan.seeds is None else plan.seeds[row]
        load.failures.append(RowFailure(row, plan.indices[row], seed, failure, lethal))
        if load.additional is not None:
            load.additional[row] = None
        if self._faults.replaces(known=False):
            self._replace(load, row)

    def _replace(self, load: Load, row: int) -> None:
        substitute = self._faults.substitute(load, row, self._config.agreed if load.cached else None)
        if substitute is None:
            load.hopeless = True
            return
        load.plan = load.plan.with_substitute(row, *substitute)
        self.crew.add_first(load, [(row, row + 1)])

    def _on_lost(self, lost: WorkerLost, effects: list[Effect]) -> None:
        left = self.crew.lost(lost.worker, lost.begun)
        if self.finished:
            return
        if left.leaving or (lost.error is not None and not left.again and not left.began):
            # It was to end anyway, or is not wanted any more and could not even start: nothing is lost with it.
            effects.extend(self.crew.left(lost.worker))
            return
        suspects: list[int] = []
        for chunk in reversed(left.chunks):
            if left.at is None or chunk is not left.at[0]:
                self.crew.give_back(chunk)
                continue
            load, rows = chunk.load, left.at[1]
            suspects = [load.plan.indices[row] for row in rows]
            load.pending -= 1
            self.crew.add_first(load, [(rows[-1] + 1, chunk.end)])
            failure: Failure | None = None
            if len(rows) == 1:
                failure = self._faults.strike(load.plan, suspects[0], lost)
            else:
                self._faults.suspect(load.plan, suspects)
            if failure is None:
                self.crew.add_first(load, [(row, row + 1) for row in rows], suspect=True, refused=chunk.refused)
            else:
                self._row_failed(load, rows[0], failure, lethal=True)
            self.crew.add_first(load, [(chunk.begin, rows[0])])
            self._chunk_done(load)
        error = self._faults.lost(lost, left.items, suspect=left.at is not None, began=left.began)
        if error is not None:
            self._fail(error, effects)
        else:
            effects.append(Respawn(lost, left.items, suspects, left.again))

    def _on_unsent(self, unsent: Unsent, effects: list[Effect]) -> None:
        chunk = self.crew.unsent(unsent.worker, unsent.chunk)
        if chunk is None:
            return
        load = chunk.load
        load.pending -= 1
        bad = {failure.offset: failure for failure in unsent.failures}
        rows = [row for row in range(chunk.begin, chunk.end) if row - chunk.begin not in bad]
        self.crew.add_first(load, list(runs(rows)), refused=chunk.refused)
        for offset, failure in bad.items():
            self._row_failed(load, chunk.begin + offset, failure)
        self._come_and_go(self.crew.suit(unsent.worker), effects)
        self._chunk_done(load)

    def _on_unreadable(self, unreadable: Unreadable, effects: list[Effect]) -> None:
        chunk = self.crew.done(unreadable.worker, unreadable.chunk)
        if chunk is None:
            return
        load = chunk.load
        load.pending -= 1
        if load.cached:
            self._cannot_read(load, range(chunk.begin, chunk.end), effects)
        elif chunk.rows == 1:
            self._row_failed(load, chunk.begin, unreadable.failure)
        else:  # once more, one by one
            self.crew.add_first(load, [(row, row + 1) for row in range(chunk.begin, chunk.end)])
        self._come_and_go(self.crew.suit(unreadable.worker), effects)
        self._chunk_done(load)

    def _fail(self, error: Exception, effects: list[Effect]) -> None:
        if not self.finished:
            self.running = False
            self.finished = True
            effects.append(Fail(error))

    # Placing.

    def _place(self, effects: list[Effect]) -> None:
        while self.unread < self.slots.in_use and (load := self._next_complete()) is not None:
            error = self._faults.settle(load)
            if error is not None:
                self._fail(error, effects)
                return
            if self._faults.is_dropped(load):
                self.slots.discard(load.slot)
                del self._loads[load.slot]
                effects.append(Drop(load))
                continue
            # LENT from here on: its arrays may be released before the driver gets round to saying Placed.
            self.slots.lend(load.slot)
            self.unread += 1
            effects.append(Place(load))
        if not self._order and self._exhausted():
            error = self._faults.finish()
            if error is not None:
                self._fail(error, effects)
                return
            self.running = False
            self.finished = True
            effects.append(Finish())

    def _next_complete(self) -> Load | None:
        if not self._order:
            return None
        if self._order[0].pending == 0:
            return self._order.popleft()
        if not self._config.ordered:
            for load in self._order:
                if load.pending == 0:
                    self._order.remove(load)
                    return load
        return None

    # Planning.

    def _exhausted(self) -> bool:
        while self._next in self._config.skip:
            self._next += 1
        return self._config.end is not None and self._next >= self._config.end

    def _plan(self) -> bool:
        """Plans what there are slots for; returns whether a batch among it needs no worker."""
        complete = False
        while self.slots.free_count and not self._exhausted():
            plan = self._config.plan(self._next)
            self._next += 1
            taken = self.slots.take()
            assert taken is not None
            load = Load(plan, *taken)
            self._loads[load.slot] = load
            self._order.append(load)
            known = self._faults.known_rows(plan)
            if (known and not self._handle_known(load, known)) or not self._begin(load):
                self.slots.filled(load.slot)
                complete = True
        return complete

    def _begin(self, load: Load) -> bool:
        """Sees to it that a batch gets its rows; returns whether it is to have any."""
        form = self._config.caching.form(load.plan)
        if form is Form.DROP:
            load.dropped = load.uncached = True
            return False
        if form is Form.WAIT:
            self._unsettled.append(load)
            load.pending += 1  # for what it waits for
            return True
        load.cached = form is Form.READ
        # What is read is one chunk: to tell a worker of it costs more than to cut it would gain.
        pieces = [(0, load.plan.valid)] if load.cached else self._cutter.pieces(load.plan.valid)
        self.crew.add(load, pieces)
        return True

    def _handle_known(self, load: Load, rows: list[int]) -> bool:
        """Replaces items that are known to be bad; returns whether the batch is to be loaded."""
        if not self._faults.replaces(known=True):
            load.dropped = True
            return False
        for row in rows:
            substitute = self._faults.substitute(load, row)
            if substitute is None:
                load.hopeless = True
                return False
            load.plan = load.plan.with_substitute(row, *substitute)
        return True
