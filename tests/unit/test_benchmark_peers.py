"""The benchmarks measure other loaders, see what they do wrong, and write it down. Nothing here measures speed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import jpeg, overlap, peers, publish, table, workloads
from benchmarks.harness import Case, Experiment, Goal, Metric, Run, prepared_file, run_case, run_rounds, target_case
from benchmarks.peers import PEERS, choose, make_batch
from tests.unit import made_up_peers
from tests.unit.made_up_peers import batches

README = Path(peers.__file__).parents[1] / "README.md"
MADE_UP = made_up_peers.__name__
ABOUT = {"date": "2024-01-01", "machine": {"cores": 2}, "versions": {"numpy": "2"}, "run": {"repeat": 1}}


@pytest.fixture(scope="module", autouse=True)
def _fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """matplotlib keeps the files of the fonts that it has used open; that is no leak of ours."""
    written(tmp_path_factory.mktemp("fonts"))


# ------------------------------------------------------------------------------------------- what a loader must hold


@pytest.fixture(params=["items", "bytes", "records"])
def task(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Each kind of task, with few items."""
    for name, value in {
        "LARGE_ITEMS": 8,
        "RECORD_ITEMS": 8,
        "LARGE_SHAPE": (4, 4, 3),
        "RECORD_SHAPE": (4, 8, 3),
    }.items():
        monkeypatch.setattr(workloads, name, value)
    for name, make in ((workloads.LARGE_FILE, "make_large_file"), (workloads.RECORD_FILE, "make_record_file")):
        monkeypatch.setenv(name, str(tmp_path / make))
        getattr(workloads, make)(tmp_path / make)
    cached = (workloads.large_items, workloads.records)
    for function in cached:
        function.cache_clear()
    yield {
        "items": replace(workloads.small(4), data=range(8)),
        "bytes": workloads.large(4),
        "records": workloads.normalized(4),
    }[request.param]
    for function in cached:
        function.cache_clear()


def epoch(task: workloads.Task, *numbers: int) -> list[dict[str, np.ndarray]]:
    """Batches with these items."""
    starts = range(0, len(numbers), task.batch)
    return [make_batch(task, numbers[start : start + task.batch], [None] * task.batch) for start in starts]


def test_an_epoch_with_each_item_once_is_right_in_any_order(task: workloads.Task) -> None:
    task.check_epoch(batches(task))
    task.check_epoch(iter(epoch(task, 7, 1, 5, 3, 4, 2, 6, 0)))


def test_an_item_that_is_loaded_twice_is_noticed_and_so_is_the_one_that_is_not(task: workloads.Task) -> None:
    with pytest.raises(AssertionError, match="of the 8 items of an epoch, 1 were not loaded, and 1 more than once"):
        task.check_epoch(iter(epoch(task, 0, 1, 2, 3, 4, 5, 6, 0)))


def test_a_wrong_value_is_noticed(task: workloads.Task) -> None:
    found = epoch(task, *range(8))
    image = found[1]["image"]
    # a step of one in what was read
    image[2, 0, 1, 2] += 1 if image.dtype == np.uint8 else workloads.SCALE[2]
    with pytest.raises(AssertionError, match="1 of the 4 items of a batch have wrong values"):
        task.check_epoch(iter(found))


@pytest.mark.parametrize("how", ["a row less", "another dtype", "another shape", "no image", "an item that is not"])
def test_a_batch_of_another_form_is_noticed(task: workloads.Task, how: str) -> None:
    (found,) = epoch(task, 0, 1, 2, 3)
    if how == "a row less":
        found = {name: array[:3] for name, array in found.items()}
    elif how == "another dtype":
        found["image"] = found["image"].astype(np.int16)
    elif how == "another shape":
        found["image"] = found["image"].transpose(0, 3, 1, 2)
    elif how == "no image":
        del found["image"]
    elif "label" in found:
        found["label"][1] = 8
        if task.name == "items":
            found["image"][1] = 8
    else:
        found["image"][1] = 0
    with pytest.raises(AssertionError):
        task.check_epoch(iter([found, found]))


# --------------------------------------------------------------------------------------------- choosing what to measure


def listed(*arguments: str) -> list[Experiment]:
    with ExitStack() as stack:
        return list(command.chosen(command.parse(arguments), stack))


