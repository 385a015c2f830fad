"""Where a loader stands, saved beside a model and restored: with Orbax and as plain JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from hydrax_gpu import DataGroup, Dataloader, StateMismatch, StatesDiffer, checkpoint
from hydrax_gpu.checkpoint import _agreement, _files, _orbax
from tests.loaders import FailsFor, fill

ARRAYS = {"x": ((), np.int32, np.int32)}
MODEL = {"w": jnp.arange(3.0)}


def new_loader(start_at: Any = (0, 0), load: Any = fill, **options: Any) -> Dataloader[int]:
    group = DataGroup(4, range(options.pop("items", 40)), loader_arrays=ARRAYS, seed=3, shuffle_first=True)
    return Dataloader(load, group, executor="inline", start_at=start_at, end_at=("epoch", 2), **options)


def take(loader: Dataloader[int], count: int | None = None) -> list[tuple[int, ...]]:
    """The items of the next batches, all there are by default."""
    taken: list[tuple[int, ...]] = []
    for batch in loader:
        taken.append(tuple(batch.indices))
        del batch
        if len(taken) == count:
            break
    return taken


def both(loader: Dataloader[int]) -> Any:
    return ocp.args.Composite(model=ocp.args.StandardSave(MODEL), data=checkpoint.Save(loader))


RESTORE = ocp.args.Composite(model=ocp.args.StandardRestore(MODEL), data=checkpoint.Restore())


def test_a_manager_saves_and_restores_the_place_in_the_data_beside_the_model(tmp_path: Path) -> None:
    with new_loader() as loader:
        whole = take(loader)
    with ocp.CheckpointManager(tmp_path) as manager, new_loader() as loader:
        begun = take(loader, 7)
        manager.save(7, args=both(loader))
        begun += take(loader, 5)
        manager.save(12, args=both(loader))
    for step in (7, 12):
        with ocp.CheckpointManager(tmp_path) as manager:
            restored = manager.restore(step, args=RESTORE)
        assert np.array_equal(restored.model["w"], MODEL["w"])
        with new_loader(restored.data) as loader:
            assert begun[:step] + take(loader) == whole
    # what is there can be had without naming it, too
    with ocp.CheckpointManager(tmp_path) as manager:
        assert manager.restore(12).data == restored.data


def test_the_state_is_that_of_the_call_however_late_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, threads = threading.Event(), []

    def process_index() -> int:
        threads.append(threading.current_thread())
        assert go_on.wait(60)
        return 0

    monkeypatch.setattr(_orbax, "process_index", process_index)
    with ocp.CheckpointManager(tmp_path) as manager, new_loader() as loader:
        take(loader, 3)
        expected = loader.state()
        manager.save(3, args=both(loader))
        take(loader, 4)  # and the file is not written yet
        assert not list(tmp_path.rglob("hydrax_gpu.json"))
        go_on.set()
        manager.wait_until_finished()
        assert manager.restore(3, args=RESTORE).data == expected != loader.state()
    assert threads and threading.main_thread() not in threads


def test_a_checkpointer_without_a_manager(tmp_path: Path) -> None:
    with new_loader() as loader:
        take(loader, 3)
        state = loader.state()
    with ocp.Checkpointer(checkpoint.LoaderHandler()) as saver:
        saver.save(tmp_path / "data", args=checkpoint.Save(state))
        assert saver.restore(tmp_path / "data", args=checkpoint.Restore()) == state


def test_bad_items_come_back(tmp_path: Path) -> None:
    with new_loader(load=FailsFor(3, 5), on_error="replace") as loader:
        take(loader)
        checkpoint.save_json(tmp_path / "data.json", loader)
        assert loader.report().bad.items() == [3, 5]
    again = new_loader(checkpoint.load_json(tmp_path / "data.json"))
    assert again.report().bad.items() == [3, 5]


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (3, TypeError, "Save: got 3, wanted a hydrax_gpu.Dataloader, or what its state"),
        ({"epoch": 3}, ValueError, r"Save: got a dict with \['epoch'\], wanted what Dataloader.state"),
    ],
)
def test_only_loaders_and_states_can_be_saved(wrong: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        checkpoint.Save(wrong)


def test_an_item_that_is_not_there_or_is_something_else(tmp_path: Path) -> None:
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(1, args=both(new_loader()))
    with ocp.CheckpointManager(tmp_path) as manager:
        with pytest.raises(KeyError, match="Available items"):
            manager.restore(1, args=ocp.args.Composite(place=checkpoint.Restore()))
        with pytest.raises(FileNotFoundError, match=r"is not the state of a hydrax_gpu loader.*Save\(loader\)"):
            manager.restore(1, args=ocp.args.Composite(model=checkpoint.Restore()))


def test_a_checkpoint_of_another_version_or_other_data_is_refused(tmp_path: Path) -> None:
    state = new_loader().state()
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(1, args=ocp.args.Composite(data=checkpoint.Save({**state, "version": 99})))
        manager.save(2, args=ocp.args.Composite(data=checkpoint.Save(state)))
        with pytest.raises(ValueError, match="state of version 99, but this release reads version 1"):
            manager.restore(1, args=ocp.args.Composite(data=checkpoint.Restore()))
        restored = manager.restore(2, args=ocp.args.Composite(data=checkpoint.Restore()))
    with pytest.raises(StateMismatch, match=r"training\[0\].length was 40 in it and is 44 now"):
        new_loader(restored.data, items=44)


def test_json_is_the_state_and_resumes_the_run(tmp_path: Path) -> None:
    with new_loader() as loader:
        whole = take(loader)
    with new_loader() as loader:
        begun = take(loader, 9)
        saved = checkpoint.save_json(tmp_path / "data.json", loader)
        assert saved == loader.state() == json.loads((tmp_path / "data.json").read_text())
    with new_loader(checkpoint.load_json(tmp_path / "data.json")) as loader:
        assert begun + take(loader) == whole


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"version": 1, "fing', "data.json is not JSON"),
        ("[1, 2]", "data.json holds no state of a loader"),
        ('{"version": 2, "fingerprint": {}}', "has a state of version 2"),
    ],
)
def test_files_that_hold_no_state_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        checkpoint.load_json(tmp_path / "data.json")


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_save_that_fails_leaves_the_older_file(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path, state = tmp_path / "data.json", new_loader().state()
    checkpoint.save_json(path, state)
    before = path.read_text()

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    where = {"write": (_files.json, "dump"), "fsync": (os, "fsync"), "replace": (Path, "replace")}[call]
    monkeypatch.setattr(*where, fails)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save_json(path, {**state, "epoch": 1})
    assert path.read_text() == before and [each.name for each in tmp_path.iterdir()] == ["data.json"]


def test_a_file_has_its_name_only_when_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, done = tmp_path / "data.json", []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(fd: int) -> None:
        done.append(("fsync", Path(os.readlink(f"/proc/self/fd/{fd}")).name, path.exists()))
        fsync(fd)

    def watched_replace(part: Path, target: Path) -> None:
        done.append(("replace", json.loads(part.read_text())["version"], target.name))
        replace(part, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    checkpoint.save_json(path, new_loader())
    part = f".data.json.{os.getpid()}.part"
    assert done == [("fsync", part, False), ("replace", 1, "data.json"), ("fsync", tmp_path.name, True)]


def gathering(monkeypatch: pytest.MonkeyPatch, others: list[bytes]) -> list[int]:
    """Makes this process one of several, of which the others pass what is given; returns the sizes of the messages."""
    sizes: list[int] = []

    def gather(row: Any) -> Any:
        sizes.append(len(row))
        rows = [row]
        for other in others:
            if len(sizes) == 1:
                theirs = len(other).to_bytes(8, "little") + _agreement.hashlib.sha256(other).digest()
            else:
                theirs = other.ljust(len(row), b"\0")
            rows.append(np.frombuffer(theirs, np.uint8))
        return np.stack(rows)

    monkeypatch.setattr(_agreement, "_process_count", lambda: 1 + len(others))
    monkeypatch.setattr(_agreement, "_gather", gather)
    return sizes


def test_processes_that_have_the_same_exchange_forty_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    state = new_loader().state()
    sizes = gathering(monkeypatch, [json.dumps(state, sort_keys=True).encode()] * 3)
    assert checkpoint.agreed_state(state) == state and sizes == [40]


def test_a_process_that_is_elsewhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    state = new_loader().state()
    same, other = (json.dumps({**state, "batch": batch}, sort_keys=True).encode() for batch in (0, 1))
    gathering(monkeypatch, [same, other])
    with pytest.raises(StatesDiffer, match="batch is 0 on process 0 and 1 on process 2"):
        checkpoint.agreed_state(state)


def test_what_only_one_process_has_found_is_in_the_state_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    state = new_loader().state()
    found = {**state, "process": {"bad": [[0, 0, 7, 0, 1, 0, "OSError: gone"]]}}
    gathering(monkeypatch, [json.dumps(found, sort_keys=True).encode()])
    merged = checkpoint.agreed_state({**state, "process": {"bad": []}})
    assert merged["bad"] == found["process"]["bad"] and "process" not in merged


def test_a_process_that_cannot_read_does_not_leave_the_others_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save_json(tmp_path / "data.json", new_loader())
    gathering(monkeypatch, [b""])
    with pytest.raises(OSError, match=r"process 1 could not read .*, which this one has read"):
        checkpoint.load_json(tmp_path / "data.json")


def test_json_needs_neither_orbax_nor_devices() -> None:
    script = (
        "import sys; sys.modules['orbax'] = None\n"
        "import jax, jax._src.xla_bridge as bridge\n"
        "from hydrax_gpu import checkpoint\n"
        "state = {'version': 1, 'fingerprint': {}}\n"
        "import tempfile; path = tempfile.mkdtemp() + '/s'\n"
        "checkpoint.save_json(path, state); assert checkpoint.load_json(path) == state\n"
        "assert not bridge.backends_are_initialized()\n"
        "try:\n    checkpoint.Save(state)\n"
        "except ModuleNotFoundError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "pip install 'hydrax-gpu[orbax]'" in done.stdout
