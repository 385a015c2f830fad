"""A loader that waits for a disk: what the kernel tells of its workers, and what the verdict makes of it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import pytest

from hydrax_gpu import Dataloader
from hydrax_gpu._engine.stages import StageClock
from hydrax_gpu._engine.storage import Use, WorkerUse
from hydrax_gpu._stages import Cause, Kind, Stages, Totals
from hydrax_gpu._verdict import at_storage_speed, bound_by, verdict
from tests.slow import take
from tests.small import ARRAYS, group

MS = 1_000_000
MB = 1_000_000


def stages(read: int, ran: int, denied: int = 0, *, cause: Cause = Cause.LOAD, recent: Stages | None = None) -> Stages:
    """A second of two workers that were busy for 1.9 s, in which the loop waited for 0.6 s; times in ms."""
    totals = Totals(1000 * MS)
    totals.batches, totals.items = 100, 400
    totals.ns[Kind.READ if cause is Cause.READ else Kind.LOAD] = 1900 * MS
    totals.counts[Kind.LOAD] = 100
    totals.ns[Kind.WAIT], totals.causes[cause] = 600 * MS, 600 * MS
    totals.use = [read, ran * MS, denied * MS]
    return Stages.of(totals, 2, recent)


def said(found: Stages) -> str:
    return verdict(found, executor="process", depth=3, cores=8)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (stages(80 * MB, 190), True),
        (stages(80 * MB, 190, cause=Cause.READ), True),
        (stages(80 * MB, 1500), False),  # they compute
        (stages(80 * MB, 190, 1400), False),  # it is processors that they lack
        (stages(0, 190), False),  # a network, or somebody else
        (stages(400 * 4096 - 1, 190), False),  # what they import, and not the items
        (stages(400 * 4096, 190), True),
        (stages(80 * MB, 0), False),  # not known
        (stages(80 * MB, 190, cause=Cause.PLACEMENT), False),
    ],
)
def test_when_it_is_the_disk(found: Stages, expected: bool) -> None:
    assert at_storage_speed(found, bound_by(found, 3)) is expected
    assert ("at the disk's speed" in said(found)) is expected


def test_the_sentence_has_the_speed() -> None:
    text = said(stages(80 * MB, 190))
    assert text.startswith("loader-bound at the disk's speed: the loop waited 60% of the time for the loader function")
    assert "storage, which read 80 MB/s; the workers (now 2) slept 90% of their time" in text
    assert said(stages(80 * MB, 190, cause=Cause.READ)).startswith("read-bound at the disk's speed: ")
    assert "storage   80.0 MB/s read for the workers, which slept 90% of their time" in str(stages(80 * MB, 190))
    assert "storage" not in str(stages(80 * MB, 0)) and "storage" not in str(stages(0, 190))


def test_a_first_epoch_is_told_from_those_after_it() -> None:
    later = stages(0, 1850)
    text = said(stages(80 * MB, 190, recent=later))
    assert text.startswith("loader-bound: ") and "(the whole run: loader-bound at the disk's speed, it" in text


def test_what_is_not_known_is_said_to_be_so() -> None:
    found = stages(80 * MB, 0)
    assert (found.read_bytes, found.asleep_share, found.read_rate) == (None, None, 0.0)
    assert stages(0, 190).read_bytes == 0 and Stages().read_rate == 0.0


class Proc:
    """A folder that looks like /proc."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tell(self, name: str, read: int, ran: int, denied: int) -> None:
        place = self.folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "schedstat").write_text(f"{ran} {denied} 17\n")
        (place / "io").write_text(f"rchar: 5\nwchar: 6\nsyscr: 7\nread_bytes: {read}\nwrite_bytes: 8\n")


def test_workers_come_and_go(tmp_path: Path) -> None:
    proc = Proc(tmp_path)
    use = WorkerUse(str(tmp_path))
    assert use.look() == Use()
    use.add(0, 4711)
    use.add(1, os.getpid(), 33)
    proc.tell("4711", 100, 10, 1)
    proc.tell("self/task/33", 1000, 20, 2)
    assert use.look() == Use(1100, 30, 3)
    (tmp_path / "4711" / "io").unlink()  # it has ended
    assert use.look() == Use(1100, 30, 3)
    use.add(0, 4712)  # another in its place
    assert use.look() == Use(1100, 30, 3)
    proc.tell("4712", 7, 7, 7)
    assert use.look() == Use(1107, 37, 10)
    (tmp_path / "4712" / "io").write_text("nothing of use\n")
    assert use.look() == Use(1107, 37, 10)


def test_this_process_can_be_looked_at() -> None:
    use = WorkerUse()
    use.add(0, os.getpid(), os.getpid())
    before = use.look()
    if not before.ran_ns:
        pytest.skip("this kernel does not tell how long threads run")
    sum(range(200_000))
    assert use.look().ran_ns > before.ran_ns


def test_the_clock_asks_at_the_first_batch_and_at_the_end(tmp_path: Path) -> None:
    """What came before the first batch, such as imports, is not the items'."""
    proc, now = Proc(tmp_path), [1]
    clock = StageClock(1, clock=lambda: now[0], cost_ns=0.0, use=WorkerUse(str(tmp_path)))
    clock.ready(0, 4711)
    proc.tell("4711", 500 * MB, 5 * MS, 0)
    clock.batches = 1
    clock.leave(0, 4)
    now[0] += 1000 * MS
    proc.tell("4711", 600 * MB, 105 * MS, 200 * MS)
    clock.counters.busy_ns += 700 * MS
    clock.settle()
    (tmp_path / "4711" / "schedstat").unlink()
    found = clock.stages()
    assert found.read_bytes == 100 * MB and found.asleep_share == pytest.approx(4 / 7)


ITEM = 1 << 18


class DirectRead:
    """Reads a piece of a file past the page cache, from a disk that is slow enough."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, item: int, arrays: Any, seed: int | None) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, ITEM) as buffer:  # which is aligned as the disk wants it
                assert os.preadv(fd, [buffer], item * ITEM) == ITEM
                if arrays:
                    take(0.03)
                for array in arrays.values():
                    array[...] = buffer[0]
        finally:
            os.close(fd)


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_reading_past_the_page_cache_is_at_the_speed_of_the_disk(executor: Any, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(os.urandom(16 * ITEM))
    with path.open("rb+") as file:
        os.fsync(file.fileno())  # or it might not be on a disk yet
    use = WorkerUse()
    use.add(0, os.getpid(), os.getpid())
    before = use.look()
    try:
        DirectRead(str(path))(0, {}, None)
    except OSError:
        pytest.skip("this file system has no direct reads")
    if use.look().read_bytes - before.read_bytes < ITEM:
        pytest.skip("this file system's reads are not counted")
    it = Dataloader(
        DirectRead(str(path)), group(range(16), 4, loader_arrays=ARRAYS), executor=executor, end_at=("batch", 9)
    )
    with it:
        for batch in it:
            del batch
    found = it.report().stages  # now that the workers have ended
    # 32 items come after the first batch; some of these are read before it is handed out
    assert found.read_bytes is not None and 16 * ITEM <= found.read_bytes <= 64 * ITEM
    assert it.report().verdict.startswith("loader-bound at the disk's speed: the loop waited "), str(it.report())
