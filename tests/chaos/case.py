"""One run under chaos, drawn from a seed, and what it must come to."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hydrax_gpu import (
    Batch,
    BatchTimeoutError,
    DataGroup,
    Dataloader,
    ErrorPolicy,
    LoaderError,
    TooManyBadItems,
    TrainingBatch,
    WorkerDied,
)
from tests.chaos.load import Load, digest

__all__ = ["Agent", "Case", "Outcome", "check"]

Record = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """Everything about a run."""

    seed: int
    load: Load
    policy: ErrorPolicy
    groups: tuple[DataGroup[int], ...]
    validation: tuple[Any, int, DataGroup[int]] | None
    options: dict[str, Any]
    blows: int
    interrupts: tuple[int, ...]

    @staticmethod
    def draw(seed: int) -> Case:
        """The case of a seed."""
        rng = random.Random(seed)
        executor = "process" if rng.random() < 0.85 else "thread"
        hangs = executor == "process" and rng.random() < 0.1
        deterministic = rng.random() < 0.85
        mode = rng.choices(
            ["drop", "replace", "raise"] if deterministic else ["drop", "replace"], [5, 5, 1][: 2 + deterministic]
        )[0]
        groups = tuple(_group(rng, 1000 * number) for number in range(rng.choice([1, 1, 2])))
        validation = None
        if rng.random() < 0.4:
            unit = rng.choice(["epoch", "batch"])
            validation = (unit, 1 if unit == "epoch" else rng.randint(3, 20), _group(rng, 9000, validation=True))
        items = [item for group in (*groups, *((validation[2],) if validation else ())) for item in group]

        def some(most: int) -> frozenset[int]:
            return frozenset(rng.sample(items, rng.randint(0, most)))

        retries = rng.choice([0, 0, 1, 2])
        load = Load(
            raising=some(3),
            lethal=some(2) if executor == "process" and rng.random() < 0.5 else frozenset(),
            shy=some(5) if retries else frozenset(),
            talkative=some(6),
            hanging=some(1) if hangs else frozenset(),
        )
        budget = rng.choice([None, None, None, 1, 3, 0.05]) if deterministic and mode != "raise" else None
        batches = sum(group.batch_count for group in groups)
        return Case(
            seed=seed,
            load=load,
            policy=ErrorPolicy(mode, retries=retries, backoff=0.001, budget=budget, restarts=1000),  # pyright: ignore[reportArgumentType]
            groups=groups,
            validation=validation,
            options={
                "executor": executor,
                "loader_count": rng.randint(1, 3),
                "depth": rng.randint(2, 5),
                "delivery": rng.choice(["auto", "alias", "copy"]),
                "deterministic": deterministic,
                "end_at": ("epoch", max(2, rng.randint(100, 250) // batches)),
                "timeout_sec": 1.0 if hangs else 20,
            },
            blows=rng.randint(1, 8) if executor == "process" and not hangs else 0,
            interrupts=tuple(sorted(rng.sample(range(60), rng.choice([0, 0, 1, 2])))) if not hangs else (),
        )

    def tuned(self) -> Case:
        """The same with numbers of workers and slots that change while it runs."""
        return replace(self, options=self.options | {"loader_count": "auto", "depth": "auto"})

    def loader(self, load: Load, start_at: Any = (0, 0), **options: Any) -> Dataloader[int]:
        """A loader of this case."""
        return Dataloader(
            load,
            self.groups,
            validation=self.validation,
            on_error=self.policy,
            start_at=start_at,
            **(self.options | options),
        )


def _group(rng: random.Random, first: int, *, validation: bool = False) -> DataGroup[int]:
    arrays = {"x": ((rng.choice([1, 7, 200]),), "int32", "int32"), "seed": ((2,), "int32", "int32")}
    more: dict[str, Any] = {}
    if not validation:
        more = {"shuffle_first": rng.random() < 0.5, "shuffle_later": rng.choice(["itemwise", "reseed", "batchwise"])}
    return DataGroup(
        rng.randint(2, 6),
        range(first, first + rng.randint(12, 40)),
        loader_arrays=arrays,
        seed=rng.randrange(1000),
        remainder=rng.choice(["drop", "pad", "short"]),
        **more,
    )


@dataclass
class Outcome:
    """What came of a run: its batches, how it ended, and the items it holds to be bad."""

    records: list[Record]
    error: tuple[Any, ...] | None
    bad: set[Any]


def run(it: Dataloader[int], outcome: Outcome, interrupt_at: int | None = None) -> Any:
    """Runs a loader to its end, or to an interrupt; returns the state there."""
    try:
        with it:
            for batch in it:
                outcome.records.append(_record(batch))
                del batch
                if interrupt_at is not None and len(outcome.records) == interrupt_at:
                    signal.raise_signal(signal.SIGINT)
    except LoaderError as error:
        outcome.error = ("LoaderError", error.validation, error.group_index, error.item_index, error.seed)
    except TooManyBadItems as error:
        outcome.error = ("TooManyBadItems", str(error).partition(".")[0])
        outcome.bad |= {bad.key for bad in error.bad}
    outcome.bad |= {bad.key for bad in it.report().bad}
    return json.loads(json.dumps(it.state())) if it.interrupted else None


def _record(batch: Batch[int]) -> Record:
    x, seed = np.asarray(batch.arrays["x"]), np.asarray(batch.arrays["seed"])
    where = (batch.epoch, batch.epoch_batch, batch.seeds) if isinstance(batch, TrainingBatch) else (-1, 0, None)
    extra = {key: list(values) for key, values in batch.additional.items()}
    return (
        batch.is_validation,
        batch.group_index,
        where[:2],
        list(batch.indices),
        list(where[2]) if where[2] is not None else None,
        batch.replaced.tolist(),
        batch.valid.tolist(),
        digest(x.tolist()),
        digest(seed.tolist()),
        digest(sorted((key, values) for key, values in extra.items())),
    )


class Agent:
    """The second process, for any number of cases."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("agent.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    @contextmanager
    def at_work(self, case: Case) -> Iterator[None]:
        """Strikes at the workers of this process in the meantime."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"begin {case.seed} {case.blows}\n".encode())
        self._process.stdin.flush()
        try:
            yield
        finally:
            self._process.stdin.write(b"end\n")
            self._process.stdin.flush()
            self.last = self._process.stdout.readline().split()

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def check(case: Case, agent: Agent) -> list[str]:
    """Runs a case, cleanly and under chaos; returns what is wrong with it."""
    if case.load.hanging:
        return _check_hang(case)
    wanted = Outcome([], None, set())
    run(case.loader(replace(case.load, clean=True, tries={}), executor="inline"), wanted)
    if wanted.error is not None and not case.options["deterministic"]:
        return []  # when an error comes is a question of order
    got = Outcome([], None, set())
    with agent.at_work(case):
        state: Any = (0, 0)
        for stop in (*case.interrupts, None):
            try:
                state = run(case.loader(case.load, state), got, stop)
            except (BatchTimeoutError, WorkerDied) as error:
                return [f"{type(error).__name__}: {error}", *_left_over()]
            if state is None:
                break
    problems: list[str] = []
    order = (lambda records: records) if case.options["deterministic"] else sorted
    ours, theirs = order(got.records), order(wanted.records)
    if ours != theirs:
        first = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        problems.append(
            f"{len(ours)} batches, wanted {len(theirs)}; the first that differs is {first}:\n"
            f"    {ours[first : first + 1]}\n    wanted {theirs[first : first + 1]}"
        )
    if got.error != wanted.error:
        problems.append(f"ended with {got.error}, wanted {wanted.error}")
    # Of a batch that is left out for an item that is known to kill, nothing else is tried.
    missing = set() if case.load.lethal else wanted.bad - got.bad
    if got.bad - wanted.bad or missing:
        problems.append(f"bad items {sorted(got.bad)}, wanted {sorted(wanted.bad)}")
    return problems + _left_over()


def _check_hang(case: Case) -> list[str]:
    (item,) = case.load.hanging or {None}
    if item is None:
        return []
    wanted = Outcome([], None, set())
    run(case.loader(replace(case.load, clean=True, tries={}), executor="inline"), wanted)
    got = Outcome([], None, set())
    try:
        run(case.loader(case.load), got)
    except BatchTimeoutError as error:
        named = {(first + index) for first in (0, 1000, 9000) for index in error.items}
        problems: list[str] = []
        if item not in named:
            problems.append(f"item {item} hangs, but {error.items} are named")
        if not any("load.py" in stack and "__call__" in stack for stack in error.stacks.values()):
            problems.append(f"no stack shows the function that hangs: {error.stacks}")
        if case.options["deterministic"] and got.records != wanted.records[: len(got.records)]:
            problems.append("the batches before are not those of the clean run")
        return problems + _left_over()
    reached = any(item % 1000 in record[3] for record in wanted.records)
    if got.error != wanted.error or got.records != wanted.records:
        return [f"item {item} hangs, and the run ended with {got.error} (reached: {reached})"]
    return _left_over()


def _left_over() -> list[str]:
    left = [f"thread {thread.name}" for thread in threading.enumerate() if thread.name.startswith("hydrax_gpu-")]
    for thread in os.listdir("/proc/self/task"):
        try:
            children = Path(f"/proc/self/task/{thread}/children").read_text().split()
        except OSError:
            continue
        for pid in children:
            if "worker_main" in Path(f"/proc/{pid}/cmdline").read_text():
                left.append(f"process {pid}")
    return [f"left behind: {', '.join(left)}"] if left else []
