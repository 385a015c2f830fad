"""The results for people, as a table, and for programs, as JSON lines."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .harness import ROOT, Case, Experiment, Goal, Metric, Run, Versus
from .stats import Spread, ratios, spread

PACKAGES = ("hydrax-gpu", "numpy", "jax", "jaxlib", "hydrax")
"""Of every row; an experiment names its own beside them."""
HEADER = ("case", "median", "min .. max", "what", "of limit", "goal", "met")


def machine() -> dict[str, Any]:
    """The machine as far as it matters to a number; nothing that names it."""
    cpu = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory[0] * 1.024e-6, 1) if memory else None,
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str | None]:
    """What was measured: the versions of the packages (None: not installed) and the commit of this checkout."""
    found: dict[str, str | None] = {"python": platform.python_version(), "commit": _commit()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def run_rows(experiment: Experiment, runs: Sequence[Run], about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each run, failed ones too."""
    cases = {case.name: case for case in experiment.cases}
    for run in runs:
        row = {"kind": "run", "experiment": experiment.name, "case": run.case, "round": run.round}
        row["disturbed"] = run.disturbed
        row |= {"settings": dict(cases[run.case].settings), "error": run.error, "result": dict(run.result)}
        yield {**row, **({"stderr": run.stderr} if run.error else {}), **about}


