"""Columns of Arrow and Parquet, NumPy's files, folders, pandas: what is in them, and what does not go."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydrax_gpu import ArraySpec, DataGroup, Dataloader, SourceError, sources
from tests.source_files import npy_bytes

pa: Any = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq: Any = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
ipc: Any = pytest.importorskip("pyarrow.ipc", reason="pyarrow is not installed")

from hydrax_gpu.sources._columns import arrays_of, columns_of  # noqa: E402

ints, reals = st.integers(-100, 100), st.floats(width=32, allow_nan=False)


def lists_of(size: int, values: Any) -> Any:
    return st.lists(values, min_size=size, max_size=size)


COLUMNS: list[tuple[Any, Any]] = [
    (pa.int8(), ints), (pa.uint16(), st.integers(0, 9999)), (pa.int64(), ints), (pa.float32(), reals),
    (pa.float16(), st.integers(0, 100).map(np.float16)), (pa.bool_(), st.booleans()),
    (pa.string(), st.text(max_size=5)), (pa.large_binary(), st.binary(max_size=5)),
    (pa.binary(3), st.binary(min_size=3, max_size=3)), (pa.list_(pa.float32(), 2), lists_of(2, reals)),
    (pa.list_(pa.list_(pa.int16(), 2), 3), lists_of(3, lists_of(2, ints))), (pa.list_(pa.int32()), st.lists(ints)),
    (pa.large_list(pa.list_(pa.int32(), 2)), st.lists(lists_of(2, ints), max_size=3)),
    (pa.list_(pa.bool_(), 3), lists_of(3, st.booleans())), (pa.list_(pa.string()), st.lists(st.text(max_size=2))),
    (pa.dictionary(pa.int8(), pa.int32()), ints), (pa.struct([("a", pa.int8())]), st.fixed_dictionaries({"a": ints})),
    (pa.list_(pa.int32()), st.lists(st.none() | ints)), (pa.list_(pa.int32(), 2), lists_of(2, st.none() | ints)),
    (pa.null(), st.none()),
]  # fmt: skip


@given(st.data())
@settings(max_examples=100)
def test_values_of_every_type_are_what_arrow_says(data: st.DataObject) -> None:
    kind, values = data.draw(st.sampled_from(COLUMNS))
    items = data.draw(st.lists(st.none() | values, max_size=12))
    array = pa.array(items, kind)
    begin = data.draw(st.integers(0, len(items)))
    array = array[begin : data.draw(st.integers(begin, len(items)))]  # whose memory begins elsewhere
    expected = array.to_pylist()
    get = columns_of(pa.table({"c": array}))["c"]
    for row, wanted in enumerate(expected):
        try:
            got = get(row)
        except ValueError as error:
            assert wanted is None and "is null, and a number or an array was wanted" in str(error)
            continue
        if isinstance(got, np.ndarray):
            assert not got.flags.writeable
            got = bytes(got) if pa.types.is_fixed_size_binary(kind) else got.tolist()
        assert got == wanted or (got != got and wanted != wanted)


def test_columns_of_numbers_are_views_of_arrows_memory() -> None:
    flat = np.arange(12, dtype=np.float32)
    rows = pa.FixedSizeListArray.from_arrays(pa.array(flat), 3)
    ragged = pa.ListArray.from_arrays(pa.array([0, 5, 12, 12, 12], pa.int32()), pa.array(flat))
    columns = columns_of(pa.table({"plain": pa.array(flat[:4]), "rows": rows, "ragged": ragged}))
    assert [np.shares_memory(columns[name](1), flat) for name in ("rows", "ragged")] == [True, True]
    assert columns["ragged"](1).tolist() == [5, 6, 7, 8, 9, 10, 11]


def test_tensors_have_their_shape() -> None:
    values = np.arange(24, dtype=np.int16).reshape(4, 2, 3)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    table = pa.table({"t": tensors})
    np.testing.assert_array_equal(columns_of(table)["t"](2), values[2])
    assert arrays_of(table.schema) == {"t": ArraySpec((2, 3), np.dtype(np.int16), np.dtype(np.int16))}


def test_what_has_no_fixed_shape_is_not_declared() -> None:
    for kind in (pa.string(), pa.list_(pa.int8()), pa.timestamp("s"), pa.struct([("a", pa.int8())])):
        with pytest.raises(TypeError, match=r"column 'c' is .*, which has no fixed shape"):
            arrays_of(pa.schema([("c", kind)]))


def test_rows_over_more_row_groups_than_are_kept_are_reported(tmp_path: Path) -> None:
    pq.write_table(pa.table({"y": np.arange(64, dtype=np.int32)}), tmp_path / "a.parquet", row_group_size=4)
    for cache_bytes, again in ((1 << 20, False), (20, True)):
        source = sources.ParquetSource(tmp_path / "a.parquet", cache_bytes=cache_bytes)
        group = DataGroup(16, source, loader_arrays=source.arrays(), shuffle_first=True)
        with Dataloader(source.loader(), group, executor="inline", on_error="raise", end_at=("epoch", 2)) as loader:
            assert all(batch.arrays["y"].tolist() == list(batch.indices) for batch in loader)
        assert [("row group decoded again" in line) for line in loader.report().fallbacks] == [True] * again


def test_a_null_is_a_bad_item(tmp_path: Path) -> None:
    pq.write_table(pa.table({"y": pa.array([0, 1, None, 3], pa.int32())}), tmp_path / "a.parquet")
    source = sources.ParquetSource(tmp_path / "a.parquet")
    group = DataGroup(2, source, loader_arrays=source.arrays())
    with Dataloader(source.loader(), group, executor="inline", end_at=("epoch", 1)) as loader:
        assert [batch.arrays["y"].tolist() for batch in loader] == [[0, 1]]
    assert "part 0, row 2: column 'y' is null" in loader.report().bad[0].error


def test_damaged_tables_are_bad_items_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rng = np.random.default_rng(0)
    table = pa.table({"y": rng.integers(0, 1 << 30, 4000)})
    pq.write_table(table, path, row_group_size=1000, write_page_checksum=True, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    source = sources.ParquetSource(path)
    values = source.reader.read_rows([source[i] for i in range(0, 4000, 500)])
    bad = [i for i, value in enumerate(values) if isinstance(value, SourceError)]
    assert len(bad) == 2 and "cannot be decoded" in str(values[bad[0]])
    for end in (0, 3, 50, len(data) - 5):
        path.write_bytes(data[:end])
        for cls in (sources.ParquetSource, sources.ArrowSource):
            with pytest.raises(SourceError, match=r"it is no \w+ file, or damaged"):
                cls(path)


def test_columns_must_be_there_and_the_same_in_all_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": [1.5], "b": [2]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": pa.array([], pa.int8())}), tmp_path / "2.parquet")
    with pytest.raises(ValueError, match="there is no column 'c', only 'a', 'b'"):
        sources.ParquetSource(tmp_path / "0.parquet", ["c"])
    with pytest.raises(ValueError, match="wanted those of the first file"):
        sources.ParquetSource(tmp_path / "{0..1}.parquet")
    assert sources.ParquetSource(tmp_path / "{0..1}.parquet", ["b"]).load(1) == {"b": 2}
    with pytest.raises(TypeError, match=r"wanted several names, such as \['a'\]"):
        sources.ParquetSource(tmp_path / "0.parquet", "a")
    with pytest.raises(ValueError, match="got no row"):
        sources.ParquetSource(tmp_path / "2.parquet")


class FakeFeatures(dict[str, Any]):
    @property
    def arrow_schema(self) -> Any:
        return pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("y", pa.int32())])


class FakeDataset:
    """What is used of a `datasets.Dataset`, with an order of its own."""

    column_names = ("image", "y")
    features = FakeFeatures()

    def __init__(self, order: list[int], columns: list[str] | None = None) -> None:
        self.order, self.columns = order, columns

    def with_format(self, kind: str, columns: list[str]) -> FakeDataset:
        assert kind == "arrow"
        return FakeDataset(self.order, columns)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, numbers: list[int]) -> Any:
        rows = [self.order[number] for number in numbers]
        files = [{"bytes": None if row == 2 else b"%d" % row, "path": f"{row}.jpg"} for row in rows]
        table = pa.table({"image": files, "y": pa.array(rows, pa.int32())})
        return table.select(self.columns)


def test_hugging_faces_data_sets_are_read_as_arrow() -> None:
    source = sources.HuggingFaceSource(FakeDataset([3, 2, 0]))
    assert [source.load(i) for i in range(2)] == [{"image": b"3", "y": 3}, {"image": "2.jpg", "y": 2}]
    numbers = sources.HuggingFaceSource(FakeDataset([3, 2, 0]), columns=["y"])
    assert numbers.arrays() == {"y": ArraySpec((), np.dtype(np.int32), np.dtype(np.int32))}
    group = DataGroup(3, numbers, loader_arrays=numbers.arrays())
    with Dataloader(numbers.loader(), group, executor="inline", on_error="raise") as loader:
        assert next(loader).arrays["y"].tolist() == [3, 2, 0]
    with pytest.raises(ValueError, match="there is no column 'z'"):
        sources.HuggingFaceSource(FakeDataset([0]), columns=["z"])
    with pytest.raises(TypeError, match="one split"):
        sources.HuggingFaceSource({"train": FakeDataset([0])})


def test_a_real_data_set_of_hugging_face() -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face's datasets is not installed")
    dataset = datasets.Dataset.from_dict({"y": list(range(10))}).shuffle(seed=1).select(range(4))
    source = sources.HuggingFaceSource(dataset)
    assert [source.load(i)["y"] for i in range(4)] == [row["y"] for row in dataset]


# NumPy's files.


@given(
    st.sampled_from(["<f4", ">f4", "<i8", "|u1", "|b1", "<c8"]),
    st.lists(st.integers(1, 3), max_size=3),
    st.booleans(),
    st.integers(1, 5),
)
@settings(max_examples=40)
def test_rows_of_any_array(dtype: str, shape: list[int], fortran: bool, count: int) -> None:
    import tempfile

    array = np.arange(count * int(np.prod(shape, dtype=int))).reshape(count, *shape).astype(dtype)
    stored = np.asfortranarray(array) if fortran else array
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.npy").write_bytes(npy_bytes(stored))
        np.savez(Path(folder, "b.npz"), a=stored)
        for name in ("a.npy", "b.npz"):
            source = sources.NpySource(Path(folder, name))
            [spec] = source.arrays().values()
            rows = np.empty((count, *shape), spec.numpy_dtype)
            outcomes = source.reader.fill_rows(
                [source[i] for i in range(count)], [{"a": rows[i, ...]} for i in range(count)]
            )
            assert outcomes == [None] * count
            np.testing.assert_array_equal(rows, array)


def test_large_rows_are_read_straight_into_the_batch(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 255, (5, 4096 + 7), np.uint8)
    np.savez(tmp_path / "a.npz", x=array, y=array[:, :3])
    source = sources.NpySource(tmp_path / "a.npz")
    rows = np.zeros_like(array)
    mapped = source.reader
    assert mapped.fill_rows([source[3]], [{"x": rows[0], "y": np.empty(3, np.uint8)}]) == [None]
    np.testing.assert_array_equal(rows[0], array[3])
    # in spite of the mapping, of which the rows that `read_rows` gives are views
    assert not mapped.read_rows([source[3]])[0]["x"].flags.writeable  # type: ignore[index]


def test_what_is_no_array_of_numbers_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}, 1], object), allow_pickle=True)
    np.save(tmp_path / "scalar.npy", np.float32(1))
    np.save(tmp_path / "three.npy", np.zeros(3))
    np.save(tmp_path / "four.npy", np.zeros(4))
    np.savez_compressed(tmp_path / "small.npz", x=np.zeros(100))
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "cut.npy").write_bytes(npy_bytes(np.zeros(100))[:-1])
    for files, message in (
        ("objects.npy", "it holds object"), ("scalar.npy", r"has shape \(\)"), ("text.npy", r"no file of numpy\.save"),
        ("cut.npy", "truncated: 927 bytes are there of 928"), ("small.npz", r"numpy\.savez and not"),
        ({"a": tmp_path / "three.npy", "b": tmp_path / "four.npy"}, "wanted one length"),
        ([{"a": tmp_path / "three.npy"}, {"b": tmp_path / "four.npy"}], "as in the first"),
        ([], "at least one"), ("s3://bucket/a.npy", "must be on this machine"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            sources.NpySource(tmp_path / files if isinstance(files, str) and "://" not in files else files)
    with pytest.raises(FileNotFoundError):
        sources.NpySource(tmp_path / "missing.npy")


# Folders.


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    tree(tmp_path, "b/2.jpg", "b/10.JPG", "B/z/1.png", "b a/1.jpg", "b/notes.txt", "top.jpg", ".git/1.jpg", "b/.x.jpg")
    source = sources.ImageFolder(tmp_path)
    assert source.classes == ("B", "b", "b a") and source.ignored == 2
    relative = [(os.path.relpath(path, tmp_path), label) for path, label in source]
    assert relative == [("B/z/1.png", 0), ("b/10.JPG", 1), ("b/2.jpg", 1), ("b a/1.jpg", 2)]
    assert source.load(1) == (b"b/10.JPG", 1)
    some = sources.ImageFolder(str(tmp_path) + "/", classes=["b a", "B"])
    assert [(os.path.relpath(path, tmp_path), label) for path, label in some] == [("b a/1.jpg", 0), ("B/z/1.png", 1)]
    flat = sources.ImageFolder(tmp_path, labels=False, extensions=None)
    assert [os.path.relpath(path, tmp_path) for path in flat] == [
        "B/z/1.png", "b a/1.jpg", "b/10.JPG", "b/2.jpg", "b/notes.txt", "top.jpg",
    ]  # fmt: skip
    assert flat.load(5) == b"top.jpg"


def test_folders_without_what_was_wanted_are_refused(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.txt", "b/1.jpg")
    with pytest.raises(ValueError, match="got no file for the classes a"):
        sources.ImageFolder(tmp_path, classes=["a", "b"])
    with pytest.raises(ValueError, match=r"got no file that ends with \.gif"):
        sources.ImageFolder(tmp_path, extensions=[".gif"])
    with pytest.raises(TypeError, match="wanted several"):
        sources.ImageFolder(tmp_path, extensions=".gif")
    with pytest.raises(FileNotFoundError):
        sources.ImageFolder(tmp_path / "missing")
    source = sources.ImageFolder(tmp_path)
    (tmp_path / "b/1.jpg").unlink()
    with pytest.raises(SourceError, match=r"1\.jpg: it cannot be read"):
        source.load(0)


def test_folders_of_fsspec(tmp_path: Path) -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    tree(tmp_path, "b/2.jpg", "a/1.jpg", ".x/1.jpg")
    source = sources.ImageFolder(f"local://{tmp_path}")
    assert [label for _, label in source] == [0, 1]
    assert source.reader.read_rows([source[1], source[0]]) == [(b"b/2.jpg", 1), (b"a/1.jpg", 0)]
    (tmp_path / "b/2.jpg").unlink()
    with pytest.raises(SourceError, match="it cannot be read"):
        source.load(1)


# pandas.


def row_to_arrays(row: Any, arrays: Any, seed: int | None) -> dict[str, Any]:
    """Uses a row as hydrax's scripts do."""
    arrays["y"][...] = row["y"]
    return {"label": row.name, "text": row["text"]}


