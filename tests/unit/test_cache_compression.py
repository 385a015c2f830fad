"""Caches whose arrays are kept compressed, as a user sees them: zstd, lz4, and int8, which rounds."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from hydrax_gpu import ArraySpec, CacheMismatch, DataGroup, Dataloader, UnpackBits
from hydrax_gpu.__main__ import main
from hydrax_gpu.testing import FakeDevice
from tests import loaders
from tests.cached_runs import damage

COUNT = 22
SHAPE = (8, 20)  # two blocks and a half
LOADED: dict[str, Any] = {"x": (SHAPE, np.float32, np.float32), "number": ((), np.int32, np.int32)}
CACHED: dict[str, Any] = {"z": (SHAPE, np.float32, ml_dtypes.bfloat16), "number": ((), np.int32, np.int32)}
RECORD = 176  # bytes: 160 codes, 3 scales, and 4 up to a multiple of 16


def group(location: Path, compression: Any, *, kind: str = "encoded", **options: Any) -> DataGroup[Any]:
    arrays = {"loader_arrays": LOADED} | ({"cache_arrays": CACHED} if kind == "encoded" else {})
    options = arrays | {"remainder": "pad"} | options
    return DataGroup(4, range(COUNT), cache_location=location, cache_compression=compression, **options)


def values(items: Any) -> np.ndarray[Any, Any]:
    """What `loaders.noise` makes of items."""
    arrays: list[np.ndarray[Any, Any]] = []
    for item in items:
        row = {"x": np.empty(SHAPE, np.float32), "number": np.empty((), np.int32)}
        loaders.noise(int(item), row, None)
        arrays.append(row["x"])
    return np.stack(arrays)


def bound(wanted: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How far int8 may be from each value: 1/254 of the largest of its block of 64 in an item."""
    flat = np.abs(wanted.reshape(len(wanted), -1))
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 64))).reshape(len(wanted), -1, 64)
    spread = np.repeat(flat.max(axis=2) / 254 * 1.0001, 64, axis=1)[:, : wanted[0].size]
    return spread.reshape(wanted.shape)


def close_to(got: Any, wanted: np.ndarray[Any, Any], dtype: Any = np.float32) -> bool:
    """Whether these can have been kept in int8 and then been rounded to `dtype`; and were not kept as they are."""
    found = np.asarray(got)
    assert found.dtype == dtype
    errors = np.abs(found.astype(np.float32) - wanted)
    allowed = bound(wanted)
    if dtype != np.float32:
        allowed = allowed + np.abs(found.astype(np.float32)) * 2.0**-8
    return bool((errors <= allowed).all()) and bool((errors > 0).mean() > 0.5)


def go(load: Any, training: DataGroup[Any], device: FakeDevice | None = None, **options: Any) -> Any:
    """Runs an epoch and caches what comes uncached; items and arrays of the other batches, and the loader."""
    options = {"executor": "inline", "end_at": ("epoch", 1), "timeout_sec": 60} | options
    seen: list[tuple[list[int], dict[str, Any]]] = []
    in_use = contextlib.nullcontext() if device is None else device.in_use()
    with in_use, Dataloader(load, training, **options) as loader:
        for batch in loader:
            if batch.uncached:
                batch.cache({"z": batch.arrays["x"].astype(jnp.bfloat16), "number": batch.arrays["number"]})
            else:
                count = int(np.sum(batch.valid))
                arrays = {name: np.array(array)[:count] for name, array in batch.arrays.items()}
                seen.append((list(batch.indices)[:count], arrays))
            del batch
    return seen, loader


@pytest.mark.parametrize("form", ["zstd", "lz4"])
@pytest.mark.parametrize("kind", ["encoded", "direct"])
def test_what_loses_nothing_comes_back_to_the_bit(kind: str, form: str, tmp_path: Path) -> None:
    go(loaders.noise, group(tmp_path, {"z" if kind == "encoded" else "x": form}, kind=kind))
    seen, loader = go(loaders.Forbidden(), group(tmp_path, {"z" if kind == "encoded" else "x": form}, kind=kind))
    for items, arrays in seen:
        wanted = values(items)
        got = arrays["z"] if kind == "encoded" else arrays["x"]
        assert got.tobytes() == wanted.astype(got.dtype).tobytes()
        assert arrays["number"].tolist() == items
    (info,) = loader.report().caches
    assert info.hits == COUNT and info.bad == 0 and info.compression == {"z" if kind == "encoded" else "x": form}
    files = sum(path.stat().st_size for path in tmp_path.glob("*.[01].bin"))
    assert info.compression_ratio == COUNT * (values([0]).nbytes + 4) / files
    assert f"{form}, to 1/{info.compression_ratio:.2f}" in str(info)


