"""The inbox wakes a waiter for every message and every event, and never writes to a file that is not its own."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hydrax_gpu._engine.inbox import EpollInbox, Waiter


@pytest.fixture
def inbox() -> Iterator[EpollInbox]:
    inbox = EpollInbox()
    yield inbox
    inbox.close()


def never() -> bool:
    return False


def receive(inbox: EpollInbox, timeout: float | None, waiter: Waiter = Waiter.ENGINE) -> list[Any]:
    return inbox.take(inbox.wait(waiter, timeout, never))


class Sleeper:
    """A thread that waits, and says when it is about to."""

    def __init__(self, inbox: EpollInbox, waiter: Waiter) -> None:
        self.asleep = threading.Event()
        self.woken = threading.Event()
        self.inbox, self.waiter = inbox, waiter
        self.events: list[tuple[int, int]] = []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        assert self.asleep.wait(10)

    def wanted(self) -> bool:
        self.asleep.set()
        return False

    def run(self) -> None:
        self.events = self.inbox.wait(self.waiter, 30, self.wanted)
        self.woken.set()

    def join(self) -> None:
        self.thread.join(10)
        assert not self.thread.is_alive(), "the waiter was not woken"


def test_messages_come_in_the_order_they_were_posted(inbox: EpollInbox) -> None:
    for number in range(5):
        inbox.post(number)
    assert inbox.pending
    assert receive(inbox, None) == [0, 1, 2, 3, 4]
    assert receive(inbox, 0) == [] and not inbox.pending


@pytest.mark.parametrize("waiter", Waiter)
def test_a_sleeper_is_woken_by_a_post(inbox: EpollInbox, waiter: Waiter) -> None:
    sleeper = Sleeper(inbox, waiter)
    inbox.post(1)
    sleeper.join()
    assert inbox.take(sleeper.events) == [1]
    assert not inbox.asleep(waiter)


def test_the_consumers_own_posts_wake_nobody(inbox: EpollInbox) -> None:
    """It drops a batch right before it comes to next(), and would only be in the engine's way."""
    inbox.consumer = threading.get_ident()
    sleeper = Sleeper(inbox, Waiter.ENGINE)
    inbox.post("released")
    assert inbox.pending and not sleeper.woken.is_set()
    inbox.wake()
    sleeper.join()
    assert inbox.take(sleeper.events) == ["released"]


def test_an_event_is_given_to_one_waiter_only(inbox: EpollInbox) -> None:
    reading, writing = os.pipe()
    got: list[bytes] = []
    try:
        inbox.register(reading, lambda _: got.append(os.read(reading, 10)))
        engine, consumer = Sleeper(inbox, Waiter.ENGINE), Sleeper(inbox, Waiter.CONSUMER)
        os.write(writing, b"x")
        while not (engine.woken.is_set() or consumer.woken.is_set()):
            pass
        first, other = (engine, consumer) if engine.woken.is_set() else (consumer, engine)
        inbox.take(first.events)
        assert got == [b"x"] and not other.woken.is_set()
        inbox.wake()
        other.join()
        first.join()
        inbox.take(other.events)
        assert got == [b"x"]
    finally:
        inbox.unregister(reading)
        os.close(reading)
        os.close(writing)


def test_many_posters_lose_nothing(inbox: EpollInbox) -> None:
    def post(first: int) -> None:
        for number in range(first, first + 2000):
            inbox.post(number)

    threads = [threading.Thread(target=post, args=(first,)) for first in (0, 2000, 4000, 6000)]
    for thread in threads:
        thread.start()
    got: list[int] = []
    while len(got) < 8000:
        got.extend(receive(inbox, 10))
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(8000))
    for first in (0, 2000, 4000, 6000):
        mine = [number for number in got if first <= number < first + 2000]
        assert mine == sorted(mine)


def test_a_condition_is_looked_at_once_more_before_sleeping(inbox: EpollInbox) -> None:
    assert inbox.wait(Waiter.ENGINE, None, lambda: True) == []  # would wait for ever otherwise


def test_registered_descriptors_are_served(inbox: EpollInbox) -> None:
    reading, writing = os.pipe()
    try:
        inbox.register(reading, lambda events: inbox.post(("in", events & select.EPOLLIN, os.read(reading, 10))))
        os.write(writing, b"x")
        assert receive(inbox, 10) == [("in", select.EPOLLIN, b"x")]
        inbox.register(writing, lambda events: inbox.post(("out", events & select.EPOLLOUT)), write=True)
        assert receive(inbox, 10) == [("out", select.EPOLLOUT)]
        inbox.unregister(writing)
        assert receive(inbox, 0) == []
    finally:
        inbox.unregister(reading)
        os.close(reading)
        os.close(writing)


def test_a_closed_inbox_takes_messages_and_touches_no_descriptor() -> None:
    inbox = EpollInbox()
    inbox.close()
    inbox.close()
    # The numbers that the inbox had are given to new files; a late post must not write into one of them.
    files = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4)]
    try:
        inbox.post("late")
        inbox.wake()
        for file in files:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(file)
    finally:
        for file in files:
            os.close(file)
