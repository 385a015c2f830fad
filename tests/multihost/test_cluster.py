"""The cluster example in real processes: the same losses on any number of them, killed, pre-empted and resumed.

Defects that were planted by hand to see the test find them:

- A state one batch ahead of what was handed out.
- SIGTERM ended the one process that got it (`InterruptGuard` without regard to the others): the other waited for ever.
- A run went on at the beginning of the epoch: steps were done again.
- Each process took its number of rows from the front of the batch: other losses.
"""

from __future__ import annotations

import importlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.multihost.jobs import DEVICES, EXAMPLE, Job, curve, read

STEPS = 64  # of an epoch


def losses_alone(monkeypatch: pytest.MonkeyPatch, steps: int) -> list[tuple[int, str]]:
    """The losses of a run in this process, on as many devices, that nothing happens to."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from hydrax_gpu import DataGroup, Dataloader

    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    train: Any = importlib.import_module("train")
    monkeypatch.delitem(__import__("sys").modules, "train")
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("data",))
    model, step = train.new_model(NamedSharding(mesh, PartitionSpec())), train.new_step(mesh)
    group = DataGroup(train.BATCH, range(train.ITEMS), loader_arrays=train.ARRAYS, seed=1, shuffle_first=True)
    losses: list[tuple[int, str]] = []
    rows = NamedSharding(mesh, PartitionSpec("data"))
    with Dataloader(train.load, group, sharding=rows, executor="inline", end_at=("batch", steps)) as loader:
        for batch in loader:
            model, loss = step(model, batch.arrays["x"], batch.arrays["y"])
            losses.append((batch.batch_num + 1, float(loss).hex()))
            del batch
    return losses


def saved_states(workdir: Path) -> dict[int, Any]:
    """The states of the loader in all checkpoints, by step."""
    files = (workdir / "checkpoints").glob("[0-9]*/data/hydrax_gpu.json")
    return {int(file.parts[-3]): json.loads(file.read_text()) for file in files}


@pytest.mark.timeout(400)  # three jobs, on machines that may be busy
def test_preempted_on_two_processes_killed_on_four_finished_on_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SIGTERM to one process ends both after the same step, and that is saved.
    with Job(tmp_path, 2, "--epochs", "1000000", "--save-every", "1000000") as job:
        job.wait_for_step(1)
        job.processes[1].send_signal(signal.SIGTERM)
        assert job.wait() == [75, 75]
    stopped = read(tmp_path / "losses.jsonl")[-1][0]
    ((step, state),) = saved_states(tmp_path).items()
    assert step == stopped == state["epoch"] * STEPS + state["batch"]

    # Four go on at the very next step, until one of them is killed; those that are left cannot go on alone.
    with Job(tmp_path, 4, "--epochs", "1000000", "--save-every", "8") as job:
        job.wait_for_step(stopped + 20)
        job.processes[3].kill()
        job.processes[3].wait()
    steps = [step for step, _ in read(tmp_path / "losses.jsonl")]
    killed = len(steps)
    assert steps == list(range(1, killed + 1)) and killed >= stopped + 20  # none lost, none done again

    # One goes on from the last checkpoint, to the end of the epoch.
    last = max(saved_states(tmp_path))
    assert stopped < last <= killed
    epochs = killed // STEPS + 1
    with Job(tmp_path, 1, "--epochs", str(epochs)) as job:
        assert job.wait() == [0]
    steps = [step for step, _ in read(tmp_path / "losses.jsonl")]
    assert steps[killed:] == list(range(last + 1, epochs * STEPS + 1))

    # Every bit of every loss is that of a run in one process that nothing happened to.
    losses = curve(tmp_path)
    assert losses == losses_alone(monkeypatch, epochs * STEPS)
    assert float.fromhex(losses[-1][1]) < float.fromhex(losses[0][1]) / 10  # it learns