def summary_rows(experiment: Experiment, runs: Sequence[Run], about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each number of each case: its median and spread, and those of its ratio to the limit.

    Disturbed runs are left out. A case that has no other is shown by them, and not judged.
    """
    for case in experiment.cases:
        mine = [run for run in runs if run.case == case.name]
        errors = [run.error for run in mine if run.error is not None]
        row: dict[str, Any] = {"kind": "summary", "experiment": experiment.name, "case": case.name}
        row |= {"settings": dict(case.settings), "failed": len(errors), "error": errors[0] if errors else None}
        clean = [run for run in mine if run.error is None and not run.disturbed]
        row |= {"runs_clean": len(clean), "runs_disturbed": sum(run.disturbed for run in mine)}
        shown = False
        for metric in experiment.metrics:
            values = [value for run in clean or mine if (value := run.value(metric.key)) is not None]
            if values:
                shown = True
                ratio = _of_limit(metric, case, runs)
                yield {**row, **_judge(metric, case, spread(values), ratio, bool(clean)), **about}
        if errors or not shown:
            yield {**row, "error": row["error"] or "no number", "metric": None, **about}
        if experiment.versus is not None and experiment.versus.ours == case.name:
            yield from ({**row, **found, **about} for found in _against_others(experiment.versus, runs))
    for name, reason in experiment.left_out.items():
        row = {"kind": "summary", "experiment": experiment.name, "case": name, "settings": {}, "failed": 0}
        yield {**row, "error": f"left out: {reason}", "metric": None, **about}


def _against_others(versus: Versus, runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """How many times more the best of the others takes, over the rounds in which neither was disturbed."""
    best: tuple[float, str, Spread] | None = None
    for name in versus.others:
        values = [value for value in _by_round(runs, name, versus.key) if value is not None]
        found = ratios(_by_round(runs, name, versus.key), _by_round(runs, versus.ours, versus.key))
        if found and (best is None or spread(values).median < best[0]):
            best = spread(values).median, name, spread(found)
    if best is not None:
        _, name, value = best
        goal = versus.goal
        yield {
            "metric": f"{versus.key}_of_best_other",
            "label": f"{versus.label}: {name}",
            "value": value.as_dict(),
            "of_limit": None,
            "goal": str(goal) if goal else None,
            "met": goal.met(value.median) if goal else None,
        }


def _by_round(runs: Sequence[Run], case: str, key: str) -> list[float | None]:
    """A case's number in each round, None where it failed or was disturbed."""
    found = {run.round: run.value(key) for run in runs if run.case == case and not run.disturbed}
    return [found.get(round_) for round_ in sorted({run.round for run in runs})]


def _of_limit(metric: Metric, case: Case, runs: Sequence[Run]) -> Spread | None:
    """The ratio to the limit, over the rounds in which neither was disturbed."""
    if metric.limit_case is None or metric.limit_case == case.name:
        return None
    limits = _by_round(runs, metric.limit_case, metric.key)
    found = ratios(_by_round(runs, case.name, metric.key), limits)
    return spread(found) if found else None


def _judge(metric: Metric, case: Case, value: Spread, ratio: Spread | None, clean: bool) -> dict[str, Any]:
    goal: Goal | None = metric.goal if case.judged else None
    subject = ratio if metric.limit_case is not None else value
    return {
        "metric": metric.key,
        "label": metric.label,
        "value": value.as_dict(),
        "of_limit": ratio.as_dict() if ratio else None,
        "goal": str(goal) if goal else None,
        "met": goal.met(subject.median) if goal and subject and clean else None,
    }


def render(title: str, rows: Sequence[dict[str, Any]]) -> str:
    """The summary rows of an experiment as a text table."""
    lines: list[tuple[str, ...]] = [HEADER]
    previous = None
    for row in rows:
        name = row["case"] if row["case"] != previous else ""
        previous = row["case"]
        if row["metric"] is None:
            runs = f"{row['failed']} failed: " if row["failed"] else ""
            lines.append((name, f"! {runs}{row['error']}"))
            continue
        value, ratio = row["value"], row["of_limit"]
        lines.append(
            (
                name,
                number(value["median"]),
                f"{number(value['low'])} .. {number(value['high'])}",
                row["label"],
                f"{ratio['median']:.2f} ({ratio['low']:.2f} .. {ratio['high']:.2f})" if ratio else "",
                row["goal"] or "",
                {True: "yes", False: "NO", None: "?" if row["goal"] else ""}[row["met"]],
            )
        )
    # a failure's text runs on to the right and widens no column
    widths = [max(len(line[i]) for line in lines if len(line) == len(HEADER) or i == 0) for i in range(len(HEADER))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in lines]
    return "\n".join([title, "-" * len(title), *body]) + "\n"


def others(runs: Sequence[Run]) -> str:
    """How much of the machine was taken by processes that have nothing to do with the measurement."""
    values = [value for run in runs if (value := run.value("others_cores")) is not None]
    if not values:
        return ""
    found, bad = spread(values), sum(run.disturbed for run in runs)
    dropped = (
        f"{bad} of {len(runs)} runs disturbed by others and left out where a case has better ones; " if bad else ""
    )
    return f"{dropped}other processes meanwhile: {found.median:.2f} cores busy ({found.low:.2f} .. {found.high:.2f})\n"


def left_behind(runs: Sequence[Run]) -> str:
    """A line for each case that left processes behind when it had ended."""
    left = {run.case: run.value("left_behind") or 0 for run in runs}
    return "".join(f"! {case} left {count:g} processes behind\n" for case, count in left.items() if count)


def number(value: float) -> str:
    """Three significant digits, or all those before the point, in groups."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def about() -> dict[str, Any]:
    """What every row of one benchmark run has in common."""
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), "versions": versions()}


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append rows to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def describe(about: dict[str, Any]) -> str:
    """The machine and the versions on two lines."""
    where, what = about["machine"], about["versions"]
    memory = f"{where['memory_gb']} GB, " if where["memory_gb"] else ""
    first = f"{where['cpu']}, {where['cores']} cores, {memory}Linux {where['kernel']}, load {where['load']}"
    return f"{first}\n{', '.join(f'{name} {value}' for name, value in what.items() if value)}, {about['date']}\n"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _commit() -> str | None:
    """The checked-out commit, read from .git without running it."""
    git = ROOT / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head[:12]
        return (git / head.removeprefix("ref: ")).read_text().strip()[:12]
    except OSError:
        return None