def test_every_peer_has_a_row_and_says_how_it_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "has_module", lambda python, module: module not in ("ffcv", "grain"))
    (found, *_) = listed("peers", "--only", "items")
    general = {name for name, kind in PEERS.items() if "items" in kind.workloads}
    assert {"hydrax", "torch", "Grain", "SPDL", "DALI", "jax-dataloader", "FFCV", "tf.data"} <= general
    assert {case.name for case in found.cases} | found.left_out.keys() == {"limit", "hydrax_gpu", *general}
    missing = dict.fromkeys(["Grain", "Grain threads"], "grain is not installed")
    assert found.left_out == {**missing, "FFCV": "ffcv is not installed"}
    assert all(kind.settings and kind.packages and kind.module for kind in PEERS.values())


def test_nothing_large_is_imported_to_list_the_peers() -> None:
    script = "import sys, benchmarks.peers; print({'jax', 'torch', 'grain', 'tensorflow', 'nvidia'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=README.parents[1], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_peers_have_interpreters_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peers, "has_module", lambda python, module: True)
    one, other = tmp_path / "one", tmp_path / "other"
    one.touch()
    other.touch()
    (found, *_) = listed("peers", "--only", "items", "--python", str(one), "--python", f"FFCV={other}")
    pythons = {case.name: case.python for case in found.cases}
    assert (pythons["hydrax_gpu"], pythons["torch"], pythons["FFCV"]) == (sys.executable, str(one), str(other))


def test_unknown_peers_interpreters_and_cases_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="no peer Grian"):
        choose(None, ["Grain"], {"Grian": sys.executable})
    for text in (str(tmp_path / "none"), f"={sys.executable}", "Grain="):
        with pytest.raises(SystemExit):
            command.parse(["peers", "--python", text])
        assert "wanted the path of a Python interpreter" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no measurement has Grian"):
        listed("cpu", "--only", "plan", "--cases", "Grian")


def test_a_case_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "has_module", lambda python, module: module != "grain")
    (found, *_) = listed("peers", "--only", "items", "--cases", "limit,torch,Grain")
    assert [case.name for case in found.cases] == ["limit", "torch"] and list(found.left_out) == ["Grain"]


def test_variants_for_photographs_are_measured_with_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (jpeg, peers):
        monkeypatch.setattr(module, "has_module", lambda python, module: True)
    (found,) = jpeg.experiments(tmp_path, choose(None, list(PEERS), {}), warm_s=0, window_s=0)
    assert {"DALI", "DALI antialias", "hydrax_gpu + Pillow"} <= {case.name for case in found.cases}
    (found, *_) = listed("peers", "--only", "items")
    assert "DALI antialias" not in {case.name for case in found.cases} | found.left_out.keys()


# ------------------------------------------------------------------------------------------------- short measurements


