"""The benchmark harness counts and reports rightly. Nothing here measures speed."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import harness, kernels, soak, table, workloads
from benchmarks.accounts import Window, family, memory, read_stat
from benchmarks.harness import Case, Experiment, Goal, Metric, Run, run_case, run_rounds, target_case
from benchmarks.stats import ratios, spread
from hydrax_gpu._mem.slots import SlotState
from tests.kernels import host

ABOUT = {"date": "2024-01-01", "machine": {}, "versions": {}}
RATE = Metric("items_per_s", "items/s", Goal(at_least=0.4), limit_case="limit")
COST = Metric("cpu", "µs", Goal(at_most=4.0))
LIMIT, OURS = Case("limit", "none"), Case("ours", "none", judged=True)


def experiment(*cases: Case) -> Experiment:
    return Experiment("name", "the title", cases, (RATE, COST))


def test_spread_has_the_median_the_extremes_and_quartiles_within_them() -> None:
    found = spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.median, found.low, found.high, found.quartile_1, found.quartile_3) == (3.0, 1.0, 5.0, 2.0, 4.0)
    assert found.runs == 5


def test_spread_of_one_value_is_that_value() -> None:
    found = spread([7.0])
    assert (found.median, found.low, found.high, found.quartile_1, found.quartile_3) == (7.0,) * 5


def test_spread_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_a_round_in_which_one_failed_has_no_ratio() -> None:
    assert ratios([1.0, None, 3.0, 4.0], [2.0, 2.0, None, 0.0]) == [0.5]


def test_the_ratio_is_taken_within_each_round() -> None:
    # the machine slows down tenfold: a ratio of medians would be 0.5 only by luck
    runs = [
        Run(case, round_, {"items_per_s": speed * (1.0 if case == "limit" else share)})
        for round_, (speed, share) in enumerate([(1000.0, 0.5), (100.0, 0.5), (10.0, 0.5)])
        for case in ("limit", "ours")
    ]
    rows = [row for row in table.summary_rows(experiment(LIMIT, OURS), runs, ABOUT) if row["case"] == "ours"]
    assert rows[0]["of_limit"]["low"] == rows[0]["of_limit"]["high"] == 0.5
    assert rows[0]["met"] is True


def test_goals_are_judged_for_the_subject_and_not_for_its_limit() -> None:
    runs = [Run("limit", 0, {"items_per_s": 100.0, "cpu": 9.0}), Run("ours", 0, {"items_per_s": 10.0, "cpu": 4.0})]
    rows = list(table.summary_rows(experiment(LIMIT, OURS), runs, ABOUT))
    assert {(row["case"], row["metric"]): row["met"] for row in rows} == {
        ("limit", "items_per_s"): None,
        ("limit", "cpu"): None,
        ("ours", "items_per_s"): False,
        ("ours", "cpu"): True,
    }


def test_a_failed_case_is_a_line_of_the_table_and_a_row_of_the_file(tmp_path: Path) -> None:
    runs = [Run("limit", 0, {"items_per_s": 100.0}), Run("ours", 0, error="exit status 1: ImportError: no", stderr="x")]
    rows = [*table.run_rows(experiment(LIMIT, OURS), runs, ABOUT)]
    summary = [*table.summary_rows(experiment(LIMIT, OURS), runs, ABOUT)]
    text = table.render("the title", summary)
    assert "ours" in text and "! 1 failed: exit status 1: ImportError: no" in text
    table.write_rows(tmp_path / "new" / "rows.jsonl", [*rows, *summary])
    read = [json.loads(line) for line in (tmp_path / "new" / "rows.jsonl").read_text().splitlines()]
    assert [row["error"] for row in read if row["kind"] == "run"] == [None, "exit status 1: ImportError: no"]
    assert all(row["date"] == "2024-01-01" and "settings" in row for row in read)


def test_a_case_that_failed_in_one_round_shows_the_others_numbers_too() -> None:
    runs = [Run("ours", 0, {"cpu": 1.0}), Run("ours", 1, error="timed out after 1 s"), Run("ours", 2, {"cpu": 3.0})]
    text = table.render("the title", list(table.summary_rows(experiment(OURS), runs, ABOUT)))
    assert "2.00" in text and "1.00 .. 3.00" in text and "! 1 failed: timed out after 1 s" in text


def test_a_disturbed_limit_makes_no_loader_look_good() -> None:
    busy, quiet = {"others_cores": 0.9}, {"others_cores": 0.0}
    runs = [
        Run("limit", 0, {"items_per_s": 50.0, **busy}),
        Run("ours", 0, {"items_per_s": 50.0, **quiet}),
        Run("limit", 1, {"items_per_s": 100.0, **quiet}),
        Run("ours", 1, {"items_per_s": 30.0, **quiet}),
    ]
    limit, ours = table.summary_rows(experiment(LIMIT, OURS), runs, ABOUT)
    assert (limit["value"]["median"], limit["runs_disturbed"]) == (100.0, 1)
    assert (ours["of_limit"]["median"], ours["of_limit"]["runs"], ours["met"]) == (0.3, 1, False)
    # with the disturbed round alone, nothing is known
    _, ours = table.summary_rows(experiment(LIMIT, OURS), runs[:2], ABOUT)
    assert ours["of_limit"] is None and ours["met"] is None
    assert "1 of 4 runs disturbed" in table.others(runs)


def test_a_disturbed_case_is_shown_but_not_judged() -> None:
    runs = [Run("ours", 0, {"cpu": 1.0, "others_cores": 0.9})]
    (row,) = table.summary_rows(experiment(OURS), runs, ABOUT)
    assert row["value"]["median"] == 1.0 and row["met"] is None
    assert table.render("the title", [row]).splitlines()[-1].endswith("?")


def test_a_disturbed_run_is_repeated_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([0.9, 0.5, 0.0, 0.0])

    def fake(case: Case, round_: int, timeout_s: float) -> Run:
        return Run(case.name, round_, {"others_cores": next(answers)})

    monkeypatch.setattr(harness, "run_case", fake)
    runs = run_rounds(experiment(OURS), repeat=2, timeout_s=1.0, tries=3)
    assert [(run.round, run.disturbed) for run in runs] == [(0, True), (0, True), (0, False), (1, False)]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (0.31234, "0.312"), (4.0, "4.00"), (99.96, "100"), (1234567.8, "1,234,568")]
)
def test_numbers_have_three_digits_or_all_before_the_point(value: float, text: str) -> None:
    assert table.number(value) == text


def test_every_row_can_say_where_it_was_measured_without_naming_the_machine() -> None:
    about = table.about()
    assert about["machine"]["cores"] >= 1 and about["versions"]["numpy"] == np.__version__
    assert str(Path.cwd()) not in json.dumps(about)
    assert "numpy" in table.describe(about)


def spinning(seconds: float) -> subprocess.Popen[str]:
    """A process that uses that much CPU time once it is told to, says so, and stays."""
    code = (
        "import sys, time\nprint('up', flush=True)\nsys.stdin.readline()\nstart = time.process_time()\n"
        f"while time.process_time() - start < {seconds}: pass\nprint('done', flush=True)\nsys.stdin.readline()"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_the_cpu_time_of_a_child_is_counted() -> None:
    with spinning(0.3) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "up\n"
        window = Window()
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "done\n"
        usage = window.close()
        assert child.pid in {stat.pid for stat in family(os.getpid(), session=False)}
        assert memory(child.pid)["rss_mb"] >= memory(child.pid)["own_mb"] > 0
        child.stdin.write("\n")
        child.stdin.close()
    # clock ticks of 10 ms at either end
    assert 0.27 <= usage.children_s <= 0.4
    assert usage.lost == 0 and usage.processes >= 2
    assert usage.per_item(10)["cpu_us_per_item_children"] == pytest.approx(1e5 * usage.children_s)


def test_a_child_that_ends_within_the_window_is_missed_and_said_to_be() -> None:
    child = spinning(0.0)
    window = Window()
    child.communicate("\n\n")
    assert window.close().lost >= 1


def test_a_process_that_is_gone_has_no_stat() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    assert read_stat(child.pid) is None


def test_a_measurement_is_run_in_its_own_process() -> None:
    run = run_case(target_case("case", "builtins:dict", items_per_s=5), 3, timeout_s=30)
    assert run.error is None and (run.case, run.round) == ("case", 3)
    assert run.value("items_per_s") == 5.0 and run.value("left_behind") == 0.0


def test_failing_and_hanging_cases_become_rows_and_the_others_go_on() -> None:
    cases = (
        Case("raises", "timeit", ("-n1", "1 / 0")),
        Case("silent", "benchmarks.accounts"),
        Case("hangs", "timeit", ("-n1", "import time; time.sleep(100)")),
        target_case("works", "builtins:dict", cpu=1.0),
    )
    start = time.monotonic()
    runs = run_rounds(experiment(*cases), repeat=2, timeout_s=3.0)
    assert time.monotonic() - start < 60
    errors: dict[str, list[Any]] = {case.name: [run.error for run in runs if run.case == case.name] for case in cases}
    assert all("ZeroDivisionError" in error for error in errors["raises"])
    assert errors["silent"] == ["exit status 0: no result, and nothing on stderr"] * 2
    # once is enough: a second try would take as long
    assert errors["hangs"] == ["timed out after 3 s"]
    assert errors["works"] == [None, None]


def test_a_hanging_measurement_leaves_its_stacks() -> None:
    run = run_case(target_case("hangs", "signal:pause"), 0, timeout_s=2.0)
    assert run.error == "timed out after 2 s"
    assert "Fatal Python error: Aborted" in run.stderr and "_run.py" in run.stderr


def test_a_process_left_behind_is_counted_and_ended(tmp_path: Path) -> None:
    (tmp_path / "leaver.py").write_text(
        "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        "print('RESULT {\"pid\": %d}' % child.pid)\n"
    )
    run = run_case(Case("leaves", "leaver", environment={"PYTHONPATH": str(tmp_path)}), 0, timeout_s=30)
    assert run.value("left_behind") == 1.0
    stat = read_stat(int(run.result["pid"]))
    assert stat is None or stat.zombie
    assert "leaves left 1" in table.left_behind([run])


def test_the_loader_functions_are_imported_without_jax() -> None:
    code = "import sys, benchmarks.workloads; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])


def test_a_batch_that_was_not_loaded_is_noticed() -> None:
    task = workloads.small(4)
    image, label = np.zeros((4, 8, 8, 3), np.uint8), np.zeros((4,), np.int32)
    for item in range(4):
        workloads.load_small(item, {"image": image[item], "label": label[item, ...]}, 0)
    task.check({"image": image, "label": label})
    image[2, 0, 0, 0] = 9
    with pytest.raises(AssertionError, match="1 of the 4 items"):
        task.check({"image": image, "label": label})


def test_an_unknown_workload_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.parse(["cpu", "--only", "items,nothing"])
    assert "nothing: not one of items, bytes, overlap, startup, handover" in capsys.readouterr().err


def test_every_workload_lists_its_cases() -> None:
    wanted = [
        name for name in command.NAMES + command.SLOW if name not in ("bytes", "overlap", "jpeg")
    ]  # these make files
    with ExitStack() as stack:
        listed = list(command.chosen(command.parse(["cpu", "--only", ",".join(wanted)]), stack))
    assert {each.name.partition("-")[0] for each in listed} == set(wanted)
    assert all(each.cases and each.metrics for each in listed)


def test_a_kernel_is_measured_beside_its_twin_and_a_copy() -> None:
    host()
    case = next(case for case in kernels.experiments()[0].cases if case.name == "unpack_bits 1 bit u8")
    run = run_case(case, 0, 60)
    assert run.error is None, run.stderr
    assert all((run.value(key) or 0) > 0 for key in ("host_gbs", "of_twin", "of_copy"))


class Slots:
    """What the soak looks at: the states and generations of a loader's slots."""

    def __init__(self, *slots: tuple[SlotState, int]) -> None:
        self.slots = slots

    def __len__(self) -> int:
        return len(self.slots)

    def state(self, slot: int) -> SlotState:
        return self.slots[slot][0]

    def generation(self, slot: int) -> int:
        return self.slots[slot][1]


