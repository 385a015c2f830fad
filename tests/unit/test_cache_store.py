"""The cache's store: what was written comes back, in any order, to any process, and only once."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from hydrax_gpu._cache import ArrayFormat, Keys, Store, StoreSpec
from hydrax_gpu._cache.table import Table
from hydrax_gpu.errors import CacheError, CacheMismatch, CacheWriteError
from tests import caches
from tests.caches import ARRAYS, LENGTH, descriptor, fill, keys, read, spec, write

ROOT = Path(__file__).resolve().parents[2]


def test_what_was_written_comes_back_in_any_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    order = rng.permutation(LENGTH)
    store = fill(tmp_path / "a" / "b", *np.array_split(order, 7))
    assert len(store) == LENGTH
    for reader in (store, Store.open(spec(tmp_path / "a" / "b", readonly=True))):
        for size in (1, 3, 64, 256):
            some = rng.choice(LENGTH, size)
            assert not read(reader, keys(some)), "with the same key several times"
        assert not read(reader, keys(range(LENGTH)))
        stats = reader.stats
        assert stats.bad == 0 and stats.entries_read == LENGTH + 324 and stats.bytes_read > 0
        assert reader.read_path == "posix" and "GPUDirect" in reader.read_path_reason
    assert store.stats.entries_written == LENGTH


def test_a_batch_that_was_written_together_is_read_in_few_calls(tmp_path: Path) -> None:
    batch = np.random.default_rng(2).permutation(LENGTH)[:256]
    store = fill(tmp_path, batch)
    arrays, _ = caches.content(keys(batch))
    # three arrays that have bytes, and additional data
    assert store.read(keys(batch), arrays).read_calls == 4
    shuffled = keys(np.random.default_rng(3).permutation(batch))
    assert store.read(shuffled, arrays).read_calls == 4, "in any order, as long as they lie together"


def test_complete(tmp_path: Path) -> None:
    store = fill(tmp_path / "item", range(LENGTH - 1))
    other = Store.open(spec(tmp_path / "item", readonly=True))
    assert not store.complete
    assert write(store, keys([LENGTH - 1])) == 1
    assert store.complete and not other.complete
    other.refresh()
    assert other.complete
    with next((tmp_path / "item").glob("*.0.bin")).open("r+b") as file:
        file.write(b"damaged")
    assert len(read(other, keys(range(LENGTH)))) == 1
    assert not other.complete and store.complete, "until it sees for itself"


def test_of_passes_there_is_no_end(tmp_path: Path) -> None:
    store = Store.open(spec(tmp_path, seeded="pass", shuffle_later="itemwise"))
    assert write(store, keys(range(LENGTH), [0] * LENGTH)) == LENGTH == len(store)
    assert not store.complete


def test_entries_of_each_pass(tmp_path: Path) -> None:
    store = Store.open(spec(tmp_path, seeded="pass", shuffle_later="itemwise"))
    twice = Keys(np.array([5, 5, 900]), np.array([0, 3, (1 << 23) - 1]))
    assert write(store, twice) == 3
    assert not read(store, twice)
    assert store.contains(Keys(np.array([5, 5, 900]), np.array([3, 1, 0]))).tolist() == [True, False, False]


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    store = fill(tmp_path, [1, 2, 3])
    assert write(store, keys([3, 4, 4, 1])) == 1
    other = Store.open(spec(tmp_path))
    assert write(other, keys([1, 2, 3, 4])) == 0
    assert write(other, keys([5])) == 1
    assert not store.contains(keys([5])).any()
    assert store.refresh() == 1 and store.refresh() == 0
    assert read(store, keys([1, 5, 6])) == {2}
    assert store.stats.entries_skipped == 3 and store.stats.reasons == {"it is missing": 1}


def test_a_store_that_only_reads_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"No such file or directory. Fill it first without cache_readonly"):
        Store.open(spec(tmp_path / "none", readonly=True))
    assert not (tmp_path / "none").exists()
    fill(tmp_path, [1]).close()
    before = sorted(os.listdir(tmp_path))
    for store in (Store.open(spec(tmp_path, readonly=True)), Store.open(spec(tmp_path), writer=False)):
        assert not read(store, keys([1]))
        with pytest.raises(CacheWriteError, match="for reading only"):
            write(store, keys([2]))
        assert write(store, keys([2])) == 0 and store.disabled
    assert sorted(os.listdir(tmp_path)) == before
    Store.open(spec(tmp_path / "empty")).close()
    assert os.listdir(tmp_path / "empty") == ["cache.json"], "a writer's files are made when it writes"


def test_huge_data_takes_no_room(tmp_path: Path) -> None:
    big = StoreSpec(str(tmp_path), descriptor(length=1 << 40))
    store = Store.open(big)
    far = keys([(1 << 40) - 1, 0, 1 << 39])
    assert write(store, far) == 3 and not read(store, far)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 10_000


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
def test_arrays_of_every_size_and_dtype(tmp_path: Path, compression: str | None) -> None:
    import ml_dtypes

    arrays = (
        ArrayFormat("big", (300, 400), "float64", 960_000, compression),  # more than one read holds
        ArrayFormat("half", (3,), "bfloat16", 6, compression),
        ArrayFormat("flag", (), "bool", 1, compression),
        ArrayFormat("none", (0,), "int8", 0, compression),
    )
    store = Store.open(StoreSpec(str(tmp_path), descriptor(arrays=arrays)))
    rng = np.random.default_rng(0)
    key = keys([4, 2, 9])
    data = {
        "big": rng.random((3, 300, 400)),
        "half": rng.random((3, 3)).astype(ml_dtypes.bfloat16),
        "flag": np.array([True, False, True]),
        "none": np.zeros((3, 0), np.int8),
    }
    assert store.write(key, data) == 3
    views = {name: np.zeros_like(array) for name, array in data.items()}
    result = Store.open(StoreSpec(str(tmp_path), descriptor(arrays=arrays), True)).read(key, views)
    assert result.bad == [] and result.additional == [None] * 3
    for name, array in data.items():
        assert views[name].tobytes() == array.tobytes()


def test_names_may_change_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path, [1]).close()
    renamed = tuple(ArrayFormat(f"new_{each.name}", *list(vars(each).values())[1:]) for each in ARRAYS)
    store = Store.open(spec(tmp_path, arrays=renamed))
    arrays, _ = caches.content(keys([1]))
    views = {f"new_{name}": np.zeros_like(array) for name, array in arrays.items()}
    assert store.read(keys([1]), views).bad == []
    assert views["new_x"].tobytes() == arrays["x"].tobytes()


@pytest.mark.parametrize(
    ("change", "field", "values"),
    [
        ({"length": 999}, "length", (1000, 999)),
        ({"seed": 8}, "seed", (7, 8)),
        ({"seeded": "pass"}, "seeded", ("item", "pass")),
        ({"shuffle_first": False}, "shuffle_first", (True, False)),
        ({"shuffle_later": "repeat"}, "shuffle_later", ("batchwise", "repeat")),
        ({"fingerprint": "0" * 32}, "fingerprint", None),
        ({"cache_version": "v2"}, "cache_version", ("v1", "v2")),
        ({"arrays": ARRAYS[:3]}, "number of arrays", (4, 3)),
        ({"arrays": (ArrayFormat("x", (5, 4), "float32", 80), *ARRAYS[1:])}, "arrays[0].nbytes", (60, 80)),
        ({"arrays": (ArrayFormat("x", (15,), "float32", 60), *ARRAYS[1:])}, "arrays[0].item_shape", ((5, 3), (15,))),
        ({"arrays": (ArrayFormat("x", (5, 3), "int32", 60), *ARRAYS[1:])}, "arrays[0].dtype", ("float32", "int32")),
        (
            {"arrays": (*ARRAYS[:2], ArrayFormat("text", (200,), "uint8", 200), ARRAYS[3])},
            "arrays[2].compression",
            ("zstd", None),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_cache_of_something_else_is_refused(
    tmp_path: Path, change: dict[str, object], field: str, values: tuple[object, object] | None
) -> None:
    fill(tmp_path, [1]).close()
    for readonly in (False, True):
        with pytest.raises(CacheMismatch) as caught:
            Store.open(StoreSpec(str(tmp_path), descriptor(**change), readonly))
        error = pickle.loads(pickle.dumps(caught.value))
        assert error.field == field and values in ((error.stored, error.wanted), None)
        assert field in str(error) and error.fix in str(error) and str(tmp_path) in str(error)


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("hydrax_gpu._cache.descriptor.FORMAT", 2)
        Store.open(spec(tmp_path)).close()
    with pytest.raises(CacheMismatch) as caught:
        Store.open(spec(tmp_path))
    assert (caught.value.field, caught.value.stored, caught.value.wanted) == ("format", 2, 1)


def test_misuse_is_refused(tmp_path: Path) -> None:
    store = fill(tmp_path, [1])
    arrays, additional = caches.content(keys([1, 2]))
    with pytest.raises(ValueError, match="of 1000 items, got item 1000"):
        store.contains(keys([1000]))
    with pytest.raises(ValueError, match="from 0 to"):
        store.contains(keys([-1]))
    with pytest.raises(ValueError, match="passes must be 0"):
        store.contains(keys([1], [1]))
    with pytest.raises(ValueError, match="as many items as passes"):
        store.contains(Keys(np.arange(3), np.arange(2)))
    with pytest.raises(ValueError, match="array 'x' with 2 rows is needed, got only"):
        store.read(keys([1, 2]), {"label": arrays["label"]})
    with pytest.raises(ValueError, match="array 'x' with 2 rows is needed, got 3 rows"):
        store.read(keys([1, 2]), {**arrays, "x": np.zeros((3, 5, 3), np.float32)})
    for x in (np.zeros((2, 5, 3)), np.zeros((2, 3, 5), np.float32).transpose(0, 2, 1)):
        with pytest.raises(ValueError, match="rows of 60 bytes each, C-contiguous"):
            store.write(keys([1, 2]), {**arrays, "x": x}, additional)
    with pytest.raises(ValueError, match="for each of 2 entries is needed, got 1"):
        store.write(keys([1, 2]), arrays, [None])
    with pytest.raises(TypeError, match="additional data 'lock' cannot be cached"):
        store.write(keys([1, 2]), arrays, [None, {"lock": threading.Lock()}])
    assert store.disabled is None and write(store, keys([2])) == 1


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES], ids=["full", "read-only", "permission"])
def test_a_disk_that_refuses_ends_the_writing_and_nothing_else(tmp_path: Path, error: int) -> None:
    ends = 0
    for at in range(5, 60):
        location = tmp_path / str(at)
        system = caches.refusing(at, error)
        store = Store.open(spec(location), system=system)
        written: list[int] = []
        for start in range(0, 30, 10):
            batch = range(start, start + 10)
            try:
                if write(store, keys(batch)):
                    written += batch
            except CacheWriteError as raised:
                assert (
                    pickle.loads(pickle.dumps(raised)).errno == raised.errno == error
                    and os.strerror(error) in str(raised)
                    and store.disabled
                )
                assert isinstance(raised.__cause__, OSError)
                ends += 1
        failed = store.disabled is not None
        assert not read(store, keys(written)), "what was written is still read"
        assert read(Store.open(spec(location)), keys(range(30))) <= set(range(30)) - set(written)
        # another process does what this one could not, though it may have to wait until a claim is void
        later = caches.Impatient()
        other = Store.open(spec(location), system=later)
        for _ in range(8):
            write(other, keys(range(30)))
            later.pause(0)
        assert not read(Store.open(spec(location)), keys(range(30)))
        if not failed:
            assert at >= system.count > 20
            break
        assert store.disabled is not None
    else:
        pytest.fail("no run came to its end")
    assert ends == at - 5, "told once a store"


def test_two_threads_that_share_a_store(tmp_path: Path) -> None:
    store = Store.open(spec(tmp_path))
    batches = np.random.default_rng(0).permutation(LENGTH).reshape(50, 20)
    counts = [0] * 4

    def work(number: int) -> None:
        for batch in np.random.default_rng(number).permutation(batches):
            counts[number] += write(store, keys(batch))
            assert not read(store, keys(batch))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == LENGTH == len(store)
    assert len(caches.journals(tmp_path)) == 1


def test_a_bad_entry_is_written_again_and_the_new_one_is_taken(tmp_path: Path) -> None:
    store = fill(tmp_path, range(20))
    data = next(tmp_path.glob("*.0.bin"))
    with data.open("r+b") as file:
        file.seek(3 * 60)
        file.write(b"\xff" * 60)
    assert read(store, keys(range(20))) == {3}
    assert not store.contains(keys([3])).any()
    assert write(store, keys(range(20))) == 1
    assert not read(store, keys(range(20)))
    # others find the bad one and the new one, in either order
    late = Store.open(spec(tmp_path, readonly=True))
    assert len(late) == 20 and not read(late, keys(range(20)))


def test_few_files_are_open_however_many_writers_there_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hydrax_gpu._cache.files._MOST", 8)
    for item in range(12):
        fill(tmp_path, [item]).close()
    before = len(os.listdir("/proc/self/fd"))
    store = Store.open(spec(tmp_path, readonly=True))
    for _ in range(2):
        assert not read(store, keys(range(12)))
        assert len(os.listdir("/proc/self/fd")) - before == 8
    store.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_of_entries_written_twice_every_reader_takes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # as on a file system that shows files late to other machines
    first, second = Store.open(spec(tmp_path)), Store.open(spec(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(Table, "refresh", lambda *_: 0)
        patch.setattr(Table, "claimed", lambda *_: [])
        assert write(first, keys(range(9))) == write(second, keys(range(9))) == 9
    chosen = set()
    for store in (first, second, Store.open(spec(tmp_path))):
        store.refresh()
        assert len(store) == 9 and not read(store, keys(range(9)))
        table = store._table
        chosen.add(table.name(int(table.rows(table.find(np.arange(9)))[0, 1])))
    assert chosen == {caches.journals(tmp_path)[0]}


def test_a_process_that_opens_a_store_imports_no_jax(tmp_path: Path) -> None:
    fill(tmp_path, [1]).close()
    script = (
        "import sys; from tests.caches import *; import hydrax_gpu._cache as c\n"
        "assert not {'msgspec', 'xxhash', 'zstandard', 'lz4'} & set(sys.modules)\n"
        f"assert not read(Store.open(spec({str(tmp_path)!r})), keys([1]))\n"
        "assert not {'jax', 'jaxlib', 'ml_dtypes', 'lz4', 'tqdm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("package", ["xxhash", "msgspec", "zstandard"])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CacheError, match=f"{package}.*pip install"):
        write(Store.open(spec(tmp_path)), keys([1]))


def test_what_is_of_another_cache_is_not_read(tmp_path: Path) -> None:
    """The journal of a cache of other data, put beside those of this one."""
    fill(tmp_path / "a", [1, 2]).close()
    other = Store.open(spec(tmp_path / "b", cache_version="v2"))
    assert write(other, keys([3, 4])) == 2
    for path in (tmp_path / "b").glob("*.*"):
        if path.name != "cache.json":
            (tmp_path / "a" / path.name).write_bytes(path.read_bytes())
    assert read(Store.open(spec(tmp_path / "a")), keys([1, 2, 3, 4])) == {2, 3}
