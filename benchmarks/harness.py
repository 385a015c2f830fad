"""Running measurements, each in a fresh process, in rounds: limit, ours, peers, limit, ours, peers, …"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .accounts import RESULT, family, machine_busy, memory, wait_until_quiet

DISTURBED_CORES = 0.1
"""A run in which others kept more cores busy than this is disturbed, whichever case it is and whatever it measured."""
WEIGH_S = 0.5
"""How often memory is looked at."""
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Goal:
    """What a number should be: at least or at most something."""

    at_least: float | None = None
    at_most: float | None = None

    def met(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        return f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"


@dataclass(frozen=True)
class Metric:
    """One number of a measurement that the table shows."""

    key: str
    """Its key in the result of a run."""
    label: str
    goal: Goal | None = None
    """For the case under test; of the ratio to the limit if there is one, else of the number itself."""
    limit_case: str | None = None
    """The case that measures the limit."""


PEAK = Metric("peak_pss_mb", "MB: all processes (PSS) at their peak")
"""Of cases whose memory is looked at."""


@dataclass(frozen=True)
class Case:
    """One process to run."""

    name: str
    module: str
    """Run as `python -m module`; it calls `accounts.emit` once."""
    arguments: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """For the record."""
    judged: bool = False
    """Whether the goals are meant for it."""
    environment: Mapping[str, str] = field(default_factory=dict)
    timed: bool = True
    """Whether it matters how much of the machine others take meanwhile."""
    python: str = sys.executable
    """The interpreter, for what cannot be installed beside the others."""
    memory: bool = False
    """Whether the memory of all its processes is looked at while it runs, every half second."""
    peer: bool = False
    """Whether it is somebody else's loader: should it fail, the run as a whole has not."""


@dataclass(frozen=True)
class Versus:
    """How many times more of something the best of the others takes than the case under test."""

    key: str
    """Its key in the result of a run; less is better."""
    label: str
    ours: str
    others: tuple[str, ...]
    goal: Goal | None = None


@dataclass(frozen=True)
class Experiment:
    """Cases that are measured in turns, and the numbers to show of them."""

    name: str
    title: str
    cases: tuple[Case, ...]
    metrics: tuple[Metric, ...]
    versus: Versus | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Cases that are not measured here, and why."""


@dataclass(frozen=True)
class Run:
    """One run of one case: its result, or what went wrong."""

    case: str
    round: int
    result: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    stderr: str = ""

    @property
    def disturbed(self) -> bool:
        """Whether other processes took so much of the machine that the result says nothing."""
        return (self.value("others_cores") or 0.0) > DISTURBED_CORES

    def value(self, key: str) -> float | None:
        value = self.result.get(key)
        return float(value) if isinstance(value, int | float) else None


def target_case(
    name: str,
    target: str,
    *,
    judged: bool = False,
    env: Mapping[str, str] | None = None,
    timed: bool = True,
    python: str = sys.executable,
    memory: bool = False,
    peer: bool = False,
    **settings: Any,
) -> Case:
    """A case that calls `module:function(**settings)` of this package in a new process."""
    arguments = (target, json.dumps(settings))
    return Case(name, "benchmarks._run", arguments, settings, judged, env or {}, timed, python, memory, peer)


def run_case(case: Case, round_: int, timeout_s: float) -> Run:
    """Run a case to its end, or to the timeout. Whatever it does, the answer is a `Run`."""
    # files and not pipes: a worker that outlives the process would keep a pipe open, and us waiting
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", **case.environment}
        command = [case.python, "-X", "faulthandler", "-m", case.module, *case.arguments]
        busy, mine, start = machine_busy(), _children_cpu(), time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        timed_out, peak = False, 0.0
        try:
            if case.memory:
                peak = _wait_and_weigh(process, timeout_s)
            else:
                process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
            _show_stacks(process)
        wall = time.monotonic() - start
        left = _end(process)
        others = max(0.0, machine_busy() - busy - (_children_cpu() - mine)) / wall
        stderr = _read(err)[-4000:]
        if timed_out:
            return Run(case.name, round_, error=f"timed out after {timeout_s:g} s", stderr=stderr)
        result = _result(_read(out))
        if process.returncode != 0 or result is None:
            last = stderr.strip().splitlines()[-1] if stderr.strip() else "no result, and nothing on stderr"
            return Run(case.name, round_, error=f"exit status {process.returncode}: {last}", stderr=stderr)
    # CLOCK_MONOTONIC is the same in all processes
    if "done_at" in result:
        result["from_start_s"] = result["done_at"] - start
    result["left_behind"] = left
    if case.timed:
        result["others_cores"] = others
    if case.memory:
        result["peak_pss_mb"] = peak
    return Run(case.name, round_, result, stderr=stderr)


def run_rounds(
    experiment: Experiment,
    repeat: int,
    timeout_s: float,
    quiet_s: float = 0.0,
    tries: int = 1,
    progress: Callable[[Run], None] = lambda run: None,
) -> list[Run]:
    """`repeat` rounds of all cases, one process at a time. A case that timed out is not tried again.

    Before each run, wait up to `quiet_s` for other processes on the machine to be quiet. A run that was disturbed all
    the same is repeated, up to `tries` times in all; every one of them is returned.
    """
    runs: list[Run] = []
    hung: set[str] = set()
    for round_ in range(repeat):
        for case in experiment.cases:
            if case.name in hung:
                continue
            for _ in range(tries):
                wait_until_quiet(quiet_s)
                run = run_case(case, round_, timeout_s)
                if run.error is not None and run.error.startswith("timed out"):
                    hung.add(case.name)
                runs.append(run)
                progress(run)
                if run.error is not None or not run.disturbed:
                    break
    return runs


@contextlib.contextmanager
def prepared_file(make: Callable[[Path], None]) -> Generator[Path]:
    """A file in a temporary folder, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="hydrax-benchmark-") as folder:
        path = Path(folder) / "data"
        make(path)
        yield path