def test_the_soak_sees_slots_that_are_never_given_back() -> None:
    samples = soak.Samples()
    samples.take(Slots((SlotState.LENT, 7), (SlotState.FREE, 3), (SlotState.FILLING, 4)))
    samples.take(Slots((SlotState.LENT, 7), (SlotState.FREE, 3), (SlotState.FILLING, 5)))
    assert samples.values["slots_stuck"] == [0, 1]


def test_the_soak_sees_what_grows(tmp_path: Path) -> None:
    samples, kept = soak.Samples(), []
    slots = Slots((SlotState.FREE, 0))
    with ExitStack() as files:
        for number in range(10):
            files.enter_context((tmp_path / str(number)).open("w"))
            pages = files.enter_context(mmap.mmap(-1, 5_000_000))  # what malloc gives may be what was given back before
            pages.write(b"x" * len(pages))
            kept.append([{} for _ in range(50)])
            samples.take(slots)
    # looks 2 and 3 against 8 and 9
    assert samples.grown("fds") == 6 and samples.grown("blocks") >= 6 * 50 and samples.grown("rss_mb") > 20


def test_a_run_that_is_not_timed_cannot_be_disturbed() -> None:
    assert run_case(target_case("timed", "builtins:dict", cpu=1.0), 0, 60).value("others_cores") is not None
    run = run_case(target_case("soak", "builtins:dict", timed=False, cpu=1.0), 0, 60)
    assert run.value("others_cores") is None and not run.disturbed


def test_a_short_soak_drops_the_bad_and_replaces_the_killed() -> None:
    settings = {"executor": "process", "delivery": "alias", "batches": 500, "looks": 5}
    # no time-out but the test's own: how many batches it takes until the killed are replaced depends on the machine
    run = run_case(target_case("soak", "benchmarks.soak:measure", **settings), 0, 1000)
    assert run.error is None, run.stderr
    assert run.value("deaths") == 5
    batches, dropped = run.value("batches"), run.value("dropped")
    assert batches is not None and batches >= 500
    assert dropped in (batches // 249, batches // 249 + 1), "one of the 250 of each epoch"
    assert run.value("fds_grown") == run.value("threads_grown") == run.value("slots_stuck") == 0
