"""How the processes of a job come to take the same batches from a cache.

A program of several processes has to do the same everywhere: a batch that one takes from the cache and another loads
would send them different ways. But each sees the files, and what is wrong with them, at a moment of its own. So they
agree on what is in a cache (`_plan.agreed`), when the first batch of a pass over the group is planned, and only what
was agreed on then counts for the batches of that pass, whatever a process sees later. Where the pass before had no
complete cache, they agree once more some batches later, when all that was loaded ahead of its end has been written.

When that is, and about what, follows from the plan alone. Messages go by the key-value store of jax's runtime, and not
by collectives, which would have to be launched in one order with those of the training loop; a thread waits for them,
and batches wait for it as they wait for what is being written (`Form.WAIT`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from hydrax_gpu._plan import BatchPlan, agreed
from hydrax_gpu.errors import CacheError

__all__ = ["Agreement", "JobStore", "SharedCache"]

_log = logging.getLogger("hydrax_gpu")

_LOOK_SECONDS = 0.25
"""How often a process that waits for another's message looks whether it is to close."""

UNSHARED = (
    "some entries that one process sees are not there for all of them, and count as missing: the directory has to be "
    "one that all processes share"
)

Bits: TypeAlias = npt.NDArray[np.uint8]


class JobStore(Protocol):
    """A key-value store that all processes of a job have in common. Methods may raise what they like."""

    def put(self, key: str, value: bytes) -> None:
        """Sets a value that was not set yet."""
        ...

    def get(self, key: str, seconds: float) -> bytes | None:
        """The value of a key, which is waited for; None if there is none after so many seconds."""
        ...

    def delete(self, prefix: str) -> None:
        """Forgets all keys below a prefix, which ends with a slash."""
        ...


class SharedCache(Protocol):
    """A group's cache, as this process sees it."""

    @property
    def topic(self) -> dict[str, Any]:
        """What it is of, as JSON."""
        ...

    @property
    def length(self) -> int:
        """Items of the group."""
        ...

    @property
    def by_pass(self) -> bool:
        """Whether each pass over the group has entries of its own."""
        ...

    def seen(self, group_pass: int) -> Bits:
        """The items that have an entry for a pass, as far as can be seen now; of what is being written, all."""
        ...

    def damaged(self, group_pass: int) -> set[int]:
        """Items whose entry for a pass was found damaged, and was not told of yet."""
        ...

    def told(self, group_pass: int, items: Collection[int], *, unshared: bool) -> None:
        """These are damaged, as all processes know now; and whether there are entries that not all of them see."""
        ...


@dataclass(slots=True)
class _Round:
    cache: SharedCache
    topic: dict[str, Any]
    group_pass: int
    position: int  # of the first batch that it is for
    result: Bits | None = None


@dataclass(slots=True)
class _History:
    group_pass: int = -1
    position: int = -1  # of the last batch that was asked for
    batches: int = 0  # of this pass that were asked for
    passes: int = 0  # that were begun
    rounds: deque[_Round] = field(default_factory=deque[_Round])


class _Closed(Exception):
    """The loader is closing."""


