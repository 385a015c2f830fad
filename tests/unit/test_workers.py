"""Worker processes: what they import, how they begin, how they end, and what is left of them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hydrax_gpu import DataGroup, Dataloader, ErrorPolicy, LoaderError, WorkerDied, WorkerStartError, is_worker
from tests import loaders

GROUP: DataGroup[int] = DataGroup(4, range(100), loader_arrays={"x": ((3,), "float32", "float32")})


def run_script(tmp_path: Path, body: str, *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Runs a program of its own in a file, as users do."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(body))
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=timeout, env=environment, cwd=tmp_path
    )


def test_a_loader_function_of_the_script_itself_works(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        import sys
        from dataclasses import dataclass
        from hydrax_gpu import Dataloader, DataGroup, is_worker

        @dataclass
        class Item:
            number: int

        def load(item, arrays, seed):
            arrays["x"][...] = item.number
            return {"module": __name__, "worker": is_worker(), "argv": sys.argv[1:]}

        if __name__ == "__main__":
            sys.argv.append("--flag")
            data = [Item(i) for i in range(20)]
            group = DataGroup(4, data, loader_arrays={"x": ((), "int32", "int32")})
            with Dataloader(load, group, loader_count=2, end_at=("epoch", 1)) as loader:
                for batch in loader:
                    assert batch.arrays["x"].tolist() == [item.number for item in batch.data]
                    assert set(batch.additional["worker"]) == {True}
                    assert batch.additional["argv"] == [["--flag"]] * 4
                    del batch
            assert not is_worker()
        """,
    )
    assert done.returncode == 0, done.stderr


def test_the_script_is_not_imported_by_workers_that_do_not_need_it(tmp_path: Path) -> None:
    (tmp_path / "my_loaders.py").write_text("def load(item, arrays, seed):\n    arrays['x'][...] = item\n")
    done = run_script(
        tmp_path,
        """
        import os
        with open("imports.txt", "a") as file:
            file.write("imported\\n")
        import jax
        from hydrax_gpu import Dataloader, DataGroup
        from my_loaders import load

        # no guard: nothing here would survive being run by a worker
        group = DataGroup(4, range(20), loader_arrays={"x": ((), "int32", "int32")})
        with Dataloader(load, group, loader_count=2, end_at=("epoch", 1)) as loader:
            assert sum(1 for batch in loader) == 5
            assert not any(worker.imported_jax for worker in loader.report().workers)
        """,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "imports.txt").read_text() == "imported\n"


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        from hydrax_gpu import Dataloader, DataGroup

        def load(item, arrays, seed):
            arrays["x"][...] = item

        group = DataGroup(4, range(20), loader_arrays={"x": ((), "int32", "int32")})
        with Dataloader(load, group) as loader:
            for batch in loader:
                pass
        """,
    )
    assert done.returncode == 1
    assert "WorkerStartError" in done.stderr
    assert "if __name__ == '__main__':" in done.stderr


def test_jax_in_the_scripts_imports_is_reported(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        import jax
        from hydrax_gpu import Dataloader, DataGroup

        def load(item, arrays, seed):
            arrays["x"][...] = item

        if __name__ == "__main__":
            group = DataGroup(4, range(20), loader_arrays={"x": ((), "int32", "int32")})
            with Dataloader(load, group, end_at=("epoch", 1)) as loader:
                for batch in loader:
                    del batch
                print(loader.report())
        """,
    )
    assert done.returncode == 0, done.stderr
    assert "the workers import jax" in done.stdout