def test_right_wrong_crashing_and_absent_loaders_are_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The right one is the example in the README."""
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "(Peer)" in code]
    assert len(example.splitlines()) <= 30
    (tmp_path / "mine.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    names = ["mine:Pool", *(f"{MADE_UP}:{name}" for name in ("Wrong", "Crashes", "Absent", "Unfit"))]
    arguments = ["cpu", "--only", "items", "--window", "0.1", "--warm", "0", "--cases", ",".join(names)]
    for name in names:
        arguments += ["--peer", name]
    options = command.parse(arguments)
    with ExitStack() as stack:
        experiment = next(command.chosen(options, stack))
        runs = run_rounds(experiment, 1, 60)
    summary = list(table.summary_rows(experiment, runs, ABOUT))
    page = publish.Page(tmp_path / "out", "peers-now", ABOUT)
    page.add(experiment, runs, summary)
    page.close()

    by_name = {run.case: run for run in runs}
    right = by_name["mine:Pool"]
    assert right.error is None, right.stderr
    assert (right.value("items_per_s") or 0) > 0 and (right.value("peak_pss_mb") or 0) > 0
    assert right.result["settings_of_peer"] and "numpy" in right.result["versions"]
    wrong, crashes = by_name[names[1]], by_name[names[2]]
    assert wrong.error == "exit status 1: AssertionError: 1 of the 64 items of a batch have wrong values"
    assert crashes.error == "exit status 1: RuntimeError: made to fail at batch 64"
    assert experiment.left_out == {
        names[3]: "no_such_library is not installed",
        names[4]: "loads nothing below 1 MB",
    }
    # somebody else's loader that fails is no failure of the run
    assert all(case.peer for case in experiment.cases)

    rows = [json.loads(line) for line in page.rows.read_text().splitlines()]
    assert {row["case"] for row in rows if row["kind"] == "summary"} == set(names)
    assert {row["case"] for row in rows if row["error"]} == set(names[1:])
    text = page.markdown.read_text()
    assert "1 failed: exit status 1: AssertionError: 1 of the 64 items" in text
    assert "left out: no_such_library is not installed" in text


def test_the_overlap_has_a_step_without_and_with_a_loader() -> None:
    with prepared_file(workloads.make_record_file) as file:
        (experiment,) = overlap.experiments(choose(None, [], {}), warm_s=0.05, window_s=0.2, file=file)
        runs = run_rounds(experiment, 1, 60)
    assert [run.case for run in runs] == ["limit", "hydrax_gpu", "hydrax_gpu + decode"]
    for run in runs:
        assert run.error is None, run.stderr
        values: dict[str, float] = {metric.key: run.value(metric.key) or 0.0 for metric in experiment.metrics}
        assert values["slowdown"] == pytest.approx(values["step_ms"] / values["resident_ms"])
        assert min(values["step_ms"], values["resident_ms"], values["load_ms"]) > 0


def test_a_loader_that_is_opened_for_the_start_tells_its_first_batch() -> None:
    """In threads and without a worker: there is no memory of workers to tell."""
    settings = {"subject": f"{MADE_UP}:Plain", "module": None, "batch": 64, "workers": 2}
    run = run_case(target_case("plain", "benchmarks.startup:first_batch", **settings), 0, 60)
    assert run.error is None, run.stderr
    assert (run.value("from_start_s") or 0) > 0 and run.value("worker_pss_mb") is None


# ------------------------------------------------------------------------------------------------ tables and plots


COST = Metric("cpu", "CPU | µs", Goal(at_most=4.0))
RATE = Metric("items_per_s", "items/s", Goal(at_least=0.4), limit_case="limit")


def written(folder: Path) -> tuple[str, list[str], publish.Page]:
    cases = (Case("limit", "none"), Case("ours", "none", judged=True), Case("other", "none", peer=True))
    experiment = Experiment(
        "a name/with 1", "the title", cases, (RATE, COST), left_out={"absent": "x is not installed"}
    )
    runs = [
        Run(case, round_, {"items_per_s": speed * (round_ + 1), "cpu": 3.0})
        for round_ in range(2)
        for case, speed in (("limit", 100.0), ("ours", 50.0))
    ]
    runs += [Run("other", 0, error="exit status 1: a | b\nc"), Run("other", 1, {"cpu": 9.0, "versions": {"x": "1"}})]
    page = publish.Page(folder, "peers-now", ABOUT)
    page.add(experiment, runs, list(table.summary_rows(experiment, runs, ABOUT)))
    return page.markdown.read_text(), page.close(), page


def test_the_markdown_has_a_line_for_each_case_and_says_where_and_how(tmp_path: Path) -> None:
    text, said, page = written(tmp_path)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines == [
        "| case | items/s | CPU \\| µs | remarks |",
        "| --- | ---: | ---: | --- |",
        "| limit | 150 (100 .. 200) | 3.00 (3.00 .. 3.00) |  |",
        "| **ours** | 75.0 (50.0 .. 100); 0.50 × limit; goal >= 0.4: met | 3.00 (3.00 .. 3.00); goal <= 4: met |  |",
        "| other |  | 9.00 | 1 failed: exit status 1: a \\| b c |",
        "| absent |  |  | left out: x is not installed |",
    ]
    assert "cores 2" in text and "numpy 2" in text and "2024-01-01" in text and "repeat 1" in text
    assert "- other: x 1" in text
    assert said[:2] == [f"rows: {page.rows}", f"tables: {page.markdown}"]


def test_the_plot_is_a_picture_that_the_page_shows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    text, said, _ = written(tmp_path)
    assert "![the title](peers-now-a-name-with-1.png)" in text
    picture = (tmp_path / "peers-now-a-name-with-1.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 5000
    assert said[2:] == [f"plot: {tmp_path / 'peers-now-a-name-with-1.png'}"]


def test_without_matplotlib_there_are_tables_and_a_line_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    text, said, _ = written(tmp_path)
    assert "![" not in text and "| limit |" in text
    assert said[2:] == [publish.NO_PLOTS]
    assert not list(tmp_path.glob("*.png"))