def test_rows_of_a_frame() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    from hydrax_gpu.pandas import RowData

    frame = pandas.DataFrame({"y": range(6), "text": list("abcdef")}, index=[f"row {i}" for i in range(6)][::-1])
    rows = RowData(frame)
    assert len(rows) == 6 and rows.dataframe is frame
    assert rows[0]["text"] == "a" and rows[np.int64(-1)]["text"] == "f" and rows[0].name == "row 5"
    part = rows[1:5:2]
    assert isinstance(part, RowData) and [row["y"] for row in part] == [1, 3]
    for wrong in (6, -7):
        with pytest.raises(IndexError, match="the frame has 6"):
            rows[wrong]
    for wrong in ("y", True, 1.0):
        with pytest.raises(TypeError, match="wanted the number of a row or a slice"):
            rows[wrong]  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="wanted a pandas DataFrame"):
        RowData({"y": [1]})  # type: ignore[arg-type]
    group = DataGroup(3, rows, loader_arrays={"y": ((), np.int32, np.int32)}, shuffle_first=True)
    with Dataloader(row_to_arrays, group, on_error="raise", end_at=("epoch", 1)) as loader:
        for batch in loader:
            assert batch.arrays["y"].tolist() == list(batch.indices)
            assert [batch.data[i]["text"] for i in range(3)] == list(batch.additional["text"])
            assert list(batch.additional["label"]) == [f"row {5 - i}" for i in batch.indices]


def test_pandas_is_not_imported_by_the_package() -> None:
    import subprocess

    code = "import hydrax_gpu, hydrax_gpu.sources, sys; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 0
