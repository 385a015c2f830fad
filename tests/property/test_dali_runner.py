"""How a pipeline is run when some of its samples are bad; with a pipeline that is not DALI's."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hydrax_gpu.loaders._dali_graph import Blueprint, PipelineRunner


class Pipeline:
    """Doubles its input, unless something of it is negative; then it is no longer to be used."""

    made = 0

    def __init__(self, capacity: int) -> None:
        Pipeline.made += 1
        self.capacity = capacity
        self.dead = False
        self.fed: dict[str, Any] = {}

    def feed_input(self, name: str, arrays: Any) -> None:
        assert not self.dead and len(arrays) <= self.capacity
        self.fed[name] = arrays

    def run(self) -> Any:
        assert not self.dead
        values = [int(array) for array in self.fed["x"]]
        if min(values) < 0:
            self.dead = True
            raise RuntimeError(
                "Critical error in pipeline:\n\nencountered:\n\nFailed to decode sample #0 : \n"
                "Current pipeline object is no longer valid."
            )
        return ([np.array(2 * value) for value in values],)


@given(
    st.lists(st.integers(0, 40), unique=True, min_size=1, max_size=40),
    st.sets(st.integers(0, 40), max_size=6),
    st.one_of(st.none(), st.integers(1, 9)),
)
def test_exactly_the_bad_samples_are_told_and_no_dead_pipeline_is_used(
    rows: list[int], bad: set[int], capacity: int | None
) -> None:
    runner = PipelineRunner(Blueprint(Pipeline, capacity, {"x": "x"}, {}, frozenset(), ("x",)))
    feeds = {"x": {row: np.array(-1 if row in bad else row + 100) for row in rows}}
    Pipeline.made = 0
    errors = 0
    found: dict[int, Any] = {}
    for some, outcome in runner.run(rows, feeds):
        if isinstance(outcome, Exception):
            errors += 1
            assert str(outcome) == "encountered:\nFailed to decode it"
            assert len(some) == 1
            found[some[0]] = None
        else:
            (values,) = outcome
            assert len(values) == len(some)
            found |= {row: int(value) for row, value in zip(some, values, strict=True)}
    assert found == {row: None if row in bad else 2 * (row + 100) for row in rows}
    assert errors == len(bad.intersection(rows))
    # A pipeline for each run that failed, and one: at worst all of the way down to each bad sample.
    assert Pipeline.made <= 1 + errors * (1 + len(rows).bit_length())
    before = Pipeline.made
    list(runner.run([rows[0]], {"x": {rows[0]: np.array(1)}}))
    assert Pipeline.made - before <= 1
