"""Signals. Ctrl-C: the first ends the iteration, the second raises at the next batch, the third ends the process.

The script and the test take turns over pipes: the script says where it is, the test sends the signal to the whole
process group, as a terminal does, and only then lets the script go on.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hydrax_gpu import DataGroup, Dataloader
from tests import loaders

GROUP: DataGroup[int] = DataGroup(4, range(1000), loader_arrays={"x": ((), "int32", "int32")})

SCRIPT = textwrap.dedent("""
    import json, os, signal, sys
    from hydrax_gpu import Dataloader, DataGroup
    from tests.loaders import fill

    def turn(word):
        print(word, flush=True)
        while sys.stdin.readline() == "interrupt\\n":
            # By itself, so that no two signals become one; the group as a whole is signalled in another test.
            signal.raise_signal(signal.SIGINT)

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have their background jobs ignore it
        group = DataGroup(4, range(1000), loader_arrays={"x": ((), "int32", "int32")})
        loader = Dataloader(fill, group, loader_count=2, executor=sys.argv[1])
        seen = 0
        try:
            with loader:
                print(json.dumps([w.pid for w in loader.report().workers] or [os.getpid()]), flush=True)
                for batch in loader:
                    seen += 1
                    del batch
                    if seen >= 3:
                        turn("batch")
        except KeyboardInterrupt:
            print(json.dumps({"raised": True, "seen": seen, "state": loader.state()}), flush=True)
            sys.exit(130)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        print(json.dumps({"interrupted": loader.interrupted, "seen": seen, "state": loader.state()}), flush=True)
""")


class Script:
    """The script above in a process group of its own."""

    def __init__(self, executor: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, executor],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        self.say("")  # nothing is read before the third batch
        self.line()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def last_words(self) -> dict[str, Any]:
        """Lets it go on from batch to batch until it says something else."""
        while (line := self.line()) == "batch":
            self.say("")
        return json.loads(line)

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def workers(self) -> list[int]:
        children = f"/proc/{self.process.pid}/task"
        found: list[int] = []
        for task in os.listdir(children):
            with open(f"{children}/{task}/children") as file:
                found += [int(pid) for pid in file.read().split()]
        return found


@contextmanager
def running(executor: str) -> Iterator[Script]:
    script = Script(executor)
    try:
        yield script
    finally:
        script.process.kill()
        script.process.communicate()


@pytest.mark.parametrize("executor", ["process", "thread", "inline"])
def test_the_first_ends_the_iteration_and_the_state_goes_on_there(executor: str) -> None:
    with running(executor) as script:
        assert script.line() == "batch"  # three batches are done; the first empty line was read: a fourth comes
        script.interrupt()
        script.say("")
        told = script.last_words()
        out, err = script.process.communicate()
        assert script.process.returncode == 0, err
        assert told["interrupted"] and out == ""
        assert "Traceback" not in err, "workers do not react to a Ctrl-C of their own"
    with Dataloader(loaders.fill, GROUP, executor="inline", start_at=told["state"]) as loader:
        assert next(loader).indices[0] == 4 * told["seen"]


def test_the_second_raises_at_the_next_batch() -> None:
    with running("process") as script:
        assert script.line() == "batch"
        script.say("interrupt\ninterrupt\n")
        told = script.last_words()
        script.process.communicate()
        assert told["raised"] and script.process.returncode == 130
        assert told["state"]["batch"] == told["seen"]


def test_the_third_ends_the_process_and_its_workers() -> None:
    with running("process") as script:
        assert script.line() == "batch"
        watches = [os.pidfd_open(pid) for pid in script.workers()]
        assert len(watches) == 2
        try:
            script.say("interrupt\ninterrupt\ninterrupt")
            assert script.process.wait(10) == 130
            for watch in watches:
                assert select.select([watch], [], [], 10)[0], "a worker outlived the process"
        finally:
            for watch in watches:
                os.close(watch)


def test_handlers_are_put_back_and_nested_loaders_all_stop() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Dataloader(loaders.fill, GROUP, executor="inline") as outer:
        next(outer)
        with Dataloader(loaders.fill, GROUP, executor="thread") as inner:
            next(inner)
            signal.raise_signal(signal.SIGINT)
            assert list(inner) == [] and list(outer) == []
            assert inner.interrupted and outer.interrupted
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_no_handler_is_installed() -> None:
    handlers: list[object] = []

    def run() -> None:
        with Dataloader(loaders.fill, GROUP, executor="inline") as loader:
            next(loader)
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]


def test_a_consumer_that_waits_is_woken_by_an_interrupt() -> None:
    """Nothing can come: the loader function waits for an event that is set only afterwards."""
    release = threading.Event()
    begun = threading.Event()

    def blocked(item: int, arrays: object, seed: int | None) -> None:
        begun.set()
        release.wait(30)

    with Dataloader(blocked, GROUP, executor="thread") as loader:

        def interrupt() -> None:
            begun.wait(30)
            loader.interrupt()

        thread = threading.Thread(target=interrupt)
        thread.start()
        assert next(loader, None) is None
        thread.join()
        release.set()
    assert loader.interrupted


TERMINATED = textwrap.dedent("""
    import json, os, signal, sys
    from hydrax_gpu import Dataloader, DataGroup
    from tests.loaders import fill

    def save(state):
        print(json.dumps({"saved": state}), flush=True)

    if __name__ == "__main__":
        group = DataGroup(4, range(1000), loader_arrays={"x": ((), "int32", "int32")})
        with Dataloader(fill, group, loader_count=2, sigterm=save) as loader:
            seen = 0
            for batch in loader:
                seen += 1
                del batch
                if seen == 3:
                    print("ready", flush=True)
                    sys.stdin.readline()
            assert next(loader, None) is None
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        print(json.dumps({"interrupted": loader.interrupted, "seen": seen, "state": loader.state(),
                          "deaths": len(loader.report().worker_deaths)}))
""")


def test_sigterm_to_all_processes_saves_once_and_ends_the_iteration() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINATED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does it, to the workers too
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate("\n", timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, err
    saved, told = map(json.loads, out.splitlines())
    assert saved["saved"] == told["state"] and told["interrupted"] and told["deaths"] == 0
    with Dataloader(loaders.fill, GROUP, executor="inline", start_at=told["state"]) as loader:
        assert next(loader).indices[0] == 4 * told["seen"] == 12


def test_sigterm_is_left_alone_unless_asked_for() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Dataloader(loaders.fill, GROUP, executor="inline") as loader:
        next(loader)
        assert signal.getsignal(signal.SIGTERM) is before
    with Dataloader(loaders.fill, GROUP, executor="inline", sigterm=True) as loader:
        next(loader)
        for _ in range(5):
            signal.raise_signal(signal.SIGTERM)
        assert list(loader) == [] and loader.interrupted, "however often it comes, it is as the first Ctrl-C"
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_the_hook_raises_comes_out_of_next() -> None:
    def save(state: object) -> None:
        raise OSError("the disk is full")

    with Dataloader(loaders.fill, GROUP, executor="inline", sigterm=save) as loader:
        next(loader)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(OSError, match="the disk is full"):
            next(loader)
        assert list(loader) == []


def test_a_hook_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="sigterm: got 15, wanted True, False, or a function that saves a state"):
        Dataloader(loaders.fill, GROUP, sigterm=15)  # pyright: ignore[reportArgumentType]
