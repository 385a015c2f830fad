"""Fifty seeds of chaos; `python -m tests.chaos --seeds 1000` for more."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.chaos.case import Agent, Case, check
from tests.restless import restless


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    monkeypatch.setattr("hydrax_gpu._exec.procs._GRACE_SECONDS", 0.2)  # workers that hang are left no time here
    agent = Agent()
    yield agent
    agent.close()


@pytest.mark.parametrize("first", range(0, 50, 5))
def test_a_run_under_chaos_comes_to_what_the_clean_run_comes_to(
    first: int, agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "hydrax_gpu")  # hundreds of deaths are told of otherwise
    problems = {seed: found for seed in range(first, first + 5) if (found := check(Case.draw(seed), agent))}
    assert problems == {}


@pytest.mark.parametrize("seed", [3, 18])
def test_it_does_so_while_workers_come_and_go(seed: int, agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "hydrax_gpu")
    with restless():
        assert check(Case.draw(seed).tuned(), agent) == []


def test_the_seeds_are_of_many_kinds() -> None:
    """A drawing that never draws what it is meant to would prove nothing."""
    cases = [Case.draw(seed) for seed in range(50)]
    assert {case.policy.mode for case in cases} == {"drop", "replace", "raise"}
    assert {case.options["executor"] for case in cases} == {"process", "thread"}
    assert sum(bool(case.load.lethal) for case in cases) >= 8
    assert sum(bool(case.load.hanging) for case in cases) >= 2
    assert sum(bool(case.interrupts) for case in cases) >= 15
    assert sum(bool(case.load.shy) for case in cases) >= 10
    assert sum(not case.options["deterministic"] for case in cases) >= 4
    assert sum(case.policy.budget is not None for case in cases) >= 8
    assert sum(case.blows for case in cases) >= 120