class Agreement:
    """What is agreed on, for all caches of a loader.

    Args:
        job: by which the processes speak to each other.
        name: of the loader in the job, on all processes the same.
        process: number of this process.
        processes: those of all that take part, ascending.
        depth: batches that can exist at a time.
        settled: called, on a thread of its own, when something was agreed on, or with the error that prevented it.
    """

    def __init__(
        self,
        job: JobStore,
        name: str,
        process: int,
        processes: Sequence[int],
        depth: int,
        settled: Callable[[Exception | None], None],
    ) -> None:
        self._job = job
        self._name = name
        self._process = process
        self._leader, *self._others = processes
        self._kept = depth + 2  # rounds that some batch may still ask for
        self._again = 3 * depth
        self._settled = settled
        self._histories: dict[int, _History] = {}
        self._before: dict[int, tuple[int, Bits]] = {}  # by cache: pass, and what was agreed on
        self._done = 0
        self._requests: deque[tuple[int, _Round]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="hydrax_gpu-agreement", daemon=True)
        self.rounds = 0
        """Rounds that were begun."""

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def of(self, index: int, cache: SharedCache, plan: BatchPlan) -> Bits | None:
        """The items that count as cached for a batch; None while that is being agreed on, until `settled` is called.

        Args:
            index: of the cache among all.
            cache: that cache.
            plan: of the batch. They come in the order of their positions; the same may come again.
        """
        with self._changed:
            history = self._histories.setdefault(index, _History())
            if plan.position > history.position:
                history.position = plan.position
                if plan.group_pass != history.group_pass:
                    history.group_pass, history.batches = plan.group_pass, 0
                    history.passes += 1
                    self._begin(index, history, cache, plan)
                elif history.batches == self._again and history.passes > 1 and not cache.by_pass:
                    # more than `depth` batches ago, so that it is known; and the same on all processes
                    last = history.rounds[-1].result
                    assert last is not None
                    if agreed.count(last) < cache.length:
                        self._begin(index, history, cache, plan)
                history.batches += 1
            return next(r for r in reversed(history.rounds) if r.position <= plan.position).result

    def _begin(self, index: int, history: _History, cache: SharedCache, plan: BatchPlan) -> None:
        topic = {"cache": index, "of": cache.topic, "pass": plan.group_pass, "position": plan.position}
        new = _Round(cache, topic | {"depth": self._kept - 2}, plan.group_pass, plan.position)
        history.rounds.append(new)
        while len(history.rounds) > self._kept:
            history.rounds.popleft()
        self._requests.append((index, new))
        self.rounds += 1
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._requests:
                    if self._closing:
                        return
                    self._changed.wait()
                index, request = self._requests.popleft()
            error: Exception | None = None
            try:
                result = self._agree(index, request)
            except _Closed:
                return
            except CacheError as failure:
                error = failure
            except Exception as failure:
                error = CacheError(
                    "the processes of the job could not agree on what is in a cache, because jax's runtime did not "
                    f"pass their messages on: {type(failure).__name__}: {failure}"
                )
                error.__cause__ = failure
            else:
                with self._changed:
                    request.result = result
            self._settled(error)

    def _agree(self, index: int, request: _Round) -> Bits:
        cache, pass_, number = request.cache, request.group_pass, self._done
        key, length = f"{self._name}/{number}", cache.length
        known_pass, before = self._before.get(index, (-1, agreed.no_items(length)))
        if cache.by_pass and known_pass != pass_:
            before = agreed.no_items(length)
        mine = cache.damaged(pass_)
        if self._process == self._leader:
            proposed = cache.seen(pass_)
            self._job.put(f"{key}/proposal", agreed.propose(request.topic, proposed, before))
            answers = [agreed.Answer.of(self._get(f"{key}/answer/{each}")) for each in self._others]
            outcome = agreed.verdict([agreed.Answer(b"", tuple(sorted(mine))), *answers], length)
            self._job.put(f"{key}/verdict", outcome.to_bytes())
            if number:
                # Whoever has answered this one has read all of the last.
                with contextlib.suppress(Exception):
                    self._job.delete(f"{self._name}/{number - 1}/")
        else:
            proposal = self._get(f"{key}/proposal")
            # Only now, so that what the leader has seen can be seen here.
            answer, proposed = agreed.answer(request.topic, proposal, cache.seen(pass_), before, mine)
            self._job.put(f"{key}/answer/{self._process}", answer.to_bytes())
            outcome = agreed.Answer.of(self._get(f"{key}/verdict"))
        result = agreed.conclude(proposed, outcome)
        lost = agreed.count(proposed) - agreed.count(agreed.conclude(proposed, agreed.Answer(b"", outcome.damaged)))
        cache.told(pass_, outcome.damaged, unshared=agreed.count(result) < agreed.count(proposed) - lost)
        self._before[index] = pass_, result
        self._done += 1
        _log.debug("%d of %d items are in cache %d for all processes", agreed.count(result), length, index)
        return result

    def _get(self, key: str) -> bytes:
        while not self._closing:
            value = self._job.get(key, _LOOK_SECONDS)
            if value is not None:
                return value
        raise _Closed
