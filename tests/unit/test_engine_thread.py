"""The engine's thread and a consumer that waits at the same time."""

from __future__ import annotations

import queue
import threading
from types import SimpleNamespace
from typing import Any, cast

from hydrax_gpu._engine.entries import END, Entry
from hydrax_gpu._engine.inbox import EpollInbox, Waiter
from hydrax_gpu._engine.runner import Runner
from hydrax_gpu._engine.thread import EngineThread


def test_a_consumer_is_woken_for_what_the_engine_did_before_it_stands_back() -> None:
    """The engine is given an event although the consumer waits, and finds that it is the consumer's turn to drive."""
    inbox, outbox = EpollInbox(), queue.SimpleQueue[Entry]()
    asleep = threading.Event()

    def turn(_: Any = ()) -> None:
        assert asleep.wait(10)
        if outbox.empty() and not woken.is_set():
            outbox.put(END)  # as if the event had completed a batch

    executor = SimpleNamespace(start_more=lambda: None)
    runner = SimpleNamespace(
        lock=threading.Lock(),
        start=lambda: None,
        turn=turn,
        close=lambda: None,
        has_work=lambda: False,
        inbox=inbox,
        outbox=outbox,
        executor=executor,
        core=SimpleNamespace(lends=False),
        consumer_drives=True,
        consumer_left_ns=0,
    )
    woken = threading.Event()

    def wait() -> None:
        inbox.wait(Waiter.CONSUMER, 30, lambda: asleep.set() is not None)
        woken.set()

    consumer = threading.Thread(target=wait)
    consumer.start()
    engine = EngineThread(cast("Runner", runner))
    engine.start()
    try:
        assert woken.wait(10), "the batch is in the outbox, and its consumer sleeps"
    finally:
        engine.close()
        inbox.wake()
        consumer.join()
        inbox.close()
