"""A consumer that waits finds what a worker has done and not told, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydrax_gpu._exec.chunk import ChunkRunner
from hydrax_gpu._exec.protocol import Result, Task
from hydrax_gpu._exec.worker import Worker
from hydrax_gpu._mem.arena import Arena
from hydrax_gpu._spec import Layout


class Box:
    """An inbox."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def post(self, message: Any, /) -> None:
        self.messages.append(message)

    def register(self, fd: int, ready: Any, *, write: bool = False) -> None:
        raise AssertionError

    def unregister(self, fd: int) -> None:
        raise AssertionError


@given(st.lists(st.sampled_from(["silent", "loud", "fails"]), max_size=30), st.data())
def test_what_is_found_is_what_was_done_silently(kinds: list[str], data: st.DataObject) -> None:
    def load(item: int, arrays: Any, seed: int | None) -> dict[str, Any] | None:
        if kinds[item] == "fails":
            raise ValueError
        return {"item": item} if kinds[item] == "loud" else None

    layout = Layout.build(1, {"x": ((), "int32", "int32")})
    arena = Arena.create(1, layout.nbytes, workers=2, shared=False)
    runner = ChunkRunner(load, [layout], arena, 1)
    box = Box()
    worker = Worker(1, box, arena)
    for chunk in range(len(kinds)):
        worker.submit(100 + chunk, b"")
    done: list[tuple[Any, ...]] = []  # messages on their way, in order
    received = 0
    for item in range(len(kinds)):
        result = runner.run(Task(100 + item, 0, 0, 0, [item], None))
        assert result.loud == (kinds[item] != "silent")
        done.append(("done", 100 + item, result.busy_ns, None, (), None, None, 0, 0))
        for _ in range(data.draw(st.integers(0, len(done) - received))):
            worker._decode(done[received])  # pyright: ignore[reportPrivateUsage]
            received += 1
        before = {message.chunk for message in box.messages}
        worker.look()
        found = {message.chunk for message in box.messages} - before
        # From the first that was not received up to the last that was done, if all of them have nothing to tell.
        waiting = range(received, item + 1)
        if all(kinds[i] == "silent" for i in waiting):
            assert found == {100 + i for i in waiting} - before
        else:
            assert not found, "what is loud must come by itself, and before what follows it"
    assert all(isinstance(message, Result) and message.busy_ns == -1 for message in box.messages)
    assert len({message.chunk for message in box.messages}) == len(box.messages), "each once"
    assert all(kinds[message.chunk - 100] == "silent" for message in box.messages)


@pytest.mark.parametrize("start", [0, 2**20, 2**31 - 5, 2**31, 2**40 + 3])
def test_counts_may_be_as_large_as_they_like(start: int) -> None:
    arena = Arena.create(1, 8, workers=1, shared=False)
    arena.tell_done(0, start + 5, start + 2)
    assert arena.silently_done(0, start + 2) == 3
    assert arena.silently_done(0, start + 4) == 1
    assert arena.silently_done(0, start + 5) == 0
    assert arena.silently_done(0, start + 9) == 0
    assert arena.silently_done(0, start + 1) == 0
    arena.tell_done(0, start + 5, 0)
    assert arena.silently_done(0, start + 1) == 4
