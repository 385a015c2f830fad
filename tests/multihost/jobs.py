"""Jobs of several real processes that run the cluster example, as a scheduler would start and end them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from tests.multihost.ports import reserve

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "cluster" / "train.py"
DEVICES = 4
"""Of a job, however many processes it has."""


class Job:
    """The example on some number of processes, which share `DEVICES` devices of the CPU."""

    def __init__(self, workdir: Path, processes: int, *options: str) -> None:
        self.workdir = workdir
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            # XLA has as many threads as the machine has cores, and one is taken for as long as a device waits for a sum
            # that another process has not begun. On two cores, two devices can wait for each other for ever.
            "NPROC": "8",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // processes}",
        }
        command = [sys.executable, str(EXAMPLE), "--workdir", str(workdir), *options]
        self._port, address = reserve()
        self.processes: list[subprocess.Popen[str]] = []
        for number in range(processes):
            several = ["--coordinator", address, "--processes", str(processes), "--process", str(number)]
            self.processes.append(
                subprocess.Popen(
                    [*command, *(several if processes > 1 else [])],
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends what still runs, as schedulers do when one process of a job has failed."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
            if process.stderr is not None:
                process.stderr.close()
        self._port.close()

    def wait(self, timeout: float = 60) -> list[int]:
        """The exit statuses, when all have ended by themselves."""
        ends = [process.communicate(timeout=timeout)[1] for process in self.processes]
        statuses = [process.returncode for process in self.processes]
        assert all(status in (0, 75) for status in statuses), "\n".join(ends)
        return statuses

    def wait_for_step(self, step: int) -> None:
        """Returns when the job has written down the loss of this step."""
        pipe = self.workdir / "losses.jsonl"
        while not any(done >= step for done, _ in read(pipe)):
            for process in self.processes:
                try:
                    process.wait(0.05)
                except subprocess.TimeoutExpired:
                    continue
                raise AssertionError(f"a process has ended early: {process.communicate()[1]}")


def read(path: Path) -> list[tuple[int, str]]:
    """The lines of a file of losses that are complete: step and loss, every bit of it."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [tuple(json.loads(line)) for line in lines]


def curve(workdir: Path) -> list[tuple[int, str]]:
    """The losses of all steps. Steps that were done twice, since their first result was not saved, agree with it."""
    losses: dict[int, str] = {}
    for step, loss in read(workdir / "losses.jsonl"):
        assert losses.setdefault(step, loss) == loss, f"step {step} had another loss when it was done again"
    return sorted(losses.items())
