"""The results in a folder: JSON lines for programs, a Markdown page with tables for people, and plots."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import table
from .harness import Experiment, Run

NO_PLOTS = "no plots: matplotlib is not installed (pip install matplotlib)"
JUDGED, LIMIT, OTHER = "#1b7f79", "#9a9a9a", "#4a6fa5"


class Page:
    """All that one run of the benchmarks writes: `stem.jsonl`, `stem.md`, `stem-EXPERIMENT.png`."""

    def __init__(self, folder: Path, stem: str, about: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._stem, self._about = folder, stem, about
        self._plots: list[str] = []
        self.rows, self.markdown = folder / f"{stem}.jsonl", folder / f"{stem}.md"
        self._write(f"# Benchmark `{stem.partition('-')[0]}`\n\n{describe(about)}")

    def add(self, experiment: Experiment, runs: Sequence[Run], summary: Sequence[dict[str, Any]]) -> None:
        """Add an experiment; what was added before stands, should the next one end in an exception."""
        table.write_rows(self.rows, [*table.run_rows(experiment, runs, self._about), *summary])
        text = f"\n## {experiment.title}\n\n{markdown(experiment, summary)}"
        # a name as of a file: letters, digits, - and _
        name = f"{self._stem}-{re.sub(r'[^A-Za-z0-9_-]+', '-', experiment.name)}.png"
        reason = plot(self._folder / name, experiment, summary)
        if reason is None:
            self._plots.append(name)
            text += f"\n![{experiment.title}]({name})\n"
        elif reason not in self._plots:
            self._plots.append(reason)
        notes = [line.removeprefix("! ") for line in (table.others(runs) + table.left_behind(runs)).splitlines()]
        self._write(text + "".join(f"\n{note}\n" for note in notes) + _peers(runs))

    def close(self) -> list[str]:
        """What was written, and what was not and why, a line each."""
        plots = [name if name.startswith("no plots") else f"plot: {self._folder / name}" for name in self._plots]
        return [f"rows: {self.rows}", f"tables: {self.markdown}", *plots]

    def _write(self, text: str) -> None:
        with self.markdown.open("a", encoding="utf-8") as file:
            file.write(text)


def describe(about: dict[str, Any]) -> str:
    """Machine, versions and settings, as a list."""
    machine, versions = about["machine"], about["versions"]
    lines = [
        "machine: " + ", ".join(f"{key} {value}" for key, value in machine.items() if value is not None),
        "versions: " + ", ".join(f"{key} {value}" for key, value in versions.items() if value),
        f"date: {about['date']}",
    ]
    if run := about.get("run"):
        lines.append("settings: " + ", ".join(f"{key} {value:g}" for key, value in run.items()))
    return "".join(f"- {line}\n" for line in lines)


def markdown(experiment: Experiment, summary: Sequence[dict[str, Any]]) -> str:
    """A table with a line for each case: the median of each number, its extremes, and the ratio to the limit."""
    metrics = [metric for metric in experiment.metrics if any(row["metric"] == metric.key for row in summary)]
    head = ["case", *(metric.label for metric in metrics), "remarks"]
    lines = [head, ["---", *("---:" for _ in metrics), "---"]]
    for name in dict.fromkeys(row["case"] for row in summary):
        mine = [row for row in summary if row["case"] == name]
        found = {row["metric"]: row for row in mine}
        cells = [_cell(found.get(metric.key)) for metric in metrics]
        # a ratio to the best of the others is no metric of the experiment
        remarks = [f"{row['label']} {_cell(row)}" for row in mine if str(row["metric"]).endswith("_of_best_other")]
        failed = next((row for row in mine if row["metric"] is None), None)
        if failed is not None:
            count = f"{failed['failed']} failed: " if failed["failed"] else ""
            remarks.append(f"{count}{failed['error']}")
        judged = any(case.name == name and case.judged for case in experiment.cases)
        lines.append([f"**{name}**" if judged else name, *cells, "; ".join(remarks)])
    return "".join("| " + " | ".join(_escape(cell) for cell in line) + " |\n" for line in lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    value, ratio = row["value"], row["of_limit"]
    text = table.number(value["median"])
    if value["runs"] > 1:
        text += f" ({table.number(value['low'])} .. {table.number(value['high'])})"
    if ratio:
        text += f"; {ratio['median']:.2f} × limit"
    if row["goal"]:
        text += f"; goal {row['goal']}: {({True: 'met', False: 'missed', None: 'not known'})[row['met']]}"
    return text


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _peers(runs: Sequence[Run]) -> str:
    """The settings and the versions of each loader, as it said itself."""
    lines = []
    for name in dict.fromkeys(run.case for run in runs):
        result = next((run.result for run in runs if run.case == name and "versions" in run.result), None)
        if result is not None:
            versions = ", ".join(f"{package} {version}" for package, version in result["versions"].items())
            settings = result.get("settings_of_peer")
            lines.append(f"- {name}: {settings + '; ' if settings else ''}{versions}\n")
    return "\n" + "".join(lines) if lines else ""


def plot(path: Path, experiment: Experiment, summary: Sequence[dict[str, Any]]) -> str | None:
    """Bars for the experiment's first three numbers, with their extremes; why there are none, if there are none."""
    metrics = [metric for metric in experiment.metrics if any(row["metric"] == metric.key for row in summary)][:3]
    if not metrics:
        return f"no plots of {experiment.name}: nothing was measured"
    try:
        # no window, and no state that is shared
        from matplotlib.figure import Figure
    except ImportError:
        return NO_PLOTS
    names = list(dict.fromkeys(row["case"] for row in summary if row["metric"] is not None))
    limits = {metric.limit_case for metric in metrics}
    judged = {case.name for case in experiment.cases if case.judged}
    colours = {name: JUDGED if name in judged else LIMIT if name in limits else OTHER for name in names}
    figure = Figure(figsize=(4 * len(metrics) + 1, 0.32 * len(names) + 1.4), layout="constrained")
    figure.suptitle(experiment.title, fontsize=9)
    for place, metric in enumerate(metrics):
        axes = figure.add_subplot(1, len(metrics), place + 1)
        for line, name in enumerate(names):
            found = next((r for r in summary if r["case"] == name and r["metric"] == metric.key), None)
            if found is None:
                continue
            value = found["value"]
            error = [[value["median"] - value["low"]], [value["high"] - value["median"]]]
            axes.barh(line, value["median"], color=colours[name], xerr=error, ecolor="black", capsize=2)
            axes.annotate(
                f" {table.number(value['median'])}", (value["high"], line), va="center", fontsize=7, clip_on=False
            )
        axes.set_yticks(range(len(names)), names if place == 0 else [""] * len(names), fontsize=8)
        axes.set_xlim(left=0)
        axes.margins(x=0.2)
        axes.invert_yaxis()
        axes.set_xlabel(metric.label, fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110)
    return None
