"""What every source keeps to: its items reach the batch, wherever they are loaded; what has changed is not read."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydrax_gpu import ArraySpec, DataGroup, Dataloader, ErrorPolicy, SourceChanged, SourceError, sources
from hydrax_gpu.sources._files import Opened
from hydrax_gpu.sources._source import copy_item
from tests.source_files import (
    COUNT,
    TABLES,
    Squares,
    SquaresAtOnce,
    fill_and_tell_text,
    fill_number,
    make,
    numbers,
)

ROOT = Path(__file__).resolve().parents[2]
SPECS = {"x": ArraySpec((6,), np.float32, np.float32), "y": ArraySpec((), np.int32, np.int32)}
NEEDS = {"parquet": "pyarrow", "arrow": "pyarrow"}


def made(kind: str, folder: Path) -> Any:
    pytest.importorskip(NEEDS.get(kind.split()[0], "numpy"), reason="pyarrow is not installed")
    return make(kind, folder)


def check_batches(loader: Dataloader[Any]) -> int:
    x, y = numbers()
    seen = 0
    with loader:
        for batch in loader:
            rows = list(batch.indices)
            np.testing.assert_array_equal(batch.arrays["x"], x[rows])
            np.testing.assert_array_equal(batch.arrays["y"], y[rows])
            seen += int(np.sum(batch.valid)) if batch.valid is not None else len(rows)
            del batch
    return seen


@pytest.mark.parametrize("kind", TABLES)
def test_items_reach_the_batch(kind: str, tmp_path: Path) -> None:
    source = made(kind, tmp_path)
    assert len(source) == COUNT
    if kind != "tar":  # of which nobody knows what is in it
        assert source.arrays() == SPECS
    group = DataGroup(4, source, loader_arrays=SPECS, shuffle_first=True, seed=3, remainder="pad")
    loader = Dataloader(source.loader(), group, executor="inline", on_error="raise", end_at=("epoch", 1))
    assert check_batches(loader) == COUNT


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_worker_processes_read_them(kind: str, tmp_path: Path) -> None:
    source = made(kind, tmp_path)
    group = DataGroup(4, source, loader_arrays=SPECS, shuffle_first=True, remainder="short")
    loader = Dataloader(source.loader(fill_and_tell_text), group, loader_count=2, on_error="raise", end_at=("epoch", 1))
    assert check_batches(loader) == COUNT


@pytest.mark.parametrize("kind", TABLES)
def test_readers_and_descriptors_are_light_and_work_anywhere(kind: str, tmp_path: Path) -> None:
    source = made(kind, tmp_path)
    source.load(0)  # what is open must stay here
    items = [source[i] for i in range(COUNT)]
    data = pickle.dumps((source.reader, items))
    assert len(data) < 1500 + 100 * COUNT
    reader, items = pickle.loads(data)
    x, y = numbers()
    for i, value in enumerate(reader.read_rows(items)):
        np.testing.assert_array_equal(value["x"], x[i])
        assert value["y"] == y[i]


@pytest.mark.parametrize("kind", TABLES)
def test_a_file_that_has_changed_is_an_error_that_says_so(kind: str, tmp_path: Path) -> None:
    source = made(kind, tmp_path)
    source.load(0)
    elsewhere = pickle.loads(pickle.dumps(source.reader))
    for path in tmp_path.iterdir():
        status = path.stat()
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    for reader in (source.reader, elsewhere):  # the one has opened the file already
        with pytest.raises(SourceChanged, match=r"has changed since the source was made.*Make the source anew"):
            reader(source[0])
    make(kind, tmp_path).load(0)


@pytest.mark.parametrize("kind", TABLES)
def test_a_file_that_is_gone_is_a_bad_item(kind: str, tmp_path: Path) -> None:
    source = made(kind, tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(SourceError, match="cannot be opened"):
        source.load(COUNT - 1)


@pytest.mark.parametrize("kind", TABLES)
def test_two_groups_of_two_sources_share_a_loader(kind: str, tmp_path: Path) -> None:
    source = made(kind, tmp_path)
    training = DataGroup(4, source[:16], loader_arrays=SPECS)
    validation = DataGroup(7, source[16:], loader_arrays=SPECS)
    loader = Dataloader(
        source[:16].loader(others=[source[16:]]), training, validation=("epoch", 1, validation),
        executor="inline", on_error="raise", end_at=("epoch", 1),
    )  # fmt: skip
    _, y = numbers()
    with loader:
        got = [batch.arrays["y"].tolist() for batch in loader]
    assert got == [*y[:16].reshape(4, 4).tolist(), y[16:].tolist()]


def test_sources_that_are_read_in_different_ways_are_not_for_one_loader(tmp_path: Path) -> None:
    tar, npy = make("tar", tmp_path), make("npy", tmp_path)
    with pytest.raises(ValueError, match="read in different ways"):
        tar.loader(others=[npy])
    other = sources.TarSource(tmp_path / "shard-0.tar", fields={"y": "cls"})
    with pytest.raises(ValueError, match="one Dataloader for each"):
        tar.loader(others=[other])


@given(st.integers(0, 12), st.lists(st.builds(slice, *[st.none() | st.integers(-15, 15)] * 3), max_size=4))
def test_slices_are_those_of_a_list(count: int, slices: list[slice]) -> None:
    source: Any = sources.MapSource(range(100, 100 + count))
    expected = list(range(count))
    for each in slices:
        if each.step == 0:
            continue
        source, expected = source[each], expected[each]
    assert [source[i].number for i in range(len(source))] == expected
    assert [source[-i - 1].number for i in range(len(source))] == expected[::-1]
    for outside in (len(source), -len(source) - 1):
        with pytest.raises(IndexError, match="but the source has"):
            source[outside]


# What goes into an array.


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"x": np.zeros(5, np.float32)}, r"'x': got shape \(5,\), wanted \(6,\)"),
        ({"x": 1.0}, r"got shape \(\)"),  # which NumPy would spread over all six
        ({"y": np.zeros(6)}, "no 'x', only 'y'"),
        ({"x": ["a"] * 6}, "got <U1, wanted float32"),
        ({"x": "text"}, "got str"),
        ({"x": None}, "got NoneType"),
        ({"x": np.zeros(6, complex)}, "got complex128"),
    ],
)
def test_what_does_not_fit_is_refused(value: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        copy_item(value, {"x": np.empty(6, np.float32)})


def test_integers_that_do_not_fit_are_refused_and_others_converted() -> None:
    array = np.empty(2, np.uint8)
    copy_item({"y": np.array([0, 255])}, {"y": array})
    assert array.tolist() == [0, 255]
    for wrong in (256, -1):
        with pytest.raises(ValueError, match="'y': got numbers that uint8 cannot hold"):
            copy_item({"y": np.array([0, wrong])}, {"y": array})
    copy_item([1.5, 2.5], {"only": (real := np.empty(2, np.float32))})
    assert real.tolist() == [1.5, 2.5]
    with pytest.raises(ValueError, match="wanted a mapping with a value for each"):
        copy_item([1, 2], {"a": array, "b": array})


# Data sets of other libraries.


@pytest.mark.parametrize("cls", [Squares, SquaresAtOnce])
def test_data_sets_of_other_libraries_work_as_they_are(cls: type[Squares]) -> None:
    source = sources.MapSource(cls(12), names=("n", "square"))
    more = sources.MapSource(cls(3), names=("n", "square"))
    arrays = {"n": ((), np.int32, np.int32), "square": ((), np.int32, np.int32)}
    SquaresAtOnce.calls = 0
    loader = Dataloader(
        source.loader(others=[more]), DataGroup(4, source, loader_arrays=arrays, shuffle_first=True),
        validation=("epoch", 1, DataGroup(3, more, loader_arrays=arrays)),
        executor="inline", on_error="raise", end_at=("epoch", 1),
    )  # fmt: skip
    with loader:
        batches = [(list(b.indices), b.arrays["n"].tolist(), b.arrays["square"].tolist()) for b in loader]
    assert len(batches) == 4
    assert all(n == index and square == [i**2 for i in index] for index, n, square in batches)
    assert SquaresAtOnce.calls == (4 if cls is SquaresAtOnce else 0)


@pytest.mark.parametrize("cls", [Squares, SquaresAtOnce])
def test_a_bad_item_of_another_library_is_that_item_alone(cls: type[Squares]) -> None:
    source = sources.MapSource(cls(8, bad=(5,)), names=("n", "square"))
    arrays = {"n": ((), np.int32, np.int32)}
    loader = Dataloader(
        source.loader(), DataGroup(4, source, loader_arrays=arrays),
        executor="inline", on_error=ErrorPolicy("replace"), end_at=("epoch", 1),
    )  # fmt: skip
    with loader:
        got = [n for batch in loader for n in batch.arrays["n"].tolist()]
    assert [n for n in got if n != 5][:5] == [0, 1, 2, 3, 4] and len(got) == 8 and 5 not in got
    [bad] = loader.report().bad
    assert bad.item == 5 and "item 5 is not there" in bad.error


def test_torch_and_grain_are_wrapped() -> None:
    torch_data = pytest.importorskip("torch.utils.data", reason="PyTorch is not installed")
    torch = pytest.importorskip("torch")
    dataset = torch_data.TensorDataset(torch.arange(12).reshape(6, 2).float(), torch.arange(6))
    value = sources.MapSource(dataset, names=("x", "y")).load(4)
    copy_item(value, {"x": (x := np.empty(2, np.float32)), "y": np.empty((), np.int32)})
    assert x.tolist() == [8, 9]


def test_a_chain_of_grains_is_a_data_set() -> None:
    grain = pytest.importorskip("grain", reason="Grain is not installed")
    chain = grain.MapDataset.source(Squares(12)).map(lambda item: {"n": item[0], "square": item[1] + 1})
    source = sources.MapSource(chain)
    arrays = {"n": ((), np.int32, np.int32), "square": ((), np.int32, np.int32)}
    group = DataGroup(4, source, loader_arrays=arrays, shuffle_first=True)
    with Dataloader(source.loader(), group, executor="thread", on_error="raise", end_at=("epoch", 1)) as loader:
        rows = [(batch.arrays["n"].tolist(), batch.arrays["square"].tolist()) for batch in loader]
    assert sorted(n for numbers, _ in rows for n in numbers) == list(range(12))
    assert all(squares == [n**2 + 1 for n in numbers] for numbers, squares in rows)


def test_what_has_no_random_access_is_refused() -> None:
    for wrong in (iter([1]), {1: 2}, 3):
        with pytest.raises(TypeError, match="indexed by a number from 0"):
            sources.MapSource(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="does not know the shapes"):
        sources.MapSource([1]).arrays()


# Files in general.


def test_no_more_files_are_open_than_allowed(tmp_path: Path) -> None:
    made_of: list[int] = []
    alive: set[int] = set()

    class Handle:
        def __init__(self, key: int) -> None:
            self.key = key
            made_of.append(key)
            alive.add(key)

        def __del__(self) -> None:
            alive.discard(self.key)

    opened: Opened[int, Handle] = Opened(Handle, limit=2)
    for key in (1, 2, 1, 3):
        assert opened[key].key == key
    assert made_of == [1, 2, 3] and alive == {1, 3}
    opened[2]
    assert made_of == [1, 2, 3, 2] and alive == {3, 2}


def test_a_fork_opens_its_own(tmp_path: Path) -> None:
    script = (
        "import os, sys\n"
        "from hydrax_gpu.sources import NpySource\n"
        "source = NpySource(sys.argv[1])\n"
        "reader = source.reader\n"
        "before = reader(source[1])['x'].tolist()\n"
        "opened = reader._opened[source[1].table]\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    same = reader(source[1])['x'].tolist() == before\n"
        "    os._exit(0 if same and reader._opened[source[1].table] is not opened else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    np.save(tmp_path / "x.npy", np.arange(12).reshape(3, 4))
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "x.npy")], cwd=ROOT, timeout=100)
    assert done.returncode == 0


def test_nothing_that_is_not_needed_is_imported(tmp_path: Path) -> None:
    make("tar", tmp_path)
    script = (
        "import sys, hydrax_gpu.sources as s\n"
        "s.TarSource(sys.argv[1]).load(0)\n"
        "[getattr(s, name) for name in s.__all__]\n"
        "print(*{name.split('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "shard-0.tar")],
        cwd=ROOT, timeout=100, capture_output=True, text=True, check=True,
    )  # fmt: skip
    heavy = {"jax", "jaxlib", "pyarrow", "pandas", "fsspec", "datasets", "google_crc32c", "array_record", "PIL"}
    assert not heavy & set(done.stdout.split())


def test_the_public_names_are_those_that_a_type_checker_sees() -> None:
    text = (ROOT / "hydrax_gpu" / "sources" / "__init__.py").read_text()
    for name in sources.__all__:
        assert f" import {name} as {name}\n" in text
        assert (getattr(sources, name).__doc__ or "").strip()
    with pytest.raises(AttributeError, match="no attribute 'TarSauce'"):
        sources.TarSauce  # noqa: B018


# Remote files.


def test_memory_file_systems_are_read_by_threads(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    memory = fsspec.filesystem("memory")
    make("tar", tmp_path), make("parquet", tmp_path)
    for path in tmp_path.iterdir():
        if path.suffix in (".tar", ".parquet"):
            memory.pipe(f"/here/{path.name}", path.read_bytes())
    try:
        tar = sources.TarSource("memory://here/shard-{0..1}.tar", fields={"x": "x.npy", "y": "cls"})
        table = sources.ParquetSource("memory://here/part{0..1}.parquet", columns=["x", "y"])
        for source in (tar, table):
            group = DataGroup(4, source, loader_arrays=SPECS, shuffle_first=True, remainder="short")
            loader = Dataloader(
                source.loader(), group, executor="thread", loader_count=2, on_error="raise", end_at=("epoch", 1)
            )
            assert check_batches(loader) == COUNT
        memory.pipe("/here/shard-0.tar", b"other")
        with pytest.raises(SourceChanged, match="has changed"):
            pickle.loads(pickle.dumps(tar.reader))(tar[0])  # of what is open, a server is not asked again
        memory.rm("/here/shard-1.tar")
        with pytest.raises(SourceError, match="cannot be opened"):
            pickle.loads(pickle.dumps(tar.reader))(tar[COUNT - 1])
    finally:
        memory.rm("/here", recursive=True)


def test_file_systems_of_fsspec_are_read_by_processes(tmp_path: Path) -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    make("tar", tmp_path)
    for index in tmp_path.glob("*.hgindex"):
        index.unlink()
    source = sources.TarSource(f"local://{tmp_path}/shard-{{0..1}}.tar", fields={"x": "x.npy", "y": "cls"})
    assert not list(tmp_path.glob("*.hgindex"))
    assert source[0].file.path.startswith("local://")
    group = DataGroup(4, source, loader_arrays=SPECS, shuffle_first=True, remainder="short")
    loader = Dataloader(source.loader(), group, on_error="raise", end_at=("epoch", 1))
    assert check_batches(loader) == COUNT


def test_file_urls_are_local(tmp_path: Path) -> None:
    source = make("npz", tmp_path)
    other = sources.NpySource(f"file://{tmp_path}/data.npz")
    assert other[0].table.columns[0][1].file == source[0].table.columns[0][1].file


def test_numbers_in_records_need_a_function(tmp_path: Path) -> None:
    source = sources.MapSource([b"1", b"2"])
    group = DataGroup(2, source, loader_arrays={"y": ((), np.int32, np.int32)})
    with Dataloader(source.loader(fill_number), group, executor="inline", on_error="raise") as loader:
        assert next(loader).arrays["y"].tolist() == [1, 2]
    with pytest.raises(TypeError, match="wanted a function"):
        source.loader(3)  # type: ignore[arg-type]
