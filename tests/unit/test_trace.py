"""The timeline of a run: a valid file at any time, a track for each worker, and the report that is made of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hydrax_gpu import Dataloader
from hydrax_gpu.__main__ import main
from hydrax_gpu._timeline.reading import TraceError, read
from hydrax_gpu.trace import Trace
from tests import loaders
from tests.slow import SlowLoad
from tests.small import group, loader, rows

FIXED = {"executor": "process", "workers": 2, "depth": 3, "cores": 2}


def traced(path: Path, load: Any = loaders.fill, **options: Any) -> Dataloader[Any]:
    """A loader that has run, and written a trace."""
    it = loader(load, group(range(16), 4), trace=path, **options)
    rows(it)
    return it


def spans(entries: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [entry for entry in entries if entry["ph"] == "X" and entry["name"] == name]


@pytest.mark.parametrize("executor", ["inline", "thread", "process"])
def test_every_batch_is_in_the_trace(executor: Any, tmp_path: Path) -> None:
    it = traced(tmp_path / "run.json", executor=executor, loader_count=2, end_at=("batch", 8))
    entries = json.loads((tmp_path / "run.json").read_text())
    numbers = [f"batch {number}" for number in range(8)]
    for name in ("plan", "place", "step"):
        assert [entry["args"]["batch"] for entry in spans(entries, name)] == numbers
        assert all(entry["args"]["items"] == 4 for entry in spans(entries, name))
    chunks = spans(entries, "load")
    assert {entry["args"]["batch"] for entry in chunks} == set(numbers)
    assert sum(entry["args"]["items"] for entry in chunks) == 32
    # the clocks agree: planned, loaded, placed, handed out
    at = {name: {e["args"]["batch"]: e for e in spans(entries, name)} for name in ("plan", "place", "step")}
    for chunk in chunks:
        batch = chunk["args"]["batch"]
        end = chunk["ts"] + chunk["dur"]
        assert at["plan"][batch]["ts"] + at["plan"][batch]["dur"] <= chunk["ts"] + 0.002
        assert end <= at["place"][batch]["ts"] + 0.002
        assert at["place"][batch]["ts"] + at["place"][batch]["dur"] <= at["step"][batch]["ts"] + 0.002
    workers = {worker.pid for worker in it.report().workers}
    assert {chunk["pid"] for chunk in chunks} <= workers
    assert (executor == "process") == (os.getpid() not in {chunk["pid"] for chunk in chunks})
    named = {(e["pid"], e["tid"]): e["args"]["name"] for e in entries if e["name"] == "thread_name"}
    assert {named[chunk["pid"], chunk["tid"]] for chunk in chunks} <= {"worker 0", "worker 1"}
    for name, track in (("step", "consumer"), ("wait", "consumer"), ("plan", "engine"), ("place", "placement")):
        assert {named[entry["pid"], entry["tid"]] for entry in spans(entries, name)} == {track}


def test_a_trace_says_what_the_report_says(tmp_path: Path) -> None:
    it = traced(tmp_path / "run.json", SlowLoad(0.005), executor="thread", end_at=("batch", 12))
    found, stages = read(tmp_path / "run.json").stages(), it.report().stages
    assert (found.batches, found.items, found.workers) == (12, 48, 1)
    for stage in stages.stages:
        assert found[stage.name].count == pytest.approx(stage.count, abs=2), stage.name  # those at the first batch
        if stage.name not in ("queue", "step"):
            assert found[stage.name].seconds == pytest.approx(stage.seconds, rel=0.05, abs=0.003), stage.name
    assert found.causes()["load"] == pytest.approx(stages.causes()["load"], rel=0.05)
    assert sum(map(float, (found.slots.free, found.slots.filling, found.slots.full))) == pytest.approx(3, rel=0.05)


def test_the_command(tmp_path: Path) -> None:
    traced(tmp_path / "run.json", SlowLoad(0.005), executor="thread", end_at=("batch", 12))
    # in a process of its own, because matplotlib keeps its fonts' files open
    command = [sys.executable, "-m", "hydrax_gpu", "report", "run.json", "-o", "run.png", "--length", "0.1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 x thread, depth 3: 12 batches, 48 items in ")
    assert "\nload " in done.stdout and "\nloader-bound: the loop waited " in done.stdout
    with Image.open(tmp_path / "run.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(0xC6, 0x28, 0x28), (0x15, 0x65, 0xC0)} <= colours  # waits and loading


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is a trace, but not of a Dataloader's"),
        ('{"traceEvents": []}', "is not a trace of a Dataloader's"),
        ('[{"ph": "X"}]', "is not a trace of a Dataloader's"),
        (None, "No such file"),
    ],
)
def test_what_is_no_trace(text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    assert main(["report", str(tmp_path / "x.json")]) == 1
    assert message in capsys.readouterr().err


def test_no_picture_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    traced(tmp_path / "run.json")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(tmp_path / "run.json"), "-o", str(tmp_path / "run.png")]) == 1
    assert "pip install 'hydrax-gpu[plot]'" in capsys.readouterr().err


def test_the_file_is_json_after_every_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, lengths = tmp_path / "run.json", [0]
    pwrite = os.pwrite

    def checked(fd: int, data: bytes, offset: int) -> int:
        written = pwrite(fd, data, offset)
        lengths.append(len(json.loads(path.read_text())))
        return written

    monkeypatch.setattr(os, "pwrite", checked)
    trace = Trace(path)
    trace.open(FIXED)
    for number in range(2000):
        trace.span("engine", "plan", number, number + 1, {"batch": f"batch {number}"})
        trace.chunk(77, 1, "load", number, number + 1, {})
        trace.level("slots", number, {"free": number // 1000})
    trace.close()
    trace.close()
    assert len(lengths) >= 7 and lengths == sorted(lengths)
    entries = json.loads(path.read_text())
    assert len(spans(entries, "plan")) == len(spans(entries, "load")) == 2000
    assert [entry["ts"] for entry in entries if entry["ph"] == "C"] == [0.0, 1.0]


KILLED = """
import os, signal, sys
from hydrax_gpu.trace import Trace
trace = Trace(sys.argv[1])
trace.open({"executor": "inline", "workers": 1, "depth": 3, "cores": 2})
for number in range(1300):
    trace.span("engine", "plan", number, number + 1, {"batch": f"batch {number}"})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_leaves_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)], timeout=60).returncode == -9
    assert len(read(path).events) == 1024


