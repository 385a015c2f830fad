"""DALI graphs that a GPU runs, against the CPU."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from tests.gpu import graphs
from tests.gpu.pictures import run

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240), pytest.mark.usefixtures("cupy")]


@pytest.mark.parametrize("kind", graphs.LOADERS)
def test_rows_are_those_of_the_cpu(kind: str) -> None:
    decibels = graphs.check_like_the_cpu(kind, None)
    logging.getLogger("hydrax_gpu").info(
        "%s: %.1f dB at least, %.1f on average", kind, min(decibels), np.mean(decibels)
    )


def test_worker_processes_read_for_it() -> None:
    graphs.check_like_the_cpu("augmenting", None, executor="process")


def test_rows_are_the_same_again_to_the_bit() -> None:
    graphs.check_the_same_again(None, None)


def test_damaged_files_are_bad_items() -> None:
    graphs.check_damaged(None)


def test_outputs_stay_while_they_are_copied() -> None:
    """Many batches: each would be overwritten by the next if the pipeline's buffers were used again too early."""
    for _ in range(3):
        graphs.check_the_same_again(None, None)
    found = run(graphs.augmenting(), graphs.photographs(), arrays=graphs.ARRAYS, epochs=20, size=2)
    per_epoch = [dict(zip(found.rows[i : i + 24], found.images[i : i + 24], strict=True)) for i in range(0, 480, 24)]
    wanted = run(graphs.augmenting(), graphs.photographs(), arrays=graphs.ARRAYS, epochs=20, size=8)
    again = [dict(zip(wanted.rows[i : i + 24], wanted.images[i : i + 24], strict=True)) for i in range(0, 480, 24)]
    for one, other in zip(per_epoch, again, strict=True):
        assert one.keys() == other.keys() and all(np.array_equal(one[item], other[item]) for item in one)