class Unloadable:
    """Pickles, but cannot be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return loaders.fails_to_start, ()

    def __call__(self, item: int, arrays: Mapping[str, Any], seed: int | None) -> None:
        """Never reached."""


def test_a_loader_that_cannot_be_unpickled_is_an_error_with_its_cause() -> None:
    with (
        pytest.raises(WorkerStartError, match="no such licence server") as caught,
        Dataloader(Unloadable(), GROUP) as loader,
    ):
        next(loader)
    assert isinstance(caught.value.__cause__, OSError)
    assert "fails_to_start" in str(caught.value), "the worker's traceback names the user's function"


def test_a_worker_that_dies_is_noticed_at_once() -> None:
    with (
        pytest.raises(WorkerDied, match="SIGKILL") as caught,
        Dataloader(loaders.die, GROUP, loader_count=2, on_error=ErrorPolicy(restarts=0)) as loader,
    ):
        for batch in loader:
            del batch
        pytest.fail("the loader went on without its worker")
    assert caught.value.exitcode == -signal.SIGKILL
    assert 5 in caught.value.items
    assert not Path(f"/proc/{caught.value.pid}").exists()


def test_an_items_error_carries_the_workers_traceback() -> None:
    batches = 0
    with (
        pytest.raises(LoaderError) as caught,
        Dataloader(loaders.FailsFor(13), GROUP, loader_count=2, on_error="raise") as loader,
    ):
        for batch in loader:
            batches += 1
            del batch
    error = caught.value
    assert batches == 3, "the batches before the failing one arrive"
    assert error.item_index == 13 and error.group_index == 0 and error.epoch == 0 and error.seed is not None
    assert isinstance(error.__cause__, ValueError) and str(error.__cause__) == "item 13 is broken"
    assert "in __call__" in error.worker_traceback and "loaders.py" in error.worker_traceback
    assert error.worker_traceback in str(error)


def test_the_error_is_raised_again_by_every_later_call() -> None:
    with Dataloader(loaders.FailsFor(0), GROUP, executor="thread", on_error="raise") as loader:
        for _ in range(3):
            with pytest.raises(LoaderError, match="item 0"):
                next(loader)


def test_a_legacy_generators_seed_error_says_what_to_do() -> None:
    with (
        pytest.raises(LoaderError, match=r"63 bits.*default_rng"),
        Dataloader(loaders.seeds_the_legacy_generator, GROUP, executor="inline", on_error="raise") as loader,
    ):
        next(loader)


def test_an_exception_that_cannot_be_pickled_still_arrives_as_text() -> None:
    with (
        pytest.raises(LoaderError, match="Unpicklable: with a lock") as caught,
        Dataloader(loaders.raises_the_unpicklable, GROUP, on_error="raise") as loader,
    ):
        next(loader)
    assert caught.value.__cause__ is None


def test_large_additional_data_passes_through_the_socket() -> None:
    with Dataloader(loaders.returns_a_megabyte, GROUP, loader_count=2, end_at=("batch", 6)) as loader:
        for batch in loader:
            assert [len(value) for value in batch.additional["blob"]] == [1_000_000] * 4
            del batch


def test_descriptors_that_cannot_be_pickled_name_the_item() -> None:
    data: list[Any] = [0, 1, lambda: 2, 3]
    group = DataGroup(4, data, loader_arrays={"x": ((), "int32", "int32")})
    with (
        pytest.raises(LoaderError, match="could not be sent to a worker"),
        Dataloader(loaders.fill, group, on_error="raise") as loader,
    ):
        next(loader)


def test_descriptors_that_cannot_be_had_name_the_item() -> None:
    class Broken(list[int]):
        def __getitem__(self, index: Any) -> Any:
            if index == 2:
                raise KeyError("row 2 is missing")
            return super().__getitem__(index)

    group = DataGroup(4, Broken(range(8)), loader_arrays={"x": ((), "int32", "int32")})
    with (
        pytest.raises(LoaderError, match="row 2 is missing") as caught,
        Dataloader(loaders.fill, group, on_error="raise") as loader,
    ):
        next(loader)
    assert caught.value.item_index == 2


def test_constructing_a_loader_in_a_worker_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydrax_gpu.loader.is_worker", lambda: True)
    with pytest.raises(RuntimeError, match="constructed in a worker process"):
        Dataloader(loaders.fill, GROUP)
    assert not is_worker()


def test_niceness_is_applied_to_workers_only() -> None:
    before = os.nice(0)
    with Dataloader(loaders.niceness, GROUP, loader_nice=3) as loader:
        assert set(next(loader).additional["nice"]) == {before + 3}
    assert os.nice(0) == before


@pytest.mark.parametrize("leaving", ["break", "exception", "end", "before the first batch"])
def test_nothing_is_left_of_the_workers(leaving: str) -> None:
    shared_memory = set(os.listdir("/dev/shm"))
    pids: list[int] = []
    try:
        with Dataloader(loaders.fill, GROUP, loader_count=3, end_at=("batch", 20)) as loader:
            if leaving != "before the first batch":
                for number, batch in enumerate(loader):
                    del batch
                    if leaving == "break" and number == 3:
                        break
                    if leaving == "exception" and number == 3:
                        raise KeyError("of the user's own")
            pids = [worker.pid for worker in loader.report().workers]
    except KeyError as error:
        assert leaving == "exception" and "own" in str(error)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert set(os.listdir("/dev/shm")) == shared_memory


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys
        from hydrax_gpu import Dataloader, DataGroup
        from tests.loaders import sleeps_for_ever
        if __name__ == "__main__":
            group = DataGroup(1, range(100), loader_arrays={"x": ((), "int32", "int32")})
            with Dataloader(sleeps_for_ever, group, loader_count=2, depth=4) as loader:
                next(loader)
    """)
    # The loader function prints its process id and then never returns.
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        watches = [os.pidfd_open(pid) for pid in pids]
        parent.kill()
        parent.wait()
        try:
            for watch in watches:
                # Not our child, so we cannot wait for it; its descriptor becomes readable when it has ended.
                assert select.select([watch], [], [], 10)[0], "a worker outlived its parent"
        finally:
            for watch in watches:
                os.close(watch)
