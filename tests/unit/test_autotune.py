"""`loader_count="auto"` and `depth="auto"` of a loader that runs. (What is chosen is in `test_tuning.py`.)"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydrax_gpu import DataGroup, Dataloader
from hydrax_gpu._engine.tuning import Setting, Tuner, Window
from hydrax_gpu._exec.worker import Worker
from hydrax_gpu._mem.cores import cores
from hydrax_gpu._sizing import Sizing
from hydrax_gpu.report import Tuning
from tests import loaders
from tests.restless import restless
from tests.slow import take

ARRAYS = {"x": ((4,), "int32", "int32"), "seed": ((2,), "uint32", "uint32")}
AUTO: dict[str, Any] = {"loader_count": "auto", "depth": "auto"}


def group(items: int = 64, batch: int = 4) -> DataGroup[int]:
    return DataGroup(batch, range(items), loader_arrays=ARRAYS, seed=3, shuffle_first=True)


def content(batches: Iterator[Any]) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    for batch in batches:
        found.append((np.asarray(batch.arrays["x"]).tobytes(), np.asarray(batch.arrays["seed"]).tobytes()))
        del batch
    return found


@pytest.fixture(name="restless")
def restless_fixture() -> Iterator[list[Setting]]:
    with restless() as named:
        yield named


def until(it: Any, enough: Callable[[], bool]) -> list[tuple[bytes, bytes]]:
    """Takes batches until there are enough; a step takes a millisecond, which starting workers can use."""
    found: list[tuple[bytes, bytes]] = []
    while not enough():
        found += content(iter([next(it)]))
        take(0.001)
    return found


def tuning_of(it: Any) -> Tuning:
    tuning = it.report().tuning
    assert tuning is not None
    return tuning


def inline(batches: int) -> list[tuple[bytes, bytes]]:
    """What so many batches must hold."""
    with Dataloader(loaders.record, group(), executor="inline", end_at=("batch", batches)) as it:
        return content(it)


@pytest.mark.parametrize(("executor", "changes", "delivery"), [("thread", 40, "alias"), ("process", 3, "copy")])
def test_batches_do_not_depend_on_what_changes(
    restless: list[Setting], executor: Any, changes: int, delivery: Any
) -> None:
    with Dataloader(loaders.record, group(), executor=executor, delivery=delivery, **AUTO) as it:
        found = until(it, lambda: len(restless) >= changes)
        report = it.report()
    assert found == inline(len(found))
    assert len(set(restless)) >= 3
    assert not report.worker_deaths and not report.bad
    assert report.tuning is not None and len(report.tuning.steps) == 1 + len(restless)
    assert report.depth == report.tuning.depth == restless[-1].slots


def test_a_state_of_it_goes_on_with_fixed_numbers(restless: list[Setting]) -> None:
    with Dataloader(loaders.record, group(), executor="inline", end_at=("batch", 90)) as it:
        expected = content(it)
    with Dataloader(loaders.record, group(), executor="thread", end_at=("batch", 90), **AUTO) as it:
        first = [content(iter([next(it)]))[0] for _ in range(41)]
        state = it.state()
    with Dataloader(loaders.record, group(), executor="thread", end_at=("batch", 90), start_at=state) as it:
        assert first + content(it) == expected


def test_workers_that_are_killed_while_others_come_and_go(restless: list[Setting]) -> None:
    before = set(os.listdir("/proc/self/fd"))
    found: list[tuple[bytes, bytes]] = []
    pids: set[int] = set()
    with Dataloader(loaders.record, group(), **AUTO) as it:
        for changes in (1, 2):
            found += until(it, lambda: len(restless) >= changes)  # noqa: B023
            alive = it.report().workers
            pids |= {worker.pid for worker in alive}
            os.kill(alive[-1].pid, signal.SIGKILL)
        found += until(it, lambda: len(restless) >= 3)
    assert found == inline(len(found))
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert set(os.listdir("/proc/self/fd")) <= before


class Unstartable:
    """Stands in the place of `Worker.start`: the system has room for two processes."""

    def __init__(self, start: Callable[..., None], most: int) -> None:
        self.start = start
        self.left = most

    def __call__(self, worker: Worker, path: list[str]) -> None:
        if not self.left:
            raise OSError(11, "Resource temporarily unavailable")
        self.left -= 1
        self.start(worker, path)


def test_a_worker_that_cannot_be_started_is_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unstartable = Unstartable(Worker.start, 2)
    monkeypatch.setattr(Worker, "start", lambda worker, path: unstartable(worker, path))
    monkeypatch.setattr("hydrax_gpu._engine.autotune._SECONDS", 0.0)
    monkeypatch.setattr("hydrax_gpu._engine.autotune._BATCHES", 1)
    monkeypatch.setattr(Tuner, "feed", _four_workers)
    with caplog.at_level(logging.WARNING), Dataloader(loaders.record, group(), **AUTO) as it:
        until(it, lambda: tuning_of(it).settled or len(tuning_of(it).steps) > 2)
        until(it, iter([False] * 20 + [True]).__next__)  # it goes on
        report = it.report()
    assert report.tuning is not None and report.tuning.workers == 2
    assert "no more could be started" in report.tuning.steps[-1].why
    assert [record.message for record in caplog.records if "stays at 2 workers" in record.message]


def _four_workers(self: Tuner, window: Window) -> Setting:
    self.setting = Setting(min(4, self.limits.workers), self.setting.slots)
    self.why = "four"
    return self.setting


def test_slots_that_there_is_no_memory_for_are_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: object, slots: int) -> None:
        raise MemoryError("could not have 4096 bytes more")

    monkeypatch.setattr("hydrax_gpu._engine.autotune._SECONDS", 0.0)
    monkeypatch.setattr("hydrax_gpu._engine.autotune._BATCHES", 1)
    monkeypatch.setattr("hydrax_gpu._mem.arena.Arena.use", refuse)
    monkeypatch.setattr(Tuner, "feed", lambda self, window: _slots(self, 6))
    with (
        caplog.at_level(logging.WARNING),
        Dataloader(loaders.record, group(), executor="thread", **AUTO) as it,
    ):
        until(it, lambda: "4096 bytes more" in caplog.text)
        until(it, iter([False] * 20 + [True]).__next__)
        report = it.report()
    assert report.depth == 3


def _slots(tuner: Tuner, count: int) -> Setting:
    tuner.setting = Setting(tuner.setting.workers, min(count, tuner.limits.slots))
    return tuner.setting


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_only_the_slots_in_use_take_memory(executor: Any) -> None:
    large = DataGroup(2, range(8), loader_arrays={"x": ((1 << 20,), "uint8", "uint8")})
    with Dataloader(loaders.fill, large, executor=executor, end_at=("batch", 2), **AUTO) as it:
        for batch in it:
            del batch
        report = it.report()
        assert it._arena is not None  # pyright: ignore[reportPrivateUsage]
        assert it._arena.mapping.size > 4 * report.memory_bytes  # pyright: ignore[reportPrivateUsage]
    assert report.depth == 3 and report.memory_bytes == 3 * 2 * (1 << 20)


def test_inline_there_is_nothing_to_choose() -> None:
    with Dataloader(loaders.record, group(), executor="inline", end_at=("batch", 3), **AUTO) as it:
        assert len(content(it)) == 3
        tuning = it.report().tuning
    assert tuning is not None and tuning.settled and "nothing to choose" in tuning.why
    assert (tuning.workers, tuning.depth) == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "workers", "depth"), [({"loader_count": "auto"}, 2, 3), ({"depth": "auto"}, 1, 3)]
)
def test_one_of_both_may_be_fixed(arguments: Any, workers: int, depth: int) -> None:
    with Dataloader(loaders.record, group(), executor="thread", end_at=("batch", 3), **arguments) as it:
        assert len(content(it)) == 3
        tuning = it.report().tuning
    assert tuning is not None
    assert (tuning.workers, tuning.depth) == (workers, depth)
    assert (tuning.most_workers == 1) == ("loader_count" not in arguments)
    assert (tuning.most_depth == 3) == ("depth" not in arguments)


def test_several_processes_agree_on_the_number_of_slots() -> None:
    one = Sizing.of("auto", "auto", "process", [group()])
    several = Sizing.of("auto", "auto", "process", [group()], several=True)
    assert one.limits(4096).slots > several.limits(4096).slots == several.start.slots == 3
    assert several.tunes and several.limits(4096).workers > 2
    fixed = Sizing.of("auto", 2, "process", [group()], several=True)
    tuning = fixed.tuning(None)
    assert not fixed.tunes and tuning is not None and "agree" in tuning.why


def test_fixed_numbers_are_not_reported_as_chosen() -> None:
    assert Dataloader(loaders.record, group()).report().tuning is None
    auto = Dataloader(loaders.record, group(), **AUTO).report().tuning
    assert isinstance(auto, Tuning) and auto.why == "not entered yet"


@pytest.mark.parametrize("name", ["loader_count", "depth"])
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [("fast", ValueError, "or 'auto'"), (-1, ValueError, "at least"), (None, TypeError, "wanted an integer")],
)
def test_other_words_are_refused(name: str, value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as info:
        Dataloader(loaders.record, group(), **{name: value})
    assert name in str(info.value)


def test_the_report_says_what_was_chosen_and_why(restless: list[Setting]) -> None:
    with Dataloader(loaders.record, group(), executor="thread", **AUTO) as it:
        until(it, lambda: len(restless) >= 2)
        text = str(it.report())
    assert "tuning        " in text and "the start" in text and "restless" in text


def test_what_is_changed_is_in_the_trace(restless: list[Setting], tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    with Dataloader(loaders.record, group(), executor="thread", trace=file, **AUTO) as it:
        until(it, lambda: len(restless) >= 2)
    assert '"tuning"' in file.read_text() and '"workers":' in file.read_text()


@pytest.mark.parametrize(
    ("files", "number", "what"),
    [
        (
            {"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "50000 100000\n"},
            0.5,
            "cgroup /job (cpu.max)",
        ),
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "max 100000\n"}, None, ""),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "25000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            0.25,
            "cpu.cfs_quota_us",
        ),
        ({"proc/self/cgroup": "4:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, None, ""),
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/cpu.max": "0 0 nonsense"}, None, ""),
    ],
)
def test_a_quota_of_processors_is_found(tmp_path: Path, files: dict[str, str], number: float | None, what: str) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = cores(tmp_path)
    assert found.number == (len(os.sched_getaffinity(0)) if number is None else number)
    assert what in found.what