def _end(process: subprocess.Popen[bytes]) -> int:
    """End what is left of the process and all that it started; how many there were beside itself."""
    left = [stat.pid for stat in family(process.pid, session=True)]
    if process.poll() is not None and left:
        # a worker needs a moment to see that its parent is gone; only what stays is a leak
        time.sleep(0.5)
        left = [stat.pid for stat in family(process.pid, session=True)]
    for pid in [*left, *([process.pid] if process.poll() is None else [])]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    # SIGKILL takes a moment, and the next measurement must not share the machine with the dying
    end = time.monotonic() + 5.0
    while family(process.pid, session=True) and time.monotonic() < end:
        time.sleep(0.01)
    return len(left)


def _wait_and_weigh(process: subprocess.Popen[bytes], timeout_s: float) -> float:
    """Wait for the process; the most memory (PSS) that it and all that it started have had, in MB."""
    end, peak = time.monotonic() + timeout_s, 0.0
    while True:
        try:
            process.wait(min(WEIGH_S, max(0.0, end - time.monotonic())))
            return peak
        except subprocess.TimeoutExpired:
            if time.monotonic() >= end:
                raise
        total = 0.0
        for pid in [process.pid, *(stat.pid for stat in family(process.pid, session=True))]:
            # it may end while it is looked at
            with contextlib.suppress(OSError, KeyError):
                total += memory(pid)["pss_mb"]
        peak = max(peak, total)


def _show_stacks(process: subprocess.Popen[bytes]) -> None:
    """Have a process that hangs write the stacks of its threads to stderr, which ends it."""
    with contextlib.suppress(OSError):
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
    process.send_signal(signal.SIGABRT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(2.0)


def _children_cpu() -> float:
    """CPU time of the measurements that have ended, with that of the workers they have waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def _result(output: str) -> dict[str, Any] | None:
    lines: Sequence[str] = [line for line in output.splitlines() if line.startswith(RESULT)]
    return json.loads(lines[-1].removeprefix(RESULT)) if lines else None
