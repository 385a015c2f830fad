"""The inbox wakes its reader for every message and every descriptor, and never writes to a file that is not its own."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator

import pytest

from hydrax_gpu._engine.inbox import EpollInbox


@pytest.fixture
def inbox() -> Iterator[EpollInbox]:
    inbox = EpollInbox()
    yield inbox
    inbox.close()


def test_messages_come_in_the_order_they_were_posted(inbox: EpollInbox) -> None:
    for number in range(5):
        inbox.post(number)
    assert inbox.wait(None) == [0, 1, 2, 3, 4]
    assert inbox.wait(0) == []


def test_a_sleeping_reader_is_woken_by_a_post(inbox: EpollInbox) -> None:
    asleep = threading.Event()
    got: list[list[int]] = []

    def sleeping() -> bool:
        asleep.set()
        return True

    reader = threading.Thread(target=lambda: got.append(inbox.wait(30, sleeping)))
    reader.start()
    assert asleep.wait(10)
    inbox.post(1)
    reader.join(10)
    assert got == [[1]]


def test_many_posters_lose_nothing(inbox: EpollInbox) -> None:
    def post(first: int) -> None:
        for number in range(first, first + 2000):
            inbox.post(number)

    threads = [threading.Thread(target=post, args=(first,)) for first in (0, 2000, 4000, 6000)]
    for thread in threads:
        thread.start()
    got: list[int] = []
    while len(got) < 8000:
        messages = inbox.wait(10)
        assert messages, "the reader was not woken"
        got.extend(messages)
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(8000))
    for first in (0, 2000, 4000, 6000):
        mine = [number for number in got if first <= number < first + 2000]
        assert mine == sorted(mine)


def test_a_condition_is_looked_at_once_more_before_sleeping(inbox: EpollInbox) -> None:
    assert inbox.wait(None, lambda: False) == []  # would wait for ever otherwise


def test_registered_descriptors_are_served(inbox: EpollInbox) -> None:
    reading, writing = os.pipe()
    try:
        inbox.register(reading, lambda events: inbox.post(("in", events & select.EPOLLIN, os.read(reading, 10))))
        os.write(writing, b"x")
        assert inbox.wait(10) == [("in", select.EPOLLIN, b"x")]
        inbox.register(writing, lambda events: inbox.post(("out", events & select.EPOLLOUT)), write=True)
        assert inbox.wait(10) == [("out", select.EPOLLOUT)]
        inbox.unregister(writing)
        assert inbox.wait(0) == []
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
