"""Progress bars: what they count, where they begin, and that they and the loader are closed."""

from __future__ import annotations

import io
import logging
import re
from typing import Any

import numpy as np
import pytest

from hydrax_gpu import DataGroup, Dataloader
from hydrax_gpu.tqdm import ProgressMonitor, tbatches
from tests.loaders import fill

ARRAYS = {"x": ((), np.int32, np.int32)}
FORMAT = "{desc}: {n_fmt}/{total_fmt};"


def loader(**options: Any) -> Dataloader[int]:
    """Two epochs of four training batches, by default."""
    options = {"executor": "inline", "end_at": ("epoch", 2)} | options
    return Dataloader(fill, DataGroup(2, range(8), loader_arrays=ARRAYS), **options)


def validation(batches: int = 2, interval: int = 1) -> Any:
    return ("epoch", interval, DataGroup(2, range(2 * batches), loader_arrays=ARRAYS))


class Screen(io.StringIO):
    """Shows what was printed as `(description, count, total)`, repetitions left out."""

    def shown(self) -> list[tuple[str, int, str]]:
        states: list[tuple[str, int, str]] = []
        for name, count, total in re.findall(r"([\w ]+): (\d+)/(\d+|\?);", self.getvalue()):
            state = (name, int(count), total)
            if state not in states[-1:]:
                states.append(state)
        return states

    def counts(self, name: str) -> list[int]:
        return [count for shown, count, _ in self.shown() if shown == name]


@pytest.fixture
def screen() -> Screen:
    return Screen()


def bars(screen: Screen, **options: Any) -> dict[str, Any]:
    """Every count is printed, at once."""
    return {"file": screen, "bar_format": FORMAT, "mininterval": 0, "miniters": 1, "ncols": 80} | options


# The bars.


def test_the_bar_counts_training_batches_to_the_end(screen: Screen) -> None:
    it = loader()
    numbers = [batch.batch_num for batch in tbatches(it, **bars(screen))]
    assert numbers == list(range(8))
    assert screen.shown() == [("train", count, "8") for count in range(9)]


def test_a_description_can_be_given(screen: Screen) -> None:
    for _ in tbatches(loader(), description="digits", **bars(screen)):
        pass
    assert screen.shown()[-1] == ("digits", 8, "8")


def test_a_run_without_an_end_has_no_total(screen: Screen) -> None:
    for batch in tbatches(loader(end_at=None), **bars(screen)):
        if batch.batch_num == 5:
            break
    assert screen.shown()[-1] == ("train", 5, "?"), "the batch in work has not ended"


def test_a_resumed_run_begins_at_its_first_batch(screen: Screen) -> None:
    numbers = [batch.batch_num for batch in tbatches(loader(start_at=(1, 1)), **bars(screen))]
    assert numbers == [5, 6, 7]
    assert screen.shown() == [("train", count, "8") for count in range(5, 9)]


def test_a_validation_pass_has_a_bar_of_its_own(screen: Screen) -> None:
    kinds = ["TV"[batch.is_validation] for batch in tbatches(loader(validation=validation()), **bars(screen))]
    assert "".join(kinds) == "TTTTVVTTTTVV"
    assert screen.counts("train")[-1] == 8
    shown = [state for state in screen.shown() if state[0] == "validation"]
    assert shown == [("validation", count, "2") for count in (0, 1, 2)] * 2
    order = [state[0] for state in screen.shown()]
    assert order.index("validation") > screen.shown().index(("train", 4, "8"))


def test_a_validation_pass_resumed_in_its_middle_begins_there(screen: Screen) -> None:
    first = loader(validation=validation(3))
    with first:
        for batch in first:
            if batch.is_validation:
                break
    for _ in tbatches(loader(validation=validation(3), start_at=first.state()), **bars(screen)):
        pass
    assert screen.counts("validation") == [1, 2, 3, 0, 1, 2, 3]
    assert screen.counts("train")[0] == 4


def test_bars_count_batches_in_whatever_order_they_come(screen: Screen) -> None:
    it = loader(validation=validation(), deterministic=False, executor="thread", loader_count=2, depth=4)
    assert len(list(tbatches(it, **bars(screen)))) == 12
    assert screen.counts("train")[-1] == 8
    assert max(screen.counts("validation")) == 2


# Waiting is reported.


def test_every_interval_says_how_long_the_loop_waited(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    idle = iter([12_300, 900])
    monkeypatch.setattr(Dataloader, "idle_usec", lambda self: next(idle))
    for _ in tbatches(loader(end_at=("batch", 7)), 3, **bars(screen)):
        pass
    # The second time it waited 0.3 ms a batch, which is not worth a line.
    messages = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert messages == [(logging.WARNING, "the loop waits 4.1 ms a batch for data (last 3 batches)")]


def test_without_an_interval_nothing_is_reported(
    screen: Screen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Dataloader, "idle_usec", lambda self: 10**9)
    for _ in tbatches(loader(), **bars(screen)):
        pass
    assert not caplog.records


# Ends.


def test_a_break_closes_the_bars_and_the_loader(screen: Screen) -> None:
    it = loader(executor="thread", validation=validation())
    for batch in tbatches(it, **bars(screen)):
        if batch.is_validation:
            break
    with pytest.raises(RuntimeError, match="its `with` block was left"):
        next(it)
    assert screen.counts("train")[-1] == 4
    del batch


def test_an_error_in_the_loop_closes_the_loader(screen: Screen) -> None:
    it = loader(executor="thread")
    with pytest.raises(ZeroDivisionError):
        for _ in tbatches(it, **bars(screen)):
            raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="its `with` block was left"):
        next(it)


def test_a_loader_that_was_entered_is_refused_and_the_bar_closed(screen: Screen) -> None:
    with loader() as it, pytest.raises(RuntimeError, match="can be entered once"):
        next(tbatches(it, **bars(screen)))


def test_the_slot_of_a_batch_is_free_before_the_next_is_asked_for(screen: Screen) -> None:
    it = loader(depth=1, delivery="alias", executor="thread", timeout_sec=30)
    count = 0
    for batch in tbatches(it, **bars(screen)):
        count += 1
        del batch
    assert count == 8


# The monitor by itself.


def test_a_monitor_in_a_loop_of_ones_own(screen: Screen) -> None:
    it = loader(validation=validation())
    with it, ProgressMonitor(it, description="own", **bars(screen)) as monitor:
        for batch in it:
            monitor.begin_batch(batch)
            monitor.end_batch(batch)
            del batch
    assert screen.counts("own")[-1] == 8
    assert screen.counts("validation") == [0, 1, 2, 0, 1, 2]


def test_a_closed_monitor_refuses_batches(screen: Screen) -> None:
    it = loader()
    monitor = ProgressMonitor(it, **bars(screen))
    with it:
        batch = next(it)
        monitor.close()
        monitor.close()
        for call in (monitor.begin_batch, monitor.end_batch):
            with pytest.raises(RuntimeError) as caught:
                call(batch)
            assert str(caught.value) == "this ProgressMonitor is closed"


def test_a_validation_batch_must_begin_before_it_ends(screen: Screen) -> None:
    it = loader(validation=validation(), start_at=(0, 3))
    with it, ProgressMonitor(it, **bars(screen)) as monitor:
        next(it)
        batch = next(it)
        assert batch.is_validation
        with pytest.raises(RuntimeError) as caught:
            monitor.end_batch(batch)
        assert str(caught.value) == "end_batch was called for a validation batch without begin_batch"
