"""The GPU's tests of DALI graphs, as far as they can be tried without one: their bodies on the fake device."""

from __future__ import annotations

import pytest

from hydrax_gpu.testing import FakeDevice
from tests.gpu import graphs


@pytest.mark.parametrize("kind", graphs.LOADERS)
def test_rows_like_the_cpus(kind: str) -> None:
    assert min(graphs.check_like_the_cpu(kind, FakeDevice().in_use())) == 99.0


def test_the_same_again() -> None:
    graphs.check_the_same_again(FakeDevice().in_use(), FakeDevice().in_use())


def test_damaged_files() -> None:
    assert graphs.check_damaged(FakeDevice().in_use()).report.fallbacks


def test_other_rows_are_not_taken_for_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison sees a device that draws something else."""
    from hydrax_gpu.loaders._dali_device import DaliGraph

    run = DaliGraph.run

    def other(self: DaliGraph, rows: object, fields: object, seeds: dict[int, int], stream: object) -> object:
        return run(self, rows, fields, {row: seed + 1 for row, seed in seeds.items()}, stream)  # type: ignore[arg-type]

    monkeypatch.setattr(DaliGraph, "run", other)
    with pytest.raises(AssertionError):
        graphs.check_like_the_cpu("augmenting", FakeDevice().in_use())
