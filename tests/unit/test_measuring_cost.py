"""What measuring costs, and the loader without it that this is compared with."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import stages
from benchmarks.bare import bare_code, switchable
from hydrax_gpu._engine.runner import Runner
from hydrax_gpu._engine.stream import Stream
from tests.small import loader, rows


def test_a_batch_that_is_passed_over_costs_next_to_nothing() -> None:
    found = stages.bytecodes(batches=50)
    # 87 of 6,670 when this was written; one more look at a clock is some 8
    assert 0 < found["bytecodes_more"] < 110, found
    assert found["of_limit"] < 1.02


@pytest.mark.parametrize("executor", ["inline", "thread"])
def test_a_loader_that_is_not_measured_does_the_same(executor: Any) -> None:
    expected = rows(loader(executor=executor))
    with switchable() as switch:
        switch(False)
        it = loader(executor=executor)
        assert rows(it) == expected
        assert it.report().stages.batches == 0 and it.report().waits > 0
    it = loader(executor=executor)
    assert rows(it) == expected
    assert it.report().stages.batches > 0


def test_what_is_left_out() -> None:
    codes = [bare_code(function) for function in (Runner._place, Runner.turn, Stream.next)]  # type: ignore[arg-type]
    assert all("stages" not in code.co_names for code in codes)
    assert "place" in codes[0].co_names and "take" in codes[1].co_names
    with pytest.raises(RuntimeError, match="measures nothing"):
        bare_code(Runner._group)  # type: ignore[arg-type]


def test_a_difference_has_its_bounds() -> None:
    middle, low, high = stages._difference([float(n) for n in range(101)], [0.0] * 101)
    assert (middle, low, high) == (50.0, 40.0, 60.0)