def test_a_trace_is_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trace = Trace(tmp_path / "run.json", limit_bytes=60_000)
    it = loader(loaders.fill, group(range(16), 4), trace=trace, end_at=("batch", 400))
    rows(it)
    size = (tmp_path / "run.json").stat().st_size
    assert 10_000 < size <= 60_000 + 4
    assert trace.note is not None and "has reached its limit of 60,000 bytes" in trace.note
    assert trace.note in it.report().notes and trace.note in caplog.messages
    assert read(tmp_path / "run.json").stages().batches > 10


def test_a_full_disk_ends_the_trace_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    it = loader(loaders.fill, group(range(16), 4), trace=tmp_path / "run.json")
    with it:
        first = next(it)

        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        assert first.arrays["y"].shape == (4,) and len([None for _ in it]) == 3
    assert any("could not be written any further" in note for note in it.report().notes)
    assert sum("No space left" in message for message in caplog.messages) == 1


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"trace: got 3, wanted the path of a file"):
        loader(trace=3)
    with pytest.raises(ValueError, match="wanted at least 4096"):
        Trace(tmp_path / "x", limit_bytes=10)
    trace = Trace(tmp_path / "run.json")
    rows(loader(trace=trace))
    with pytest.raises(RuntimeError, match="belongs to another Dataloader"):
        rows(loader(trace=trace))
    with pytest.raises(FileNotFoundError):
        rows(loader(trace=tmp_path / "none" / "run.json"))
    with pytest.raises(TraceError):
        read(Path(__file__))


def test_a_fork_leaves_the_trace_alone(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "run.json")
    trace.open(FIXED)
    trace.span("engine", "plan", 0, 1, {})
    monkey = os.getpid
    try:
        os.getpid = lambda: monkey() + 1  # as it is in a fork
        trace.flush()
    finally:
        os.getpid = monkey
    assert not spans(json.loads((tmp_path / "run.json").read_text()), "plan")
    trace.close()
    assert len(spans(json.loads((tmp_path / "run.json").read_text()), "plan")) == 1


NVTX = """
import sys, types
calls = []
class Domain:
    def push_range(self, attributes=None, *, message=None, category=None): calls.append(message)
    def pop_range(self): calls.append("end")
fake = types.ModuleType("nvtx")
fake.get_domain = lambda name: Domain()
sys.modules["nvtx"] = fake
from tests.small import loader, rows
rows(loader(executor=sys.argv[1]))
depth = 0
for call in calls:
    depth += -1 if call == "end" else 1
    assert depth >= 0
assert depth == 0
print(sorted(set(calls)), calls.count("hydrax_gpu.next"))
"""


def test_ranges_for_nvtx() -> None:
    done = subprocess.run([sys.executable, "-c", NVTX, "inline"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['Dispatch', 'Finish', 'Place', 'end', 'hydrax_gpu.next', 'load'] 3"


def test_no_ranges_when_nobody_watches() -> None:
    import hydrax_gpu._ranges as ranges

    def function() -> int:
        return 3

    assert ranges.ranges() is None and ranges.ranged("load", function) is function


def test_next_is_in_a_profile_of_jax(tmp_path: Path) -> None:
    import jax

    with jax.profiler.trace(str(tmp_path)):
        rows(loader())
    found = [path for path in tmp_path.rglob("*.xplane.pb") if b"hydrax_gpu.next" in path.read_bytes()]
    assert found