@pytest.mark.parametrize("executor, workers", [("inline", 1), ("process", 1)])
def test_int8_of_an_encoder_is_near_and_a_quarter_of_the_bytes(executor: Any, workers: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"executor": executor, "loader_count": workers}
    go(loaders.noise, group(tmp_path, {"z": "int8"}), **options)
    (data,) = tmp_path.glob("*.0.bin")
    assert data.stat().st_size == COUNT * RECORD
    seen, loader = go(loaders.Forbidden(), group(tmp_path, {"z": "int8"}), **options)
    assert sum(len(items) for items, _ in seen) == COUNT
    for items, arrays in seen:
        assert close_to(arrays["z"], values(items).astype(ml_dtypes.bfloat16).astype(np.float32),
                        ml_dtypes.bfloat16)  # fmt: skip
        assert arrays["number"].tolist() == items
    (info,) = loader.report().caches
    assert info.hits == COUNT and info.compression_ratio == (640 + 4) / (RECORD + 4)


@pytest.mark.parametrize("numpy_kernels", [False, True])
def test_int8_of_a_loader_function_is_near_and_rows_mix(
    numpy_kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if numpy_kernels:
        monkeypatch.setenv("HYDRAX_GPU_KERNELS", "numpy")
        from hydrax_gpu._kernels.choice import choose

        choose.cache_clear()
        monkeypatch.setattr("hydrax_gpu._groupcache.choose", choose.__wrapped__)
    first, _ = go(loaders.noise, group(tmp_path, {"x": "int8"}, kind="direct", remainder="drop"))
    for items, arrays in first:
        assert np.array_equal(arrays["x"], values(items)), "what was loaded is as it was loaded"
    damage(tmp_path, 5, RECORD)
    again, loader = go(loaders.noise, group(tmp_path, {"x": "int8"}, kind="direct", cache_readonly=True))
    for items, arrays in again:
        for row, item in enumerate(items):
            wanted, got = values([item]), arrays["x"][row : row + 1]
            if item == 5 or item >= 20:
                assert np.array_equal(got, wanted), "a damaged row, and what is not there, is loaded"
            else:
                assert close_to(got, wanted)
    (info,) = loader.report().caches
    assert (info.hits, info.bad, info.misses) == (19, 1, 2)


def test_a_damaged_record_in_int8_makes_its_batch_be_loaded(tmp_path: Path) -> None:
    go(loaders.noise, group(tmp_path, {"z": "int8"}))
    damage(tmp_path, 6, RECORD)
    seen, loader = go(loaders.noise, group(tmp_path, {"z": "int8"}))
    assert sorted(item for items, _ in seen for item in items) == [*range(4), *range(8, COUNT)]
    assert loader.report().caches[0].written == 1
    assert len(go(loaders.Forbidden(), group(tmp_path, {"z": "int8"}))[0]) == 6


def test_a_device_is_given_bytes_and_makes_floats_of_them(tmp_path: Path) -> None:
    go(loaders.noise, group(tmp_path, {"z": "int8"}))
    on_host, _ = go(loaders.Forbidden(), group(tmp_path, {"z": "int8"}))
    device = FakeDevice()
    options: dict[str, Any] = {"executor": "thread", "loader_count": 1, "delivery": "alias"}
    seen, loader = go(loaders.Forbidden(), group(tmp_path, {"z": "int8"}), device, **options)
    for (items, arrays), (expected, others) in zip(seen, on_host, strict=True):
        assert items == expected
        for name, array in arrays.items():
            assert array.tobytes() == others[name].tobytes(), "to the bit what the host makes of it"
    report = loader.report()
    assert report.kernels == "a fake device" and report.caches[0].hits == COUNT
    per_batch = {nbytes for _, _, nbytes in device.copies}
    assert max(per_batch) == 768 + 4 * 4, "4 records, up to the next array's place; not 4 * 640 bytes of floats"


@pytest.mark.parametrize("kind", ["encoded", "direct"])
def test_what_is_not_finite_is_not_kept_and_told(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    form = {"z" if kind == "encoded" else "x": "int8"}
    _, loader = go(loaders.noise_with_nan, group(tmp_path, form, kind=kind))
    (info,) = loader.report().caches
    assert (info.written, info.refused) == (COUNT - 2, 2)
    assert len(info.troubles) == 2 and "item 3: array" in info.troubles[0] and "not finite" in info.troubles[0]
    assert "2 items not kept" in str(info)
    assert sum("not finite" in record.message for record in caplog.records) == 2
    again, loader = go(loaders.noise_with_nan, group(tmp_path, form, kind=kind))
    (info,) = loader.report().caches
    assert info.written == 0 and info.bad == 0
    if kind == "direct":
        got = {item: arrays["x"][row] for items, arrays in again for row, item in enumerate(items)}
        assert np.isnan(got[3]).any() and np.isinf(got[9]).any() and np.isfinite(got[4]).all()
    else:
        assert sorted(item for items, _ in again for item in items) == [*range(4, 8), *range(12, COUNT)]


@pytest.mark.parametrize(
    "kind, given, says",
    [
        (TypeError, 5, "cache_compression: got int, wanted None, 'zstd', 'lz4', 'int8', or a dict"),
        (ValueError, "gzip", "got 'gzip' for array 'z', wanted 'zstd', 'lz4', 'int8' or None"),
        (ValueError, {"x": "int8"}, "got 'x', wanted names of cached arrays: z, number"),
        (ValueError, "int8", "'int8' for array 'number' with numpy_dtype int32, wanted float16.*Name the arrays"),
        (ValueError, {"number": "int8"}, "for array 'number' with numpy_dtype int32"),
    ],
)
def test_what_cannot_be_is_refused(kind: type[Exception], given: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=says):
        group(tmp_path, given)


def test_what_it_does_not_go_with_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cache_compression without a cache_location"):
        DataGroup(2, range(4), loader_arrays=LOADED, cache_compression={"x": "zstd"})
    with pytest.raises(ValueError, match="with jax_dtype float64"):
        group(tmp_path, {"z": "int8"}, cache_arrays=CACHED | {"z": (SHAPE, np.float32, np.float64)})
    bits: Any = {"x": ArraySpec((2,), "uint8", "float32", UnpackBits(1))}
    with pytest.raises(ValueError, match="'int8' for array 'x' with numpy_dtype uint8"):
        DataGroup(2, range(4), loader_arrays=bits, cache_location=tmp_path, cache_compression="int8")


def test_what_a_group_says_of_it(tmp_path: Path) -> None:
    made = group(tmp_path, {"z": "int8", "number": None})
    assert made.cache_compression == {"z": "int8"} and group(tmp_path, None).cache_compression == {}
    assert made.cache_layouts is not None and list(made.cache_layouts) == ["z", "number"]
    assert made.cache_layouts["z"][:3] == ((4, *SHAPE), np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.bfloat16))


def test_another_form_is_refused_and_the_fix_works(tmp_path: Path) -> None:
    go(loaders.noise, group(tmp_path / "a", {"z": "int8"}))
    with pytest.raises(CacheMismatch) as caught:
        go(loaders.noise, group(tmp_path / "a", {"z": "zstd"}))
    error = caught.value
    assert (error.field, error.stored, error.wanted) == ("arrays[0].compression", "int8", "zstd")
    assert "Set cache_compression={'z': 'int8'}" in error.fix
    command = error.fix.partition("`hydrax-gpu ")[2].partition("`")[0].split()
    assert main([*(str(tmp_path / "b") if word == "TARGET" else word for word in command), "--quiet"]) == 0
    before, _ = go(loaders.Forbidden(), group(tmp_path / "a", {"z": "int8"}))
    after, _ = go(loaders.Forbidden(), group(tmp_path / "b", {"z": "zstd"}))
    for (items, arrays), (others, converted) in zip(before, after, strict=True):
        assert items == others and arrays["z"].tobytes() == converted["z"].tobytes()


@pytest.mark.parametrize("form", ["none", "zstd", "lz4", "int8"])
@pytest.mark.parametrize("source", [None, "zstd", "lz4", "int8"])
def test_copies_in_every_form(source: Any, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = str(tmp_path / "a"), str(tmp_path / "b")
    go(loaders.noise_and_text, group(tmp_path / "a", source and {"x": source}, kind="direct"))
    assert main(["cache", "copy", "--quiet", "--compression", f"x={form}", first, second]) == 0
    assert main(["cache", "verify", "--quiet", second]) == 0
    capsys.readouterr()
    assert main(["cache", "info", second]) == 0
    shown = capsys.readouterr().out
    assert f"x: [8, 20] float32{'' if form == 'none' else f', {form}: '}" in shown
    assert ("compressed to 1/" in shown) == (form != "none")
    wanted = None if form == "none" else {"x": form}
    seen, loader = go(loaders.Forbidden(), group(tmp_path / "b", wanted, kind="direct", cache_readonly=True))
    for items, arrays in seen:
        if "int8" in (source, form):
            assert close_to(arrays["x"], values(items))
        else:
            assert np.array_equal(arrays["x"], values(items))
    assert loader.report().caches[0].hits == COUNT


def test_a_copy_that_cannot_be_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = str(tmp_path / "a")
    go(loaders.noise_with_nan, group(tmp_path / "a", None, kind="direct"))
    for given, says in (
        ("int8", "array 'number' is of int32, which int8 cannot stand for"),
        ("y=zstd", "the cache has no array 'y'; wanted one of x, number"),
        ("x=gzip", "got the compression 'gzip', wanted none, zstd, lz4 or int8"),
    ):
        assert main(["cache", "copy", first, str(tmp_path / "b"), "--compression", given]) == 2
        assert says in capsys.readouterr().err
        assert not (tmp_path / "b").exists()
    assert main(["cache", "copy", "--quiet", first, str(tmp_path / "b"), "--compression", "x=int8"]) == 1
    shown = capsys.readouterr().out
    assert "item 3 " in shown and "item 9 " in shown and "not finite" in shown and f"{COUNT - 2} entries" in shown
